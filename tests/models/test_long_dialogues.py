"""Attention in long dialogues: in groups of like length, and in blocks of turns."""

import pytest
import torch

from mister_e_hf.models import turn_attention, turns
from mister_e_hf.models.baselines import dialogue_rnn
from mister_e_hf.models.baselines.dialogue_rnn import _Past
from mister_e_hf.models.registry import registered
from mister_e_hf.models.turns import TurnLayout
from support.model_contract import assert_same, assert_streams, gradients_of, outputs_of, small_batch, small_model
from support.peak_memory import peak_of

MODELS = [
    *((each.name, {"causal": causal}) for each in registered() if each.streams for causal in (False, True)),
    *((each.name, {}) for each in registered() if not each.streams),
    *(("mister_e", {"attention_decay": True, "causal": causal}) for causal in (False, True)),
]


@pytest.mark.parametrize(("name", "changes"), MODELS)
def test_groups_and_blocks_change_nothing(name, changes, monkeypatch):
    model = small_model(name, **changes)
    batch = small_batch(model.config, [9, 1, 5, 4, 9, 2])
    expected, gradients = outputs_of(model, batch), gradients_of(model, batch)
    monkeypatch.setattr(turns, "LONG", 2)
    monkeypatch.setattr(turn_attention, "LONG", 2)
    for pairs in (2**24, 1, 40):
        monkeypatch.setattr(turn_attention, "_PAIRS", pairs)
        assert_same(outputs_of(model, batch), expected)
        assert_same(gradients_of(model, batch), gradients)
    if getattr(model.config, "causal", False) and model.config.streams:
        assert_streams(model)


def attend(lengths, monkeypatch, **options) -> list[tuple[int, ...]]:
    """The shapes of the queries and keys that attention compares."""
    found, real = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, *arguments, **kwargs):
        found.append((query.shape[0], query.shape[-2], key.shape[-2]))
        return real(query, key, *arguments, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    layout = TurnLayout(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    rows = torch.randn(layout.count, 4)
    settings = {"num_heads": 2, "causal": False, "dropout": 0.0, "module": None} | options
    assert layout.attend(rows, rows, rows, **settings).shape == rows.shape
    return found


def test_a_long_dialogue_costs_short_ones_nothing(monkeypatch):
    assert attend([3, 2000, 3, 200, 300, 500], monkeypatch) == [(3, 200, 200), (2, 500, 500), (1, 2000, 2000)]
    assert attend([256, 3], monkeypatch) == [(2, 256, 256)]


@pytest.mark.parametrize("options", [{"slopes": torch.ones(2)}, {"dropout": 0.1}, {"causal": True, "dropout": 0.1}])
def test_pairs_of_turns_are_compared_in_blocks(options, monkeypatch):
    monkeypatch.setattr(turn_attention, "_PAIRS", 2**20)
    shapes = attend([2000], monkeypatch, **options)
    assert sum(queries for _, queries, _ in shapes) == 2000
    assert all(2 * queries * 2000 <= 2**20 for _, queries, _ in shapes)
    if options.get("causal"):  # later turns are not read at all
        assert [keys for *_, keys in shapes][:2] == [262, 524]
    monkeypatch.undo()
    assert attend([256] * 300, monkeypatch, **options) == [(300, 256, 256)]


def test_dropout_in_blocks_is_computed_again_as_it_was():
    layout = TurnLayout(torch.ones(1, 3000, dtype=torch.bool))
    rows = torch.randn(3000, 4, dtype=torch.float64)
    value = rows.clone().requires_grad_()
    torch.manual_seed(0)
    mixed = layout.attend(rows, rows, value, 2, False, 0.5, None)
    (gradient,) = torch.autograd.grad(mixed.sum(), value)
    # attention is linear in its values
    torch.testing.assert_close((gradient * value).sum(), mixed.sum())


@pytest.mark.parametrize("train", [False, True])
def test_recurrence_reads_at_each_step_only_dialogues_that_are_that_long(train, monkeypatch):
    monkeypatch.setattr(turns, "LONG", 2)
    model = small_model("dialogue_rnn").train(train)
    read: list[int] = []
    model.from_last.party_cell.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    with torch.set_grad_enabled(train):
        model(**small_batch(model.config, [9, 1, 2, 1]))
    assert read == [4, 2, *[1] * 7]


def test_past_states_are_in_one_tensor_that_grows_with_the_dialogues_still_read():
    states = torch.randn(70, 3, 2, dtype=torch.float64, requires_grad=True)
    past, read, stacked = _Past(states[0]), [], []
    for number, state in enumerate(states):
        past.add(state[: 3 if number < 10 else 1])
        reading = 3 if number < 9 else 1
        read.append(past.of(reading))
        stacked.append(states[: number + 1, :reading].transpose(0, 1))
        assert torch.equal(read[-1], stacked[-1])
    assert past._memory.shape == (1, 128, 2)
    assert read[-1].data_ptr() == past._memory.data_ptr()
    found, expected = (
        torch.autograd.grad(sum((number * each**2).sum() for number, each in enumerate(several)), states)[0]
        for several in (read, stacked)
    )
    torch.testing.assert_close(found, expected)


# Counting is slow: in training only the causal one of two kinds of a model is counted always.
LONG_COUNTS = [(name, changes) for name, changes in MODELS if name == "egmf" or changes.get("causal") is False]


@pytest.mark.parametrize(
    ("name", "changes", "train"),
    [
        pytest.param(*case, train, marks=[pytest.mark.slow] if train and case in LONG_COUNTS else [])
        for case in MODELS
        for train in (False, True)
    ],
)
def test_memory_is_linear_in_the_turns(name, changes, train, monkeypatch):
    for module in (turns, turn_attention, dialogue_rnn):
        monkeypatch.setattr(module, "LONG", 8, raising=False)
    monkeypatch.setattr(turn_attention, "_PAIRS", 2**10)
    model = small_model(name, **changes).train(train)

    def step(count: int):
        with torch.set_grad_enabled(train):
            output = model(**small_batch(model.config, [count]))
            if train:
                output.loss.backward()

    fewer, more = (peak_of(lambda count=count: step(count)) for count in (128, 256))
    assert more < 2.1 * fewer
