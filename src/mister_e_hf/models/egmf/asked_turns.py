"""The turns that a language model is asked about, and its answers, in blocks of turns.

Letters: N real turns of the batch (as flat rows, see `turns.py`), R turns that are asked about, S answers to each,
A possible answers, P pseudo tokens, W width of the language model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ...base.errors import InputError, short
from ..turns import RealTurns
from .label_likelihood import (
    LikelihoodTree,
    Past,
    answer_log_likelihoods,
    embedding_table,
    own_log_likelihoods,
    read_prefix,
    rows_of,
)
from .prefix_store import PrefixStore
from .prompts import Prompt, PromptWriter


class AskedTurns(NamedTuple):
    r"""
    Args:
        turns (`(R,)`): which of the real turns they are.
        prompts: of each (R).
        pseudo (`(R, P, W)`): pseudo tokens of each; None without any.
    """

    turns: torch.Tensor
    prompts: list[Prompt]
    pseudo: torch.Tensor | None


def ask(
    writer: PromptWriter,
    modalities: Sequence[str],
    turns: RealTurns,
    transcripts: Sequence[Sequence[str | None]] | None,
    places: Sequence[int],
) -> list[Prompt]:
    r"""
    The prompts of the turns at these places among the real ones (N).

    Raises:
        InputError: if the transcripts are not a string or None for each turn.
    """
    layout = turns.layout
    said: list[str | None] = [None] * layout.count
    if transcripts is not None and turns.weight:
        said = _said(transcripts, turns)
    masks = [turns.present_on_host[name].tolist() for name in modalities]
    present = [{name for name, mask in zip(modalities, masks, strict=True) if mask[at]} for at in range(layout.count)]
    wanted, prompts, start = set(places), [], 0
    for length in layout.on_host.lengths.tolist():
        own = range(start, start + length)
        numbers = [at - start for at in own if at in wanted]
        prompts += writer.prompts(said[start : own.stop], present[start : own.stop], numbers)
        start = own.stop
    return prompts


def _said(transcripts: Sequence[Sequence[str | None]], turns: RealTurns) -> list[str | None]:
    """The transcripts of the real turns (N)."""
    count, width = turns.mask.shape
    lengths = [-1 if isinstance(dialogue, str | None) else len(dialogue) for dialogue in transcripts]
    if lengths != [width] * count:
        raise InputError(
            f"transcripts must be {count} lists of {width} strings or None, as the mask of the turns is, got "
            f"{short(transcripts)}"
        )
    said = [transcripts[at // width][at % width] for at in turns.layout.on_host.place.tolist()]
    if wrong := [text for text in said if not isinstance(text, str | None)]:
        raise InputError(f"transcripts must be strings, or None where a turn has none, got {short(repr(wrong[0]))}")
    return said


class Reader:
    r"""
    Reads prompts with a language model.

    Args:
        language_model: with the layers of LoRA where it has them.
        tree: of the possible answers.
        rows: how many turns are read at once. With a gradient and more turns than that, each block is computed again
            for its gradient, so that memory does not grow with their number.
        keeps_prefix: whether what is before the pseudo tokens is read once, without a gradient: right where the
            language model is not trained.
        store: where that is kept.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        tree: LikelihoodTree,
        rows: int,
        keeps_prefix: bool = False,
        store: PrefixStore | None = None,
    ):
        self.language_model, self.tree, self.rows = language_model, tree, rows
        self.keeps_prefix, self.store = keeps_prefix, store

    def answer_likelihoods(
        self, prompts: Sequence[Prompt], pseudo: torch.Tensor | None, right: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""
        The log-likelihood of each answer to each prompt: (R, S, A).

        Args:
            right (`(R, S)`): index of the one answer that is wanted; the others are not read, and are 0.
        """
        # prompts of like length together, or most of a block is padding
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].before) + len(prompts[row].after[0]))
        blocks = [order[start : start + self.rows] for start in range(0, len(order), self.rows)]
        found = []
        for block in blocks:
            some = [prompts[row] for row in block]
            own, wanted = (None if each is None else each[block] for each in (pseudo, right))
            # the gradient of the last one is computed first, when nothing else is held
            if torch.is_grad_enabled() and block is not blocks[-1]:
                found.append(checkpoint(self._block, some, own, wanted, use_reentrant=False))
            else:
                found.append(self._block(some, own, wanted))
        inverse = torch.tensor(order, device=found[0].device).argsort()
        return torch.cat(found)[inverse]

    def _block(self, prompts: list[Prompt], pseudo: torch.Tensor | None, right: torch.Tensor | None) -> torch.Tensor:
        answers = len(prompts[0].after)
        if pseudo is not None:
            pseudo = pseudo.repeat_interleave(answers, 0)
        each = [(prompt.before, after) for prompt in prompts for after in prompt.after]
        past, before = None, [len(own) for own, _ in each]
        if self.keeps_prefix and all(before):
            past = self._past([prompt.before for prompt in prompts])
            if answers > 1:
                layers = [
                    (keys.repeat_interleave(answers, 0), values.repeat_interleave(answers, 0))
                    for keys, values in past.layers
                ]
                past = Past(layers, past.lengths.repeat_interleave(answers))
            rows = rows_of(self.language_model, [after for _, after in each], pseudo, [0] * len(each))
        else:
            rows = rows_of(self.language_model, [[*own, *after] for own, after in each], pseudo, before)
        if right is None:
            found = answer_log_likelihoods(self.language_model, rows, self.tree, past)
        else:
            wanted = right.flatten()
            own = own_log_likelihoods(
                self.language_model, rows, [self.tree.answers[at] for at in wanted.tolist()], past
            )
            found = own.new_zeros(len(each), len(self.tree.answers)).scatter(1, wanted[:, None], own[:, None])
        return found.unflatten(0, (len(prompts), answers))

    def _past(self, before: list[list[int]]) -> Past:
        """Keys and values of the beginnings of prompts, from the store where it has them."""
        if self.store is None:
            return self._read(before)
        new = [ids for ids in dict.fromkeys(map(tuple, before)) if ids not in self.store]
        if new:
            past = self._read([list(ids) for ids in new])
            for row, ids in enumerate(new):
                self.store.write(ids, past, row)
        device = embedding_table(self.language_model).weight.device
        return self.store.read(before, device)

    @torch.no_grad()
    def _read(self, before: list[list[int]]) -> Past:
        return read_prefix(self.language_model, rows_of(self.language_model, before, None, [0] * len(before)))
