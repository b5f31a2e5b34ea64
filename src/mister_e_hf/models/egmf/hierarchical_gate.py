"""EGMF's hierarchical gate: each expert weighs the modalities of a turn, then the turn weighs the experts.

Letters: N real turns of the batch (as flat rows), E experts, M modalities, H hidden.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_egmf_fusion import EgmfFusionConfig


def softmax_of_present(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension where `present`, exactly 0 elsewhere, and all 0 where nothing is."""
    lowest = torch.finfo(scores.dtype).min  # not -inf: a softmax of nothing is NaN, and so is its gradient
    return scores.masked_fill(~present, lowest).softmax(-1).masked_fill(~present, 0.0)


class ModalityGate(nn.Module):
    """Scores of the modalities within each expert, w_e tanh(U_e [state; context])."""

    def __init__(self, hidden_size: int, num_experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, hidden_size))
        self.context = nn.Linear(hidden_size, num_experts * hidden_size)
        self.score = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(self, states: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """states (E, N, M, H), context (N, H) -> (E, N, M)"""
        of_turn = self.context(context).unflatten(1, (len(self.weight), 1, -1)).transpose(0, 1)  # [E, N, 1, H]
        hidden = torch.bmm(states.flatten(1, 2), self.weight).view_as(states) + of_turn
        return torch.einsum("enmh,eh->enm", hidden.tanh(), self.score)


class ExpertGate(nn.Module):
    """Scores of the experts; the weights begin at 0, so that all experts weigh the same."""

    def __init__(self, hidden_size: int, num_experts: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.norm = nn.LayerNorm((num_experts + 1) * hidden_size)
        self.weight = nn.Parameter(torch.empty(num_experts, (num_experts + 1) * hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts))

    def forward(self, experts: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """experts (E, N, H), context (N, H) -> (N, E)"""
        return F.linear(self.norm(torch.cat([*experts, context], dim=-1)), self.weight, self.bias) / self.temperature


class HierarchicalGate(nn.Module):
    """The states of all experts and modalities become one of each turn."""

    def __init__(self, config: EgmfFusionConfig):
        super().__init__()
        hidden, experts = config.hidden_size, len(config.experts)
        # a softmax over one needs no scores
        weighs_modalities = config.modality_gate == "learned" and len(config.modalities) > 1
        weighs_experts = config.expert_gate == "learned" and experts > 1
        self.context = nn.Linear(2 * hidden, hidden) if weighs_modalities or weighs_experts else None
        self.modalities = ModalityGate(hidden, experts) if weighs_modalities else None
        self.experts = ExpertGate(hidden, experts, config.gate_temperature) if weighs_experts else None

    def forward(
        self, states: torch.Tensor, present: torch.Tensor, mean: torch.Tensor, turn: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        states (E, N, M, H) of the experts, present (N, M), mean (N, H) of the tokens that are there, turn (N, H): the
        token of the turn. Returns the weighed sum of the states (N, H), the weights of the experts (N, E) and those of
        the modalities within each (N, E, M); where a turn has no modality all of them are 0.
        """
        context = mean if self.context is None else self.context(torch.cat([mean, turn], dim=-1))
        scores = states.new_zeros(states.shape[:-1]) if self.modalities is None else self.modalities(states, context)
        within = softmax_of_present(scores, present)
        experts = torch.einsum("enm,enmh->enh", within.to(states), states)
        found = present.any(-1, keepdim=True)
        scores = states.new_zeros(len(turn), len(states)) if self.experts is None else self.experts(experts, context)
        between = softmax_of_present(scores, found)
        return torch.einsum("ne,enh->nh", between.to(states), experts), between, within.transpose(0, 1)


def balance_loss(
    expert_weights: torch.Tensor, turn_weights: torch.Tensor, dialogue: torch.Tensor, num_items: torch.Tensor | int
) -> torch.Tensor:
    r"""
    E sum_e p_e^2 of each dialogue, with p_e the mean weight of expert e over its scored turns: 1 if all experts weigh
    the same, E if one has all the weight. It is the balance of a gate that uses every expert at every turn, whose
    share of the turns is its mean weight (Shazeer et al. 2017), within a dialogue, so that sums over dialogues divided
    by `num_items` add up over micro-batches and processes.

    Args:
        expert_weights (`(N, E)`).
        turn_weights (`(N,)`): how many scores each turn has.
        dialogue (`(N,)`): the number of its dialogue.
        num_items: how many scores there are in the whole optimizer step.
    """
    weighed = expert_weights * turn_weights.to(expert_weights)[:, None]
    sums = weighed.new_zeros(len(weighed), weighed.shape[1]).index_add(0, dialogue, weighed)
    total = sums.sum(-1)
    loss = expert_weights.shape[1] * (sums.square().sum(-1) / total.clamp(min=torch.finfo(total.dtype).tiny)).sum()
    return loss / torch.as_tensor(num_items, device=loss.device).clamp(min=1)
