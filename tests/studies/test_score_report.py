"""Reports of studies whose systems predict scores of targets."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from mister_e_hf.base.errors import InputError  # noqa: E402
from mister_e_hf.evaluation.regression import regression_scores  # noqa: E402
from mister_e_hf.studies.report.figures import table_figures  # noqa: E402
from mister_e_hf.studies.report.page import write_report  # noqa: E402
from mister_e_hf.studies.report.regression_tables import round_edges  # noqa: E402
from mister_e_hf.studies.report.results_page import main_table, write_results  # noqa: E402
from mister_e_hf.studies.report.sections import report_sections, stage_tables  # noqa: E402
from mister_e_hf.studies.study_reader import read_study  # noqa: E402
from support.small_study import CURVES, fail, rewrite, write_study  # noqa: E402

TARGETS = ["valence", "arousal"]
TABLES = ["main", "ablations", "splits", "targets", "seeds", "coverage", "predicted", "error_by_true_score"]
TABLES += ["gate_by_true_score", "gate_by_closest_expert", "removed_modalities", "robustness", "learning", "cost"]
PLOTS = {
    "predicted": 2,
    "error_by_true_score": 2,
    "gate_by_true_score": 1,
    "gate_by_closest_expert": 1,
    "robustness": 5,
    "learning": 2,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    out = write_study(tmp_path_factory.mktemp("scores") / "study", corpus="two targets", targets=TARGETS)
    write_report(out)
    return out


@pytest.fixture(scope="module")
def mosi(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "mosi"
    return write_study(folder, "CMU-MOSI", seeds=2, dialogues=6, final=False, targets=["sentiment"], bins="mosi")


@pytest.fixture
def small(tmp_path) -> Path:
    return write_study(tmp_path / "study", seeds=2, dialogues=4, final=False, targets=TARGETS)


def tables_of(folder: Path) -> dict:
    return {table.name: table for table in report_sections(read_study(folder))[0].tables}


def test_a_study_of_scores_has_its_tables_and_plots(out):
    tables = tables_of(out)
    assert list(tables) == [*TABLES, "systems"]
    plots = {name: len(list(table_figures(table))) for name, table in tables.items()}
    assert {name: count for name, count in plots.items() if count} == PLOTS
    page = (out / "report.html").read_text()
    assert page.count("<svg") == sum(PLOTS.values())
    for word in ("confusion", "calibration", "confidence", "emotion by row"):
        assert word not in page.lower()
    assert "concordance correlation of Lin (1989)" in page and "The tests are of MAE." in page
    report = json.loads((out / "report.json").read_text())
    assert "visual vectors" not in report["provenance"] and report["missing"] == []


def test_scores_equal_the_metrics(out):
    study = read_study(out)
    stage, full = study.latest, study.latest.systems["full"]
    runs = [regression_scores(stage.labels, values, TARGETS) for values in full.predictions]
    tables = {table.name: table for table in stage_tables(study, stage)}
    main = tables["main"].records[0]
    for score in ("mae", "corr", "ccc"):
        values = [run[score] for run in runs]
        assert main[score] == pytest.approx(np.mean(values))
        assert main[f"{score}_sd"] == pytest.approx(np.std(values, ddof=1))
        assert main[f"{score}_low"] < main[score] < main[f"{score}_high"]
        of_seeds = [row[score] for row in tables["seeds"].records if row["system"] == "full"]
        assert of_seeds == pytest.approx(values)
        own = [row for row in tables["targets"].records if row["system"] == "full"]
        assert [row["target"] for row in own] == TARGETS
        assert [row[score] for row in own] == pytest.approx(
            [np.mean([run["by_target"][target][score] for run in runs]) for target in TARGETS]
        )
    cells = dict(zip(tables["main"].columns, tables["main"].cells()[0], strict=True))
    assert cells["MAE"] == f"{main['mae']:.3f} ± {main['mae_sd']:.3f}" and cells["N"] == "60"


def test_less_error_is_better(out):
    study = read_study(out)
    tables = {table.name: table for table in stage_tables(study, study.latest)}
    rows = {row["system"]: row for row in tables["main"].records}
    worst = rows["baseline_logistic_regression"]
    assert worst["mae"] > rows["full"]["mae"] and worst["full_minus_system"] < 0 and worst["p_holm"] < 0.05
    assert rows["full"]["p_holm"] is None
    verdicts = {row["system"]: row["verdict"] for row in tables["ablations"].records}
    assert verdicts["speech_expert_only"] == "worse than full"
    assert verdicts["without_contrastive"] == "no difference shown"


def test_heads_and_their_mean_are_systems(out):
    systems = read_study(out).latest.systems
    heads = [systems[f"{name}_expert_of_full"].predictions for name in ("speech", "text", "fusion")]
    np.testing.assert_allclose(systems["mean_of_experts"].predictions, np.mean(heads, axis=0))
    assert systems["mean_of_experts"].kind == "derived"


def test_turns_without_a_score_are_counted_and_left_out(out):
    valence, arousal = tables_of(out)["coverage"].records
    assert (valence["turns"], valence["missing"], arousal["missing"]) == (54, 6, 0)
    labels = read_study(out).latest.labels
    assert valence["mean"] == pytest.approx(np.nanmean(labels[:, 0]))
    assert valence["sd"] == pytest.approx(np.nanstd(labels[:, 0]))


def test_predicted_and_error_tables_count_every_scored_turn(out):
    tables, stage = tables_of(out), read_study(out).latest
    for target, turns in zip(TARGETS, (54, 60), strict=True):
        cells = [row for row in tables["predicted"].records if row["target"] == target]
        assert sum(row["turns"] for row in cells) == 3 * turns
        errors = [row for row in tables["error_by_true_score"].records if row["target"] == target]
        assert sum(row["turns"] for row in errors) == turns
        place = TARGETS.index(target)
        distance = np.abs(stage.systems["full"].predictions[..., place] - stage.labels[:, place])
        mean = sum(row["turns"] * row["mae"] for row in errors) / turns
        assert mean == pytest.approx(np.nanmean(distance))
        first, last = errors[0], errors[-1]
        is_first = stage.labels[:, place] < first["true_to"]
        own = stage.systems["full"].predictions[:, is_first, place]
        assert first["predicted_median"] == pytest.approx(np.median(own))
        share = np.mean((own >= first["predicted_low"]) & (own <= first["predicted_high"]))
        assert share == pytest.approx(0.8, abs=0.1) and first["predicted_high"] < last["predicted_low"]


def test_long_tables_are_named_in_markdown_and_complete_in_the_page(out):
    text, records = (out / "report.md").read_text(), tables_of(out)["predicted"].records
    assert f"Its {len(records)} rows are in `tables/final-predicted.csv` and in `report.html`." in text
    assert max(len(part.splitlines()) for part in text.split("\n\n")) <= 32
    with (out / "tables/final-predicted.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(records)


def test_gate_weights_sum_to_one_in_every_group(out):
    tables = tables_of(out)
    for name in ("gate_by_true_score", "gate_by_closest_expert"):
        for row in tables[name].records:
            assert row["speech"] + row["text"] + row["fusion"] == pytest.approx(1)
    closest = tables["gate_by_closest_expert"].records
    assert sum(row["turns"] for row in closest) == pytest.approx(60)
    assert {row["group"] for row in closest} == {"speech", "text", "fusion"}


def test_curves_of_damaged_input_are_errors(out):
    tables = tables_of(out)
    rows = {(row["curve"], row["level"], row["system"]): row for row in tables["robustness"].records}
    assert len(rows) == 2 * sum(len(levels) + 1 for levels in CURVES.values())
    for curve in CURVES:
        assert rows[curve, 0.0, "full"]["mae"] == pytest.approx(tables["main"].records[0]["mae"])
    assert rows["noise", 2.0, "full"]["mae"] > rows["noise", 0.5, "full"]["mae"]
    stage = read_study(out).latest
    later = np.arange(60) % 10 >= 5
    errors = np.abs(stage.systems["full"].predictions[:, later] - stage.labels[later])
    assert rows["start cut", 0.5, "full"]["uncut"] == pytest.approx(np.nanmean(errors, axis=1).mean())
    removed = tables["removed_modalities"]
    assert [cells[0] for cells in removed.cells()] == ["speech", "text", "both"] * 2
    assert list(removed.columns)[2:] == ["0 %", "25 %", "50 %", "100 %"]


def test_bins_of_one_target_have_a_table(mosi):
    tables = tables_of(mosi)
    assert "targets" not in tables
    study = read_study(mosi)
    stage = study.latest
    runs = [regression_scores(stage.labels, v, ["sentiment"], "mosi") for v in stage.systems["full"].predictions]
    first = tables["bins"].records[0]
    for score in ("acc7", "acc5", "acc3", "acc2_has0", "f1_has0", "acc2_non0", "f1_non0"):
        assert first[score] == pytest.approx(np.mean([run[score] for run in runs]))
    assert list(tables["bins"].columns)[1:4] == ["Acc-7", "Acc-5", "Acc-3"]


def test_results_say_which_columns_are_errors(out, mosi, tmp_path):
    emotions = write_study(tmp_path / "classes", seeds=2, dialogues=4, final=False)
    path = write_results([emotions, out, mosi], tmp_path / "RESULTS.md")
    header = main_table([read_study(folder) for folder in (emotions, out, mosi)]).splitlines()[2]
    assert header == "| system | IEMOCAP, development | two targets, MAE | CMU-MOSI, development, MAE |"
    assert "mean absolute error (MAE) where scores are predicted" in path.read_text()


def test_csv_files_hold_the_scores_as_they_are(out):
    with (out / "tables/final-main.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["mae"]) == pytest.approx(tables_of(out)["main"].records[0]["mae"])


def change_settings(folder: Path, change):
    settings = yaml.safe_load((folder / "study.yaml").read_text())
    change(settings)
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))


def test_a_study_has_one_task(small):
    def add_classes(settings):
        settings["variants"]["full"]["recipe"]["corpus"] = {"labels": ["sad", "joy"]}

    change_settings(small, add_classes)
    with pytest.raises(InputError, match="full has classes, but the study the targets .*: the variants of a study"):
        read_study(small)


def test_predictions_of_the_other_task_are_refused(small, tmp_path):
    classes = write_study(tmp_path / "classes", seeds=2, dialogues=4, final=False)
    run = "development/full/seed-0/fold-0"
    (small / run / "predictions.parquet").write_bytes((classes / run / "predictions.parquet").read_bytes())
    with pytest.raises(InputError, match="holds predictions of a classification, but the study is a regression"):
        read_study(small)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prediction", [1.0], "prediction must hold 2 numbers per turn"),
        ("prediction", [1.0, float("nan")], "prediction hold NaN or infinity"),
        ("gate_weights", [0.5, 0.6, 0.7], "gate_weights of turn 0 must be from 0 to 1 and sum to 1"),
    ],
)
def test_damaged_predictions_of_scores_are_refused(small, column, value, message):
    path = small / "development/full/seed-0/fold-0/predictions.parquet"
    columns = pq.read_table(path).to_pydict()
    columns[column][0] = value
    if len(value) == 1:
        columns[column] = [value for _ in columns[column]]
    pq.write_table(pa.table(columns), path)
    results = json.loads((path.parent / "results.json").read_text())
    (path.parent / "results.json").write_text(json.dumps(results | {"digests": {}}))
    with pytest.raises(InputError, match=message):
        read_study(small)


def test_another_error_than_that_of_the_predictions_is_refused(small):
    path = small / "development/full/seed-0/fold-0/results.json"
    results = json.loads(path.read_text())
    results["held out"]["mixture"]["mae"] = 0.01
    path.write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"records the MAE 0.01, but the predictions beside it have \d"):
        read_study(small)


def test_a_study_without_its_full_model_has_gaps(small):
    for path in (small / "development/full").glob("seed-*/fold-*"):
        fail(path, "no memory")
    write_report(small)
    missing = json.loads((small / "report.json").read_text())["missing"]
    for title in (
        "Predicted against true scores of the full model",
        "Predictions and error of the full model by true score",
    ):
        assert f"Development: {title}: the full model has no finished seed" in missing


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-3, 3, [-3, -2, -1, 0, 1, 2, 3]), (1, 5, np.arange(1, 5.1, 0.5)), (-0.97, 1.0, np.arange(-1, 1.1, 0.2))],
)
def test_edges_are_round_numbers(low, high, expected):
    np.testing.assert_allclose(round_edges(np.array([low, high]), 10), expected, atol=1e-9)


def test_edges_of_a_constant_surround_it():
    assert round_edges(np.array([2.0, 2.0]), 5).tolist() == [1.5, 2.5]


def test_a_target_with_one_scored_turn_is_reported(small):
    """It has no correlation, most draws of dialogues lack it, and nothing is left of it once the start is cut off."""

    def keep_one_score(columns):
        turns = zip(columns["dialogue_id"], columns["utterance_id"], columns["label"], strict=True)
        return columns | {"label": [[one, two if (d, u) == ("dev0", "u0") else None] for d, u, (one, two) in turns]}

    for path in small.rglob("predictions.parquet"):
        rewrite(path, keep_one_score)
    write_report(small)
    stored = json.loads((small / "report.json").read_text())["stages"]["development"]
    curves = {row["curve"] for row in stored["robustness"]["records"] if row["level"] > 0}
    assert curves == set(CURVES) - {"start cut"}
    row = next(row for row in stored["targets"]["records"] if row["target"] == "arousal")
    assert row["mae"] is not None and row["corr"] is None
