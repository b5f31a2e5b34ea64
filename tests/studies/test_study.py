import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mister_e_hf.studies.study import MAJORITY, derived_systems, is_robust
from mister_e_hf.studies.study_reader import read_study
from support.small_study import VARIANTS, fail, remove, rewrite, write_study


@pytest.fixture
def out(tmp_path) -> Path:
    return write_study(tmp_path / "study")


def change_settings(out: Path, name: str = "study.yaml", **changes):
    settings = yaml.safe_load((out / name).read_text())
    (out / name).write_text(yaml.safe_dump(settings | changes, sort_keys=False))


def test_a_complete_study_is_read(out):
    study = read_study(out)
    assert study.corpus == "IEMOCAP" and study.frozen["git_commit"] == "f0f0f0" and study.problems == []
    assert set(study.stages) == {"development", "final"} and study.latest.name == "final"
    development, final = study.stages["development"], study.stages["final"]
    assert [len(stage.labels) for stage in (development, final)] == [120, 60]
    derived = ["speech_expert_of_full", "text_expert_of_full", "fusion_expert_of_full", MAJORITY]
    assert list(final.systems) == ["full", *derived, *list(VARIANTS)[1:]]
    full = development.systems["full"]
    assert full.predictions.shape == (3, 120) and full.probabilities.shape == (3, 120, 6)
    assert full.gate_weights.shape == (3, 120, 3) and full.temperatures.shape == (3, 120)
    assert [len(runs) for runs in full.results] == [2, 2, 2]
    assert full.robustness["start cut", 0.5].shape == (3, 1, 120) and full.robustness["noise", 2.0].shape == (
        3,
        2,
        120,
    )
    alone = development.systems["speech_expert_only"]
    assert list(alone.heads) == ["speech"] and alone.gate_weights is None and not alone.robustness
    assert list(development.views()) == [""]


def test_folds_are_joined_in_the_order_of_the_first_run(out):
    """The folds hold every other dialogue."""
    stage = read_study(out).stages["development"]
    table = pa.concat_tables(
        [pq.read_table(out / f"development/full/seed-0/fold-{fold}/predictions.parquet") for fold in range(2)]
    )
    assert stage.dialogues.tolist() == table["dialogue_id"].to_pylist()
    names = ["happy", "sad", "neutral", "angry", "excited", "frustrated"]
    assert [None if label < 0 else names[label] for label in stage.labels] == table["label"].to_pylist()


def test_turns_in_another_order_are_reordered(out):
    before = read_study(out).stages["final"].systems["full"]
    folder = out / "final" / "full" / "seed-1"
    shuffled = np.random.default_rng(0).permutation(60)
    rewrite(folder / "predictions.parquet", lambda c: {name: [v[i] for i in shuffled] for name, v in c.items()})
    rewrite(
        folder / "robustness.parquet",
        lambda c: c | {"predictions": [[p[i] for i in shuffled] for p in c["predictions"]]},
    )
    after = read_study(out).stages["final"].systems["full"]
    np.testing.assert_array_equal(before.predictions, after.predictions)
    np.testing.assert_array_equal(before.gate_weights, after.gate_weights)
    for key, values in before.robustness.items():
        np.testing.assert_array_equal(values, after.robustness[key])


def test_scores_give_a_view_without_zeros(tmp_path):
    stage = read_study(write_study(tmp_path / "study", corpus="CMU-MOSI", final=False)).latest
    views = stage.views()
    assert list(views) == ["", " without zeros"]
    left_out = (views[" without zeros"] == -100) & (views[""] != -100)
    assert left_out.any() and (stage.scores[left_out] == 0).all()
    stage.scores[:] = np.nan
    assert (stage.views()[" without zeros"] == -100).all()


def test_experts_of_the_full_model_and_their_majority(out):
    full = read_study(out).stages["final"].systems["full"]
    votes = np.array([[0, 1, 2, 3], [0, 1, 4, 5], [1, 1, 2, 4]])  # speech, text, fusion
    full.heads = {name: np.eye(6)[vote][None] for name, vote in zip(("speech", "text", "fusion"), votes, strict=True)}
    derived = derived_systems(full)
    assert derived["text_expert_of_full"].predictions.tolist() == [votes[1].tolist()]
    assert derived[MAJORITY].predictions.tolist() == [[0, 1, 2, 4]]  # two agree, all, two, none: fusion decides
    del full.heads["text"]
    assert list(derived_systems(full)) == [
        "speech_expert_of_full",
        "fusion_expert_of_full",
    ]
    full.gate_weights = None
    assert list(derived_systems(full)) == [
        "speech_head_of_full",
        "fusion_head_of_full",
    ]
    del full.heads["speech"]
    assert derived_systems(full) == {}


def test_the_last_head_decides_a_tied_vote(out):
    full = read_study(out).stages["final"].systems["full"]
    votes = np.array([[0, 0, 1, 5], [0, 1, 1, 4], [1, 0, 3, 3], [1, 1, 2, 2]])
    full.heads = {str(number): np.eye(6)[vote][None] for number, vote in enumerate(votes)}
    assert derived_systems(full)[MAJORITY].predictions.tolist() == [[1, 1, 1, 2]]


# What is not there


