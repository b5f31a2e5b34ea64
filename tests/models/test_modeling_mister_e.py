import copy
import itertools
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.base.losses import consistency_loss, contrastive_loss
from mister_e_hf.models.mister_e.modeling_mister_e import expert_availability

PER_TURN = ("logits", "expert_logits", "gate_weights", "speech_states", "text_states")
MODALITIES = ("speech", "text")
SETTINGS = {
    "published": {},
    "causal": {"causal": True},
    "concatenation": {"fusion": "concatenation"},
    "no context layer": {"context_layer": False},
    "mean gate": {"gate": "mean"},
    "speech alone": {"experts": ["speech"]},
    "no fusion expert": {"experts": ["speech", "text"]},
    "clipped": {"feature_clip": 1.0},
    "attention that sees distance": {"attention_decay": True},
    "fusion of states in context": {"fusion_context": True},
    "both of these, causal": {"attention_decay": True, "fusion_context": True, "causal": True},
}
settings = pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)


def run(model, batch, **changes):
    with torch.no_grad():
        return model(**{**batch, **changes})


def dialogue(batch, row: int) -> dict[str, torch.Tensor]:
    """One dialogue of a batch, alone and without padding."""
    real = batch["attention_mask"][row]
    return {name: values[row][real][None] for name, values in batch.items()}


def spread(batch, positions: list[list[int]], total: int, content: float) -> dict[str, torch.Tensor]:
    """The same dialogues with their turns at these positions, and `content` wherever nothing was said."""
    rows = len(positions)
    spread = {
        name: values.new_full((rows, total, *values.shape[2:]), content if values.is_floating_point() else 0)
        for name, values in batch.items()
    }
    spread["labels"] = torch.ones(rows, total, dtype=torch.long)  # in padding a label must count for nothing
    for row, places in enumerate(positions):
        for name, values in dialogue(batch, row).items():
            spread[name][row, places] = values[0]
    for name in MODALITIES:
        absent = spread["attention_mask"] & ~spread[f"{name}_mask"]
        spread[f"{name}_embeddings"][absent] = content
        spread[f"{name}_mask"] |= ~spread["attention_mask"]  # nor must a mask
    return spread


