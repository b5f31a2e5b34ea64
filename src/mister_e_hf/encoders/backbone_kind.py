"""Base class of the kinds of pretrained models that an utterance encoder can be built around.

A kind knows what its models take and return, how a processor prepares turns for them, and where LoRA goes. A further
kind is one more subclass of [`BackboneKind`], entered in `KINDS` in backbones.py. Kinds have no state:
model, configuration and processor are arguments.

Letters: N turns, W rows of a batch (a turn, or a window of a long one), P positions of a row, H the backbone's width.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
import transformers  # the Auto classes when they are used: loading them registers what is here
from transformers import BatchFeature

from ..base.errors import InputError

Inputs = Mapping[str, torch.Tensor]


class TurnProcessor(Protocol):
    """What a kind uses of [`MisterEProcessor`] when it prepares turns."""

    backbone_type: str
    feature_extractor: Any
    tokenizer: Any
    image_processor: Any
    prompt: str
    window_seconds: float | None
    trailing_silence: float | None
    num_frames: int

    def tokens(self, texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> BatchFeature:
        """Tensors of N texts, of which the characters of each span are pooled."""
        ...

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, after truncation."""
        ...


class BackboneKind:
    """
    A kind of pretrained model; a subclass per kind.

    Attributes:
        modality: which modality of a turn it encodes, a key of `MODALITIES`.
        tested: every `model_type` that is tested: equal states alone and in a batch, the longest input, LoRA.
        takes_others: whether it also covers other model types, each of which is tried when an encoder is created
            ([`try_backbone`]).
        main_input: the input that says how many positions a row has.
        inputs: all inputs that must be given, masks aside.
        parts: the files of a pretrained model that its processor needs: `"feature_extractor"`, `"tokenizer"`,
            `"image_processor"`.
        placeholder, prompt: what a processor's prompt has in place of the turn, and the default prompt.
        settings: the processor's settings that matter for it.
        stored_settings: the processor's settings that are saved.
        truncates: whether a processor cuts turns that are too long; others are cut into windows.
        unit: what the cost of a turn is counted in: `"token"`, `"second"` or `"frame"`.
        prefix: where the backbone is in the model that its name loads.
        unused: pattern of parameters that are never trained, since no state depends on them or they are not weights.
        keeps_batch_norm: whether batch norm keeps its pretrained statistics in training, so that the vector of a turn
            does not depend on its batch there either.
    """

    modality: ClassVar[str]
    tested: ClassVar[tuple[str, ...]]
    takes_others: ClassVar[bool] = False
    main_input: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]]
    placeholder: ClassVar[str] = "{text}"
    prompt: ClassVar[str] = "{text}"
    settings: ClassVar[tuple[str, ...]]
    stored_settings: ClassVar[tuple[str, ...]] = ("prompt", "max_tokens", "window_seconds", "trailing_silence")
    truncates: ClassVar[bool] = False
    unit: ClassVar[str]
    prefix: ClassVar[str] = ""
    unused: ClassVar[str] = r"pooler\..*|masked_spec_embed"
    keeps_batch_norm: ClassVar[bool] = False
    _targets: ClassVar[Mapping[str, str]] = {}

    # The model

    def part(self, config: transformers.PreTrainedConfig) -> transformers.PreTrainedConfig:
        """The configuration of the part of a pretrained model that is loaded."""
        return config

    def misfit(self, config: transformers.PreTrainedConfig) -> str | None:
        """Why a model cannot be an encoder, as far as its configuration shows; None if it can."""
        if getattr(config, "is_encoder_decoder", False):
            return "it is an encoder-decoder model, which gives no states of the input alone"
        takes = getattr(transformers.MODEL_MAPPING.get(type(config), None), "main_input_name", None)
        if takes is None:
            return "transformers has no single base model of that kind"
        if takes != self.main_input:
            return f"it takes {takes}, not {self.main_input}"
        if getattr(config, "add_adapter", False):
            return "its output has fewer positions than its hidden states (add_adapter)"
        if not all(isinstance(getattr(config, name, None), int) for name in ("hidden_size", "num_hidden_layers")):
            return "its configuration has no hidden_size and num_hidden_layers of one model"
        return None

    def encoder(self, model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        """The part of a pretrained model that is run."""
        return model

    def sizes(self, config: transformers.PreTrainedConfig) -> tuple[int, int]:
        """Width and number of layers of the backbone that is run."""
        return config.hidden_size, config.num_hidden_layers

    def longest(self, config: transformers.PreTrainedConfig) -> int | None:
        """The number of tokens that the model takes at most; None if nothing limits it."""
        return None

    def lora_targets(self, model_type: str) -> str:
        """Default regular expression of the modules that get LoRA: the projections of queries and keys."""
        return self._targets.get(model_type, r".*\.(q_proj|k_proj|query|key|q|k|c_attn)")

    def check_lora(self, config: transformers.PreTrainedConfig, modules: Sequence[str]):
        r"""
        Raises:
            InputError: if the model would ignore LoRA in one of these modules.
        """

    def is_unused(self, parameter: str) -> bool:
        """Whether a parameter of this name is never trained."""
        return re.fullmatch(self.unused, parameter) is not None

    def run(
        self,
        backbone: transformers.PreTrainedModel,
        inputs: Mapping[str, torch.Tensor | None],
        depth: int | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        r"""
        Args:
            backbone: a model of this kind.
            inputs: of [`UtteranceEncoder`]; None for one that is not given. Padding is at the end of a row and changes
                no state of another position.
            depth: the number of layers that are needed; None for all. A kind may run more.

        Returns:
            hidden states, each (W, P, H), from the embedding layer to the last, whose place the backbone's output
            takes; and the mask (W, P) of the turn's own positions.

        Raises:
            InputError: if the inputs are those of another kind.
        """
        given = {name: values for name, values in inputs.items() if values is not None}
        found = sorted(name for name in given if not name.endswith("_mask"))
        if found != sorted(self.inputs):
            raise InputError(
                f"A {backbone.config.model_type} encoder of {self.modality} takes {list(self.inputs)}, got {found}"
            )
        if "attention_mask" not in given:
            given["attention_mask"] = self._all_real(given[self.main_input])
        return self._states(backbone, given, depth)

    def _all_real(self, values: torch.Tensor) -> torch.Tensor:
        """The mask that is taken when none is given."""
        return torch.ones(values.shape[0], values.shape[-1], dtype=torch.bool, device=values.device)

    def _states(
        self, backbone: transformers.PreTrainedModel, inputs: Inputs, depth: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        raise NotImplementedError

    def trial_lengths(self, config: transformers.PreTrainedConfig) -> tuple[int, int] | None:
        """
        Two unequal lengths of input to try a model with; None for a kind that has no other models than the tested.
        """
        return None

    def samples(self, backbone: transformers.PreTrainedModel, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs of these lengths, with `attention_mask`."""
        raise NotImplementedError

    # The processor

    def longest_window(self, feature_extractor: Any) -> float:
        """Seconds of audio that a row can hold."""
        return float("inf")

    def prepare(
        self,
        processor: TurnProcessor,
        turns: Sequence[Any],
        random_crop: bool = False,
        generator: torch.Generator | None = None,
    ) -> BatchFeature:
        """Turns -> the inputs of [`UtteranceEncoder`]; see [`MisterEProcessor.__call__`]."""
        raise NotImplementedError

    def costs(self, processor: TurnProcessor, turns: Sequence[Any]) -> list[float]:
        """What each turn costs to encode, in `unit`; see [`MisterEProcessor.sizes`]."""
        raise NotImplementedError


def without_cache(backbone: transformers.PreTrainedModel) -> dict[str, bool]:
    """What has a model that could write on after its input keep no keys and values for that."""
    return {"use_cache": False} if "use_cache" in inspect.signature(backbone.forward).parameters else {}


def with_output_last(output: Any) -> list[torch.Tensor]:
    """The hidden states of a model's output, with `last_hidden_state` in the last place."""
    if getattr(output, "hidden_states", None) is None or getattr(output, "last_hidden_state", None) is None:
        raise InputError(
            f"A model whose output is {type(output).__name__} gives no hidden states and cannot be an encoder"
        )
    # Models with a final layer norm (wav2vec 2.0 large) apply it to last_hidden_state, not to hidden_states.
    return [*output.hidden_states[:-1], output.last_hidden_state]
