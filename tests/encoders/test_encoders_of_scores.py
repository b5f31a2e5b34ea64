"""Encoders that predict scores: the loss, the scale of the targets, saving, and the labels of a split."""

import math

import datasets
import numpy as np
import pytest
import torch

from mister_e_hf import UtteranceEncoder
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.encoders.utterances import UtteranceCollator, Utterances
from support.encoder_checks import TUNINGS, assert_same, run, saved
from support.tiny_backbones import TEXTS, tiny_batch, tiny_encoder, tiny_processor

TARGETS = {0: "valence", 1: "activation"}
SCORES = torch.tensor([[0.5, math.nan], [math.nan, math.nan], [-3.0, 2.0]])


def encoder_of_scores(folder, kind="bert", **settings):
    encoder = tiny_encoder(folder, kind, id2label=TARGETS, problem_type="regression", **settings)
    encoder.target_scale.set_statistics(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    return encoder


@pytest.mark.parametrize("kind", ["l1", "huber"])
@pytest.mark.parametrize("num_items", [None, 7])
def test_the_loss_counts_the_scores_that_are_given(base, kind, num_items):
    encoder = encoder_of_scores(base("bert"), regression_loss=kind, huber_delta=0.75)
    output = run(encoder, tiny_batch(base("bert"), "bert"), labels=SCORES, num_items_in_batch=num_items)
    assert output.logits.shape == (3, 2)
    total = 0.0
    for row, target in ((0, 0), (2, 0), (2, 1)):
        error = abs(output.logits[row, target].item() - SCORES[row, target].item())
        small = kind == "huber" and error <= 0.75
        total += error**2 / 2 if small else error if kind == "l1" else 0.75 * (error - 0.375)
    assert output.loss.item() == pytest.approx(total / (num_items or 3), rel=1e-5)


def test_scores_are_in_the_labels_unit(base):
    encoder, batch = encoder_of_scores(base("bert")), tiny_batch(base("bert"), "bert")
    scaled = run(encoder, batch).logits
    encoder.target_scale.set_statistics(torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(
        scaled, torch.tensor([1.0, -2.0]) + torch.tensor([0.5, 3.0]) * run(encoder, batch).logits
    )


def test_a_target_that_does_not_vary_is_only_centred(base):
    encoder = encoder_of_scores(base("bert"))
    encoder.target_scale.set_statistics(torch.tensor([4.0, 1.0]), torch.tensor([0.0, 2.0]))
    assert encoder.target_scale.std.tolist() == [1.0, 2.0]


def test_a_loss_without_scores_is_zero(base):
    encoder = encoder_of_scores(base("bert"))
    loss = encoder(**tiny_batch(base("bert"), "bert"), labels=torch.full((3, 2), math.nan)).loss
    loss.backward()
    assert loss.item() == 0 and encoder.head.weight.grad.abs().max() == 0


def test_labels_of_classes_are_refused(base):
    with pytest.raises(ValueError, match="a score for each of valence, activation"):
        run(encoder_of_scores(base("bert")), tiny_batch(base("bert"), "bert"), labels=torch.tensor([0, 1, 0]))


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("kind", ["bert", "wavlm", "vit"])
def test_a_saved_encoder_of_scores_is_loaded_bit_equal(base, tmp_path, kind, tuning):
    encoder = encoder_of_scores(base(kind), kind, tuning=tuning, regression_loss="huber")
    loaded = UtteranceEncoder.from_pretrained(saved(encoder, tmp_path))
    assert_same(loaded, encoder, tiny_batch(base(kind), kind))
    assert loaded.config.task == "regression" and loaded.target_scale.mean.tolist() == [1.0, -2.0]


def test_the_scale_is_part_of_the_fingerprint(base):
    encoder = encoder_of_scores(base("bert"))
    before = encoder.fingerprint()
    encoder.target_scale.mean += 1
    assert encoder.fingerprint() != before


def test_an_encoder_of_classes_has_no_scale_and_its_old_fingerprint(base):
    encoder = tiny_encoder(base("bert"), "bert")
    assert not any("target_scale" in name for name in encoder.state_dict())
    before = encoder.fingerprint()
    encoder.config.huber_delta = 2.0
    assert encoder.fingerprint() == before


# The labels of a split


@pytest.fixture
def data() -> datasets.Dataset:
    features = dialogue_features(["joy"], ("valence", "activation"))
    blank = dict.fromkeys(features["utterances"].feature)
    scores = [(0.5, None), (None, None), (-3.0, 2.0)]
    turns = [
        blank | {"utterance_id": str(number), "text": text, "valence": valence, "activation": activation}
        for number, (text, (valence, activation)) in enumerate(zip(TEXTS, scores, strict=True))
    ]
    return datasets.Dataset.from_list([{"dialogue_id": "a", "utterances": turns}], features=features)


def test_targets_are_fields_of_a_turn(data):
    given = Utterances(data, "text", targets=["valence", "activation"])
    assert given.labels.dtype == np.float32
    np.testing.assert_array_equal(given.labels, SCORES.numpy())
    named = Utterances(data, "text", {"arousal": 1, "mood": 0}, targets={"arousal": "activation", "mood": "valence"})
    np.testing.assert_array_equal(named.labels, SCORES.numpy())  # in the model's order
    assert Utterances(data, "text", targets=["activation"], labelled_only=True).indices.tolist() == [2]
    assert Utterances(data, "text", targets=["valence", "activation"], labelled_only=True).indices.tolist() == [0, 2]


@pytest.mark.parametrize("field", ["dominance", "speaker"])
def test_a_target_that_is_not_a_number_is_refused(data, field):
    with pytest.raises(ValueError, match=rf"'{field}' is not one; there are: sentiment, valence, activation"):
        Utterances(data, "text", targets=[field])


@pytest.mark.parametrize("score", [math.inf, -1e30])
def test_a_score_that_is_too_large_is_refused(data, score):
    def put(row):
        turns = [turn | {"valence": score} for turn in row["utterances"]]
        return {"utterances": turns}

    with pytest.raises(ValueError, match=r"\['valence'\] hold an infinite score, or one beyond 1e.15"):
        Utterances(data.map(put), "text", targets=["valence"])


def test_a_batch_of_scores(data, base):
    given = Utterances(data, "text", targets=["valence", "activation"])
    batch = UtteranceCollator(tiny_processor(base("bert"), "bert"))([given[0], given[2]])
    assert batch["labels"].dtype == torch.float32
    torch.testing.assert_close(batch["labels"], SCORES[[0, 2]], equal_nan=True)
    assert run(encoder_of_scores(base("bert")), batch).loss.isfinite()
