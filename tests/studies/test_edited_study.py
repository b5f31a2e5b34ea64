"""Studies whose files were edited, swapped or copied after the runs are refused, and the message names the file."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mister_e_hf.studies.study_reader import read_study
from support.small_study import write_study

RUN, OTHER = "final/full/seed-0", "final/full/seed-1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("whole") / "study", seeds=2, dialogues=6)


@pytest.fixture
def out(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "study")


def settings(name: str, change):
    def apply(out: Path):
        content = yaml.safe_load((out / name).read_text())
        change(content)
        (out / name).write_text(yaml.safe_dump(content))

    return apply


def results(change, run: str = RUN):
    def apply(out: Path):
        path = out / run / "results.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def table(column: str, change, name: str = "predictions.parquet", noted: bool = False):
    """Change a column; with `noted`, the hash that the run left is changed along, as a careful hand would."""

    def apply(out: Path):
        path = out / RUN / name
        content = pq.read_table(path)
        values = change(content[column].to_pylist())
        pq.write_table(content.set_column(content.column_names.index(column), column, pa.array(values)), path)
        if noted:
            results(lambda content: content.pop("digests"))(out)

    return apply


def swapped(*names: str, other: str = OTHER):
    def apply(out: Path):
        for name in names:
            one, two = (out / RUN / name).read_bytes(), (out / other / name).read_bytes()
            (out / RUN / name).write_bytes(two)
            (out / other / name).write_bytes(one)

    return apply


def copied(out: Path):
    shutil.rmtree(out / OTHER)
    shutil.copytree(out / RUN, out / OTHER)


def copied_and_renumbered(out: Path):
    copied(out)
    settings(f"{OTHER}/run.yaml", lambda record: record.update(seed=1))(out)
    results(lambda content: (content.update(seed=1), content.pop("digests")), OTHER)(out)


NAN = float("nan")
CHANGES = {
    "the recipe of what is frozen": (
        settings("frozen.yaml", lambda v: v["variants"]["full"].update(model={"hidden_size": 999})),
        "frozen.yaml': the recipe of 'full' differs from study.yaml in model",
    ),
    "both recipes": (
        lambda out: [
            settings(name, change)(out)
            for name, change in (
                ("frozen.yaml", lambda v: v["variants"]["full"].update(model={"hidden_size": 999})),
                ("study.yaml", lambda v: v["variants"]["full"]["recipe"].update(model={"hidden_size": 999})),
            )
        ],
        "run.yaml' has another recipe than the study's 'full' .*model",
    ),
    "the data": (
        settings("study.yaml", lambda v: v["data_fingerprints"].update(train="zz")),
        "fingerprint of train differs",
    ),
    "a copied seed": (copied, "seed-1/results.json' records seed 0, but is in the folder of seed 1"),
    "a copied seed with another number": (copied_and_renumbered, "seed-1' holds the same probabilities as seed-0"),
    "a swapped table": (swapped("predictions.parquet"), "predictions.parquet' is not the file that the run left"),
    "swapped results of another system": (
        swapped("predictions.parquet", "results.json", other="final/without_contrastive/seed-0"),
        "run.yaml' is not the file that the run left",
    ),
    "a swapped fold": (
        lambda out: (
            (out / "development/full/seed-0/fold-0").rename(out / "x"),
            (out / "development/full/seed-0/fold-1").rename(out / "development/full/seed-0/fold-0"),
            (out / "x").rename(out / "development/full/seed-0/fold-1"),
        ),
        r"run.yaml' records fold \[1, 2\], but is in the folder of fold \[0, 2\]",
    ),
    "a better score": (
        results(lambda v: v["test"]["mixture"].update(weighted_f1=0.99)),
        "records the weighted F1 0.99, but the predictions beside it have",
    ),
    "probabilities a little": (
        table("probabilities", lambda v: [[(1 - 1e-6) * one + 1e-6 / 6 for one in row] for row in v]),
        "not the file that the run left",
    ),
    "predictions, noted": (
        table("prediction", lambda v: ["happy"] * len(v), noted=True),
        "not the class of the highest probability",
    ),
    "probabilities of NaN": (table("probabilities", lambda v: [[NAN] * 6 for _ in v], noted=True), "hold NaN"),
    "probabilities of 2": (table("probabilities", lambda v: [[2.0] * 6 for _ in v], noted=True), "sum to 1"),
    "probabilities in words": (
        table("probabilities", lambda v: [["x"] * 6 for _ in v], noted=True),
        "numbers in 'prob",
    ),
    "gate weights of NaN": (
        table("gate_weights", lambda v: [[NAN] * 3 for _ in v], noted=True),
        "gate_weights hold NaN",
    ),
    "robustness of another seed": (
        swapped("robustness.parquet"),
        r"robustness.parquet': without damage \d+ of \d+ predictions are not those of predictions.parquet beside it",
    ),
    "robustness of class 99": (
        table("predictions", lambda v: [[99] * len(v[0]) for _ in v], "robustness.parquet"),
        "class indices from -1 to 5",
    ),
    "robustness without turns": (
        table("predictions", lambda v: [[-1] * len(v[0]) for _ in v], "robustness.parquet"),
        "there for all turns, since only 'start cut' leaves some out",
    ),
    "a temperature of 0": (
        results(lambda v: v["calibration"].update(temperature=0)),
        "must be a positive number, got 0",
    ),
    "a history of words": (results(lambda v: v.update(history="x")), "results.json': history must hold numbers"),
    "results that are a list": (
        lambda out: (out / RUN / "results.json").write_text("[]"),
        "results.json' must hold names",
    ),
    "seeds of null": (settings("study.yaml", lambda v: v.update(seeds=None)), "study.yaml': seeds must be"),
    "a seed twice": (settings("study.yaml", lambda v: v.update(seeds=[0, 0])), "study.yaml': seeds must be different"),
    "variants as a list": (
        settings("study.yaml", lambda v: v.update(variants=["full"])),
        "study.yaml': variants must hold",
    ),
    "a variant elsewhere": (
        settings("study.yaml", lambda v: v["variants"].update({"../../x": v["variants"]["full"]})),
        "must be named as folders of the study, got '../../x'",
    ),
    "runs of an unknown variant": (
        settings("study.yaml", lambda v: v.update(asked={"final": {"other": [0]}})),
        r"study.yaml': asked.final must hold variants with some of the seeds of the study, got other: \[0\]",
    ),
    "runs of another seed": (
        settings("study.yaml", lambda v: v.update(asked={"final": {"full": [7]}})),
        r"asked.final must hold variants .*, got full: \[7\]",
    ),
    "no YAML": (lambda out: (out / "study.yaml").write_text("a: ["), "study.yaml' is not valid YAML"),
}


def test_an_unchanged_study_is_read(out):
    assert read_study(out).problems == []


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_an_edited_study_is_refused(out, change, message):
    change(out)
    with pytest.raises(ValueError, match=message):
        read_study(out)


def test_a_run_without_a_record_is_a_problem(out):
    (out / RUN / "run.yaml").unlink()
    results(lambda content: content.pop("digests"))(out)
    assert read_study(out).problems == ["final/full/seed-0: no run.yaml, so its recipe and seed cannot be checked"]
