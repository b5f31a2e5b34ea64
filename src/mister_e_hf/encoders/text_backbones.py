"""Language models as backbones: encoders (BERT, RoBERTa, MPNet, ...) and causal models (Llama, Qwen, ...).

Letters: W texts, P tokens of a padded text, H the backbone's width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers  # the Auto classes when they are used: loading them registers what is here
from transformers import BatchFeature

from ..base.devices import moved
from ..base.errors import InputError, short
from ..media.transcripts import transcript
from .backbone_kind import BackboneKind, Inputs, TurnProcessor, with_output_last, without_cache

_TRIAL_TOKENS = (24, 5)

# Model types whose tables of positions begin after the index of padding.
_POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


class TextBackbone(BackboneKind):
    """A language model that reads a transcript, padded at the end."""

    modality = "text"
    tested = (
        "albert",
        "bert",
        "camembert",
        "deberta-v2",
        "distilbert",
        "electra",
        "gpt2",
        "llama",
        "mistral",
        "modernbert",
        "mpnet",
        "opt",
        "qwen2",
        "qwen3",
        "roberta",
        "xlm-roberta",
    )
    takes_others = True
    main_input = "input_ids"
    inputs = ("input_ids",)
    parts = ("tokenizer",)
    settings = ("max_tokens",)
    truncates = True
    unit = "token"
    _targets = {
        "deberta-v2": r".*\.(query_proj|key_proj)",
        "distilbert": r".*\.(q_lin|k_lin)",
        "modernbert": r".*\.Wqkv",
    }

    def longest(self, config: transformers.PreTrainedConfig) -> int | None:
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(positions, int) or positions < 1:
            return None
        if config.model_type in _POSITIONS_AFTER_PADDING:
            positions -= 1 + (1 if config.model_type == "mpnet" else config.pad_token_id or 0)
        return positions

    def _states(
        self, backbone: transformers.PreTrainedModel, inputs: Inputs, depth: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        config = backbone.config.get_text_config()
        if (largest := int(ids.max())) >= config.vocab_size:
            raise InputError(
                f"Token {largest} is outside the vocabulary of the {config.model_type} backbone, which has "
                f"{config.vocab_size}: the tokenizer belongs to another model"
            )
        longest = self.longest(backbone.config)
        if longest is not None and ids.shape[1] > longest:
            raise InputError(
                f"Texts of {ids.shape[1]} tokens, but the {config.model_type} backbone takes {longest}: "
                f"truncate them to max_tokens={longest}"
            )
        device = backbone.device
        given = {"input_ids": moved(ids, device), "attention_mask": moved(mask.long(), device)}
        output = backbone(**given, output_hidden_states=True, **without_cache(backbone))
        own = mask.bool()
        return with_output_last(output), own & inputs["pooling_mask"].bool() if "pooling_mask" in inputs else own

    def trial_lengths(self, config: transformers.PreTrainedConfig) -> tuple[int, int] | None:
        longest = self.longest(config) or max(_TRIAL_TOKENS)
        more, fewer = _TRIAL_TOKENS
        return min(more, longest), min(fewer, longest)

    def samples(self, backbone: transformers.PreTrainedModel, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        counted = torch.arange(max(lengths), device=backbone.device)
        mask = counted < torch.tensor(lengths, device=backbone.device)[:, None]
        # Ordinary tokens: special ones are at the beginning of a vocabulary, or at its end.
        vocabulary = backbone.config.get_text_config().vocab_size
        ids = min(vocabulary // 4, 1000) + counted * 7 % max(1, vocabulary // 2 - 1)
        return {"input_ids": ids.expand(len(lengths), -1).masked_fill(~mask, 0), "attention_mask": mask}

    def prepare(
        self,
        processor: TurnProcessor,
        turns: Sequence[Any],
        random_crop: bool = False,
        generator: torch.Generator | None = None,
    ) -> BatchFeature:
        texts = _transcripts(turns)
        before, after = processor.prompt.split("{text}")
        spans = [(len(before), len(before) + len(text)) for text in texts]
        return processor.tokens([before + text + after for text in texts], spans)

    def costs(self, processor: TurnProcessor, turns: Sequence[Any]) -> list[float]:
        if not len(turns):
            return []
        before, after = processor.prompt.split("{text}")
        texts = [before + text + after for text in _transcripts(turns)]
        return [float(count) for count in processor.token_counts(texts)]


def _transcripts(turns: Sequence[Any]) -> list[str]:
    texts = []
    for number, turn in enumerate(turns):
        text = transcript(turn, f"turn {number} of the batch") if isinstance(turn, str) else None
        if text is None:
            raise InputError(f"Turn {number} of the batch has no words: {short(ascii(turn))}")
        texts.append(text)
    return texts
