"""A learned mixture of a backbone's layers that keeps no copy of them for the gradient.

Letters: L layers, W rows of the batch, P positions of a row, R of all of them that are pooled, H width.
"""

import torch
from torch.autograd.function import once_differentiable


class LayerMixture(torch.autograd.Function):
    """
    sum_l w_l s_l at some positions: weights (L,), places (R,) among the W * P, a dtype, and L states (W, P, H) ->
    (R, H) in that dtype. Of the states only what the layers keep themselves is kept, not a copy of each at these
    places and in that dtype.
    """

    @staticmethod
    def forward(context, weights: torch.Tensor, places: torch.Tensor, dtype: torch.dtype, *states: torch.Tensor):
        context.save_for_backward(weights, places, *states)
        mixed = weights[0] * _rows(states[0], places, dtype)
        for weight, state in zip(weights[1:], states[1:], strict=True):
            mixed = mixed + weight * _rows(state, places, dtype)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(context, gradient: torch.Tensor):
        weights, places, *states = context.saved_tensors
        of_weights = None
        if context.needs_input_grad[0]:
            products = [(gradient * _rows(state, places, gradient.dtype)).sum() for state in states]
            of_weights = torch.stack(products).to(weights.dtype)
        of_states: list[torch.Tensor | None] = []
        for weight, state, needed in zip(weights, states, context.needs_input_grad[3:], strict=True):
            if not needed:
                of_states.append(None)
                continue
            found = torch.zeros_like(state).flatten(0, 1)
            of_states.append(found.index_copy_(0, places, (weight * gradient).to(state.dtype)).view_as(state))
        return of_weights, None, None, *of_states


def _rows(state: torch.Tensor, places: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return state.flatten(0, 1).index_select(0, places).to(dtype)
