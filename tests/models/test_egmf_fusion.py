"""EGMF's fusion by itself; what every model keeps is in `test_contract.py`."""

import math
from itertools import combinations

import pytest
import torch

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.models.ablations import EGMF_FUSION
from mister_e_hf.models.egmf.configuration_egmf_fusion import FUSION_EXPERTS, EgmfFusionConfig
from mister_e_hf.models.egmf.hierarchical_gate import balance_loss, softmax_of_present
from mister_e_hf.models.registry import entry
from mister_e_hf.models.turns import DialogueCache, TurnLayout
from support.model_contract import (
    assert_same,
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


@pytest.mark.parametrize("sizes", [[1], [3], [1, 3, 5], [5, 1]])
@pytest.mark.parametrize("causal", [False, True])
def test_the_local_expert_sees_the_span_of_its_widest_convolution(sizes, causal):
    offset, widest = distance(7), max(sizes)
    near = (offset <= 0) & (offset > -widest) if causal else offset.abs() <= widest // 2
    assert torch.equal(influence(experts=["local"], kernel_sizes=sizes, causal=causal)[:, 0], near)


def test_the_semantic_expert_sees_one_turn():
    assert torch.equal(influence(experts=["semantic"])[:, 0], torch.eye(7, dtype=torch.bool))


@pytest.mark.parametrize("experts", [["global"], list(FUSION_EXPERTS)])
@pytest.mark.parametrize("causal", [False, True])
def test_the_global_expert_sees_its_dialogue_and_no_other(experts, causal):
    found = influence(lengths=(7, 5, 7), experts=experts, causal=causal)
    assert torch.equal(found[:, 0], distance(7) <= 0 if causal else torch.ones(7, 7, dtype=torch.bool))
    assert not found[:, 1:].any()


def test_no_turn_sees_what_another_lacks():
    found = influence(experts=["local", "global"], absent={"text": 3})[:, 0]
    assert not found[:, 3].any() and found[0, 2] and found[6, 2]
    # a turn without text reads the text of others through nothing
    assert not influence(experts=["global"], absent={"text": 3})[3].any()


def test_the_local_and_the_global_expert_keep_the_modalities_apart():
    for experts, apart in ((["local"], True), (["global"], True), (["semantic"], False)):
        model = model_of(experts=experts, modalities=THREE)
        batch = batch_of(model, lengths=[4], absent=0.0)
        found = {}
        expert = model.fusion.experts[experts[0]]
        hook = expert.register_forward_hook(lambda module, given, states, to=found: to.update(states=states))
        inputs = {name: batch[f"{name}_embeddings"].requires_grad_() for name in THREE}
        model(**batch)
        hook.remove()
        for number, name in enumerate(THREE):
            of = found["states"][:, number].square().sum()
            gradients = torch.autograd.grad(of, list(inputs.values()), retain_graph=True)
            seen = {other for other, gradient in zip(THREE, gradients, strict=True) if gradient.any()}
            assert seen == ({name} if apart else {*THREE})


def test_the_local_expert_by_its_formula():
    model = model_of(experts=["local"], kernel_sizes=[1, 3])
    expert = model.fusion.experts["local"]
    found = {}
    hook = expert.register_forward_hook(lambda module, given, states: found.update(given=given[0], states=states))
    batch = batch_of(model, lengths=[5])
    run(model, batch)
    hook.remove()
    own = found["given"].modalities
    padded = torch.cat([torch.zeros_like(own[:1]), own, torch.zeros_like(own[:1])])
    one, before, same, after = expert.taps
    mixed = one * own + before * padded[:-2] + same * own + after * padded[2:]
    with torch.no_grad():
        expected = own + expert.channel_gate(mixed) * expert.bottleneck(mixed)
    torch.testing.assert_close(found["states"], expected)
    assert not own[~found["given"].present].any()


def test_products_are_those_of_each_modality_with_the_others_that_are_there():
    model = model_of(experts=["semantic"], modalities=THREE)
    products = model.fusion.experts["semantic"].products
    found = {}
    hook = products.register_forward_hook(lambda module, given, made: found.update(given=given[0], made=made))
    run(model, batch_of(model, absent=0.4))
    hook.remove()
    tokens = found["given"]
    expected = torch.zeros_like(tokens.modalities)
    for turn, there in enumerate(tokens.present):
        mapped = [row @ weight for row, weight in zip(tokens.modalities[turn], products.weight, strict=True)]
        for own in range(3):
            others = [other for other in range(3) if other != own and there[other]]
            for other in others:
                expected[turn, own] += (mapped[own] * mapped[other]).detach() / len(others)
    others = tokens.present.sum(1, keepdim=True) - tokens.present.long()
    with torch.no_grad():
        expected = products.output(products.norm(expected)) * (others > 0)[..., None]
    torch.testing.assert_close(found["made"], expected)


def test_streams_of_one_attention_are_like_several_calls():
    from mister_e_hf.models.turn_transformer import AttentionLayer

    torch.manual_seed(0)
    real = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    for causal in (False, True):
        layer, layout = AttentionLayer(8, 2, 0.0, causal).double(), TurnLayout(real)
        rows, keys = torch.randn(11, 3, 8).double(), torch.rand(11, 3) > 0.4
        for seen in (None, keys):
            together = layer(rows, None, layout, seen)
            for number in range(3):
                alone = layer(rows[:, number], None, layout, None if seen is None else seen[:, number])
                torch.testing.assert_close(together[:, number], alone)


# The gates


def test_a_new_gate_weighs_all_experts_the_same():
    torch.manual_seed(0)
    model = entry("egmf_fusion").model_class()(small_config("egmf_fusion")).eval()
    batch = small_batch(model.config, dtype=torch.float32)
    weights = run(model, batch).expert_weights
    some = presence(model, batch).any(-1)
    torch.testing.assert_close(weights[some], torch.full_like(weights[some], 1 / 3))


def test_one_expert_has_all_the_weight_and_no_gate():
    for name in FUSION_EXPERTS:
        model = model_of(experts=[name], modalities=["text"])
        batch = batch_of(model, lengths=[4], absent=0.0)
        found = {}
        hook = model.fusion.experts[name].register_forward_hook(lambda *args, to=found: to.update(states=args[2]))
        output = run(model, batch)
        hook.remove()
        assert (output.expert_weights == 1).all() and (output.modality_weights == 1).all()
        turn = model.fusion.turn_token + positions(4, 8)
        with torch.no_grad():
            torch.testing.assert_close(output.states[0], model.fusion.norm(found["states"][:, 0] + turn))
        assert not [key for key, _ in model.named_parameters() if key.startswith("fusion.gate.")]


def positions(turns: int, hidden: int) -> torch.Tensor:
    angles = torch.arange(turns).double()[:, None] / 1e4 ** (torch.arange(0, hidden, 2).double() / hidden)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def test_equal_experts_make_their_gate_idle():
    model = model_of(modalities=THREE)
    batch = batch_of(model)
    for expert in model.fusion.experts.values():
        expert.register_forward_hook(lambda module, given, states: given[0].modalities)
    gate = model.fusion.gate
    with torch.no_grad():
        gate.modalities.weight[:] = gate.modalities.weight[:1]
        gate.modalities.score[:] = gate.modalities.score[:1]
        context = gate.modalities.context
        for values in (context.weight, context.bias):
            values.copy_(values.unflatten(0, (3, -1))[:1].expand(3, *[-1] * values.dim()).flatten(0, 1))
    before = run(model, batch)
    with torch.no_grad():
        gate.experts.bias += torch.tensor([3.0, -1.0, 0.5])
    after = run(model, batch)
    assert not torch.allclose(before.expert_weights, after.expert_weights)
    torch.testing.assert_close(before.logits, after.logits)


def test_the_temperature_divides_the_scores_of_experts():
    cold, warm = model_of(gate_temperature=1.0), model_of(gate_temperature=4.0)
    batch = batch_of(cold, absent=0.0)
    real = batch["attention_mask"]
    of_cold, of_warm = (run(model, batch).expert_weights[real].log() for model in (cold, warm))
    differences = [weights - weights[:, :1] for weights in (of_cold, of_warm)]
    torch.testing.assert_close(differences[0], 4 * differences[1])


def test_mean_gates_weigh_what_is_there_the_same():
    model = model_of(modality_gate="mean", expert_gate="mean", modalities=THREE)
    batch = batch_of(model)
    output, there = run(model, batch), presence(model, batch)
    shares = there.double() / there.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(output.modality_weights, shares)
    torch.testing.assert_close(output.expert_weights, there.any(-1, keepdim=True).double().expand(-1, -1, 3) / 3)


def test_a_softmax_of_nothing_is_zero_with_a_gradient_of_zero():
    scores = torch.tensor([[1.0, 2.0, 1e30], [5.0, -5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, False], [False, False, False]])
    weights = softmax_of_present(scores, present)
    first = 1 / (1 + math.e)
    torch.testing.assert_close(weights[0], torch.tensor([first, 1 - first, 0.0]).double())
    assert not weights[1].any() and weights[0, 2] == 0
    weights[:, 0].sum().backward()
    assert scores.grad.isfinite().all() and not scores.grad[1].any() and scores.grad[0, 2] == 0


def test_a_turn_without_any_modality_gets_the_answer_of_its_place():
    model = model_of(modalities=THREE)
    batch = batch_of(model, lengths=[4, 4], absent=1.0)
    batch["text_mask"][1, 0] = True
    output = run(model, batch)
    with torch.no_grad():
        expected = model.fusion.norm(model.fusion.turn_token + positions(4, 8))
    torch.testing.assert_close(output.states[0], expected)
    torch.testing.assert_close(output.states[1, 1:], expected[1:])
    assert not output.modality_weights[0].any() and not output.expert_weights[0].any()


# The balance loss


def test_the_balance_loss_is_1_if_uniform_and_the_number_of_experts_if_collapsed():
    dialogue, scored = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 1, 0, 1, 1])
    uniform, one = torch.full((5, 3), 1 / 3), torch.tensor([0.0, 1.0, 0.0]).expand(5, 3)
    assert balance_loss(uniform, scored, dialogue, 4).item() == pytest.approx(1)
    assert balance_loss(one, scored, dialogue, 4).item() == pytest.approx(3)
    # uniform on the whole, as each expert has its turns: nothing to balance
    turns = torch.eye(3)[[0, 1, 2]]
    assert balance_loss(turns, torch.ones(3), torch.zeros(3, dtype=torch.long), 3).item() == pytest.approx(1)
    # in a dialogue of 2 turns with weights 1/2 and 1/2, 0 for the third expert
    assert balance_loss(turns[:2], torch.ones(2), torch.zeros(2, dtype=torch.long), 2).item() == pytest.approx(1.5)
    assert balance_loss(one, torch.zeros(5), dialogue, 4).item() == 0


