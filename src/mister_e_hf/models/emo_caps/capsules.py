"""Capsules: primary ones from the states of a turn, and their routing to the capsules of the classes.

Inverted dot-product attention: Tsai, Srivastava, Goh and Salakhutdinov, ICLR 2020, arXiv 2002.04764. Dynamic routing:
Sabour, Frosst and Hinton, NeurIPS 2017, arXiv 1710.09829. Primary capsules with activations, one for each choice of
modalities: Tsai, Ma, Yang, Salakhutdinov and Morency, "Multimodal Routing", EMNLP 2020, arXiv 2004.14198.

Letters: N turns, K primary capsules, C parents (class capsules), d pose width, e width of a parent, H hidden.
"""

import math
from collections.abc import Mapping
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import nn

from ..turns import TurnLayout
from .configuration_emo_caps import EmoCapsConfig
from .emoformer import EmoCapsStates, turn_gru


def squash(vectors: torch.Tensor) -> torch.Tensor:
    """n s / (1 + n^2) with n = |s|, over the last dimension: of length n^2 / (1 + n^2), and 0 at 0."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors * (length / (1 + length.square()))


def route_by_attention(
    votes: torch.Tensor, activations: torch.Tensor, passes: int, detach: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Inverted dot-product attention: parents LN(sum_i r_ij a_i vote_ij), to which the children answer with
    r_i. = softmax_j(vote_ij . parent_j / sqrt(e)), from r = 1 / C.

    Args:
        votes (`(K, ..., C, e)`), activations (`(K, ...)`).
        passes: how often the coefficients are computed from the parents.
        detach: keep the gradient out of the coefficients.

    Returns:
        parents (..., C, e) and coefficients (K, ..., C).
    """
    routed = votes.detach() if detach else votes
    strength = activations.detach() if detach else activations
    coefficients = torch.full_like(votes[..., 0], 1 / votes.shape[-2])
    for _ in range(passes):
        parents = F.layer_norm(_gather(routed, strength, coefficients), votes.shape[-1:])
        coefficients = (_agreement(routed, parents) / math.sqrt(votes.shape[-1])).softmax(-1)
    return F.layer_norm(_gather(votes, activations, coefficients), votes.shape[-1:]), coefficients


