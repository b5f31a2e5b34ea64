"""EGMF's fusion by itself; what every model keeps is in `test_contract.py`."""

import math
from itertools import combinations

import pytest
import torch

from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.models.ablations import EGMF_FUSION
from mister_e_hf.models.egmf.configuration_egmf_fusion import FUSION_EXPERTS, EgmfFusionConfig
from mister_e_hf.models.registry import entry
from support.model_contract import (
    assert_same,
    assert_streams,
    gradients_of,
    outputs_of,
    rows_of,
    small_batch,
    small_config,
    small_model,
    spread,
)

THREE = ["speech", "text", "visual"]
SCORES = {"id2label": {0: "valence", 1: "arousal"}, "problem_type": "regression"}
SETTINGS = {
    "default": {},
    "three modalities": {"modalities": THREE},
    **{f"{name} alone": {"experts": [name], "modalities": THREE} for name in FUSION_EXPERTS},
    "two experts": {"experts": ["local", "global"]},
    "no neighbours": {"kernel_sizes": [1]},
    "wide, deep": {"kernel_sizes": [3, 7], "num_layers": 2},
    "causal": {"causal": True, "modalities": THREE},
    "mean of modalities": {"modality_gate": "mean", "modalities": THREE},
    "mean of experts": {"expert_gate": "mean"},
    "means": {"modality_gate": "mean", "expert_gate": "mean"},
    "balanced": {"balance_weight": 0.5, "gate_temperature": 2.0},
    "scores": {**SCORES, "balance_weight": 0.5},
}
settings = pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)


def model_of(**changes):
    return small_model("egmf_fusion", **changes)


def batch_of(model, **options):
    batch = small_batch(model.config, **options)
    if model.config.task == "regression":
        labels = torch.randn(*batch["labels"].shape, 2, generator=torch.Generator().manual_seed(1)).double()
        labels[0, 0, 1] = labels[0, 2] = math.nan
        batch["labels"] = labels.masked_fill(~batch["attention_mask"][..., None], math.nan)
    return batch


def run(model, batch):
    with torch.no_grad():
        return model(**batch)


def presence(model, batch) -> torch.Tensor:
    """Which modalities each turn has: (B, T, M)."""
    return torch.stack([batch[MODALITIES[name].mask] for name in model.config.modalities], dim=-1)


# What every setting keeps


@settings
def test_padding_and_what_is_absent_change_nothing(changes):
    model = model_of(**changes)
    batch = batch_of(model)
    places = [[1, 2, 4, 5, 6, 8, 9]] * 4
    expected, gradients, loss = outputs_of(model, batch), gradients_of(model, batch), model(**batch).loss
    wide = spread(batch, places, 10, math.nan)
    found = {key: values[:, places[0]] for key, values in outputs_of(model, wide).items()}
    assert_same(found, expected)
    torch.testing.assert_close(model(**wide).loss, loss, rtol=0, atol=1e-10)
    assert_same(gradients_of(model, wide), gradients)


@settings
def test_weights_are_of_what_is_there(changes):
    model = model_of(**changes)
    config, batch = model.config, batch_of(model, absent=0.5)
    output, there = run(model, batch), presence(model, batch)
    some = there.any(-1)
    assert some.any() and (batch["attention_mask"] & ~some).any()
    assert output.expert_weights.shape == (4, 7, len(config.experts))
    assert output.expert_modality_weights.shape == (4, 7, len(config.experts), len(config.modalities))
    for weights in (output.expert_weights, output.expert_modality_weights, output.modality_weights):
        ones = some.reshape(4, 7, *[1] * (weights.dim() - 3)).expand(weights.shape[:-1])
        torch.testing.assert_close(weights.sum(-1), ones.double())
        assert (weights >= 0).all()
    assert torch.equal(output.expert_modality_weights > 0, there[:, :, None].expand_as(output.expert_modality_weights))
    assert torch.equal(output.modality_weights > 0, there)
    total = torch.einsum("bte,btem->btm", output.expert_weights, output.expert_modality_weights)
    torch.testing.assert_close(output.modality_weights, total)
    torch.testing.assert_close(output.logits[batch["attention_mask"]], head_of(model, output, batch))
    assert not output.states[~batch["attention_mask"]].any()


def head_of(model, output, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.in_label_unit(model.head(output.states[batch["attention_mask"]]))


@settings
def test_one_gradient_of_all(changes):
    model = model_of(**changes).train()
    for absent in (0.5, 0.0):
        for key, gradient in gradients_of(model, batch_of(model, absent=absent)).items():
            assert gradient.isfinite().all()
            assert gradient.any() or key.endswith("key.bias"), key


@settings
def test_a_modality_that_is_nowhere_is_one_that_the_model_does_not_have(changes):
    three = model_of(**{**changes, "modalities": THREE})
    weights, batch = three.state_dict(), batch_of(three, absent=0.2)
    one_row_each = ("fusion.modality_tokens", "fusion.experts.semantic.products.weight")
    for count in (1, 2):
        for kept in combinations(THREE, count):
            smaller = model_of(**{**changes, "modalities": list(kept)})
            rows = [THREE.index(name) for name in kept]
            names = smaller.state_dict()
            smaller.load_state_dict(
                {name: weights[name][rows] if name in one_row_each else weights[name] for name in names}
            )
            absent = {MODALITIES[each].mask: torch.zeros_like(batch["attention_mask"]) for each in {*THREE} - {*kept}}
            found, expected = run(three, {**batch, **absent}), run(smaller, batch)
            found.modality_weights = found.modality_weights[..., rows]
            for name in ("logits", "expert_weights", "modality_weights"):
                torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10)