@pytest.mark.parametrize("changes", [{}, SCORES], ids=["classes", "scores"])
def test_the_balance_loss_is_a_part_of_the_loss(changes):
    plain, balanced = model_of(**changes), model_of(**changes, balance_weight=0.5)
    batch = batch_of(plain, absent=0.0)
    output, without = run(balanced, batch), run(plain, batch)
    expected, items = 0.0, 0
    for row, weights in enumerate(output.expert_weights):
        labels = batch["labels"][row]
        scored = (~labels.isnan()).sum(-1) if changes else (labels != -100).long()
        items += int(scored.sum())
        mean = (weights * scored[:, None]).sum(0) / scored.sum()
        expected += 3 * mean.square().sum() * scored.sum()
    torch.testing.assert_close(output.balance_loss, 0.5 * expected / items)
    torch.testing.assert_close(output.loss, without.loss + output.balance_loss)
    parts = balanced.loss_parts(output)
    assert list(parts) == ["l1" if changes else "cross_entropy", "balance"]
    assert without.balance_loss is None and plain.loss_parts(without) == {}


# Streams


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 1, 4], [1, 8]], ids=["one by one", "in pieces", "the rest at once"])
@pytest.mark.parametrize(
    "changes", [{}, {"num_layers": 2, "kernel_sizes": [3, 7]}, {"experts": ["semantic"]}, {"modalities": ["text"]}]
)
def test_a_stream_gives_what_the_whole_dialogue_gives(changes, sizes):
    model = model_of(**{"modalities": THREE, **changes}, causal=True)
    batch = batch_of(model, lengths=[9])
    batch.pop("labels")
    whole, past, start, found = run(model, batch), DialogueCache(), 0, []
    for size in sizes:
        found.append(run(model, {**{key: of[:, start : start + size] for key, of in batch.items()}, "past": past}))
        start += size
    assert past.num_turns == 9
    for name, values in whole.items():
        streamed = torch.cat([output[name] for output in found], dim=1)
        torch.testing.assert_close(streamed, values, rtol=0, atol=1e-10, msg=name)
    with pytest.raises(InputError, match="Only a causal model can take turns one by one"):
        model_of()(**batch, past=DialogueCache())


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