def places(pattern: str, lengths: list[int], total: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [
        {
            "after": list(range(length)),
            "before": list(range(total - length, total)),
            "inside": [*range(length // 2), *range(total - length + length // 2, total)],
            "irregular": sorted(torch.randperm(total, generator=generator)[:length].tolist()),
        }[pattern]
        for length in lengths
    ]


def assert_padding_changes_nothing(model, batch, padded, positions, tolerance):
    together = run(model, padded)
    total, scored = 0.0, 0
    for row, where in enumerate(positions):
        alone = run(model, dialogue(batch, row))
        for name in PER_TURN:
            if getattr(alone, name) is not None:
                torch.testing.assert_close(
                    getattr(together, name)[row, where],
                    getattr(alone, name)[0],
                    rtol=0,
                    atol=tolerance,
                    msg=lambda m, n=name: f"{n}: {m}",
                )
        total, scored = total + alone.loss * len(where), scored + len(where)
    torch.testing.assert_close(together.loss, total / scored, rtol=0, atol=tolerance)
    for name in (*PER_TURN, "speech_mask", "text_mask"):
        if getattr(together, name) is not None:
            assert (getattr(together, name)[~padded["attention_mask"]] == 0).all(), name


LENGTHS = [5, 1, 7, 2]


@pytest.mark.parametrize("pattern", ["after", "before", "inside", "irregular"])
@pytest.mark.parametrize("content", [0.0, math.nan, math.inf, 1e30])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_absent_vectors_change_nothing(tiny_model, make_batch, pattern, content, causal):
    model = tiny_model(causal=causal)
    batch = make_batch(LENGTHS, model.config, absent=0.3)
    positions = places(pattern, LENGTHS, total=10)
    assert_padding_changes_nothing(model, batch, spread(batch, positions, 10, content), positions, 1e-10)


@settings
def test_padding_changes_nothing_in_any_setting(tiny_model, make_batch, changes):
    model = tiny_model(**changes)
    batch = make_batch(LENGTHS, model.config, absent=0.3)
    positions = places("irregular", LENGTHS, total=9)
    assert_padding_changes_nothing(model, batch, spread(batch, positions, 9, math.nan), positions, 1e-10)


def test_padding_changes_nothing_at_published_size_in_float32(make_batch):
    torch.manual_seed(0)
    model = MisterEModel(MisterEConfig()).eval()
    batch = make_batch([2, 5], model.config, dtype=torch.float32, absent=0.2)
    positions = places("irregular", [2, 5], total=7)
    assert_padding_changes_nothing(model, batch, spread(batch, positions, 7, 1e30), positions, 1e-4)


def test_padding_changes_no_gradient(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch(LENGTHS, model.config, absent=0.3)
    gradients = []
    for inputs in (batch, spread(batch, places("irregular", LENGTHS, 10), 10, math.nan)):
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_contrastive_and_consistency_terms_of_the_outputs_do_not_see_padding(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch(LENGTHS, model.config, absent=0.3)
    terms = []
    for inputs in (batch, spread(batch, places("irregular", LENGTHS, 10), 10, math.nan)):
        output, labels = run(model, inputs), inputs["labels"].masked_fill(~inputs["attention_mask"], -100)
        available = expert_availability(model.config.experts, output.speech_mask, output.text_mask)
        states = torch.cat([output.speech_states[output.speech_mask], output.text_states[output.text_mask]])
        state_labels = torch.cat([labels[output.speech_mask], labels[output.text_mask]])
        terms.append(
            [consistency_loss(output.expert_logits, available, labels), contrastive_loss(states, state_labels)]
        )
    torch.testing.assert_close(torch.tensor(terms[1]), torch.tensor(terms[0]), rtol=0, atol=1e-10)


def test_masks_of_numbers_are_read_as_booleans(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch(LENGTHS, model.config, absent=0.3)
    numbers = {name: value.long() if value.dtype == torch.bool else value for name, value in batch.items()}
    assert torch.equal(run(model, batch).logits, run(model, numbers).logits)


def test_masks_left_out_stand_for_everything_real_and_present(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch([4, 4], model.config)
    vectors = {name: batch[name] for name in ("speech_embeddings", "text_embeddings")}
    assert torch.equal(run(model, vectors).logits, run(model, batch).logits)


def test_embeddings_left_out_are_absent_vectors(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch(LENGTHS, model.config)
    for name in MODALITIES:
        absent = {f"{name}_mask": torch.zeros_like(batch["attention_mask"])}
        masked = run(model, batch, **absent)
        left_out = run(model, batch, **absent, **{f"{name}_embeddings": None})
        for field in (*PER_TURN, "loss"):
            assert torch.equal(getattr(masked, field), getattr(left_out, field)), field


@pytest.mark.parametrize("hole", [[2], [0, 3], [1, 2, 5]])
@pytest.mark.parametrize("causal", [False, True])
def test_masking_turns_out_equals_leaving_them_out(tiny_model, make_batch, hole, causal):
    model = tiny_model(causal=causal)
    batch = make_batch([7], model.config)
    del batch["speech_mask"], batch["text_mask"]
    kept = [turn for turn in range(7) if turn not in hole]
    mask = batch["attention_mask"].clone()
    mask[0, hole] = False
    masked = run(model, batch, attention_mask=mask)
    compact = run(model, {name: values[:, kept] for name, values in batch.items()})
    for name in PER_TURN:
        torch.testing.assert_close(getattr(masked, name)[:, kept], getattr(compact, name), rtol=0, atol=1e-10)
    torch.testing.assert_close(masked.loss, compact.loss, rtol=0, atol=1e-10)


@settings
def test_one_turn_is_a_dialogue(tiny_model, make_batch, changes):
    model = tiny_model(**changes)
    output = run(model, make_batch([1], model.config))
    assert output.logits.shape == (1, 1, 3)
    assert output.logits.isfinite().all() and output.loss.isfinite()


def test_thousands_of_turns_are_a_dialogue(tiny_model, make_batch):
    model = tiny_model(dtype=torch.float32)
    output = run(model, make_batch([4096], model.config, dtype=torch.float32))
    assert output.logits.shape == (1, 4096, 3)
    assert output.logits.isfinite().all() and output.loss.isfinite()


def changed_turns(model, batch, turn: int) -> list[int]:
    """The turns of the one dialogue whose outputs change when everything about `turn` does."""
    changed = {name: values.clone() for name, values in batch.items()}
    for name in MODALITIES:
        changed[f"{name}_embeddings"][:, turn] += 1.0
        changed[f"{name}_mask"][:, turn] ^= True
    before, after = run(model, batch), run(model, changed)
    differs = [
        (getattr(before, name) != getattr(after, name)).flatten(2).any(-1)[0]
        for name in PER_TURN
        if getattr(before, name) is not None
    ]
    return torch.stack(differs).any(0).nonzero().flatten().tolist()


@pytest.mark.parametrize("fusion", ["co_attention", "concatenation"])
@pytest.mark.parametrize("turn", [0, 3, 6])
def test_causal_turns_see_themselves_and_the_past_alone(tiny_model, make_batch, fusion, turn):
    model = tiny_model(causal=True, fusion=fusion)
    assert changed_turns(model, make_batch([7], model.config), turn) == list(range(turn, 7))


@pytest.mark.parametrize("turn", [0, 3, 6])
def test_turns_see_the_whole_dialogue_by_default(tiny_model, make_batch, turn):
    model = tiny_model()
    assert changed_turns(model, make_batch([7], model.config), turn) == list(range(7))


def test_a_growing_causal_dialogue_keeps_its_past_outputs(tiny_model, make_batch):
    model = tiny_model(causal=True)
    batch = make_batch([6], model.config)
    whole = run(model, batch)
    for turns in range(1, 6):
        part = run(model, {name: values[:, :turns] for name, values in batch.items()})
        torch.testing.assert_close(part.logits, whole.logits[:, :turns], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": ["speech", "text"]},
        {"experts": ["speech"]},
        {"experts": ["fusion"], "fusion": "concatenation"},
        {"fusion": "concatenation"},
    ],
)
def test_without_context_a_turn_depends_on_itself_alone(tiny_model, make_batch, changes):
    model = tiny_model(context_layer=False, **changes)
    assert changed_turns(model, make_batch([5], model.config), 2) == [2]


def test_convolutions_reach_as_far_as_their_kernels(tiny_model, make_batch):
    for causal, reached in ((False, [2, 3, 4]), (True, [3, 4, 5])):
        model = tiny_model(causal=causal, experts=["speech"], context_kernel_sizes=[3])
        for name, parameter in model.speech_expert.gru.named_parameters():
            if "weight_hh" in name:
                parameter.data.zero_()
        # With z = 0 the recurrence forgets what was before.
        hidden = model.speech_expert.gru.hidden_size
        for name, parameter in model.speech_expert.gru.named_parameters():
            if "bias_ih" in name:
                parameter.data[hidden : 2 * hidden] = -1e9
        assert changed_turns(model, make_batch([7], model.config), 3) == reached


def test_dialogue_of_padding_alone_leaves_the_batch_as_it_was(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch([3, 4, 2], model.config)
    without = model(**{name: values[[0, 2]] for name, values in batch.items()})
    without.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    batch["attention_mask"][1] = False
    batch["speech_embeddings"][1] = math.nan
    output = model(**batch)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-10)
    for name in PER_TURN:
        torch.testing.assert_close(getattr(output, name)[[0, 2]], getattr(without, name), rtol=0, atol=1e-10)
        assert (getattr(output, name)[1] == 0).all()
    torch.testing.assert_close(output.loss, without.loss, rtol=0, atol=1e-10)


@settings
@pytest.mark.parametrize("content", [0.0, math.nan])
def test_batch_of_padding_alone_takes_part_with_zeros(tiny_model, make_batch, changes, content):
    model = tiny_model(**changes).train()
    batch = make_batch([3, 2], model.config)
    batch["attention_mask"] = torch.zeros(2, 3, dtype=torch.bool)
    for name in MODALITIES:
        batch[f"{name}_embeddings"].fill_(content)
    output = model(**batch, num_items_in_batch=5)
    assert output.loss.item() == 0 and output.loss.requires_grad
    for name in (*PER_TURN, "speech_mask", "text_mask"):
        assert getattr(output, name) is None or (getattr(output, name) == 0).all()
    # what a trainer adds to the loss hangs on these as well
    (output.loss + output.logits.sum() + output.expert_logits.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name


def test_batch_without_a_label_has_a_zero_loss_with_a_graph(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch(LENGTHS, model.config)
    output = model(**{**batch, "labels": torch.full_like(batch["labels"], -100)})
    output.loss.backward()
    assert output.loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    assert run(model, batch, labels=None).loss is None


SUBSETS = [list(subset) for size in (1, 2, 3) for subset in itertools.combinations(("speech", "text", "fusion"), size)]


@pytest.mark.parametrize("experts", SUBSETS, ids="-".join)
def test_every_parameter_gets_a_gradient_in_every_setting(make_batch, experts):
    for context_layer, fusion, gate, causal, modality_dropout, ours in itertools.product(
        (True, False), ("co_attention", "concatenation"), ("learned", "mean"), (True, False), (0.0, 0.5), (True, False)
    ):
        if "fusion" not in experts and fusion == "concatenation" or len(experts) == 1 and gate == "mean":
            continue
        torch.manual_seed(0)
        switches = {
            "experts": experts,
            "context_layer": context_layer,
            "fusion": fusion,
            "gate": gate,
            "causal": causal,
            "modality_dropout": modality_dropout,
            "attention_decay": ours,
            "fusion_context": ours,
        }
        model = MisterEModel(
            MisterEConfig(
                speech_embedding_dim=3,
                text_embedding_dim=2,
                hidden_size=4,
                context_num_layers=1,
                fusion_num_layers=1,
                attention_dim=3,
                **switches,
            )
        )
        batch = make_batch([4, 2, 3], model.config, dtype=torch.float32, absent=0.3)
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (name, switches)


def test_gradients_of_the_published_setting_are_nowhere_idle(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch([6, 5, 4], model.config, absent=0.3)
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):  # adds the same to every score of a softmax
            assert parameter.grad.abs().max() > 1e-12, name


def loss_by_hand(output, batch, config, divisor=None) -> float:
    def focal(scores, label) -> float:
        total = math.log(sum(math.exp(score) for score in scores))
        log_p = scores[label] - total
        weight = (config.class_weights or {}).get(config.id2label[label], 1.0)
        return -weight * (1 - math.exp(log_p)) ** config.focal_gamma * log_p

    total, count = 0.0, 0
    for row, turn in batch["attention_mask"].nonzero().tolist():
        label = batch["labels"][row, turn].item()
        if label == -100:
            continue
        count += 1
        total += focal(output.logits[row, turn].tolist(), label)
        present = {"fusion": True} | {name: batch[f"{name}_mask"][row, turn].item() for name in MODALITIES}
        for index, expert in enumerate(config.experts):
            if present[expert]:
                total += focal(output.expert_logits[row, turn, index].tolist(), label)
    return total / (divisor or count)


@settings
@pytest.mark.parametrize("class_weights", [None, {"joy": 0.25, "neutral": 2.0}])
def test_loss_is_focal_of_the_mixture_and_of_the_experts_present(tiny_model, make_batch, changes, class_weights):
    model = tiny_model(**changes, class_weights=class_weights, focal_gamma=2.0)
    batch = make_batch(LENGTHS, model.config, absent=0.4)
    batch["labels"][0, 1] = -100
    output = run(model, batch)
    assert output.loss.item() == pytest.approx(loss_by_hand(output, batch, model.config), abs=1e-12)
    output = run(model, batch, num_items_in_batch=40)
    assert output.loss.item() == pytest.approx(loss_by_hand(output, batch, model.config, 40), abs=1e-12)


def test_attention_begins_with_halved_slopes_and_looks_less_far_with_greater_ones(tiny_model, make_batch):
    model = MisterEModel(tiny_model(attention_decay=True).config)
    attention = model.fusion_expert.layers[0].text_to_speech
    torch.testing.assert_close(attention.log_slopes.exp(), torch.tensor([0.5, 0.25, 0.125]))
    near = tiny_model(attention_decay=True)
    for module in near.modules():
        if hasattr(module, "log_slopes"):
            module.log_slopes.data.fill_(8.0)  # each turn sees itself alone
    batch = make_batch([6], near.config)
    whole = run(near, batch).speech_states
    alone = [run(near, {name: value[:, t : t + 1] for name, value in batch.items()}).speech_states for t in range(6)]
    torch.testing.assert_close(whole, torch.cat(alone, 1))


def test_micro_batches_add_up_to_the_whole_batch(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch(LENGTHS, model.config, absent=0.3)
    items = batch["attention_mask"].sum()
    model(**batch).loss.backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for count in (int(items), items):
        model.zero_grad()
        for row in range(len(LENGTHS)):
            model(**dialogue(batch, row), num_items_in_batch=count).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, whole[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("gate", ["learned", "mean"])
def test_gate_weights_sum_to_one_and_are_zero_for_an_absent_expert(tiny_model, make_batch, gate):
    model = tiny_model(gate=gate)
    batch = make_batch([9, 6, 8], model.config, absent=0.5)
    output = run(model, batch)
    real = batch["attention_mask"]
    weights = output.gate_weights[real]
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[:, 0]))
    present = torch.stack([batch["speech_mask"], batch["text_mask"], real], -1)[real]
    assert (weights[~present] == 0).all() and (weights[present] > 0).all()
    if gate == "mean":
        torch.testing.assert_close(weights, present / present.sum(-1, keepdim=True).double())
    mixture = (output.gate_weights[..., None] * output.expert_logits).sum(2)
    torch.testing.assert_close(output.logits, mixture)
    neither = real & ~batch["speech_mask"] & ~batch["text_mask"]
    assert neither.any()
    assert torch.equal(
        output.gate_weights[neither], torch.tensor([[0.0, 0, 1]]).double().expand(int(neither.sum()), 3)
    )
    assert torch.equal(output.logits[neither], output.expert_logits[neither][:, 2])


def test_gate_does_not_hear_an_absent_expert(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch([6], model.config)
    batch["speech_mask"][0, 2] = False
    before = run(model, batch)
    model.speech_expert.head.bias.data += 50.0
    after = run(model, batch)
    assert torch.equal(before.gate_weights[0, 2], after.gate_weights[0, 2])
    assert torch.equal(before.logits[0, 2], after.logits[0, 2])
    assert not torch.equal(before.gate_weights[0, 3], after.gate_weights[0, 3])


@pytest.mark.parametrize("gate", ["learned", "mean"])
def test_without_a_fusion_expert_all_experts_count_where_both_modalities_are_absent(tiny_model, make_batch, gate):
    model = tiny_model(experts=["speech", "text"], gate=gate)
    batch = make_batch([4], model.config)
    batch["speech_mask"][0, 1] = batch["text_mask"][0, 1] = False
    output = run(model, batch)
    weights = output.gate_weights[0, 1]
    assert (weights > 0).all() and weights.sum().item() == pytest.approx(1)
    if gate == "mean":
        assert weights.tolist() == [0.5, 0.5]
    alone = run(tiny_model(experts=["speech"]), batch)
    assert (alone.gate_weights == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_shapes_and_types(tiny_model, make_batch, dtype):
    model = tiny_model(dtype=dtype)
    output = run(model, make_batch([3, 5], model.config, dtype=torch.float16))
    assert {name: tuple(value.shape) for name, value in output.items()} == {
        "loss": (),
        "logits": (2, 5, 3),
        "expert_logits": (2, 5, 3, 3),
        "gate_weights": (2, 5, 3),
        "speech_states": (2, 5, 8),
        "text_states": (2, 5, 8),
        "speech_mask": (2, 5),
        "text_mask": (2, 5),
        "focal_losses": (4,),
    }
    assert all(getattr(output, name).dtype == dtype for name in PER_TURN)
    assert output.speech_mask.dtype == output.text_mask.dtype == torch.bool
    assert output.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert all(value.isfinite().all() for value in output.values())


@pytest.mark.parametrize("experts", SUBSETS, ids="-".join)
def test_outputs_list_the_experts_there_are(tiny_model, make_batch, experts):
    model = tiny_model(experts=list(reversed(experts)))
    output = run(model, make_batch([2, 4], model.config))
    assert model.config.experts == experts
    assert output.expert_logits.shape == (2, 4, len(experts), 3)
    assert output.gate_weights.shape == (2, 4, len(experts))
    assert (output.speech_states is not None) == (output.text_states is not None) == ("fusion" in experts)
    for index, name in enumerate(experts):
        assert hasattr(model, f"{name}_expert")
        getattr(model, f"{name}_expert").head.bias.data += 7.0
        after = run(model, make_batch([2, 4], model.config))
        change = (after.expert_logits - output.expert_logits)[0, 0].mean(-1)
        torch.testing.assert_close(change, 7.0 * F.one_hot(torch.tensor(index), len(experts)).double())
        output = after


@pytest.mark.parametrize("name", ["speech_embedding", "attention_masks", "input_ids", "foo"])
def test_misspelt_argument_is_a_type_error(tiny_model, make_batch, name):
    model = tiny_model()
    batch = make_batch([2], model.config)
    with pytest.raises(TypeError, match=name):
        model(**batch, **{name: batch["attention_mask"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"speech_embeddings": None, "text_embeddings": None},
            "needs at least one of speech_embeddings, text_embeddings",
        ),
        ({"speech_embeddings": torch.zeros(2, 3, 6)}, r"speech_embeddings must have shape \(B, T, 5\)"),
        ({"text_embeddings": torch.zeros(2, 4)}, r"text_embeddings must have shape \(B, T, 4\)"),
        ({"text_embeddings": torch.zeros(2, 2, 4)}, "agree in B and T"),
        ({"speech_embeddings": torch.zeros(2, 0, 5), "text_embeddings": torch.zeros(2, 0, 4)}, "at least 1"),
        ({"attention_mask": torch.ones(2, 4)}, "attention_mask must have shape"),
        ({"speech_mask": torch.ones(3, 2)}, "speech_mask must have shape"),
        ({"text_mask": torch.ones(2)}, "text_mask must have shape"),
        ({"speech_embeddings": None}, "speech_mask is true at some turns, but speech_embeddings is None"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(tiny_model, make_batch, changes, message):
    model = tiny_model(dtype=torch.float32)
    batch = make_batch([3, 3], model.config, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        run(model, batch, **changes)


def without_dropout(**changes) -> dict:
    return {"attention_dropout": 0.0, "projection_dropout": 0.0, **changes}


@pytest.mark.parametrize("context_layer", [True, False])
def test_context_dropout_acts_in_training_alone(tiny_model, make_batch, context_layer):
    model = tiny_model(**without_dropout(context_dropout=0.5, context_layer=context_layer))
    batch = make_batch([6, 4], model.config)
    first, second = run(model.train(), batch), run(model, batch)
    for expert in (0, 1):
        assert not torch.equal(first.expert_logits[:, :, expert], second.expert_logits[:, :, expert])
    assert torch.equal(first.expert_logits[:, :, 2], second.expert_logits[:, :, 2])
    assert torch.equal(run(model.eval(), batch).logits, run(model, batch).logits)


def test_context_dropout_acts_before_the_recurrence(tiny_model, make_batch):
    model = tiny_model(context_dropout=0.5, experts=["speech"]).train()
    seen = []
    model.speech_expert.gru.register_forward_pre_hook(lambda module, args: seen.append(args[0].data))
    batch = make_batch([30, 20], model.config)
    run(model, batch), run(model, batch), run(model.eval(), batch)
    first, second, whole = seen
    kept = first != 0
    torch.testing.assert_close(first[kept], 2 * whole[kept])
    assert not torch.equal(kept, second != 0)
    assert 0.35 < kept[whole != 0].double().mean() < 0.65


def test_context_dropout_acts_between_the_layers_of_the_recurrence(tiny_model):
    assert tiny_model(context_dropout=0.4, context_num_layers=2).speech_expert.gru.dropout == 0.4
    assert tiny_model(context_dropout=0.4, context_num_layers=1).speech_expert.gru.dropout == 0.0


@pytest.mark.parametrize("name", ["attention_dropout", "projection_dropout"])
def test_fusion_dropout_acts_in_training_alone(tiny_model, make_batch, name):
    model = tiny_model(**without_dropout(**{name: 0.5}))
    batch = make_batch([6, 4], model.config)
    first, second = run(model.train(), batch), run(model, batch)
    assert torch.equal(first.expert_logits[:, :, :2], second.expert_logits[:, :, :2])
    assert not torch.equal(first.expert_logits[:, :, 2], second.expert_logits[:, :, 2])
    assert torch.equal(run(model.eval(), batch).logits, run(model, batch).logits)


def test_modality_dropout_takes_modalities_away_in_training_alone(tiny_model, make_batch):
    model = tiny_model(**without_dropout(modality_dropout=0.25))
    batch = make_batch([300, 200], model.config, absent=0.1)
    evaluated = run(model, batch)
    assert torch.equal(evaluated.speech_mask, batch["speech_mask"])
    assert torch.equal(evaluated.logits, run(model, batch).logits)
    torch.manual_seed(0)
    output = run(model.train(), batch)
    kept = []
    for name in MODALITIES:
        given, mask = batch[f"{name}_mask"], output[f"{name}_mask"]
        assert not (mask & ~given).any()
        kept.append(mask[batch["speech_mask"] & batch["text_mask"]])
        assert 0.65 < kept[-1].double().mean() < 0.85
    assert 0.47 < (kept[0] & kept[1]).double().mean() < 0.65  # independently: 0.75 squared
    # as if the masks had been given
    again = run(model.eval(), batch, speech_mask=output.speech_mask, text_mask=output.text_mask)
    torch.testing.assert_close(output.logits, again.logits)
    torch.testing.assert_close(output.loss, again.loss)


def test_statistics_standardise_the_vectors(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch([4, 6], model.config, absent=0.2)
    plain = copy.deepcopy(model)
    standardised = dict(batch)
    for name in MODALITIES:
        module = getattr(model, f"{name}_input")
        standardised[f"{name}_embeddings"] = (batch[f"{name}_embeddings"] - module.mean) / module.std
        plain.get_submodule(f"{name}_input").set_statistics(torch.zeros_like(module.mean), torch.ones_like(module.std))
    torch.testing.assert_close(run(model, batch).logits, run(plain, standardised).logits, rtol=0, atol=1e-12)


def test_dimension_that_does_not_vary_is_only_centred(tiny_model):
    module = tiny_model().speech_input
    module.set_statistics(torch.tensor([3.0, 0, -2, 1e6, 0]), torch.tensor([0.0, 0, 2.0, 1e-2, 1e-3]))
    assert module.mean.tolist() == [3, 0, -2, 1e6, 0]
    assert module.std.tolist() == pytest.approx([1, 1, 2, 1, 1e-3])
    turns = module(torch.tensor([[3.5, 0.25, 0, 1e6, 1e-3]], dtype=torch.float64), torch.tensor([True]))
    assert turns.vectors[0].tolist() == pytest.approx([0.5, 0.25, 1, 0, 1])


def test_feature_clip_clips_standardised_vectors(tiny_model, make_batch):
    clipped, free = tiny_model(feature_clip=0.8), tiny_model()
    batch = make_batch([4, 6], clipped.config)
    inside = dict(batch)
    for name in MODALITIES:
        module = getattr(free, f"{name}_input")
        vectors = (batch[f"{name}_embeddings"] - module.mean) / module.std
        inside[f"{name}_embeddings"] = vectors.clamp(-0.8, 0.8) * module.std + module.mean
    torch.testing.assert_close(run(clipped, batch).logits, run(free, inside).logits, rtol=0, atol=1e-12)
    assert not torch.allclose(run(clipped, batch).logits, run(free, batch).logits)


def test_recurrence_is_torchs_with_its_names(tiny_model):
    for causal in (False, True):
        model = tiny_model(causal=causal)
        size, width = (8, 8) if causal else (8, 4)
        reference = nn.GRU(size, width, num_layers=2, bidirectional=not causal).double()
        for expert in (model.speech_expert, model.text_expert):
            assert isinstance(expert.gru, nn.GRU)
            reference.load_state_dict(expert.gru.state_dict())
    assert "speech_expert.gru.weight_ih_l0" in model.state_dict()


def directly(model, vectors: dict[str, torch.Tensor], present: dict[str, torch.Tensor]):
    """Logits, expert logits and gate weights of one dialogue from the model's weights: vectors (T, D), present (T,)."""
    config = model.config
    causal = config.causal
    weights = model.state_dict()

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name, stream, other):
        query, key, value = (
            linear(f"{name}.{part}", x)
            for part, x in zip(("query", "key", "value"), (stream, other, other), strict=True)
        )
        width = config.attention_dim // config.num_attention_heads
        heads = []
        for head in range(config.num_attention_heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / math.sqrt(width)
            if config.attention_decay:
                place = torch.arange(len(scores), dtype=scores.dtype)
                scores = scores - weights[f"{name}.log_slopes"][head].exp() * (place[:, None] - place).abs()
            if causal:
                scores = scores + torch.full_like(scores, -math.inf).triu(1)
            exponentials = (scores - scores.max(-1, keepdim=True).values).exp()
            heads.append(exponentials / exponentials.sum(-1, keepdim=True) @ value[:, part])
        return linear(f"{name}.output", torch.cat(heads, -1))

    inputs = {}
    for name in MODALITIES:
        x = (vectors[name] - weights[f"{name}_input.mean"]) / weights[f"{name}_input.std"]
        x = x if config.feature_clip is None else x.clamp(-config.feature_clip, config.feature_clip)
        inputs[name] = torch.where(present[name][:, None], x, weights[f"{name}_input.null_embedding"])

    expert_logits, context = [], {}
    for name in MODALITIES:
        x, expert = inputs[name], f"{name}_expert"
        states = linear(f"{expert}.skip", x)
        if config.context_layer:
            local = 0
            for index, size in enumerate(config.context_kernel_sizes):
                kernel = weights[f"{expert}.convolutions.{index}.weight"].permute(1, 2, 0)
                padding = (size - 1, 0) if causal else (size // 2, size // 2)
                out = F.conv1d(F.pad(x.T[None], padding), kernel, weights[f"{expert}.convolutions.{index}.bias"])
                local = local + F.relu(out[0].T)
            hidden = config.hidden_size if causal else config.hidden_size // 2
            gru = nn.GRU(config.hidden_size, hidden, config.context_num_layers, bidirectional=not causal).to(x.dtype)
            gru.load_state_dict(model.get_submodule(f"{expert}.gru").state_dict())
            states = states + gru(local)[0]
        context[name] = states if config.fusion_context else 0.0
        expert_logits.append(linear(f"{expert}.head", states))

    speech = linear("fusion_expert.speech_projection", inputs["speech"]) + context["speech"]
    text = linear("fusion_expert.text_projection", inputs["text"]) + context["text"]
    if config.fusion == "co_attention":
        for index in range(config.fusion_num_layers):
            layer = f"fusion_expert.layers.{index}"
            crossed = (
                norm(f"{layer}.speech_cross_norm", speech + attention(f"{layer}.speech_to_text", speech, text)),
                norm(f"{layer}.text_cross_norm", text + attention(f"{layer}.text_to_speech", text, speech)),
            )
            speech, text = crossed
            speech = norm(f"{layer}.speech_self_norm", speech + attention(f"{layer}.speech_to_speech", speech, speech))
            text = norm(f"{layer}.text_self_norm", text + attention(f"{layer}.text_to_text", text, text))
        speech = speech + linear("fusion_expert.speech_skip", inputs["speech"])
        text = text + linear("fusion_expert.text_skip", inputs["text"])
    fused = norm("fusion_expert.norm", torch.cat([text, speech], -1))
    expert_logits.append(linear("fusion_expert.head", linear("fusion_expert.dense", fused).relu()))

    expert_logits = torch.stack(expert_logits, 1)
    available = torch.stack([present["speech"], present["text"], torch.ones_like(present["text"])], 1)
    if config.gate == "learned":
        heard = torch.where(available[..., None], expert_logits, 0.0).flatten(1)
        scores = linear("gate.output", linear("gate.dense", heard).relu()) / config.gate_temperature
        gate_weights = scores.exp() * available
    else:
        gate_weights = available.to(expert_logits)
    gate_weights = gate_weights / gate_weights.sum(1, keepdim=True)
    return {
        "logits": (gate_weights[..., None] * expert_logits).sum(1),
        "expert_logits": expert_logits,
        "gate_weights": gate_weights,
        "speech_states": speech,
        "text_states": text,
    }


@pytest.mark.parametrize(
    "changes",
    [value for value in SETTINGS.values() if "experts" not in value]
    + [{"causal": True, "context_kernel_sizes": [5, 1], "gate_temperature": 0.7}],
)
@pytest.mark.parametrize("turns", [1, 2, 9])
@pytest.mark.parametrize("absent", [0.0, 0.4])
def test_outputs_equal_a_direct_computation_from_the_weights(tiny_model, make_batch, changes, turns, absent):
    model = tiny_model(**changes)
    batch = make_batch([turns], model.config, absent=absent)
    output = run(model, batch)
    expected = directly(
        model,
        {name: batch[f"{name}_embeddings"][0] for name in MODALITIES},
        {name: batch[f"{name}_mask"][0] for name in MODALITIES},
    )
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(output, name)[0], value, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings
@pytest.mark.parametrize("load", [MisterEModel.from_pretrained, AutoModel.from_pretrained], ids=["own", "auto"])
def test_loaded_model_is_bit_equal_to_the_saved(tiny_model, make_batch, tmp_path, changes, load):
    model = tiny_model(dtype=torch.float32, **changes)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is MisterEModel and not loaded.training
    assert_bit_equal(loaded.state_dict(), model.state_dict())
    batch = make_batch(LENGTHS, model.config, dtype=torch.float32, absent=0.3)
    before, after = run(model, batch), run(loaded, batch)
    assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in before)


def assert_bit_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


def test_standardisation_is_saved_with_the_weights(tiny_model, tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name in ("speech_input.mean", "speech_input.std", "text_input.mean", "text_input.std"):
        assert torch.equal(stored[name], model.state_dict()[name])
        assert stored[name].abs().sum() > 0


def test_model_is_loaded_in_the_type_asked_for(tiny_model, make_batch, tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="sdpa")
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    batch = make_batch([3, 5], model.config, dtype=torch.float32)
    torch.testing.assert_close(run(half, batch).logits.float(), run(model, batch).logits, rtol=0, atol=0.1)


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("load", [MisterEModel.from_pretrained, AutoModel.from_pretrained], ids=["own", "auto"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop("text_expert.gru.weight_hh_l0"), "missing: text_expert.gru.weight_hh_l0"),
        (lambda weights: weights.pop("speech_input.std"), "missing: speech_input.std"),
        (lambda weights: weights.pop("gate.dense.bias"), "missing: gate.dense.bias"),
        (lambda weights: weights.update({"gate.third.bias": torch.zeros(2)}), "unexpected: gate.third.bias"),
        (
            lambda weights: weights.update({"speech_expert.skip.weight": torch.zeros(8, 6)}),
            "of another shape: speech_expert.skip.weight",
        ),
        (
            lambda weights: (weights.pop("fusion_expert.norm.bias"), weights.update({"extra": torch.zeros(1)})),
            "missing: fusion_expert.norm.bias; unexpected: extra",
        ),
    ],
    ids=["no weight", "no buffer", "no gate bias", "one too many", "another shape", "another name"],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, edit, message, load, ignore):
    edit_weights(saved, edit)
    with pytest.raises(ValueError, match=message):
        load(saved, ignore_mismatched_sizes=ignore)


def test_heads_of_another_size_are_refused_by_name(saved):
    edit_weights(saved, lambda weights: weights.update({"text_expert.head.bias": torch.zeros(4)}))
    with pytest.raises(ValueError, match="of another shape: text_expert.head.bias"):
        MisterEModel.from_pretrained(saved)


def test_other_classes_are_refused_unless_asked_for(saved):
    with pytest.raises(ValueError, match="fusion_expert.head.bias.*ignore_mismatched_sizes"):
        AutoModel.from_pretrained(saved, id2label={0: "calm", 1: "tense"})


HEADS = {f"{name}_expert.head.{part}" for name in ("speech", "text", "fusion") for part in ("weight", "bias")}
GATE = {f"gate.{layer}.{part}" for layer in ("dense", "output") for part in ("weight", "bias")}


@pytest.mark.parametrize("load", [MisterEModel.from_pretrained, AutoModel.from_pretrained], ids=["own", "auto"])
@pytest.mark.parametrize("labels", [["calm", "tense"], ["a", "b", "c"], ["a", "b", "c", "d"]], ids=len)
def test_new_classes_start_heads_and_gate_anew_with_one_warning(saved, make_batch, tmp_path, caplog, load, labels):
    before = load_file(saved / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        model = load(saved, id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True)
    warnings = [record for record in caplog.records if record.name.endswith("modeling_conversation")]
    assert len(warnings) == 1
    after = model.state_dict()
    assert all(name in warnings[0].getMessage() for name in HEADS | GATE)
    assert after.keys() == before.keys()
    for name in after:
        if name in HEADS | GATE:
            assert after[name].shape != before[name].shape or not torch.equal(after[name], before[name]), name
            bound = model.get_submodule(name.rpartition(".")[0]).in_features ** -0.5
            assert after[name].abs().max() <= bound and after[name].std() > 0, name
        else:
            assert torch.equal(after[name], before[name]), name
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {label: index for index, label in enumerate(labels)}
    assert run(model, make_batch([3], model.config, dtype=torch.float32)).logits.shape == (1, 3, len(labels))
    # and what was fine-tuned can be saved and loaded
    model.save_pretrained(tmp_path / "tuned")
    assert_bit_equal(AutoModel.from_pretrained(tmp_path / "tuned").state_dict(), after)


def test_same_classes_keep_heads_and_gate(saved, caplog):
    with caplog.at_level(logging.WARNING):
        model = MisterEModel.from_pretrained(saved, ignore_mismatched_sizes=True)
    assert_bit_equal(model.state_dict(), load_file(saved / "model.safetensors"))
    assert not [record for record in caplog.records if record.name.endswith("modeling_conversation")]


def test_loading_info_is_returned_when_asked_for(saved):
    model, info = MisterEModel.from_pretrained(saved, output_loading_info=True)
    assert isinstance(model, MisterEModel)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_nothing_of_the_model_is_lost_on_the_meta_device(tiny_model, tiny_config, make_batch):
    model = tiny_model(dtype=torch.float32, feature_clip=2.0)
    with torch.device("meta"):
        empty = MisterEModel(tiny_config(feature_clip=2.0))
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    empty.load_state_dict(model.state_dict(), assign=True)
    batch = make_batch(LENGTHS, model.config, dtype=torch.float32, absent=0.3)
    before, after = run(model, batch), run(empty.eval(), batch)
    assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in before)


def test_a_new_model_is_initialised_as_torch_initialises_its_layers(tiny_config):
    torch.manual_seed(0)
    model = MisterEModel(tiny_config(hidden_size=16, speech_embedding_dim=64))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bounds, expected = {"weight", "bias"}, module.in_features**-0.5
        elif isinstance(module, nn.GRU):
            bounds, expected = dict(module.named_parameters()).keys(), module.hidden_size**-0.5
        elif "convolutions." in name:
            kernel_size, _, width = module.weight.shape
            bounds, expected = {"weight", "bias"}, (kernel_size * width) ** -0.5
        else:
            continue
        for part in bounds:
            values = getattr(module, part)
            assert values.std() > 0 and values.abs().max() <= expected, f"{name}.{part}"
            assert values.numel() < 16 or values.abs().max() > 0.7 * expected, f"{name}.{part}"
    for name in MODALITIES:
        module = model.get_submodule(f"{name}_input")
        assert (module.mean == 0).all() and (module.std == 1).all() and (module.null_embedding == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings
def test_autocast_gives_a_finite_loss_and_gradient(tiny_model, make_batch, changes, dtype):
    model = tiny_model(dtype=torch.float32, **changes)
    batch = make_batch(LENGTHS, model.config, dtype=torch.float32, absent=0.3)
    with torch.autocast("cpu", dtype):
        output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(output.logits.float(), run(model, batch).logits, rtol=0, atol=0.1)
