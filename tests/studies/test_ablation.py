import json
import multiprocessing
import shutil
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModel

from mister_e_hf import Recipe, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.encoders.embedding import RECORD
from mister_e_hf.models import registry
from mister_e_hf.models.registry import entry
from mister_e_hf.studies.ablation import ablate
from mister_e_hf.studies.report.method import method
from mister_e_hf.studies.report.page import write_report
from mister_e_hf.studies.study import LABEL_LEAKAGE
from mister_e_hf.studies.study_reader import read_study
from support.demo_recipe import DEMO, SHORT
from support.own_model import OWN

VARIANTS = ["full", "gate_mean", "baseline_logistic_regression"]


def recipe(corpus: Path, *words: str) -> Recipe:
    return Recipe.load(DEMO, ["--corpus", str(corpus), *SHORT, *words])


def run(corpus: Path, out: Path, *words: str, **options) -> tuple[list[str], list[str]]:
    """Names of the failed runs, and the lines of progress."""
    lines = []
    settings = {"seeds": [0], "folds": 2, "variants": VARIANTS, "jobs": 2} | options
    return ablate(recipe(corpus, *words), out, **settings, report=lines.append), lines


@pytest.fixture(scope="module")
def study(demo_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study")
    assert run(demo_folder, out)[0] == []
    return out


def test_a_new_study_records_what_it_was_asked_for(study):
    asked = yaml.safe_load((study / "study.yaml").read_text())["asked"]["development"]
    assert list(asked) == VARIANTS and all(0 in seeds for seeds in asked.values())


def test_folds_score_every_development_turn_once_and_no_turn_of_test(study, demo_folder):
    corpus = recipe(demo_folder).read_corpus()
    development = {name for split in ("train", "validation") for ids in corpus[split].utterance_ids for name in ids}
    for variant in VARIANTS:
        folder = study / "development" / variant / "seed-0"
        tables = [pq.read_table(folder / f"fold-{fold}" / "predictions.parquet") for fold in (0, 1)]
        scored = [name for table in tables for name in table["utterance_id"].to_pylist()]
        assert sorted(scored) == sorted(development)
        for fold in (0, 1):
            results = json.loads((folder / f"fold-{fold}" / "results.json").read_text())
            assert results["best_epoch"] is None  # the last one counts
            assert results["history"][-1]["eval_weighted_f1"] == results["held out"]["mixture"]["weighted_f1"]
            assert results["peak_memory_bytes"] > 2**20
            assert "test" not in results["data_fingerprints"]
    assert not (study / "final").exists()
    assert not (study / "frozen.yaml").exists()
    assert (study / "development/full/seed-0/fold-1/robustness.parquet").is_file()


def test_finished_runs_are_skipped_and_failures_reported(study, demo_folder, tmp_path):
    failed, lines = run(demo_folder, study)
    assert (failed, lines) == ([], ["6 of 6 runs are finished already"])
    folder = study / "development" / "gate_mean" / "seed-0" / "fold-1"
    stored = (folder / "run.yaml").read_text()
    results = (folder / "results.json").read_bytes()
    (folder / "run.yaml").write_text(stored.replace("seed: 0", "seed: 7"))
    (folder / "results.json").unlink()
    failed, lines = run(demo_folder, study, seeds=[0, 1], variants=["gate_mean"])
    assert failed == ["gate_mean seed 0 fold 1"]
    assert [
        line
        for line in lines
        if "FAILED" in line and "seed is 7 there and 0 here" in line and "fold-1/error.txt" in line
    ]
    assert (study / "development/gate_mean/seed-1/fold-0/results.json").is_file()
    (folder / "run.yaml").write_text(stored)
    failed, lines = run(demo_folder, study, variants=["gate_mean"])
    assert (failed, len(lines)) == ([], 2)
    assert not (folder / "error.txt").exists()
    assert json.loads((folder / "results.json").read_text())["held out"] == json.loads(results)["held out"]
    assert yaml.safe_load((study / "study.yaml").read_text())["seeds"] == [0, 1]


def test_a_study_resumes_whatever_words_describe_its_variants(study, demo_folder, tmp_path):
    out = shutil.copytree(study, tmp_path / "study")
    settings = yaml.safe_load((out / "study.yaml").read_text())
    settings["variants"]["gate_mean"]["description"] = "in the words of another version"
    (out / "study.yaml").write_text(yaml.safe_dump(settings))
    assert run(demo_folder, out) == ([], ["6 of 6 runs are finished already"])


def test_a_study_of_an_older_version_resumes_with_its_own_variants(study, demo_folder, tmp_path):
    out = shutil.copytree(study, tmp_path / "study")
    settings = yaml.safe_load((out / "study.yaml").read_text())
    del settings["variants"]["causal"], settings["modalities"]
    (out / "study.yaml").write_text(yaml.safe_dump(settings))
    assert run(demo_folder, out) == ([], ["6 of 6 runs are finished already"])
    assert "causal" not in yaml.safe_load((out / "study.yaml").read_text())["variants"]
    with pytest.raises(ValueError, match="Unknown variant 'causal'"):
        run(demo_folder, out, variants=["causal"])


def test_a_study_records_what_it_was_asked_for(study, demo_folder, tmp_path):
    out = shutil.copytree(study, tmp_path / "study")
    for path in out.glob("development/*/seed-1"):  # another test may have asked for it
        shutil.rmtree(path)
    settings = yaml.safe_load((out / "study.yaml").read_text())
    asked = {variant: [0] for variant in VARIANTS}
    (out / "study.yaml").write_text(yaml.safe_dump(settings | {"seeds": [0], "asked": {"development": asked}}))
    run(demo_folder, out, variants=["gate_mean"], seeds=[0])
    assert yaml.safe_load((out / "study.yaml").read_text())["asked"] == {"development": asked}
    shutil.copytree(out / "development/gate_mean/seed-0", out / "development/gate_mean/seed-1")
    run(demo_folder, out, variants=["gate_mean"], seeds=[1])
    settings = yaml.safe_load((out / "study.yaml").read_text())
    assert settings["asked"] == {"development": asked | {"gate_mean": [0, 1]}}
    del settings["asked"]  # as an older version leaves it
    (out / "study.yaml").write_text(yaml.safe_dump(settings))
    run(demo_folder, out)
    assert "asked" not in yaml.safe_load((out / "study.yaml").read_text())


def test_a_study_with_other_settings_is_refused(study, demo_folder):
    with pytest.raises(ValueError, match="holds a study with other settings: recipe"):
        run(demo_folder, study, "--learning_rate", "1e-4")
    with pytest.raises(ValueError, match="holds a study with other settings: folds is 2 there and 3 here"):
        run(demo_folder, study, folds=3)
    with pytest.raises(
        ValueError, match="Unknown variant 'gate_maen'. Did you mean 'gate_mean'\\? Expected one of full,"
    ):
        run(demo_folder, study, variants=["gate_maen"])


def test_invalid_studies_are_refused(demo_folder, tmp_path):
    out = tmp_path / "study"
    with pytest.raises(ValueError, match="push_to_hub in a study"):
        run(demo_folder, out, "--push_to_hub", "true")
    with pytest.raises(ValueError, match="authors_split with --final"):
        run(demo_folder, out, "--corpus.name", "IEMOCAP", variants=["authors_split"])
    assert not out.exists()


def test_label_leakage_is_reported(demo_folder, tmp_path, caplog):
    corpus = shutil.copytree(demo_folder, tmp_path / "vectors")
    (corpus / RECORD).write_text("{}")  # as `mister-e embed` leaves it
    options = {"variants": ["baseline_logistic_regression"], "folds": 2}
    assert run(corpus, tmp_path / "study", **options)[0] == []
    assert caplog.messages == [LABEL_LEAKAGE]
    assert any(LABEL_LEAKAGE in text for text in method(read_study(tmp_path / "study")))
    run(demo_folder, tmp_path / "other", **options)
    assert caplog.messages == [LABEL_LEAKAGE]


def test_recipes_are_frozen_before_test_is_scored(demo_folder, tmp_path):
    out = tmp_path / "study"
    assert run(demo_folder, out, final=True)[0] == []
    frozen = yaml.safe_load((out / "frozen.yaml").read_text())
    assert frozen["date"].startswith("20")
    assert frozen["variants"]["gate_mean"]["model"]["gate"] == "mean"
    for variant in VARIANTS:
        folder = out / "final" / variant / "seed-0"
        AutoModel.from_pretrained(folder)
        assert not list(folder.glob("checkpoint-*"))
        assert "weighted_f1" in json.loads((folder / "results.json").read_text())["test"]["mixture"]
    assert (out / "final/full/seed-0/robustness.parquet").is_file()
    assert not (out / "development").exists()
    with pytest.raises(ValueError, match=r"was frozen on 20.* with the seeds \[0\]; got \[0, 1\]"):
        run(demo_folder, out, final=True, seeds=[0, 1])
    frozen["variants"]["gate_mean"]["model"]["gate_temperature"] = 1.0
    (out / "frozen.yaml").write_text(yaml.safe_dump(frozen))
    with pytest.raises(ValueError, match=r"was frozen on 20.* with other recipes"):
        run(demo_folder, out, final=True)


def test_a_crashed_run_does_not_stop_the_others(demo_folder, tmp_path):
    def kill_the_first():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    failed, lines = run(demo_folder, tmp_path / "study", variants=["baseline_logistic_regression"], jobs=1)
    killer.join()
    assert failed == ["baseline_logistic_regression seed 0 fold 0"]
    assert "the process ended with exit code -9" in lines[0]
    assert "done" in lines[1]


def test_the_commands_write_a_report(demo_folder, study, capsys):
    words = [str(DEMO), "--corpus", str(demo_folder), *SHORT, "--seeds", "0", "--folds", "2", "--variants", *VARIANTS]
    assert cli.main(["ablate", *words, "--out", str(study)]) == 0
    assert "runs are finished already" in capsys.readouterr().err
    assert cli.main(["ablate", *words, "--out", str(study), "--quiet", "--json"]) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out), shown.err) == ({"folder": str(study), "failed": []}, "")
    assert cli.main(["report", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [str(study / "report.html")]}
    assert "logistic regression" in (study / "report.md").read_text()
    assert cli.main(["ablate", *words, "--out", str(study), "--learning_rate", "1"]) == 2
    assert "other settings: recipe" in capsys.readouterr().err


def test_one_fold_trains_on_train_and_scores_validation(demo_folder, tmp_path):
    main = recipe(demo_folder).baseline("logistic_regression").changed({"training.num_train_epochs": 1})
    out = tmp_path / "study"
    assert ablate(main, out, [0], folds=1, variants=["full"], report=lambda line: None) == []
    found = pq.read_table(out / "development" / "full" / "seed-0" / "fold-0" / "predictions.parquet")
    validation = pq.read_table(demo_folder / "validation.parquet")
    assert found.column("dialogue_id").unique().to_pylist() == validation.column("dialogue_id").to_pylist()
    write_report(out)
    assert "each seed (0) is trained on train and predicts validation" in (out / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heads"), [("bc_lstm", []), ("sdt", ["speech", "text"])])
def test_a_study_of_any_registered_model_has_a_report(demo_folder, tmp_path, name, heads):
    main = recipe(demo_folder).baseline(name).changed({"training.num_train_epochs": 1})
    assert ablate(main, tmp_path / "study", [0], folds=2, variants=["full"], report=lambda line: None) == []
    write_report(tmp_path / "study")
    stage = json.loads((tmp_path / "study" / "report.json").read_text())["stages"]["development"]
    assert "gate_by_emotion" not in stage
    systems = [record["system"] for record in stage["main"]["records"] if record["seeds"]]
    assert systems == ["full", *(f"{head}_head_of_full" for head in heads)]
    assert {record["curve"] for record in stage["robustness"]["records"]} >= {"both removed", "noise", "start cut"}
    markdown = (tmp_path / "study" / "report.md").read_text()
    assert f"| {entry(name).title}, full |" in markdown
    assert not any(word in markdown for word in ("MiSTER-E", "expert"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "jobs must be a whole number from 1, got 0"),
        (["--folds", "0"], "folds must be a whole number from 1, got 0"),
        (["--seeds", "-1"], "seeds: expected whole numbers from 0"),
        (["--seeds", "1", "1"], "seeds: 1 appears twice"),
        (["--variants", "fulll"], "Unknown variant 'fulll'"),
        (["--learning_rate", "-1"], "learning_rate"),
        (["--model.num_attention_heads", "7"], "num_attention_heads"),
    ],
)
def test_wrong_options_are_refused_before_the_first_run(demo_folder, tmp_path, capsys, words, message):
    study = tmp_path / "study"
    assert cli.main(["ablate", str(DEMO), "--corpus", str(demo_folder), "--out", str(study), *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and not study.exists()


def test_a_study_is_not_written_into_its_corpus(demo_folder, capsys):
    words = ["--corpus", str(demo_folder), "--out", str(demo_folder / "study")]
    for command in (["ablate", str(DEMO)], ["search", str(DEMO), "--trials", "1"]):
        assert cli.main([*command, *words]) == 2 and "study" in capsys.readouterr().err
    assert cli.main(["search", str(DEMO), "--corpus", str(demo_folder), "--out", "x", "--trials", "0"]) == 2
    assert "trials must be a whole number from 1, got 0" in capsys.readouterr().err


FREEZES = ["", "[1]", "date: x\nseeds: [0]\n", "date: x\nseeds: [a]\nvariants: {}\n"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        *(("frozen.yaml", text, ["--final"]) for text in FREEZES),
        ("study.yaml", None, []),
        ("study.yaml", [0, "x"], []),
    ],
)
def test_errors_name_damaged_records(demo_folder, study, tmp_path, capsys, name, text, words):
    out = shutil.copytree(study, tmp_path / "out")
    if name == "study.yaml":
        text = yaml.safe_dump(yaml.safe_load((out / name).read_text()) | {"seeds": text})
    (out / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}'.*(seeds must be|must hold|lacks)"):
        run(demo_folder, out, final=bool(words))


def test_runs_know_a_model_that_the_user_registered(demo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    registry.register(OWN)
    sections = recipe(demo_folder).baseline("own").changed({"training.num_train_epochs": 1, "model.hidden_size": 16})
    assert ablate(sections, tmp_path / "study", [0], folds=2, variants=["narrow"], report=print) == []
    write_report(tmp_path / "study")
    assert "| narrow |" in (tmp_path / "study" / "report.md").read_text()
    assert read_study(tmp_path / "study").title("full") == "Own, full"
