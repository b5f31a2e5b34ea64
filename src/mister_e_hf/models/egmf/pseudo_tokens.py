"""Pseudo tokens: vectors that represent a turn among the embeddings of a language model's tokens.

Three bottlenecks as in MSE-Adapter (arXiv 2502.12478), whose tokens are multiples of one vector; here each token has a
projection of its own, and the scale of the embedding table.

Letters: N turns, H hidden, P pseudo tokens, W width of the language model.
"""

import torch
from torch import nn

REDUCTIONS = (8, 16, 32)


class PseudoTokens(nn.Module):
    """
    States (N, H) -> (N, P, W): `scale * RMSNorm(W_P GELU(W_G G)) + places`, where G is the state and the sum of three
    bottlenecks of H / 8, H / 16 and H / 32 units.
    """

    def __init__(self, hidden_size: int, num_tokens: int, width: int):
        super().__init__()
        self.num_tokens, self.width = num_tokens, width
        sizes = [max(1, hidden_size // reduction) for reduction in REDUCTIONS]
        self.down = nn.ModuleList(nn.Linear(hidden_size, size) for size in sizes)
        self.up = nn.ModuleList(nn.Linear(size, hidden_size) for size in sizes)
        self.mix = nn.Linear(hidden_size, hidden_size)
        self.project = nn.Linear(hidden_size, num_tokens * width)
        self.scale = nn.Parameter(torch.empty(()))
        self.places = nn.Parameter(torch.empty(num_tokens, width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        mixed = states
        for down, up in zip(self.down, self.up, strict=True):
            mixed = mixed + up(nn.functional.gelu(down(states)))
        tokens = self.project(nn.functional.gelu(self.mix(mixed))).unflatten(-1, (self.num_tokens, self.width))
        tokens = tokens.to(self.scale.dtype)  # not the lower precision of autocast
        normal = tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + torch.finfo(tokens.dtype).eps)
        return self.scale * normal + self.places
