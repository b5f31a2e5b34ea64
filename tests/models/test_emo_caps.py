"""EMO-Caps by itself; what every model keeps is in `test_contract.py`, the routing in `test_capsules.py`."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.losses import margin_loss
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.models.emo_caps.configuration_emo_caps import EmoCapsConfig
from mister_e_hf.models.registry import entry
from support.model_contract import (
    assert_same,
    assert_streams,
    gradients_of,
    outputs_of,
    small_batch,
    small_config,
    small_model,
    spread,
)

THREE = ["speech", "text", "visual"]
SCORES = {"id2label": {0: "valence", 1: "arousal"}, "problem_type": "regression", "num_anchors": 5}
SETTINGS = {
    "default": {},
    "without interactions": {"interactions": False},
    "dynamic": {"routing": "dynamic"},
    "margin": {"routing": "dynamic", "loss": "margin"},
    "detached": {"detach_routing": True, "num_routing": 3},
    "no recurrence": {"context": "none"},
    "recurrence after": {"context": "after"},
    "after, dynamic": {"context": "after", "routing": "dynamic"},
    "shallow": {"mapping_layers": 1, "num_layers": 2},
    "causal": {"causal": True},
    "three modalities": {"modalities": THREE},
    "scores": SCORES,
    "scores, dynamic, after": {**SCORES, "routing": "dynamic", "context": "after"},
}
settings = pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)


def model_of(**changes):
    return small_model("emo_caps", **changes)


def batch_of(model, **options):
    batch = small_batch(model.config, **options)
    if model.config.task == "regression":
        labels = torch.randn(*batch["labels"].shape, 2, generator=torch.Generator().manual_seed(1)).double()
        batch["labels"] = labels.masked_fill(~batch["attention_mask"][..., None], math.nan)
    return batch


def run(model, batch):
    with torch.no_grad():
        return model(**batch)


# What every setting keeps


@settings
def test_padding_and_what_is_absent_change_nothing(changes):
    model = model_of(**changes)
    batch = batch_of(model)
    places = [[1, 2, 4, 5, 6, 8, 9]] * 4
    expected, gradients, loss = outputs_of(model, batch), gradients_of(model, batch), model(**batch).loss
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    wide = spread(batch, places, 10, math.nan)
    found = {key: values[:, places[0]] for key, values in outputs_of(model, wide).items()}
    assert_same(found, expected)
    torch.testing.assert_close(model(**wide).loss, loss, rtol=0, atol=1e-10)
    assert_same(gradients_of(model, wide), gradients)


@settings
def test_outputs_name_routing_and_activations(changes):
    model = model_of(**changes)
    batch = batch_of(model)
    output, capsules = run(model, batch), model.config.capsules
    regression = model.config.task == "regression"
    parents = 2 * 5 if regression else 3
    real = batch["attention_mask"]
    assert output.routing_weights.shape == (4, 7, len(capsules), parents)
    assert output.capsule_activations.shape == output.capsule_weights.shape == (4, 7, len(capsules))
    shares = output.routing_weights.unflatten(-1, (2, 5) if regression else (1, 3)).sum(-1)[real]
    torch.testing.assert_close(shares, torch.ones_like(shares))
    for number, name in enumerate(capsules):
        there = real & torch.stack([batch[MODALITIES[each].mask] for each in name.split("+")]).all(0)
        assert torch.equal(output.capsule_activations[..., number] > 0, there)
        assert torch.equal(output.capsule_weights[..., number] > 0, there)
    if not regression:
        chosen = output.logits.argmax(-1)[..., None, None].expand(-1, -1, len(capsules), -1)
        parts = output.routing_weights.gather(-1, chosen).squeeze(-1) * output.capsule_activations
        total = parts.sum(-1, keepdim=True)
        torch.testing.assert_close(output.capsule_weights, (parts / total).nan_to_num())
    for values in (output.routing_weights, output.capsule_activations, output.capsule_weights):
        assert not values[~real].any()


@settings
def test_a_modality_that_is_nowhere_is_one_that_the_model_does_not_have(changes):
    three = model_of(**{**changes, "modalities": THREE})
    weights, batch = three.state_dict(), batch_of(three)
    for count in (1, 2):
        for kept in combinations(THREE, count):
            smaller = model_of(**{**changes, "modalities": list(kept)})
            own = smaller.config.capsules
            rows = [number for number, name in enumerate(three.config.capsules) if name in own]
            names = smaller.state_dict()
            taken = {
                name: weights[name][rows] if name in ("head.weight", "head.bias") else weights[name] for name in names
            }
            smaller.load_state_dict(taken)
            absent = {MODALITIES[each].mask: torch.zeros_like(batch["attention_mask"]) for each in {*THREE} - {*kept}}
            nan = {MODALITIES[each].embeddings: torch.full((4, 7, 9), math.nan) for each in {*THREE} - {*kept}}
            nan = {name: values[..., : batch[name].shape[-1]].double() for name, values in nan.items()}
            found, expected = run(three, {**batch, **absent, **nan}), run(smaller, batch)
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-10)
            torch.testing.assert_close(found.capsule_weights[..., rows], expected.capsule_weights, rtol=0, atol=1e-10)


@settings
def test_capsules_are_left_out_for_a_while(changes):
    model = model_of(**{**changes, "modalities": THREE})
    batch = batch_of(model)
    before = run(model, batch)
    removed = model.config.capsules[1:]
    with model.without_capsules(removed):
        found = run(model, batch)
        with model.without_capsules(["speech"]):
            nothing = run(model, batch)
        again = run(model, batch)
    assert torch.equal(again.logits, found.logits) and torch.equal(run(model, batch).logits, before.logits)
    assert not found.capsule_activations[..., 1:].any() and not nothing.capsule_weights.any()
    assert torch.equal(found.capsule_activations[..., 0], before.capsule_activations[..., 0])
    # as if there were the first capsule alone
    smaller = model_of(**{**changes, "modalities": ["speech"]})
    own, weights = smaller.state_dict(), model.state_dict()
    smaller.load_state_dict(
        {name: weights[name][:1] if name in ("head.weight", "head.bias") else weights[name] for name in own}
    )
    torch.testing.assert_close(run(smaller, batch).logits, found.logits, rtol=0, atol=1e-10)
    with pytest.raises(InputError, match=r"Unknown capsule 'voice'; expected one of speech, text, "):
        with model.without_capsules(["voice"]):
            pass


@settings
def test_whatever_the_setting_one_gradient_of_all(changes):
    model = model_of(**changes).train()
    for key, gradient in gradients_of(model, batch_of(model)).items():
        assert gradient.isfinite().all()
        # without a recurrence before, no turn sees the vector of an absent modality
        unseen = model.config.context != "before" and "null_embedding" in key
        assert gradient.any() or unseen or key.endswith("key.bias"), key


# Context


def test_turns_see_one_another_through_attention_and_recurrence():
    def influence(**changes) -> list[list[bool]]:
        model = model_of(**changes)
        batch = batch_of(model, lengths=[5], absent=0.0)
        batch["text_embeddings"].requires_grad_()
        rows = []
        for turn in range(5):
            (gradient,) = torch.autograd.grad(model(**batch).logits[0, turn].sum(), batch["text_embeddings"])
            rows.append(gradient[0].any(-1).tolist())
        return rows

    everything = [[True] * 5] * 5
    for context in ("none", "before", "after"):
        assert influence(context=context) == everything
        earlier = [[other <= turn for other in range(5)] for turn in range(5)]
        assert influence(context=context, causal=True) == earlier


def test_a_turn_is_attended_to_only_where_it_has_the_modality():
    model = model_of(context="none")
    batch = batch_of(model, lengths=[5], absent=0.0)
    batch["speech_mask"][0, 3] = False
    expected = run(model, batch)
    changed = {**batch, "speech_embeddings": batch["speech_embeddings"].clone()}
    changed["speech_embeddings"][0, 3] = math.nan
    torch.testing.assert_close(run(model, changed).logits, expected.logits, rtol=0, atol=0)
    # the vector of an absent turn is not seen, neither by others nor at that turn
    with torch.no_grad():
        model.backbone.speech_input.null_embedding += 1
    torch.testing.assert_close(run(model, batch).logits, expected.logits, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{"context": "none"}, {"context": "after", "num_layers": 2}, SCORES])
def test_a_stream_gives_what_the_whole_dialogue_gives(changes):
    assert_streams(model_of(**changes, causal=True, modalities=THREE))


# Heads


def test_logits_of_dynamic_routing_are_lengths():
    model = model_of(routing="dynamic")
    batch = batch_of(model)
    found = {}
    hook = model.head.register_forward_hook(lambda module, given, _: found.update(given=given))
    logits = run(model, batch).logits[batch["attention_mask"]]
    hook.remove()
    poses, activations, _ = found["given"]
    _, capsules, _ = model.head.route(poses, activations)
    lengths = capsules.squeeze(1).norm(dim=-1)
    seen = (activations > 0).any(0)
    torch.testing.assert_close(logits[seen].sigmoid(), lengths[seen])
    squares = lengths / (1 - lengths)  # n^2
    torch.testing.assert_close(logits[seen].softmax(-1), (squares / squares.sum(-1, keepdim=True))[seen])


def test_margin_loss_is_of_the_lengths():
    changes = {"margin_positive": 0.8, "margin_negative": 0.2, "margin_weight": 0.3, "class_weights": {"joy": 2.0}}
    model = model_of(routing="dynamic", loss="margin", **changes)
    batch = batch_of(model)
    output, real = run(model, batch), batch["attention_mask"]
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    expected = margin_loss(output.logits[real].sigmoid(), batch["labels"][real], 0.8, 0.2, 0.3, weights)
    torch.testing.assert_close(output.loss, expected)


def test_cross_entropy_is_weighted():
    model = model_of(class_weights={"joy": 2.0})
    batch = batch_of(model)
    output, real = run(model, batch), batch["attention_mask"]
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    expected = F.cross_entropy(output.logits[real], batch["labels"][real], weights, reduction="sum") / real.sum()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("routing", ["attention", "dynamic"])
def test_a_turn_without_any_modality_gets_the_prior(routing):
    model = model_of(routing=routing)
    batch = batch_of(model, lengths=[4], absent=1.0)
    logits = run(model, batch).logits[0]
    expected = model.head.prior if routing == "attention" else torch.full((3,), math.log(1e-12)).double()
    torch.testing.assert_close(logits, expected.expand(4, -1))


@pytest.mark.parametrize("routing", ["attention", "dynamic"])
def test_scores_are_between_the_anchors(routing):
    model = model_of(**SCORES, routing=routing)
    model.target_scale.set_statistics(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    batch = batch_of(model, absent=1.0)
    real = batch["attention_mask"]
    with torch.no_grad():
        if routing == "attention":
            model.head.prior.zero_()
        middle = run(model, batch).logits[real]  # evenly spread
        torch.testing.assert_close(middle, torch.tensor([1.0, -2.0]).double().expand_as(middle))
        if routing == "attention":
            model.head.prior[[4, 5]] += 1e3
            ends = run(model, batch).logits[real]
            torch.testing.assert_close(ends, torch.tensor([1 + 3 * 2.0, -2 - 3 * 0.5]).double().expand_as(ends))


def test_routing_is_in_float32_under_autocast():
    model = small_model("emo_caps", torch.float32)
    batch = small_batch(model.config, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert output.logits.dtype == output.routing_weights.dtype == torch.float32


# Configurations


def test_capsules_are_those_of_every_choice_of_modalities():
    pairs = ("speech+text", "speech+visual", "text+visual")
    assert small_config("emo_caps").capsules == ("speech", "text", "speech+text")
    assert small_config("emo_caps", modalities=THREE).capsules == (*THREE, *pairs, "speech+text+visual")
    assert small_config("emo_caps", modalities=THREE, interactions=False).capsules == tuple(THREE)
    assert small_config("emo_caps", modalities=["text"]).capsules == ("text",)
    assert small_config("mult").capsules == ()


WRONG = {
    "margin without lengths": ({"loss": "margin"}, "loss 'margin' is for classes and capsules of routing 'dynamic'"),
    "margin of scores": ({**SCORES, "loss": "margin", "routing": "dynamic"}, "loss 'margin' is for classes"),
    "no pass": ({"num_routing": 0}, "num_routing must be at least 1"),
    "too many passes": ({"num_routing": 11}, "num_routing must be at most 10, got 11"),
    "margins": ({"margin_negative": 0.95}, "expected 0 <= margin_negative < margin_positive <= 1, got 0.95 and 0.9"),
    "weight": ({"margin_weight": -1.0}, "margin_weight must be from 0 to 10,000, got -1.0"),
    "one anchor": ({**SCORES, "num_anchors": 1}, "num_anchors must be at least 2, got 1"),
    "heads": ({"num_attention_heads": 3}, "hidden_size must be even and a multiple of num_attention_heads"),
    "routing": ({"routing": "em"}, "routing"),
    "context": ({"context": "both"}, "context"),
    "no mapping": ({"mapping_layers": 0}, "mapping_layers must be at least 1"),
    "video without a width": ({"modalities": THREE, "visual_embedding_dim": None}, "visual_embedding_dim is not set"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_configuration_that_cannot_be_is_refused(changes, message):
    with pytest.raises(Exception, match=message):
        entry("emo_caps").model_class()(EmoCapsConfig(**changes))


def test_the_mapping_network_is_narrow_in_the_middle():
    widths = {1: [8], 2: [8, 8], 3: [8, 8, 8], 4: [8, 4, 8, 8], 5: [8, 4, 4, 8, 8]}
    for layers, expected in widths.items():
        mapping = model_of(mapping_layers=layers).backbone.emoformers["text"].mapping
        assert [each.out_features for each in mapping if hasattr(each, "out_features")] == expected