def route_dynamically(
    votes: torch.Tensor, activations: torch.Tensor, passes: int, detach: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Dynamic routing: parents squash(s_j) with s_j = sum_i c_ij a_i vote_ij, where c_i. = softmax_j(b_ij) and b, from 0,
    grows by the agreement vote_ij . squash(s_j).

    Args and returns as [`route_by_attention`], but `passes` is how often the parents are computed, and they are
    returned before they are squashed.
    """
    routed = votes.detach() if detach else votes
    strength = activations.detach() if detach else activations
    agreed = torch.zeros_like(votes[..., 0])
    for _ in range(passes - 1):
        parents = squash(_gather(routed, strength, agreed.softmax(-1)))
        agreed = agreed + _agreement(routed, parents)
    coefficients = agreed.softmax(-1)
    return _gather(votes, activations, coefficients), coefficients


def _gather(votes: torch.Tensor, activations: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    return ((coefficients * activations[..., None])[..., None] * votes).sum(0)


def _agreement(votes: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    return (votes * parents).sum(-1)


class PrimaryCapsules(nn.Module):
    """A capsule of each choice of modalities: a pose, and an activation that is 0 where one of them is absent."""

    def __init__(self, config: EmoCapsConfig):
        super().__init__()
        self.names = config.capsules
        self.dropout = nn.Dropout(config.dropout)
        sizes = [len(name.split("+")) for name in self.names]
        # a modality alone has two vectors, several have one for each ordered pair
        self.poses = nn.ModuleDict(
            {
                name: nn.Linear(config.hidden_size * (2 if size == 1 else size * (size - 1)), config.pose_size + 1)
                for name, size in zip(self.names, sizes, strict=True)
            }
        )

    def forward(self, states: EmoCapsStates, present: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """`present` by modality (N,) -> poses (K, N, d), activations (K, N)"""
        found = []
        there = []
        for name in self.names:
            members = name.split("+")
            if len(members) == 1:
                seen = [states.emotion[name], states.sentence[name]]
            else:
                seen = [states.crossed[pair] for pair in permutations(members, 2)]
            found.append(self.poses[name](self.dropout(torch.cat(seen, dim=-1))))
            there.append(torch.stack([present[member] for member in members]).all(0))
        rows = torch.stack(found)
        return rows[..., :-1], rows[..., -1].sigmoid().masked_fill(~torch.stack(there), 0.0)


class CapsuleHead(nn.Module):
    """
    Votes of the primary capsules for the class capsules, their routing, and the logits. For scores each target has
    capsules of its own, the anchors, which share the votes of a child among one another.
    """

    def __init__(self, config: EmoCapsConfig):
        super().__init__()
        self.passes, self.detach = config.num_routing, config.detach_routing
        self.targets = config.num_labels if config.task == "regression" else 1
        self.parents = config.num_anchors if config.task == "regression" else config.num_labels
        children, parents, size = len(config.capsules), self.targets * self.parents, config.capsule_size
        self.weight = nn.Parameter(torch.empty(children, config.pose_size, parents * size))
        self.bias = nn.Parameter(torch.empty(children, 1, parents * size))
        reads = config.routing == "attention"  # the length of a capsule of dynamic routing is its answer
        self.readout = nn.Parameter(torch.empty(parents, size)) if reads else None
        self.prior = nn.Parameter(torch.empty(parents)) if reads else None
        self.context = CapsuleContext(config, parents) if config.context == "after" else None

    def forward(
        self, poses: torch.Tensor, activations: torch.Tensor, layout: TurnLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        poses (K, N, d), activations (K, N) -> logits (N, S, C) and coefficients (K, N, S, C), in float32 or wider; S
        is 1 for classes.
        """
        logits, capsules, coefficients = self.route(poses, activations)
        if self.context is not None:
            logits = logits + self.context(capsules, layout).unflatten(1, logits.shape[1:])
        return logits, coefficients

    def route(self, poses: torch.Tensor, activations: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits (N, S, C) of the class capsules, these (N, S, C, e), and coefficients (K, N, S, C)."""
        with torch.autocast(poses.device.type, enabled=False):
            weight, bias = _widened(self.weight), _widened(self.bias)
            votes = torch.baddbmm(bias, _widened(poses), weight)
            votes = votes.unflatten(-1, (self.targets, self.parents, -1))
            strength = _widened(activations)[..., None]
            if self.readout is None or self.prior is None:
                sums, coefficients = route_dynamically(votes, strength, self.passes, self.detach)
                # |v| = n^2 / (1 + n^2), so that log(|v| / (1 - |v|)) = log(n^2)
                logits = sums.square().sum(-1).clamp(min=1e-12).log()
                return logits, squash(sums), coefficients
            capsules, coefficients = route_by_attention(votes, strength, self.passes, self.detach)
            readout = _widened(self.readout).unflatten(0, (self.targets, self.parents))
            logits = (capsules * readout).sum(-1) + _widened(self.prior).unflatten(0, (self.targets, self.parents))
            return logits, capsules, coefficients


class CapsuleContext(nn.Module):
    """A recurrence over the class capsules of a dialogue's turns, and what it adds to their logits."""

    def __init__(self, config: EmoCapsConfig, parents: int):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.gru = turn_gru(parents * config.capsule_size, config.hidden_size, config.causal)
        self.output = nn.Linear(config.hidden_size, parents)

    def forward(self, capsules: torch.Tensor, layout: TurnLayout) -> torch.Tensor:
        """capsules (N, S, C, e) -> (N, S C)"""
        rows = self.dropout(capsules.flatten(1)).to(self.output.weight.dtype)
        return self.output(self.dropout(layout.recur(self.gru, rows)))


def _widened(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
