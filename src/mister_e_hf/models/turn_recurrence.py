"""A GRU over packed rows whose gradients are few matrix products, for training on a CPU.

PyTorch computes the gradient of a GRU's weights at each step and adds them up. Here a step computes only what the next
one needs; the gradients of the weights and of the input are then one matrix product each over all rows.

Letters: N rows, packed as [`~torch.nn.utils.rnn.PackedSequence`] has them; D directions, b rows of a step, I input
width, H hidden. The gates r (reset) and z (update) and the new state n are those of [`~torch.nn.GRU`], whose weights
have their rows in this order: n = tanh(x_n + r * h_n), and the state becomes n + z * (h - n), with x_n and h_n the
maps of the input and of the state h.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

# From so many steps on, copying a matrix in another order costs less than reading it at each step in the wrong one.
_MANY_STEPS = 24


def takes_packed_gru(module: nn.RNNBase, rows: torch.Tensor) -> TypeGuard[nn.GRU]:
    """
    Whether [`packed_gru`] is used. In evaluation it is not, so that predictions are those of PyTorch's GRU to the bit.
    """
    trained = module.training and torch.is_grad_enabled() and rows.device.type == "cpu"
    return trained and isinstance(module, nn.GRU) and module.bias


@contextlib.contextmanager
def in_own_precision(recurrence: nn.RNNBase, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """
    The rows in the precision of a recurrence's weights, without autocast, on CUDA: there autocast copies every weight
    into a buffer of the other precision at each call, and its gradient back.
    """
    if rows.device.type != "cuda":
        yield rows
        return
    with torch.autocast("cuda", enabled=False):
        yield rows.to(next(recurrence.parameters()).dtype)


def packed_gru(module: nn.GRU, rows: torch.Tensor, batch_sizes: torch.Tensor) -> torch.Tensor:
    """
    The output of a GRU of any number of layers for packed rows (N, I), beginning with zeros: (N, D H).

    Under autocast the matrix products have its dtype; the states are float32. A second derivative raises RuntimeError.
    """
    device, directions = rows.device.type, 2 if module.bidirectional else 1
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
    sizes, backwards = batch_sizes.tolist(), _backwards(batch_sizes)
    weights = module._flat_weights
    with torch.autocast(device, enabled=False):
        for layer in range(module.num_layers):
            own = weights[4 * directions * layer :][: 4 * directions]
            rows = _Layer.apply(rows, sizes, backwards, dtype, *own)
            if layer < module.num_layers - 1:
                rows = F.dropout(rows, module.dropout, module.training)
    return rows


def _backwards(batch_sizes: torch.Tensor) -> torch.Tensor:
    """For each row that which takes its place where sequences are read from their ends (N,); its own inverse."""
    starts = batch_sizes.cumsum(0) - batch_sizes
    step = torch.repeat_interleave(torch.arange(len(batch_sizes)), batch_sizes)
    sequence = torch.arange(len(step)) - starts[step]
    length = torch.bincount(sequence)[sequence]
    return starts[length - 1 - step] + sequence


class _Layer(torch.autograd.Function):
    """One layer. Both directions are computed beside each other, the second with its rows in the order `backwards`."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        sizes: Sequence[int],
        backwards: torch.Tensor,
        dtype: torch.dtype,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        """
        rows (N, I), by step b, (N,), dtype of matrix products, for each direction (3 H, I), (3 H, H), (3 H,), (3 H,)
        -> (N, D H)
        """
        directions, hidden = len(weights) // 4, weights[1].shape[1]
        of_inputs = [weight.to(dtype) for weight in weights[::4]]
        of_state = torch.stack(weights[1::4]).to(dtype)  # [D, 3 H, H]
        found = [
            F.linear(own.to(dtype), weight, bias.to(dtype))
            for own, weight, bias in zip(
                _directions(rows, backwards, directions), of_inputs, weights[2::4], strict=True
            )
        ]
        gates = torch.stack(found).to(weights[0].dtype)  # [D, N, 3 H], what r, z and n are computed from, then they
        to_state = of_state.transpose(1, 2)  # [D, H, 3 H]
        if len(sizes) > _MANY_STEPS and dtype == torch.float32:
            to_state = to_state.contiguous()
        bias = torch.stack(weights[3::4])[:, None]  # [D, 1, 3 H]
        states = gates.new_empty(directions, len(rows), hidden)
        by_state = torch.empty_like(states)  # the part h_n of n
        state, start = gates.new_zeros(directions, sizes[0], hidden), 0
        for size in sizes:
            here = slice(start, start + size)
            from_state = _plus_product(bias, state[:, :size], to_state)
            both, new = gates[:, here, : 2 * hidden], gates[:, here, 2 * hidden :]
            both.add_(from_state[..., : 2 * hidden]).sigmoid_()
            by_state[:, here] = from_state[..., 2 * hidden :]
            new.addcmul_(both[..., :hidden], from_state[..., 2 * hidden :]).tanh_()
            state = torch.lerp(new, state[:, :size], both[..., hidden:])
            states[:, here] = state
            start += size
        ctx.sizes, ctx.dtype = sizes, dtype
        ctx.save_for_backward(rows, backwards, gates, by_state, states, of_state, *of_inputs)
        return torch.cat([own if not number else own[backwards] for number, own in enumerate(states)], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):
        if torch.is_grad_enabled():  # the result would silently count as constant
            raise RuntimeError(
                "The GRU has no second derivative in training on a CPU; take gradients with create_graph=False, or "
                "put the model in evaluation mode"
            )
        rows, backwards, gates, by_state, states, from_state, *weights = ctx.saved_tensors
        sizes, dtype = ctx.sizes, ctx.dtype
        directions, count, hidden = states.shape
        reset, update, new = gates.split(hidden, -1)
        before = _before(states, sizes)
        # what the gradient of a state is multiplied with for those of x_n, and of what r, z and h_n are computed from
        of_new = (1 - update) * (1 - new * new)
        factors = [of_new * by_state * reset * (1 - reset), (before - new) * update * (1 - update), of_new * reset]
        of_gates = torch.stack(factors, 2)  # [D, N, 3, H]
        parts = gradient.split(hidden, -1)
        # [D, N, H], to which later steps add
        of_state = torch.stack([own if not number else own[backwards] for number, own in enumerate(parts)])
        end, later = count, None
        for size in reversed(sizes):
            here = slice(end - size, end)
            own = of_state[:, here]
            if later is not None:
                own[:, : later.shape[1]] += later
            of_gates[:, here] *= own[:, :, None]
            end -= size
            if end:
                later = _plus_product(own * update[:, here], of_gates[:, here].flatten(2), from_state)
        of_gates = of_gates.flatten(2)
        of_inputs = torch.cat([of_gates[..., : 2 * hidden], of_new * of_state], -1)
        inputs = _directions(rows, backwards, directions)
        of_rows = None
        if ctx.needs_input_grad[0]:
            parts = torch.stack([_times(own, weight, dtype) for own, weight in zip(of_inputs, weights, strict=True)])
            of_rows = parts[0] if directions == 1 else parts[0] + parts[1][backwards]
        found = []
        for own, of_input, of_gate, past in zip(inputs, of_inputs, of_gates, before, strict=True):
            found += [_times(of_input.T, own, dtype), _times(of_gate.T, past, dtype), of_input.sum(0), of_gate.sum(0)]
        return of_rows, None, None, None, *found


def _directions(values: torch.Tensor, backwards: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The rows in the order in which each direction reads them."""
    return [values, values[backwards]][:count]


def _before(states: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The state before each row, (D, N, H) -> (D, N, H)."""
    first = states.new_zeros(len(states), sizes[0], states.shape[2])
    # a row's sequence had its last row as many rows earlier as the step before it has
    steps = torch.tensor(sizes)
    earlier = torch.repeat_interleave(steps[:-1], steps[1:])
    return torch.cat([first, states[:, torch.arange(sizes[0], states.shape[1]) - earlier]], 1)


def _times(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A matrix product in this dtype, of the dtype of the left one."""
    return (left.to(dtype) @ right.to(dtype)).to(left.dtype)


def _plus_product(added: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A batched matrix product in the dtype of the right one, added to the first."""
    if left.dtype == right.dtype:
        return torch.baddbmm(added, left, right)
    return added + torch.bmm(left.to(right.dtype), right)
