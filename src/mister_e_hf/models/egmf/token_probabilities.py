"""Log-probabilities of some tokens from the logits of all.

Letters: R rows, K places in a row, V size of the vocabulary, E tokens that are asked for.
"""

from typing import Any

import torch

# Logits that are taken to float32 at a time.
_AT_ONCE = 2**24


def log_probabilities(logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    r"""
    The log-probability of each token at its place, in float32 or wider: (R, E).

    Args:
        logits (`(R, K, V)`): in any dtype.
        places (`(E,)`): the place of each token in every row.
        tokens (`(R, E)`): no token twice at a place.
    """
    return _LogProbabilities.apply(logits, places, tokens)


class _LogProbabilities(torch.autograd.Function):
    """
    As indexing a log-softmax. Its gradient, as large as the logits, is written once; that of each of the indexed
    tensors would be as large again.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        total = torch.cat([rows.to(wide).logsumexp(-1) for rows in logits.split(_rows(logits))])
        index = places * logits.shape[-1] + tokens
        ctx.save_for_backward(logits, total, places, index)
        return logits.flatten(1).gather(1, index).to(wide) - total[:, places]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor):
        (gradient,) = gradients
        logits, total, places, index = ctx.saved_tensors
        of_place = torch.zeros_like(total).index_add_(1, places, gradient)
        found = torch.empty_like(logits, memory_format=torch.contiguous_format)
        step = _rows(logits)
        for start in range(0, len(logits), step):
            some = slice(start, start + step)
            softmax = (logits[some].to(total.dtype) - total[some, :, None]).exp_()
            found[some] = softmax.mul_(-of_place[some, :, None])
        found.flatten(1).scatter_add_(1, index, gradient.to(found.dtype))
        return found, None, None


def _rows(logits: torch.Tensor) -> int:
    return max(1, _AT_ONCE // max(1, logits[0].numel()))
