"""A report is about the variants and seeds that the study was asked for."""

import json
import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from mister_e_hf.studies.report.page import write_report  # noqa: E402
from mister_e_hf.studies.report.results_page import write_results  # noqa: E402
from support.small_study import KINDS, fail, remove, write_study  # noqa: E402


def study_of(folder: Path, asked: dict[str, list[int]], **options) -> Path:
    """A study that was asked for these variants with these seeds alone."""
    out = write_study(folder / "study", seeds=2, dialogues=4, final=False, **options)
    for variant in KINDS:
        for seed in {0, 1} - set(asked.get(variant, [])):
            if (runs := out / "development" / variant / f"seed-{seed}").is_dir():
                remove(runs)
    settings = yaml.safe_load((out / "study.yaml").read_text())
    (out / "study.yaml").write_text(yaml.safe_dump(settings | {"asked": {"development": asked}}, sort_keys=False))
    return out


def report(out: Path) -> dict:
    write_report(out)
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("targets", [None, ["valence", "arousal"]], ids=["classes", "scores"])
def test_variants_that_were_never_asked_for_are_left_out(tmp_path, targets):
    out = study_of(tmp_path, {"full": [0, 1], "baseline_mult": [0]}, targets=targets)
    found = report(out)
    tables = found["stages"]["development"]
    assert found["missing"] == [] and "ablations" not in tables
    systems = {row["system"]: row for row in tables["systems"]["records"] if row["kind"] != "derived"}
    assert list(systems) == ["full", "baseline_mult"] == [row["system"] for row in tables["cost"]["records"]]
    assert [systems["baseline_mult"][name] for name in ("seeds", "planned_seeds")] == [1, 1]
    text = (out / "report.md").read_text()
    assert "not run" not in text and "| – | – | – | – | – | – |" not in text
    assert "Holm's correction is over the baselines" in text
    assert "ablation" not in write_results([out], tmp_path / "RESULTS.md").read_text().lower().split("## how")[0]


def test_runs_that_were_asked_for_and_are_missing_are_named(tmp_path):
    asked = {"full": [0, 1], "without_contrastive": [0, 1], "baseline_mult": [0, 1]}
    out = study_of(tmp_path, asked)
    remove(out / "development/baseline_mult")
    fail(out / "development/without_contrastive/seed-1/fold-0", "MemoryError")
    found = report(out)
    assert found["missing"] == [
        "development/without_contrastive/seed-1/fold-0: failed: MemoryError",
        "development/baseline_mult: not run",
    ]
    rows = {row["system"]: row for row in found["stages"]["development"]["systems"]["records"]}
    assert rows["baseline_mult"]["seeds_without_a_result"] == "0, 1"


@pytest.mark.parametrize("targets", [None, ["valence"]], ids=["classes", "scores"])
def test_a_study_of_baselines_has_no_table_of_the_full_model(tmp_path, targets):
    out = study_of(tmp_path, {"baseline_mult": [0, 1]}, targets=targets)
    found = report(out)
    assert found["missing"] == []
    text = (out / "report.md").read_text()
    assert "full model" not in text.split("## How the scores were computed")[0]
    assert re.search("^### The baselines$", text, flags=re.MULTILINE)


def test_a_run_that_is_not_recorded_but_there_counts(tmp_path):
    """Two calls at the same time may each record their own variants alone."""
    out = study_of(tmp_path, {"full": [0, 1], "baseline_mult": [1]})
    settings = yaml.safe_load((out / "study.yaml").read_text())
    del settings["asked"]["development"]["baseline_mult"]
    (out / "study.yaml").write_text(yaml.safe_dump(settings))
    rows = {row["system"]: row for row in report(out)["stages"]["development"]["systems"]["records"]}
    assert [rows["baseline_mult"][name] for name in ("seeds", "planned_seeds")] == [1, 1]
