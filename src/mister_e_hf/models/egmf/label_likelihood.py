"""Log-likelihoods of all possible answers to a prompt, from one forward pass of a causal language model.

The answers are a tree: those that begin with the same tokens share them. Its nodes are read behind the prompt, each at
the position that it has in its answer, under an attention mask in which it sees the prompt and its own ancestors
alone (as in SpecInfer, Miao et al. 2024). Each node's logits are then those of the plain sequence, and an answer costs
only the tokens that no other answer has.

Letters: R prompts, L tokens of the longest prompt, Q tokens that are read, U cached tokens, W width of the language
model, V its vocabulary, A answers, K nodes, E edges, D width of a head.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ...base.errors import InputError
from .token_probabilities import log_probabilities


class LikelihoodTree:
    r"""
    The possible answers as a tree.

    Args:
        token_ids: tokens of each answer (A), at least one.

    Attributes:
        answers: tokens of each answer (A).
        tokens: token of each node (K - 1) but the root, which is the prompt's last token.
        depths: distance of each node from the root (K).
        sees: which nodes each node sees, the root and itself among them (K, K).
        edges: node and next token of each edge (E, 2).
        paths: the edges of each answer (A, longest), filled up with E.
        longest: how many tokens the longest answer has.

    Raises:
        InputError: if an answer has no tokens, or two have the same.
    """

    def __init__(self, token_ids: Sequence[Sequence[int]]):
        self.answers = answers = [tuple(answer) for answer in token_ids]
        if not all(answers) or len(set(answers)) != len(answers):
            raise InputError(f"each answer must have tokens that no other answer has, got {list(token_ids)}")
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edges: dict[tuple[int, int], int] = {}
        paths = []
        for answer in answers:
            path = []
            for length, token in enumerate(answer):
                node = nodes.setdefault(answer[:length], len(nodes))
                path.append(edges.setdefault((node, token), len(edges)))
            paths.append(path)
        self.longest = max(map(len, answers))
        self.tokens = torch.tensor([prefix[-1] for prefix in nodes if prefix], dtype=torch.long)
        self.depths = torch.tensor([len(prefix) for prefix in nodes])
        self.sees = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for prefix, node in nodes.items():
            for length in range(len(prefix) + 1):
                self.sees[node, nodes[prefix[:length]]] = True
        self.edges = torch.tensor(list(edges))
        self.paths = torch.tensor([path + [len(edges)] * (self.longest - len(path)) for path in paths])

    def log_likelihoods(self, logits: torch.Tensor) -> torch.Tensor:
        """The log-likelihood of each answer (R, A) from the nodes' logits (R, K, V), in float32 or wider."""
        nodes, tokens = self.edges.to(logits.device).unbind(1)
        found = log_probabilities(logits, nodes, tokens.expand(len(logits), -1))
        return F.pad(found, (0, 1))[:, self.paths.to(logits.device)].sum(-1)


@dataclass
class Rows:
    r"""
    Sequences of embeddings, padded at the end.

    Args:
        embeddings (`(R, L, W)`): zero in padding.
        lengths (`(R,)`): how many of them are real.
    """

    embeddings: torch.Tensor
    lengths: torch.Tensor


