"""The terms of the MiSTER-E loss (Dutta, Balaji and Ganapathy 2026), losses of scores, and those of pre-training.

Letters: N turns, C classes, S targets, E experts, M anchors, K candidates, H width, D width of a vector. A turn whose
label is -100, or an entry of the scores that is NaN, is not scored.
Every term is a sum over turns divided by `num_items`, the number of scored turns of the whole optimizer step, so that
micro-batches and processes add up to the undivided batch. Terms are computed in float32 or wider. Without a scored
turn they are an exact zero that still has a gradient.
"""

import math

import torch
import torch.nn.functional as F

from .modalities import IGNORE_INDEX


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _divisor(num_items: torch.Tensor | int | None, counted: torch.Tensor) -> torch.Tensor | int:
    """`num_items`, or by default the number of true entries in `counted`; never zero."""
    if num_items is None:
        return counted.sum().clamp(min=1)
    return num_items.clamp(min=1) if isinstance(num_items, torch.Tensor) else max(num_items, 1)


def focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    gamma: float = 3.0,
    class_weights: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""
    Focal loss, (1 - p_true)^gamma * -log p_true (Lin et al. 2017, eq. 4).

    Args:
        logits (`(..., C)`): unnormalised scores.
        labels (`(...)`): class indices, -100 where nothing is scored.
        gamma: 0 gives cross-entropy.
        class_weights (`(C,)`, *optional*): factor of each turn by its class. The divisor stays the number of turns.
        num_items: divisor; by default the number of labels that are not -100.
    """
    scored = labels != IGNORE_INDEX
    log_probabilities = F.log_softmax(_at_least_float32(logits[scored]), dim=-1)
    target = labels[scored].unsqueeze(-1)
    log_p = log_probabilities.gather(-1, target).squeeze(-1)
    # 1 - p from the other classes: exact where p rounds to 1, and its power has a finite gradient there
    others = log_probabilities.exp().scatter(-1, target, 0.0).sum(-1)
    loss = -log_p if gamma == 0 else -(others.clamp(min=torch.finfo(others.dtype).tiny) ** gamma) * log_p
    if class_weights is not None:
        loss = loss * class_weights.to(loss)[labels[scored]]
    return loss.sum() / _divisor(num_items, scored)


def answer_loss(
    log_likelihoods: torch.Tensor,
    answers: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""
    Negative log-likelihood of the right answers: what a language model's cross-entropy is, summed over the tokens of
    an answer.

    Args:
        log_likelihoods (`(..., A)`): of each possible answer.
        answers (`(...)`): index of the right one, -100 where nothing is scored.
        class_weights (`(A,)`, *optional*): factor of each turn by its answer. The divisor stays the number of turns.
        num_items: divisor; by default the number of answers that are not -100.
    """
    scored = answers != IGNORE_INDEX
    right = answers[scored].unsqueeze(-1)
    loss = -_at_least_float32(log_likelihoods[scored]).gather(-1, right).squeeze(-1)
    if class_weights is not None:
        loss = loss * class_weights.to(loss)[answers[scored]]
    return loss.sum() / _divisor(num_items, scored)


