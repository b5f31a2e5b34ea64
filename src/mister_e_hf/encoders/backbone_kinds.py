"""Which pretrained models stage 1 can be built around, as far as their configurations tell."""

import transformers  # the Auto classes when they are used: loading them registers what is here

from ..base.errors import InputError

# Those that are tested: batched as alone, at their longest input, with LoRA. Any other is tried when an encoder is made from it.
SUPPORTED = {
    "speech": (
        "data2vec-audio",
        "hubert",
        "qwen2_audio",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-conformer",
        "wavlm",
        "whisper",
    ),
    "text": (
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
    ),
}
OF_MELS = ("whisper", "qwen2_audio")  # run by layers here, since their own forward takes windows of 30 seconds alone

# Their tables of positions begin behind the index of padding.
_POSITIONS_BEHIND_PADDING = (
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
_COMPUTATION = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "feat_extract_norm",
    "do_stable_layer_norm",
)
_TAKES = {"speech": "input_values", "text": "input_ids"}


def check_kind(config: transformers.PreTrainedConfig, modality: str):
    r"""
    Refuse what cannot be an encoder of the modality, before its weights are read.

    Raises:
        InputError: naming the kind of model and what it takes.
    """
    if modality not in SUPPORTED:
        raise InputError(f"modality must be 'speech' or 'text', got {modality!r}")
    kind = config.model_type
    if kind in OF_MELS:
        if modality != "speech":
            raise InputError(f"A {kind} backbone encodes speech, not {modality}")
        return
    if getattr(config, "is_encoder_decoder", False):
        raise refusal(config, modality, "it is an encoder-decoder model, which gives no states of the input alone")
    try:
        takes = transformers.MODEL_MAPPING[type(config)].main_input_name
    except (KeyError, AttributeError):
        raise refusal(config, modality, "transformers has no single base model of that kind") from None
    if takes != _TAKES[modality]:
        raise refusal(config, modality, f"it takes {takes}, not {_TAKES[modality]}")
    if getattr(config, "add_adapter", False):
        raise refusal(config, modality, "its output has fewer positions than its hidden states (add_adapter)")
    if not all(isinstance(getattr(config, name, None), int) for name in ("hidden_size", "num_hidden_layers")):
        raise refusal(config, modality, "its configuration has no hidden_size and num_hidden_layers of one model")


def refusal(config: transformers.PreTrainedConfig, modality: str, reason: str) -> InputError:
    """The error that says why a backbone cannot be used, and which can."""
    known = ", ".join(SUPPORTED[modality])
    return InputError(
        f"A {config.model_type} backbone cannot encode {modality}: {reason}. Backbones that are tested: {known}"
    )


def sizes(config: transformers.PreTrainedConfig) -> tuple[int, int]:
    """Width and number of layers of the backbone that is run."""
    if config.model_type == "qwen2_audio":
        config = config.get_text_config()
    return config.hidden_size, config.num_hidden_layers


def longest_text(config: transformers.PreTrainedConfig) -> int | None:
    """How many tokens a model of text takes at most; None where nothing limits them."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.model_type in _POSITIONS_BEHIND_PADDING:
        positions -= 1 + (1 if config.model_type == "mpnet" else config.pad_token_id or 0)
    return positions


def computation(config: transformers.PreTrainedConfig) -> dict[str, object]:
    r"""
    What of a backbone's configuration says what it computes, beside its weights: the same from whichever release of transformers, which
    adds fields and changes how it writes them.
    """
    described = {"model_type": config.model_type}
    for name in _COMPUTATION:
        value = getattr(config.get_text_config(), name, None)
        if isinstance(value, str | int | float):
            described[name] = value
    return described
