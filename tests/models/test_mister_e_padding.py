"""What a turn of MiSTER-E sees: never padding, and of its dialogue what the configuration says."""

import math

import pytest
import torch

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.base.losses import consistency_loss, contrastive_loss
from mister_e_hf.models.mister_e.modeling_mister_e import expert_availability
from support.mister_e_settings import LENGTHS, MODALITIES, PER_TURN, dialogue, run, settings


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
