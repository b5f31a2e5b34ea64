"""Studies of models that predict scores and read three modalities, run on a small corpus."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from mister_e_hf import Recipe  # noqa: E402
from mister_e_hf.base.errors import InputError  # noqa: E402
from mister_e_hf.evaluation.predictions import predict  # noqa: E402
from mister_e_hf.models.registry import baselines  # noqa: E402
from mister_e_hf.studies.ablation import ablate  # noqa: E402
from mister_e_hf.studies.measures import ScoreMeasures  # noqa: E402
from mister_e_hf.studies.prediction_files import read_robustness  # noqa: E402
from mister_e_hf.studies.report.method import provenance  # noqa: E402
from mister_e_hf.studies.report.page import write_report  # noqa: E402
from mister_e_hf.studies.report.sections import report_sections  # noqa: E402
from mister_e_hf.studies.robustness import CUT_SHARES, NOISE_LEVELS, SHARES, robustness_table  # noqa: E402
from mister_e_hf.studies.runs import Run, run_on_fold  # noqa: E402
from mister_e_hf.studies.search import format_trials, search  # noqa: E402
from mister_e_hf.studies.study_reader import read_study  # noqa: E402
from mister_e_hf.studies.variants import variants_of  # noqa: E402
from mister_e_hf.training.experiment import train_model  # noqa: E402
from support.small_scores import score_recipe, visual_recipe, write_score_corpus  # noqa: E402

ALL = ["speech", "text", "visual"]
MOSI = Path(__file__).parents[3] / "shared" / "data" / "mosi"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_score_corpus(tmp_path_factory.mktemp("scores"), {"train": 12, "validation": 6, "test": 4})


@pytest.fixture(scope="module")
def recipe(corpus) -> Recipe:
    """MulT of three modalities and two targets."""
    return visual_recipe(corpus, "--num_train_epochs", "1")


@pytest.fixture(scope="module")
def study(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study")
    variants = ["full", "baseline_bc_lstm"]
    assert ablate(recipe, out, [0], folds=2, variants=variants, jobs=2, report=lambda line: None) == []
    return out


def test_a_study_of_three_modalities_is_reported(study):
    page = write_report(study).read_text()
    assert "Text and visual removed: MAE" in page and "share of turns without any modality" in page
    found = read_study(study)
    stage = found.stages["development"]
    assert stage.labels.shape[1] == 2 and np.isnan(stage.labels).any()
    assert stage.systems["full"].predictions.shape == (1, *stage.labels.shape)
    assert yaml.safe_load((study / "study.yaml").read_text())["modalities"] == ALL
    assert "visual vectors" in provenance(found)
    tables = {table.name: table for table in report_sections(found)[0].tables}
    removed = [cells[0] for cells in tables["removed_modalities"].cells()]
    assert removed == [
        *ALL,
        "speech and text",
        "speech and visual",
        "text and visual",
        "all",
    ]
    assert [record["target"] for record in tables["coverage"].records] == ["valence", "activation"]
    assert all(record["missing"] for record in tables["coverage"].records)
    results = json.loads((study / "development/full/seed-0/fold-0/results.json").read_text())
    assert {"mae", "corr", "ccc", "by_target"} <= set(results["held out"]["mixture"])


def test_baselines_read_what_the_model_reads_beyond_them(recipe):
    found = variants_of(recipe)
    read = {name: list(each.recipe.model_config().modalities) for name, each in found.items()}
    assert read["full"] == read["baseline_bc_lstm"] == read["baseline_logistic_regression"] == ALL
    assert read["baseline_sdt"] == ["speech", "text"]
    assert read["without_visual"] == ["speech", "text"] and read["without_text"] == ["speech", "visual"]
    assert all(each.recipe.regression for each in found.values())
    assert {f"without_{name}" for name in ALL} <= set(found)


def test_a_recipe_says_what_its_baselines_read(corpus):
    words = ["--baselines.mult.model.modalities", *ALL]
    found = variants_of(score_recipe(corpus, *words))
    config = found["baseline_mult"].recipe.model_config()
    assert list(config.modalities) == ALL and config.visual_embedding_dim == 6
    assert list(found["full"].recipe.model_config().modalities) == ["speech", "text"]
    for name in {each.name for each in baselines()} - {"mult"}:
        assert list(found[f"baseline_{name}"].recipe.model_config().modalities) == ["speech", "text"]


def test_what_only_classes_have_is_not_varied(corpus):
    found = variants_of(score_recipe(corpus))
    of_classes = {"cross_entropy", "without_class_weights", "without_contrastive", "without_consistency"}
    of_classes |= {"without_both_terms", "with_contrastive", "with_consistency", "with_focal_loss"}
    assert not of_classes & set(found)
    assert {"gate_mean", "text_expert_only", "concatenation", "causal", "huber"} <= set(found)
    for each in found.values():
        assert each.recipe.model_config().task == "regression"


@pytest.fixture(scope="module")
def trainer(recipe, tmp_path_factory):
    splits = recipe.read_corpus()
    arguments = recipe.training_arguments(tmp_path_factory.mktemp("run"), 0)
    return train_model(recipe, arguments, splits["train"], splits["validation"])[0], splits["validation"]


def test_every_subset_is_removed_and_every_modality_gets_noise(trainer, tmp_path):
    model, data = trainer
    table = robustness_table(model, data, draws=1)
    pq.write_table(table, tmp_path / "robustness.parquet")
    curves: dict[str, set] = {}
    for row in table.to_pylist():
        curves.setdefault(row["curve"], set()).add(row["level"])
    removed = {name: set(SHARES) for name in curves if name.endswith("removed")}
    noisy = {name: set(NOISE_LEVELS) for name in ("noise", *(f"noise in {name}" for name in ALL))}
    assert len(removed) == 7 and curves == removed | noisy | {"start cut": set(CUT_SHARES)}
    plain = predict(model, data)["mixture"]
    for row in table.to_pylist():
        if row["level"] == 0:
            np.testing.assert_array_equal(np.array(row["predictions"], dtype=np.float32), plain)
    measures = ScoreMeasures(["valence", "activation"])
    beside = {"label": data.labels, "prediction": plain}
    found = read_robustness(tmp_path / "robustness.parquet", beside, measures)
    assert found is not None and found["start cut", 0.4].shape == (1, data.num_turns, 2)
    with pytest.raises(InputError, match="without damage .* of .* predictions are not those of predictions.parquet"):
        read_robustness(tmp_path / "robustness.parquet", beside | {"prediction": -plain}, measures)
    cut = np.isnan(found["start cut", 0.4][0]).all(-1)
    starts = np.concatenate([np.arange(length) < int(0.4 * length) for length in data.lengths])
    np.testing.assert_array_equal(cut, starts)
    alone, gone = found["noise in visual", 4.0], found["visual removed", 1.0]
    assert (alone != plain).any() and (gone != plain).any()


def test_a_search_prefers_less_error(recipe, tmp_path):
    options = {"systems": ["logistic_regression"], "folds": 2, "jobs": 2, "report": lambda line: None}
    found = search(recipe, tmp_path / "search", 2, **options)
    first, second = found["logistic_regression"]
    assert first["mae"] <= second["mae"]
    unit, line, *_ = format_trials(found).splitlines()
    assert unit.startswith("MAE of all held-out turns, less is better") and f"{first['mae']:.4f}" in line
    assert json.loads((tmp_path / "search/search.json").read_text()) == found
    tables = [
        pq.read_table(tmp_path / f"search/logistic_regression/trial-{first['trial']}/fold-{fold}/predictions.parquet")
        for fold in range(2)
    ]
    rows = pa.concat_tables(tables).to_pylist()
    labels = np.array([row["label"] for row in rows], dtype=np.float64)
    errors = np.abs(np.array([row["prediction"] for row in rows]) - labels)
    assert first["mae"] == pytest.approx(np.nanmean(errors, axis=0).mean(), abs=1e-5)


@pytest.mark.shared
def test_scores_of_cmu_mosi_are_held_out_once(tmp_path):
    """One fold of the development data, with a linear model that learns in two epochs."""
    sections = {
        "model": {"model_type": "erc_logistic_regression", "speech_embedding_dim": 73, "text_embedding_dim": 768},
        "corpus": {"path": str(MOSI), "targets": {"sentiment": "labels"}, "score_bins": "mosi"},
        "training": {"num_train_epochs": 2, "learning_rate": 2e-3, "use_cpu": True, "disable_tqdm": True},
    }
    recipe = Recipe(sections)
    run = Run("mosi", recipe.to_dict(), 0, tmp_path / "fold-0", fold=0, folds=4)
    run_on_fold(recipe, run)
    scores = json.loads((tmp_path / "fold-0/results.json").read_text())["held out"]["mixture"]
    assert scores["mae"] < 1.3 and scores["corr"] > 0.4 and scores["acc2_has0"] > 0.6
    assert 300 < scores["num_utterances"] < 450