def test_missing_failed_and_unfinished_runs_are_problems(out):
    remove(out / "final/baseline_mult")
    fail(out / "final/without_contrastive/seed-1", "ValueError: the loss is NaN")
    fail(out / "development/full/seed-2/fold-1", "MemoryError")
    (out / "development/full/seed-0/fold-0/predictions.parquet").unlink()
    remove(out / "development/without_contrastive/seed-1")
    study = read_study(out)
    assert study.problems == [
        "development/full/seed-0/fold-0: not finished",
        "development/full/seed-2/fold-1: failed: MemoryError",
        "development/without_contrastive/seed-1: not run",
        "final/without_contrastive/seed-1: failed: ValueError: the loss is NaN",
        "final/baseline_mult: not run",
    ]
    development, final = study.stages["development"].systems, study.stages["final"].systems
    assert development["full"].seeds == [1] and development[MAJORITY].seeds == [1]
    assert development["without_contrastive"].seeds == final["without_contrastive"].seeds == [0, 2]
    assert "baseline_mult" not in final


def test_curves_may_be_missing_for_some_seeds(out):
    (out / "final/full/seed-1/robustness.parquet").unlink()
    study = read_study(out)
    assert study.problems == ["final/full: no robustness.parquet for seed 1"]
    full = study.stages["final"].systems["full"]
    assert full.robustness_seeds == [0, 2] and full.robustness["noise", 0.5].shape == (2, 2, 60)


def test_a_stage_without_a_finished_seed_is_left_out(out):
    for variant in VARIANTS:
        remove(out / "final" / variant)
    assert list(read_study(out).stages) == ["development"]
    remove(out / "development")
    with pytest.raises(ValueError, match="No seed in .* is finished"):
        read_study(out)


# What does not fit


def test_a_folder_without_a_study_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="no study.yaml"):
        read_study(tmp_path)
    (tmp_path / "study.yaml").write_text("seeds: [0]")
    with pytest.raises(ValueError, match="lacks folds, recipe, variants"):
        read_study(tmp_path)
    (tmp_path / "study.yaml").write_text("{seeds: [0], folds: 2, variants: {}, recipe: {corpus: {name: a}}}")
    with pytest.raises(ValueError, match="lacks recipe.corpus.labels"):
        read_study(tmp_path)


def cut(columns: dict, count: int) -> dict:
    return {name: values[:-count] for name, values in columns.items()}


PREDICTIONS = {
    "another turn": (
        lambda c: c | {"utterance_id": ["new", *c["utterance_id"][1:]]},
        "utterance 'new' of dialogue 'test0'",
    ),
    "a turn twice": (
        lambda c: c | {"utterance_id": ["u1", *c["utterance_id"][1:]]},
        "utterance 'u1' .* more than once",
    ),
    "fewer turns": (
        lambda c: cut(c, 2),
        "lacks 2 turns that other runs have, first utterance 'u8' of dialogue 'test5'",
    ),
    "another label": (lambda c: c | {"label": [None, *c["label"][1:]]}, "label of utterance 'u0' of dialogue 'test0'"),
    "an unknown class": (
        lambda c: c | {"prediction": ["joy", *c["prediction"][1:]]},
        r"prediction \['joy'\] is not one of",
    ),
    "a column less": (lambda c: {name: v for name, v in c.items() if name != "label"}, "lacks the columns label"),
    "another width": (lambda c: c | {"probabilities": [[0.5, 0.5]] * 60}, "probabilities must hold 6 numbers"),
}


@pytest.mark.parametrize(("change", "message"), PREDICTIONS.values(), ids=PREDICTIONS)
def test_errors_name_predictions_that_do_not_fit(out, change, message):
    rewrite(out / "final/without_contrastive/seed-1/predictions.parquet", change)
    if "lacks 2" in message:  # the curves beside it are those of more turns
        assert not (out / "final/without_contrastive/seed-1/robustness.parquet").exists()
    with pytest.raises(ValueError, match=f"without_contrastive/seed-1/predictions.parquet'.*{message}"):
        read_study(out)


def test_errors_name_folds_with_missing_or_other_turns(out):
    path = out / "development/without_contrastive/seed-1/fold-1/predictions.parquet"
    rewrite(path, lambda c: cut(c, 1))
    with pytest.raises(ValueError, match="without_contrastive/seed-1' lacks 1 turns"):
        read_study(out)
    rewrite(path, lambda c: c | {"dialogue_id": ["new", *c["dialogue_id"][1:]]})
    with pytest.raises(ValueError, match="fold-1/predictions.parquet': utterance 'u0' of dialogue 'new'"):
        read_study(out)


def test_errors_name_damaged_files(out):
    path = out / "final/full/seed-0/results.json"
    stored = path.read_text()
    path.write_text(stored[:20])
    with pytest.raises(ValueError, match="full/seed-0/results.json' is not a JSON file"):
        read_study(out)
    results = json.loads(stored) | {"calibration": {}}
    results.pop("digests")
    path.write_text(json.dumps(results))
    assert np.isnan(read_study(out).stages["final"].systems["full"].temperatures[0]).all()
    path.with_name("predictions.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match="full/seed-0/predictions.parquet' is not a Parquet table"):
        read_study(out)


def test_errors_name_curves_that_do_not_fit(out):
    path = out / "final/full/seed-1/robustness.parquet"
    stored = path.read_bytes()
    rewrite(path, lambda c: c | {"predictions": [p[1:] for p in c["predictions"]]})
    with pytest.raises(ValueError, match="seed-1/robustness.parquet': 59 predictions .* has 60 turns"):
        read_study(out)
    path.write_bytes(stored)
    rewrite(path, lambda c: cut(c, 1))
    with pytest.raises(ValueError, match="robustness.parquet of one seed holds other curves"):
        read_study(out)


def test_language_models_do_not_predict_damaged_input():
    assert is_robust("full", {"model": {"hidden_size": 8}}) and not is_robust("baseline_mult", {"model": {}})
    assert not is_robust("full", {"model": {"hidden_size": 8, "language_model": "a/model"}})
