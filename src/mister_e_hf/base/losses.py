"""The terms of the MiSTER-E loss (Dutta, Balaji and Ganapathy 2026), losses of scores, and those of pre-training.

Letters: N turns, C classes, S targets, E experts, M anchors, K candidates, H width, D width of a vector. A turn whose
label is -100, or an entry of the scores that is NaN, is not scored.
Every term is a sum over turns divided by `num_items`, the number of scored turns of the whole optimizer step, so that
micro-batches and processes add up to the undivided batch. Terms are computed in float32 or wider. Without a scored
turn they are an exact zero that still has a gradient.
"""

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
    rows, scored = _focal_rows(logits, labels, gamma, class_weights)
    return rows.sum() / _divisor(num_items, scored)


def _focal_rows(
    logits: torch.Tensor, labels: torch.Tensor, gamma: float, class_weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The focal loss of each turn (...), 0 where `scored` (...) is false, and that."""
    scored, target = _scored(labels)
    log_probabilities = F.log_softmax(_only(scored, logits), dim=-1)
    log_p = log_probabilities.gather(-1, target).squeeze(-1)
    if gamma == 0:
        loss = -log_p
    else:
        # 1 - p from the other classes: exact where p rounds to 1, and its power has a finite gradient there
        others = log_probabilities.exp().scatter(-1, target, 0.0).sum(-1)
        loss = -(others.clamp(min=torch.finfo(others.dtype).tiny) ** gamma) * log_p
    return _weighed(loss, scored, target, class_weights), scored


# A mask as an index would have the host wait for an accelerator, to learn how many rows there are.


def _scored(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which labels (...) are scored, and the labels as an index (..., 1), 0 where they are not."""
    scored = labels != IGNORE_INDEX
    return scored, labels.clamp(min=0).unsqueeze(-1)


def _only(scored: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values (..., C) in float32 or wider, 0 without a gradient where they are not scored (...), whatever they are."""
    return _at_least_float32(values).masked_fill(~scored[..., None], 0.0)


def _weighed(
    loss: torch.Tensor, scored: torch.Tensor, target: torch.Tensor, class_weights: torch.Tensor | None
) -> torch.Tensor:
    if class_weights is not None:
        loss = loss * class_weights.to(loss)[target.squeeze(-1)]
    return loss.masked_fill(~scored, 0.0)


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
    scored, right = _scored(answers)
    loss = -_only(scored, log_likelihoods).gather(-1, right).squeeze(-1)
    return _weighed(loss, scored, right, class_weights).sum() / _divisor(num_items, scored)


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
    heads, counted = _with_experts(logits, expert_logits, expert_mask)
    own_labels = labels.unsqueeze(-1).masked_fill(~counted, IGNORE_INDEX)
    rows, _ = _focal_rows(heads, own_labels, gamma, class_weights)
    return list((rows.flatten(0, -2).sum(0) / num_items).unbind())


def _with_experts(
    mixture: torch.Tensor, experts: torch.Tensor, expert_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mixture and then the experts, (..., 1 + E, C), and which of them are there (..., 1 + E)."""
    return torch.cat([mixture.unsqueeze(-2), experts], dim=-2), F.pad(expert_mask, (1, 0), value=True)


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
    scored, target = _scored(labels)
    found = _only(scored, lengths)
    short, long = (positive - found).clamp(min=0).square(), weight * (found - negative).clamp(min=0).square()
    true = torch.zeros_like(found, dtype=torch.bool).scatter(-1, target, True)
    loss = torch.where(true, short, long).sum(-1)
    return _weighed(loss, scored, target, class_weights).sum() / _divisor(num_items, scored)


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
    return _regression_rows(predictions, labels, scored, kind, delta).sum() / _divisor(num_items, scored)


def _regression_rows(
    predictions: torch.Tensor, labels: torch.Tensor, scored: torch.Tensor, kind: str, delta: float
) -> torch.Tensor:
    """The loss of each score, 0 where it is not scored."""
    found = _at_least_float32(predictions).masked_fill(~scored, 0.0)
    expected = labels.to(found).masked_fill(~scored, 0.0)
    if kind == "huber":
        return F.huber_loss(found, expected, reduction="none", delta=delta)
    return F.l1_loss(found, expected, reduction="none")


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
    scored = ~labels.isnan()
    heads, counted = _with_experts(predictions, expert_predictions, expert_mask)
    own_labels = labels.unsqueeze(-2).expand_as(heads)
    rows = _regression_rows(heads, own_labels, scored.unsqueeze(-2) & counted[..., None], kind, delta)
    return list((rows.sum(-1).flatten(0, -2).sum(0) / _divisor(num_items, scored)).unbind())


def contrastive_loss(
    anchors: torch.Tensor,
    anchor_labels: torch.Tensor,
    temperature: float = 1.0,
    num_items: torch.Tensor | int | None = None,
    candidates: torch.Tensor | None = None,
    candidate_labels: torch.Tensor | None = None,
    anchor_offset: int = 0,
    counted: torch.Tensor | None = None,
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
        counted (`(M,)`, bool, *optional*): which anchors there are; the others change nothing. Not with `candidates`.
    """
    divisor: torch.Tensor | int = max(len(anchors), 1) if counted is None else counted.sum().clamp(min=1)
    if num_items is not None:
        divisor = 2 * _divisor(num_items, anchor_labels)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = F.normalize(_at_least_float32(anchors), dim=-1)
        if candidates is None:
            candidates, candidate_labels = anchors, anchor_labels
        else:
            assert candidate_labels is not None
            candidates = F.normalize(_at_least_float32(candidates), dim=-1)
        similarity = anchors @ candidates.T / temperature  # [M, K]
    rows = torch.arange(len(candidates), device=anchors.device)
    other = rows != rows[anchor_offset : anchor_offset + len(anchors), None]
    if counted is not None:
        other = other & counted
    positive = (anchor_labels[:, None] == candidate_labels[None, :]) & other
    # not -inf: an only state has no other, and its gradient must not be NaN
    lowest = torch.finfo(similarity.dtype).min
    log_total = similarity.masked_fill(~other, lowest).logsumexp(1)
    positives = positive.sum(1)
    mean_positive = similarity.masked_fill(~positive, 0.0).sum(1) / positives.clamp(min=1)
    has_loss = positives > 0 if counted is None else (positives > 0) & counted
    per_anchor = torch.where(has_loss, log_total - mean_positive, 0.0)
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
    there = expert_mask & scored[..., None]  # [..., E]
    log_p = F.log_softmax(_only(there, expert_logits), dim=-1)  # [..., E, C]
    p = log_p.exp()
    # each pair twice, and each expert with itself, which adds 0
    between = ((p.unsqueeze(-2) - p.unsqueeze(-3)) * (log_p.unsqueeze(-2) - log_p.unsqueeze(-3))).sum(-1)
    both = there.unsqueeze(-1) & there.unsqueeze(-2)  # [..., E, E]
    count = there.sum(-1)
    pairs = (count * (count - 1)).clamp(min=1)  # each twice
    total = between.masked_fill(~both, 0.0).sum((-1, -2)) / pairs
    return total.sum() / _divisor(num_items, scored)


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