@settings
def test_micro_batches_add_up(changes):
    model = model_of(**changes)
    batch = batch_of(model)
    labels = batch["labels"]
    count = (~labels.isnan()).sum() if labels.is_floating_point() else (labels != -100).sum()
    parts = [rows_of(batch, [row]) for row in range(4)]
    assert_same(gradients_of(model, *parts, num_items_in_batch=count), gradients_of(model, batch))


# What each expert sees, by the derivatives of a turn's output by another turn's input


def influence(lengths=(7,), absent=None, **changes) -> torch.Tensor:
    """Whether the states of a turn of the first dialogue depend on the text of each turn of each dialogue."""
    model = model_of(**changes)
    batch = batch_of(model, lengths=lengths, absent=0.0)
    for name, turn in (absent or {}).items():
        batch[f"{name}_mask"][0, turn] = False
    inputs = batch["text_embeddings"].requires_grad_()
    states = model(**batch).states
    rows = []
    for turn in range(lengths[0]):
        (gradient,) = torch.autograd.grad(states[0, turn].square().sum(), inputs, retain_graph=True)
        rows.append(gradient.ne(0).any(-1))
    return torch.stack(rows)


def distance(turns: int) -> torch.Tensor:
    """How much later the second turn is than the first: (T, T)."""
    return torch.arange(turns) - torch.arange(turns)[:, None]


@pytest.mark.parametrize(
    "changes", [{"num_layers": 2, "kernel_sizes": [3, 7]}, {"experts": ["semantic"]}, {"modalities": ["text"]}]
)
def test_a_stream_gives_what_the_whole_dialogue_gives(changes):
    assert_streams(model_of(**{"modalities": THREE, **changes}, causal=True))


# Configurations and ablations


def test_experts_and_modalities_have_one_order():
    config = small_config("egmf_fusion", experts=["global", "local"], modalities=["text", "speech"])
    assert config.fusion_experts == ("local", "global") and config.weighed_modalities == ("speech", "text")
    assert small_config("mult").fusion_experts == small_config("mult").weighed_modalities == ()


WRONG = {
    "no expert": ({"experts": []}, "experts must be a choice of"),
    "unknown expert": ({"experts": ["local", "distant"]}, "experts must be a choice of .*, got"),
    "twice": ({"experts": ["local", "local"]}, "experts must be a choice of"),
    "even kernel": ({"kernel_sizes": [1, 4]}, r"kernel_sizes must be odd positive numbers below 1,000, got \[1, 4\]"),
    "no kernel": ({"kernel_sizes": []}, "kernel_sizes must be odd positive"),
    "heads": ({"num_attention_heads": 3}, "hidden_size must be even and a multiple of num_attention_heads"),
    "temperature": ({"gate_temperature": 0.0}, "gate_temperature"),
    "gate": ({"expert_gate": "top"}, "expert_gate"),
    "dropout": ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    "balance": ({"balance_weight": -1.0}, "balance_weight must be finite and not negative, got -1.0"),
    "balance of one": ({"balance_weight": 0.1, "experts": ["local"]}, "balance_weight needs two experts at least"),
    "balance of means": ({"balance_weight": 0.1, "expert_gate": "mean"}, "and expert_gate 'learned', got .* 'mean'"),
    "no layer": ({"num_layers": 0}, "num_layers must be at least 1"),
    "video without a width": ({"modalities": THREE}, "visual_embedding_dim is not set"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_configuration_that_cannot_be_is_refused(changes, message):
    with pytest.raises(Exception, match=message):
        entry("egmf_fusion").model_class()(EgmfFusionConfig(**changes))


def test_ablations_are_of_experts_that_the_recipe_has():
    def offered(*experts: str) -> set[str]:
        parts = small_config("egmf_fusion", experts=list(experts)).fusion_experts
        return {name for name, each in EGMF_FUSION.items() if each.applies(parts) or name == "huber"}

    assert offered(*FUSION_EXPERTS) == {*EGMF_FUSION}
    two = offered("local", "global")
    assert {"local_expert_only", "global_expert_only", "mean_of_experts", "without_neighbours"} <= two
    assert not {"semantic_expert_only", "without_semantic_expert", "without_local_expert"} & two
    assert not {"global_expert_only", "mean_of_experts", "without_neighbours", "with_balance"} & offered("global")
    for ablation in EGMF_FUSION.values():
        changed = {field.partition(".")[2]: value for field, value in ablation.changes.items()}
        small_config("egmf_fusion", **{**changed, "id2label": {0: "a", 1: "b"}})
