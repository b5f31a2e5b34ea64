"""Load the stages of a checkpoint and check that they fit; code that comes with a checkpoint is never run."""

import os
from typing import Any

from transformers import AutoModel, AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel

from ..base.errors import InputError, reading, short
from ..base.modalities import MODALITIES
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..hub.loading import find_file, require_config
from ..hub.pretrained import check_has_heads, holds_pretraining
from ..models.configuration_conversation import ConversationConfig

STAGE_1 = "mister_e_utterance_encoder"


def load_model(name: str | os.PathLike, **hub: Any) -> PreTrainedModel:
    r"""
    Load stage 2 of a checkpoint, of any registered model.

    Args:
        name: folder, or id on the Hub.
        hub: revision, token, cache_dir, local_files_only.

    Raises:
        InputError: naming file and field, if the checkpoint does not exist, is broken, or its model is not
            registered.
        OSError: naming the weights file that is damaged or missing.
    """
    if not require_config(name, hub, _check_kind):
        raise InputError(f"'{name}' is not a checkpoint: it has no config.json")
    with reading(name, "a checkpoint"):
        return AutoModel.from_pretrained(name, trust_remote_code=False, **hub)


def load_any_model(name: str | os.PathLike, **hub: Any) -> PreTrainedModel:
    """As [`load_model`], and also a pre-training model, which predicts nothing."""
    if not holds_pretraining(name, hub):
        return load_model(name, **hub)
    with reading(name, "a checkpoint"):
        return AutoModelForPreTraining.from_pretrained(name, trust_remote_code=False, **hub)


def _check_kind(config: dict[str, Any]):
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    check_has_heads(config)
    if kind == STAGE_1:
        raise InputError("it is an encoder of stage 1; pass the folder above it, or load it with UtteranceEncoder")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not (isinstance(kind, str) and known and issubclass(CONFIG_MAPPING[kind], ConversationConfig)):
        own = " Code that comes with a checkpoint is not run." if "auto_map" in config and not known else ""
        raise InputError(
            f"model_type is {short(repr(kind), 80)}, which is not a conversation model of this package.{own}"
        )


def has_encoder(name: str | os.PathLike, modality: str, **hub: Any) -> bool:
    """Whether a checkpoint holds the encoder of a modality."""
    return find_file(name, "config.json", {**hub, "subfolder": MODALITIES[modality].encoder}) is not None


def load_encoder(
    name: str | os.PathLike, modality: str, width: int, **hub: Any
) -> tuple[UtteranceEncoder, MisterEProcessor]:
    r"""
    Load stage 1 of a checkpoint for one modality: the encoder and its processor.

    Args:
        name: folder, or id on the Hub.
        modality: `"speech"` or `"text"`.
        width: D of the vectors that stage 2 reads.
        hub: revision, token, cache_dir, local_files_only.

    Raises:
        InputError: naming file and field, if one is broken, or they do not belong together.
        OSError: naming the file that is damaged or missing.
    """
    hub = {**hub, "subfolder": MODALITIES[modality].encoder}
    where = f"{name}/{MODALITIES[modality].encoder}"
    with reading(where, "an encoder"):
        pair = UtteranceEncoder.from_pretrained(name, **hub), MisterEProcessor.from_pretrained(name, **hub)
        check_encoder(*pair, modality, width, f"'{where}'")
    return pair


def check_encoder(encoder: UtteranceEncoder, processor: MisterEProcessor, modality: str, width: int, name: str):
    r"""
    Args:
        encoder, processor: a pair of stage 1.
        modality, width: of the vectors that stage 2 reads.
        name: the subject of the message.

    Raises:
        InputError: if they do not fit each other or stage 2.
    """
    made = encoder.config
    if (made.modality, processor.modality, made.embedding_dim) != (modality, modality, width):
        raise InputError(
            f"{name} prepares {MODALITIES[processor.modality].noun} and makes vectors of {made.modality} of "
            f"{made.embedding_dim} numbers; the model reads vectors of {modality} of {width}: they do not belong "
            "together"
        )
    assert isinstance(made.backbone_config, PreTrainedConfig) and encoder.backbone is not None  # of a built encoder
    if made.backbone_config.model_type != processor.backbone_type:
        raise InputError(
            f"{name}: the encoder's backbone is of type '{made.backbone_config.model_type}', its processor is for "
            f"'{processor.backbone_type}': they do not belong together"
        )
    if processor.tokenizer is not None:
        tokens, known = processor.tokenizer.vocab_size, encoder.backbone.get_input_embeddings().num_embeddings
        if tokens > known:
            raise InputError(
                f"{name}: the tokenizer has {tokens:,} tokens and the encoder's backbone {known:,}: they do not "
                "belong together"
            )