def focal_terms(
    logits: torch.Tensor,
    expert_logits: torch.Tensor,
    expert_mask: torch.Tensor,
    labels: torch.Tensor,
    gamma: float = 3.0,
    class_weights: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> list[torch.Tensor]:
    r"""
    Focal loss of the mixture and then of each expert, E + 1 scalars. An expert whose modality is absent at a turn is
    left out there; the divisor stays the number of scored turns.

    Args:
        logits (`(..., C)`), expert_logits (`(..., E, C)`), expert_mask (`(..., E)`, bool), labels (`(...)`).
    """
    num_items = _divisor(num_items, labels != IGNORE_INDEX)
    terms = [focal_loss(logits, labels, gamma, class_weights, num_items)]
    for expert in range(expert_logits.shape[-2]):
        present_labels = labels.masked_fill(~expert_mask[..., expert], IGNORE_INDEX)
        terms.append(focal_loss(expert_logits[..., expert, :], present_labels, gamma, class_weights, num_items))
    return terms


def margin_loss(
    lengths: torch.Tensor,
    labels: torch.Tensor,
    positive: float = 0.9,
    negative: float = 0.1,
    weight: float = 0.5,
    class_weights: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""
    Margin loss of class capsules (Sabour et al. 2017, eq. 4): max(0, positive - p_true)^2 and, of each other class,
    weight * max(0, p - negative)^2.

    Args:
        lengths (`(..., C)`): length p of each class's capsule, in [0, 1).
        labels (`(...)`): class indices, -100 where nothing is scored.
        class_weights (`(C,)`, *optional*), num_items: as in [`focal_loss`].
    """
    scored = labels != IGNORE_INDEX
    found, target = _at_least_float32(lengths[scored]), labels[scored].unsqueeze(-1)
    short, long = (positive - found).clamp(min=0).square(), weight * (found - negative).clamp(min=0).square()
    true = torch.zeros_like(found, dtype=torch.bool).scatter(-1, target, True)
    loss = torch.where(true, short, long).sum(-1)
    if class_weights is not None:
        loss = loss * class_weights.to(loss)[labels[scored]]
    return loss.sum() / _divisor(num_items, scored)


def regression_loss(
    predictions: torch.Tensor,
    labels: torch.Tensor,
    kind: str = "l1",
    delta: float = 1.0,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""
    L1 or Huber loss of scores: with the error d, |d|, or d^2 / 2 up to `delta` and delta (|d| - delta / 2) beyond
    (Huber 1964).

    Args:
        predictions (`(..., S)`), labels (`(..., S)`, NaN where a target is missing): in the same unit.
        kind: `"l1"` or `"huber"`.
        delta: where Huber's loss becomes linear, in the labels' unit.
        num_items: divisor; by default the number of labels that are not NaN.
    """
    scored = ~labels.isnan()
    found = _at_least_float32(predictions[scored])
    expected = labels[scored].to(found)
    if kind == "huber":
        total = F.huber_loss(found, expected, reduction="sum", delta=delta)
    else:
        total = F.l1_loss(found, expected, reduction="sum")
    return total / _divisor(num_items, scored)


def regression_terms(
    predictions: torch.Tensor,
    expert_predictions: torch.Tensor,
    expert_mask: torch.Tensor,
    labels: torch.Tensor,
    kind: str = "l1",
    delta: float = 1.0,
    num_items: torch.Tensor | int | None = None,
) -> list[torch.Tensor]:
    r"""
    Regression loss of the mixture and then of each expert, E + 1 scalars, with absent modalities as in
    [`focal_terms`]; the divisor stays the number of scored entries.

    Args:
        predictions (`(..., S)`), expert_predictions (`(..., E, S)`), expert_mask (`(..., E)`, bool), labels
        (`(..., S)`).
    """
    num_items = _divisor(num_items, ~labels.isnan())
    terms = [regression_loss(predictions, labels, kind, delta, num_items)]
    for expert in range(expert_predictions.shape[-2]):
        present_labels = labels.masked_fill(~expert_mask[..., expert, None], math.nan)
        terms.append(regression_loss(expert_predictions[..., expert, :], present_labels, kind, delta, num_items))
    return terms


def contrastive_loss(
    anchors: torch.Tensor,
    anchor_labels: torch.Tensor,
    temperature: float = 1.0,
    num_items: torch.Tensor | int | None = None,
    candidates: torch.Tensor | None = None,
    candidate_labels: torch.Tensor | None = None,
    anchor_offset: int = 0,
) -> torch.Tensor:
    r"""
    Supervised contrastive loss (Khosla et al. 2020, L_out in eq. 2) over the states of both modalities. An anchor
    without another state of its label adds 0 and is counted.

    Args:
        anchors (`(M, H)`): states, scaled to unit length here. Up to two (speech and text) per scored turn.
        anchor_labels (`(M,)`): class indices, none of them -100.
        temperature: tau.
        num_items: number of scored turns; the divisor is twice that. By default the divisor is M.
        candidates (`(K, H)`), candidate_labels (`(K,)`): the states to compare with, the anchors among them, when
            other processes' states join in. By default the anchors.
        anchor_offset: row of the first anchor in `candidates`.
    """
    divisor = max(len(anchors), 1) if num_items is None else 2 * _divisor(num_items, anchor_labels)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = F.normalize(_at_least_float32(anchors), dim=-1)
        if candidates is None:
            candidates, candidate_labels = anchors, anchor_labels
        else:
            assert candidate_labels is not None
            candidates = F.normalize(_at_least_float32(candidates), dim=-1)
        similarity = anchors @ candidates.T / temperature  # [M, K]
    rows = torch.arange(len(anchors), device=anchors.device)
    itself = torch.zeros_like(similarity, dtype=torch.bool)
    itself[rows, rows + anchor_offset] = True
    positive = (anchor_labels[:, None] == candidate_labels[None, :]) & ~itself
    lowest = torch.finfo(
        similarity.dtype
    ).min  # not -inf: an only state has no other, and its gradient must not be NaN
    log_total = similarity.masked_fill(itself, lowest).logsumexp(1)
    positives = positive.sum(1)
    mean_positive = similarity.masked_fill(~positive, 0.0).sum(1) / positives.clamp(min=1)
    per_anchor = torch.where(positives > 0, log_total - mean_positive, 0.0)
    # 0 * sum keeps the other processes' states on the graph of a process without an anchor
    return per_anchor.sum() / divisor + 0.0 * candidates.sum()


def consistency_loss(
    expert_logits: torch.Tensor,
    expert_mask: torch.Tensor,
    labels: torch.Tensor,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""
    Mean over the pairs of present experts of KL(p||q) + KL(q||p), natural logarithm, gradient through both.

    Args:
        expert_logits (`(..., E, C)`), expert_mask (`(..., E)`, bool), labels (`(...)`, -100 where nothing is scored).
        num_items: divisor; by default the number of labels that are not -100.
    """
    scored = labels != IGNORE_INDEX
    log_p = F.log_softmax(_at_least_float32(expert_logits[scored]), dim=-1)  # [N, E, C]
    mask = expert_mask[scored]
    p = log_p.exp()
    total, pairs = log_p.sum() * 0.0, torch.zeros(len(mask), dtype=torch.long, device=mask.device)
    divergences = []
    for first in range(log_p.shape[1]):
        for second in range(first + 1, log_p.shape[1]):
            both = mask[:, first] & mask[:, second]
            divergence = ((p[:, first] - p[:, second]) * (log_p[:, first] - log_p[:, second])).sum(-1)
            divergences.append(torch.where(both, divergence, 0.0))
            pairs = pairs + both
    if divergences:
        total = total + (torch.stack(divergences).sum(0) / pairs.clamp(min=1)).sum()
    return total / _divisor(num_items, scored)


def reconstruction_errors(reconstructed: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each vector over its D dimensions: (N, D), (N, D) -> (N,); no gradient to the targets."""
    return (_at_least_float32(reconstructed) - targets.detach()).square().mean(-1)


def info_nce(
    first: torch.Tensor, second: torch.Tensor, temperature: float = 0.1, num_items: int | None = None, **candidates
) -> torch.Tensor:
    r"""
    Symmetric InfoNCE (van den Oord et al. 2018, eq. 4; both directions as in Radford et al. 2021) between two
    modalities of the same turns; see [`info_nce_of_turns`].

    Args:
        num_items: number of turns with both modalities of the whole optimizer step; by default M.
    """
    rows = info_nce_of_turns(first, second, temperature, **candidates)
    return rows.sum() / max(len(rows) if num_items is None else num_items, 1)


def info_nce_of_turns(
    first: torch.Tensor,
    second: torch.Tensor,
    temperature: float = 0.1,
    dialogues: torch.Tensor | None = None,
    all_first: torch.Tensor | None = None,
    all_second: torch.Tensor | None = None,
    all_dialogues: torch.Tensor | None = None,
    offset: int = 0,
) -> torch.Tensor:
    r"""
    InfoNCE of each turn (M,): the cross-entropy of finding the turn's own second vector among all of them with its
    first one, and the other way round, and their mean. A turn without negatives adds 0.

    Args:
        first (`(M, H)`), second (`(M, H)`): vectors of the same turns, scaled to unit length here.
        temperature: tau.
        dialogues (`(M,)`, *optional*): number of each turn's dialogue; the negatives are then turns of others alone.
        all_first, all_second (`(K, H)`), all_dialogues (`(K,)`): those to find it among, the given ones included, when
            other processes' turns join in; by default the given ones.
        offset: row of the first given turn in them.
    """
    all_first = first if all_first is None else all_first
    all_second = second if all_second is None else all_second
    all_dialogues = dialogues if all_dialogues is None else all_dialogues
    own = torch.arange(len(first), device=first.device)[:, None] + offset
    both = torch.zeros(len(first), device=first.device)
    for anchors, found_among in ((first, all_second), (second, all_first)):
        with torch.autocast(first.device.type, enabled=False):
            anchors = F.normalize(_at_least_float32(anchors), dim=-1)
            similarity = anchors @ F.normalize(_at_least_float32(found_among), dim=-1).T / temperature  # [M, K]
        positive = similarity.gather(1, own).squeeze(1)
        if dialogues is not None and all_dialogues is not None:
            neighbour = (dialogues[:, None] == all_dialogues[None, :]).scatter(1, own, False)
            similarity = similarity.masked_fill(neighbour, -torch.inf)
        both = both + (similarity.logsumexp(1) - positive) / 2
    return both