@dataclass
class Past:
    r"""
    Keys and values of what is before the rows, padded at the end.

    Args:
        layers (`(R, heads, U, D)` each): keys and values of each layer.
        lengths (`(R,)`): how many of the U are real.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    lengths: torch.Tensor


def answer_log_likelihoods(
    language_model: PreTrainedModel, rows: Rows, tree: LikelihoodTree, past: Past | None = None
) -> torch.Tensor:
    r"""
    The log-likelihood of each answer after each prompt: (R, A).

    Args:
        rows: the prompts, or what of them follows `past`; each has at least one token.
    """
    tokens = tree.tokens.expand(len(rows.lengths), -1)
    return tree.log_likelihoods(_node_logits(language_model, rows, tokens, tree.depths, tree.sees, past))


def own_log_likelihoods(
    language_model: PreTrainedModel, rows: Rows, answers: Sequence[Sequence[int]], past: Past | None = None
) -> torch.Tensor:
    r"""
    The log-likelihood of one answer after each prompt: (R,). Training needs no more of most answers, and they are read
    in a fraction of the time of all.

    Args:
        rows: as above.
        answers: tokens of the answer to each prompt (R).
    """
    lengths = torch.tensor([len(ids) for ids in answers])
    place = torch.arange(int(lengths.max()))
    tokens = torch.tensor([[*ids, *[0] * (len(place) - len(ids))] for ids in answers])
    logits = _node_logits(language_model, rows, tokens[:, :-1], place, place <= place[:, None], past)
    place, tokens, lengths = (each.to(logits.device) for each in (place, tokens, lengths))
    return log_probabilities(logits, place, tokens).masked_fill(place >= lengths[:, None], 0.0).sum(-1)


def _node_logits(
    language_model: PreTrainedModel,
    rows: Rows,
    tokens: torch.Tensor,
    depths: torch.Tensor,
    sees: torch.Tensor,
    past: Past | None,
) -> torch.Tensor:
    """
    Logits (R, K, V) of nodes behind the prompts: their tokens (R, K - 1), those of the root left out, their distances
    from it (K), and which nodes each of them sees (K, K).
    """
    device = rows.embeddings.device
    count, longest, _ = rows.embeddings.shape
    width = longest - 1
    # The last token of each prompt is the tree's root; the others are before it, wherever they end.
    last = rows.embeddings[torch.arange(count, device=device), rows.lengths - 1][:, None]
    nodes = language_model.get_input_embeddings()(tokens.to(device)).to(last.dtype)
    read = torch.cat([rows.embeddings[:, :width], last, nodes], 1)
    before = torch.zeros_like(rows.lengths) if past is None else past.lengths
    place, depths = torch.arange(width, device=device), depths.to(device)
    real = place < rows.lengths[:, None] - 1
    # the embedding of a last token is in the prompt's own columns, too, where nothing must see it
    positions = torch.cat([before[:, None] + place.where(real, 0), (before + rows.lengths - 1)[:, None] + depths], 1)
    own = torch.zeros(count, width + len(depths), width + len(depths), dtype=torch.bool, device=device)
    own[:, :width, :width] = (place <= place[:, None]) & real[:, None, :] | torch.eye(
        width, dtype=torch.bool, device=device
    )
    own[:, width:, :width] = real[:, None, :]
    own[:, width:, width:] = sees.to(device)
    return _logits(language_model, read, positions, own, past, len(depths))


def embedding_table(language_model: PreTrainedModel) -> nn.Embedding:
    """The layer that gives the language model its tokens."""
    return cast(nn.Embedding, language_model.get_input_embeddings())


@torch.no_grad()
def read_prefix(language_model: PreTrainedModel, rows: Rows) -> Past:
    """Read prompts, or their beginnings, and keep their keys and values."""
    count, width, _ = rows.embeddings.shape
    place = torch.arange(width, device=rows.embeddings.device)
    seen = (place <= place[:, None]).expand(count, -1, -1)  # padding is at the end, where no real token sees it
    cache = DynamicCache()
    _run(language_model, rows.embeddings, place.expand(count, -1), seen, cache, 1)
    layers: list[Any] = cache.layers  # of full attention, as `longest_prompt` and the trial make sure
    return Past([(layer.keys, layer.values) for layer in layers], rows.lengths)


def _logits(
    language_model: PreTrainedModel,
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    own: torch.Tensor,
    past: Past | None,
    keep: int,
) -> torch.Tensor:
    """Logits (R, keep, V) of the last of embeddings (R, Q, W), which see one another as `own` (R, Q, Q) says."""
    if past is None:
        return _run(language_model, embeddings, positions, own, None, keep)
    cache = DynamicCache()  # a new one each time: a model adds to the one it is given
    for number, (keys, values) in enumerate(past.layers):
        cache.update(keys, values, number)
    width = past.layers[0][0].shape[2]
    there = torch.arange(width, device=own.device) < past.lengths[:, None]
    seen = torch.cat([there[:, None].expand(-1, own.shape[1], -1), own], 2)
    return _run(language_model, embeddings, positions, seen, cache, keep)


def _run(
    language_model: PreTrainedModel,
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    seen: torch.Tensor,
    cache: DynamicCache | None,
    keep: int,
) -> torch.Tensor:
    lowest = torch.finfo(embeddings.dtype).min
    mask = torch.zeros(seen.shape, dtype=embeddings.dtype, device=seen.device).masked_fill(~seen, lowest)
    return language_model(
        inputs_embeds=embeddings,
        attention_mask=mask[:, None],
        position_ids=positions,
        use_cache=cache is not None,
        # as indices, since a slice is not contiguous, for which the head would multiply row by row
        logits_to_keep=torch.arange(embeddings.shape[1] - keep, embeddings.shape[1], device=embeddings.device),
        **({} if cache is None else {cache_name(language_model): cache}),
    ).logits


def cache_name(language_model: PreTrainedModel) -> str:
    """How a model calls its keys and values; transformers 5.24 gave them another name."""
    return "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"


def rows_of(
    language_model: PreTrainedModel, token_ids: Sequence[Sequence[int]], pseudo: torch.Tensor | None, at: Sequence[int]
) -> Rows:
    r"""
    Embeddings of token ids with pseudo tokens between them.

    Args:
        token_ids: of each row (R).
        pseudo (`(R, P, W)`): None without any.
        at: after how many of its tokens each row has its pseudo tokens (R).
    """
    table = embedding_table(language_model)
    device, num_pseudo = table.weight.device, 0 if pseudo is None else pseudo.shape[1]
    lengths = [len(ids) + num_pseudo for ids in token_ids]
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    is_pseudo = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (own, start) in enumerate(zip(token_ids, at, strict=True)):
        gap = [0] * num_pseudo
        ids[row, : lengths[row]] = torch.tensor([*own[:start], *gap, *own[start:]], dtype=torch.long)
        is_pseudo[row, start : start + num_pseudo] = True
    counts = torch.tensor(lengths, device=device)
    embeddings = table(ids.to(device))
    padding = torch.arange(longest, device=device) >= counts[:, None]
    embeddings = embeddings.masked_fill(padding[..., None], 0.0)
    if pseudo is not None:
        embeddings = embeddings.masked_scatter(is_pseudo.to(device)[..., None], pseudo.to(embeddings.dtype))
    return Rows(embeddings, counts)
