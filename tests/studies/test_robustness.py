import numpy as np
import pytest
import torch

from mister_e_hf.evaluation.predictions import predict
from mister_e_hf.studies.robustness import CUT_SHARES, NOISE_LEVELS, SHARES, robustness_table
from mister_e_hf.training.evaluate import scoring_trainer
from mister_e_hf.vectors.store import VectorColumn
from support.model_contract import small_model
from support.session_vectors import split
from support.toy_model import registered_toy, toy_split


@pytest.fixture
def trainer_of(tiny_model, tmp_path):
    def make(seed: int = 0):
        model = tiny_model(torch.float32, seed, speech_embedding_dim=4, text_embedding_dim=4)
        return scoring_trainer(model, tmp_path, use_cpu=True)

    return make


def rows(table) -> dict[tuple[str, float, int], np.ndarray]:
    return {(row["curve"], row["level"], row["draw"]): np.array(row["predictions"]) for row in table.to_pylist()}


def test_curves_have_every_level_and_draw(trainer_of):
    data = split("train")
    found = rows(robustness_table(trainer_of(), data, draws=3))
    curves = {name: SHARES for name in ("speech removed", "text removed", "both removed")}
    curves |= {name: NOISE_LEVELS for name in ("noise", "noise in speech", "noise in text")}
    curves |= {"start cut": CUT_SHARES}
    assert {(curve, level) for curve, level, _ in found} == {
        (c, level) for c, levels in curves.items() for level in levels
    }
    assert all(len(predictions) == data.num_turns for predictions in found.values())
    assert {draw for curve, level, draw in found if (curve, level) == ("noise", 1.0)} == {0, 1, 2}
    assert {draw for curve, level, draw in found if (curve, level) == ("start cut", 0.4)} == {0}


def test_curves_are_of_the_modalities_that_the_model_reads(tiny_model, tmp_path):
    model = tiny_model(torch.float32, experts=["text"], speech_embedding_dim=4, text_embedding_dim=4)
    found = rows(robustness_table(scoring_trainer(model, tmp_path, use_cpu=True), split("train"), draws=1))
    assert {curve for curve, *_ in found} == {"text removed", "noise", "start cut"}
    assert (found["noise", 4.0, 0] != found["noise", 0.0, 0]).any()


def test_no_damage_gives_the_model_s_own_predictions(trainer_of):
    data, trainer = split("train"), trainer_of()
    plain = predict(trainer, data)["mixture"].argmax(-1)
    for (_, level, _), predictions in rows(robustness_table(trainer, data, draws=1)).items():
        if level == 0:
            np.testing.assert_array_equal(predictions, plain)


@pytest.mark.parametrize(("curve", "gone"), [("speech removed", ["speech"]), ("both removed", ["speech", "text"])])
def test_removing_a_modality_from_all_turns_equals_a_split_without_it(trainer_of, curve, gone):
    data, trainer = split("train"), trainer_of()
    found = rows(robustness_table(trainer, data, draws=1))[curve, 1.0, 0]
    without = split("train")
    for modality in gone:
        without.present[modality] = np.zeros(data.num_turns, dtype=bool)
        without.vectors[modality] = VectorColumn([torch.full((data.num_turns, 4), torch.nan)])
    np.testing.assert_array_equal(found, predict(trainer, without)["mixture"].argmax(-1))


def test_turns_that_are_cut_off_are_neither_predicted_nor_seen(trainer_of):
    data, trainer = split("train"), trainer_of()
    found = rows(robustness_table(trainer, data, draws=1))["start cut", 0.4, 0]
    expected = []
    for number in range(len(data)):
        gone, item = int(0.4 * data.lengths[number]), data[number]
        with torch.no_grad():
            logits = trainer.model(**{name: values[gone:][None] for name, values in item.items()}).logits
        expected += [-1] * gone + logits[0].argmax(-1).tolist()
    np.testing.assert_array_equal(found, expected)


def test_damage_is_the_same_for_every_model_and_differs_between_draws(trainer_of, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "mister_e_hf.studies.robustness.predict",
        lambda trainer, data: seen.append([item["speech_mask"] for item in data]) or predict(trainer, data),
    )
    data = split("train")
    for seed in (0, 1):
        robustness_table(trainer_of(seed), data, draws=2)
    half = len(seen) // 2
    masks = [[torch.cat(each) for each in part] for part in (seen[:half], seen[half:])]
    assert all(torch.equal(one, other) for one, other in zip(*masks, strict=True))
    assert not torch.equal(masks[0][3], masks[0][4])  # two draws of the same share


def test_every_subset_of_three_modalities_is_removed(tmp_path):
    with registered_toy():
        data, trainer = toy_split("train"), scoring_trainer(small_model("toy", torch.float32), tmp_path, use_cpu=True)
        found = rows(robustness_table(trainer, data, draws=1))
        assert {curve for curve, *_ in found} == {
            *("speech removed", "text removed", "visual removed"),
            *("speech and text removed", "speech and visual removed", "text and visual removed", "all removed"),
            *("noise", "noise in speech", "noise in text", "noise in visual", "start cut"),
        }
        without = toy_split("train")
        without.present["text"] = np.zeros(data.num_turns, dtype=bool)
        without.transcripts = [[None] * length for length in data.lengths]
        expected = predict(trainer, without)["mixture"].argmax(-1)
        np.testing.assert_array_equal(found["text removed", 1.0, 0], expected)
        cut = found["start cut", 0.4, 0]
        assert (cut[: int(0.4 * data.lengths[0])] == -1).all() and (cut >= 0).any()


def test_a_start_with_all_scores_of_a_target_can_be_cut(tmp_path):
    data = split("train")
    data.labels, data.label2id = np.full((data.num_turns, 2), np.nan, np.float32), {"valence": 0, "activation": 1}
    data.labels[:, 0], data.labels[0, 1] = 1.0, 2.0
    names = {"problem_type": "regression", "id2label": {0: "valence", 1: "activation"}}
    model = small_model("bc_lstm", torch.float32, speech_embedding_dim=4, text_embedding_dim=4, **names)
    found = robustness_table(scoring_trainer(model, tmp_path, use_cpu=True), data, draws=1).to_pylist()
    assert {row["level"] for row in found if row["curve"] == "start cut"} == set(CUT_SHARES)
    assert all(len(row["predictions"]) == data.num_turns for row in found)
