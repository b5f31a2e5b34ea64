"""A GRU whose gradients are few matrix products, against PyTorch's."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from mister_e_hf.models import turn_recurrence
from mister_e_hf.models.turn_recurrence import packed_gru, takes_packed_gru
from mister_e_hf.models.turns import TurnLayout

SHAPES = {
    "one layer, one direction": (1, False, [4, 3, 1]),
    "two layers": (2, False, [3, 3, 2]),
    "both directions": (1, True, [4, 4, 2, 1, 1]),
    "three layers in both directions": (3, True, [3, 2, 2]),
    "one sequence": (2, True, [1, 1, 1, 1]),
    "one turn each": (2, True, [5]),
    "many steps": (1, True, [2] * 30 + [1] * 7),
}


def gru(layers: int, both: bool, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(5, 4, layers, bidirectional=both, dropout=dropout, dtype=dtype)


def gradients(module: nn.GRU, rows: torch.Tensor, sizes: list[int], ours: bool) -> list[torch.Tensor]:
    """The output, and the gradients of rows and weights of a sum of it with random factors."""
    module.zero_grad()
    rows = rows.clone().requires_grad_()
    torch.manual_seed(1)  # of dropout
    steps = torch.tensor(sizes)
    output = packed_gru(module, rows, steps) if ours else module(PackedSequence(rows, steps))[0].data
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=rows.dtype)
    (output.float() * factors).sum().backward()
    assert rows.grad is not None
    return [output.detach(), rows.grad, *(each.grad for each in module.parameters() if each.grad is not None)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-7), (torch.float32, 2e-6)])
def test_output_and_gradients_are_those_of_torch(shape, dtype, error):
    layers, both, sizes = SHAPES[shape]
    module = gru(layers, both, dtype, dropout=0.5 if layers > 1 else 0.0)
    rows = torch.randn(sum(sizes), 5, dtype=dtype)
    found, expected = gradients(module, rows, sizes, ours=True), gradients(module, rows, sizes, ours=False)
    assert len(found) == len(expected) == 2 + 4 * layers * (1 + both)
    for own, theirs in zip(found, expected, strict=True):
        assert own.dtype == theirs.dtype
        torch.testing.assert_close(own, theirs, rtol=0, atol=error * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_finite_differences(shape):
    layers, both, sizes = SHAPES[shape]
    sizes = sizes[:6]
    module = gru(layers, both)
    names = [name for name, _ in module.named_parameters()]

    def output(rows, *weights):
        for name, weight in zip(names, weights, strict=True):
            object.__setattr__(module, name, None)
            module.__dict__[name] = weight
        module._flat_weights = list(weights)
        return packed_gru(module, rows, torch.tensor(sizes))

    weights = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    for name in names:
        del module._parameters[name]
    assert torch.autograd.gradcheck(
        output, (torch.randn(sum(sizes), 5, dtype=torch.float64).requires_grad_(), *weights)
    )


def test_second_derivative_raises():
    module = gru(1, True)
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(packed_gru(module, rows, torch.tensor([2, 1])).sum(), rows, create_graph=True)


def test_frozen_weights_and_input_get_no_gradient():
    module = gru(1, False).requires_grad_(False)
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    packed_gru(module, rows, torch.tensor([2, 1])).sum().backward()
    assert rows.grad is not None and all(each.grad is None for each in module.parameters())


def test_order_of_reading_from_the_end():
    # three sequences of 3, 2 and 1 rows: a0 b0 c0 a1 b1 a2
    assert turn_recurrence._backwards(torch.tensor([3, 2, 1])).tolist() == [5, 4, 2, 3, 1, 0]


def test_only_training_on_a_cpu_uses_it():
    module, rows = gru(1, True), torch.zeros(2, 5)
    assert takes_packed_gru(module, rows)
    assert not takes_packed_gru(module.eval(), rows)
    assert not takes_packed_gru(module.train(), rows.to("meta"))
    assert not takes_packed_gru(nn.LSTM(5, 4), rows)
    assert not takes_packed_gru(nn.GRU(5, 4, bias=False), rows)
    with torch.no_grad():
        assert not takes_packed_gru(module, rows)


def test_predictions_are_those_of_torch_to_the_bit():
    module = gru(2, True, torch.float32).eval()
    rows = torch.randn(7, 5)
    layout = TurnLayout(torch.arange(4) < torch.tensor([[4], [2], [1]]))
    order, inverse, sizes = layout.packing
    assert torch.equal(layout.recur(module, rows), module(PackedSequence(rows[order], sizes))[0].data[inverse])
    torch.testing.assert_close(layout.recur(module.train(), rows), layout.recur(module.eval(), rows))


def test_autocast_computes_products_in_its_dtype_and_states_in_float32():
    module, sizes = gru(2, True, torch.float32), [6, 4, 3]
    rows = torch.randn(sum(sizes), 5)
    exact = gradients(module, rows, sizes, ours=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradients(module, rows, sizes, ours=True)
    for own, expected in zip(rounded, exact, strict=True):
        assert own.dtype == torch.float32
        assert 0 < (own - expected).norm() < 0.02 * expected.norm()
