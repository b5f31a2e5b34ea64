"""Answers that a language model writes by itself: the demonstration, beside the log-likelihoods of all answers.

Letters: R prompts, L tokens of the longest prompt, S answers to each, P pseudo tokens, W width of the language model,
V its vocabulary, A possible answers.
"""

from collections.abc import Sequence
from inspect import signature
from typing import cast

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from .answers import Answers, AnswerTree
from .label_likelihood import Rows, rows_of
from .prompts import Prompt

# Tokens that a label's answer may have beside its own, so that "joyful" is not read as "joy".
_FURTHER_TOKENS = 4


@torch.no_grad()
def written_answers(
    language_model: PreTrainedModel,
    answers: Answers,
    prompts: Sequence[Prompt],
    pseudo: torch.Tensor | None,
    num_rows: int,
    constrained: bool = False,
) -> list[list[str]]:
    r"""
    What the language model writes after each prompt, word by word the most probable one: texts (R, S).

    Args:
        answers: the possible ones; it may also write any other.
        prompts: R of them.
        pseudo (`(R, P, W)`): pseudo tokens of each; None without any.
        num_rows: how many prompts are read at once.
        constrained:
            search for the most probable of the possible answers instead, with as many beams as there are answers, so
            that it is that of the highest log-likelihood. A greedy search would not find it: the first token of the
            most probable answer need not be the most probable one.
    """
    each = [(row, prompt.before, after) for row, prompt in enumerate(prompts) for after in prompt.after]
    beams = len(answers.token_ids) if constrained else 1
    order = sorted(range(len(each)), key=lambda at: len(each[at][1]) + len(each[at][2]))
    step, texts = max(1, num_rows // beams), [""] * len(each)
    for start in range(0, len(each), step):
        block = order[start : start + step]
        rows = rows_of(
            language_model,
            [[*each[at][1], *each[at][2]] for at in block],
            None if pseudo is None else pseudo[[each[at][0] for at in block]],
            [len(each[at][1]) for at in block],
        )
        for at, ids in zip(block, written_tokens(language_model, answers, rows, constrained, beams), strict=True):
            texts[at] = answers.text(ids)
    grouped: list[list[str]] = [[] for _ in prompts]
    for (row, _, _), text in zip(each, texts, strict=True):
        grouped[row].append(text)
    return grouped


def written_tokens(
    language_model: PreTrainedModel, answers: Answers, rows: Rows, constrained: bool, beams: int
) -> list[list[int]]:
    """The tokens that are written after prompts (R), with those that end them."""
    longest = max(map(len, answers.token_ids))
    is_label = answers.values is None
    settings = GenerationConfig(
        max_new_tokens=longest + (_FURTHER_TOKENS if is_label and not constrained else 0),
        do_sample=False,
        eos_token_id=answers.end,
        pad_token_id=answers.end,
        # log-likelihoods are compared as they are
        **({"num_beams": beams, "length_penalty": 0.0} if beams > 1 else {}),
    )
    # its own settings would be added to these: chat models have a penalty for repetitions
    language_model.generation_config = settings
    allowed = LogitsProcessorList([_AllowedTokens(AnswerTree(answers.token_ids), answers.end)] if constrained else [])
    embeddings, mask = _padded_before(rows)
    written = cast(GenerationMixin, language_model).generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=allowed,
        **_last_logits(language_model),
    )
    return cast(torch.Tensor, written).tolist()


def _last_logits(language_model: PreTrainedModel) -> dict[str, list[int]]:
    """
    The position whose logits are computed, where the model can leave out the others. As an index: a slice is not
    contiguous, for which the head multiplies row by row, in bfloat16 slowly.
    """
    return {"logits_to_keep": [-1]} if "logits_to_keep" in signature(language_model.forward).parameters else {}


def _padded_before(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (R, L, W) with their padding before them, and the mask (R, L) that positions are made from."""
    count, longest, _ = rows.embeddings.shape
    place = torch.arange(longest, device=rows.embeddings.device)
    shift = longest - rows.lengths[:, None]
    moved = rows.embeddings[torch.arange(count, device=place.device)[:, None], (place - shift) % longest]
    return moved, (place >= shift).long()


class _AllowedTokens(LogitsProcessor):
    """Leaves the tokens that go on with one of the answers; a whole answer ends, at no cost."""

    def __init__(self, tree: AnswerTree, end: int):
        self.tree, self.end = tree, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        left = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            following = self.tree.following(ids)
            left[row, following] = scores[row, following]
            if not following:
                left[row, self.end] = 0.0
        return left
