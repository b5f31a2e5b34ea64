"""The stages of a checkpoint, each loaded and checked; code that comes with one is never run."""

import os
from typing import Any

from transformers import AutoModel, PreTrainedModel

from ..base.configuration_labelled import LabelledConfig
from ..base.errors import InputError, reading, short
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..hub.loading import find_file, require_config

STAGE_1 = "mister_e_utterance_encoder"


def load_model(name: str | os.PathLike, **hub: Any) -> PreTrainedModel:
    r"""
    Stage 2 of a checkpoint, of whatever model of this package.

    Args:
        name: folder, or id on the Hub.
        hub: revision, token, cache_dir, local_files_only.

    Raises:
        InputError: naming file and field, if there is no such checkpoint, or none of this package's models in it, or one that is broken.
        OSError: naming the weights file that is damaged or missing.
    """
    if not require_config(name, hub, _check_kind):
        raise InputError(f"'{name}' is not a checkpoint: it has no config.json")
    with reading(name, "a checkpoint"):
        return AutoModel.from_pretrained(name, trust_remote_code=False, **hub)


def _check_kind(config: dict[str, Any]):
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind == STAGE_1:
        raise InputError("it is an encoder of stage 1; give the folder above it, or load it with UtteranceEncoder")
    known = kind in CONFIG_MAPPING if isinstance(kind, str) else False
    if not (known and issubclass(CONFIG_MAPPING[kind], LabelledConfig)):
        own = " Code that comes with a checkpoint is not run." if "auto_map" in config and not known else ""
        raise InputError(
            f"model_type is {short(repr(kind), 80)}, which is not a conversation model of this package.{own}"
        )


def has_encoder(name: str | os.PathLike, modality: str, **hub: Any) -> bool:
    """Whether a checkpoint holds the encoder of a modality."""
    return find_file(name, "config.json", {**hub, "subfolder": f"{modality}_encoder"}) is not None


def load_encoder(
    name: str | os.PathLike, modality: str, width: int, **hub: Any
) -> tuple[UtteranceEncoder, MisterEProcessor]:
    r"""
    Stage 1 of a checkpoint for one modality: the encoder and its processor.

    Args:
        name: folder, or id on the Hub.
        modality: `"speech"` or `"text"`.
        width: of the vectors that stage 2 takes.
        hub: revision, token, cache_dir, local_files_only.

    Raises:
        InputError: naming file and field, if one of them is broken, or they do not belong together.
        OSError: naming the file that is damaged or missing.
    """
    hub = {**hub, "subfolder": f"{modality}_encoder"}
    where = f"{name}/{modality}_encoder"
    with reading(where, "an encoder"):
        pair = UtteranceEncoder.from_pretrained(name, **hub), MisterEProcessor.from_pretrained(name, **hub)
        check_encoder(*pair, modality, width, f"'{where}'")
    return pair


def check_encoder(encoder: UtteranceEncoder, processor: MisterEProcessor, modality: str, width: int, name: str):
    r"""
    Args:
        encoder, processor: of one modality.
        modality, width: of the vectors that stage 2 takes.
        name: what they are, for the message.

    Raises:
        InputError: if they do not fit one another or stage 2.
    """
    made = encoder.config
    if (made.modality, processor.modality, made.embedding_dim) != (modality, modality, width):
        contents = {"speech": "audio", "text": "transcripts"}[processor.modality]
        raise InputError(
            f"{name} prepares {contents} and makes vectors of {made.modality} of {made.embedding_dim} numbers; the model takes vectors of "
            f"{modality} of {width}: they do not belong together"
        )
    if made.backbone_config.model_type != processor.backbone_type:
        raise InputError(
            f"{name}: the encoder's backbone is of type '{made.backbone_config.model_type}', and its processor is for "
            f"'{processor.backbone_type}': they do not belong together"
        )
    if processor.tokenizer is not None:
        tokens, known = processor.tokenizer.vocab_size, encoder.backbone.get_input_embeddings().num_embeddings
        if tokens > known:
            raise InputError(
                f"{name}: the tokenizer has {tokens:,} tokens and the encoder's backbone knows {known:,}: they do not belong together"
            )
