"""Pretrained models of speech and of text, each run so that it gives one row of states per position and says which are real.

Letters: W rows (utterances, or windows of long ones), S samples, M mel bins, L mel frames, P positions, H width.

Every function takes one backbone and its inputs and returns its hidden states, a list of (W, P, H) from the embedding layer to the last with
the backbone's output in the last place, and the mask of positions (W, P). A position of padding changes nothing at the others.
"""

from typing import Any

import torch
import torch.nn.functional as F
import transformers  # the Auto classes when they are used: loading them registers what is here
from torch import nn
from transformers.masking_utils import create_bidirectional_mask

from ..base.errors import InputError
from .backbone_kinds import OF_MELS, check_kind, longest_text

_SEE_PADDING = ("data2vec-audio", "wav2vec2-conformer")  # their convolutions run over padding, attention mask or not
WEIGHT_OPTIONS = ("dtype", "torch_dtype", "device_map", "attn_implementation", "quantization_config")


def build_backbone(config: transformers.PreTrainedConfig) -> nn.Module:
    """With random weights, to be filled from a checkpoint."""
    model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return model.get_encoder() if config.model_type == "whisper" else model


def load_backbone(name: str, revision: str | None, options: dict[str, Any], modality: str | None = None) -> nn.Module:
    """
    A pretrained model by its name on the Hub, or folder, in float32 unless the options say another dtype. Where a modality is given, its kind
    is checked first.
    """
    if revision is not None:
        options = options | {"revision": revision}
    if options.get("dtype", options.get("torch_dtype")) is None:
        options = options | {
            "dtype": torch.float32
        }  # never train a half-precision checkpoint in half precision silently
    of_config = {key: value for key, value in options.items() if key not in WEIGHT_OPTIONS}
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **of_config)
    if modality is not None:
        check_kind(config, modality)
    model = transformers.AutoModel.from_pretrained(name, config=config, trust_remote_code=False, **options)
    return model.get_encoder() if config.model_type == "whisper" else model


def run_backbone(
    backbone: nn.Module,
    modality: str,
    depth: int | None = None,
    input_ids: torch.Tensor | None = None,
    input_values: torch.Tensor | None = None,
    input_features: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    feature_attention_mask: torch.Tensor | None = None,
    pooling_mask: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The inputs of [`UtteranceEncoder`] through a backbone of any kind; the mask is of the utterance's own positions."""
    kind = backbone.config.model_type
    given = {"input_ids": input_ids, "input_values": input_values, "input_features": input_features}
    expected = ["input_values"] if modality == "speech" else ["input_ids"]
    if kind in OF_MELS:
        expected = ["input_features"] if kind == "whisper" else ["input_ids", "input_features"]
    if (found := sorted(name for name, value in given.items() if value is not None)) != sorted(expected):
        raise InputError(f"A {kind} encoder of {modality} takes {expected}, got {found}")
    main = given[expected[0]]
    if attention_mask is None:
        attention_mask = torch.ones(main.shape[0], main.shape[-1], dtype=torch.bool, device=main.device)
    if kind == "whisper":
        own = attention_mask if pooling_mask is None else pooling_mask
        return whisper_states(backbone, input_features, attention_mask, own, depth)
    if kind == "qwen2_audio":
        if feature_attention_mask is None:
            feature_attention_mask = attention_mask.new_ones(input_features.shape[0], input_features.shape[-1])
        return audio_language_states(backbone, input_ids, attention_mask, input_features, feature_attention_mask)
    if modality == "speech":
        return waveform_states(backbone, input_values, attention_mask)
    states, mask = text_states(backbone, input_ids, attention_mask)
    return states, mask if pooling_mask is None else mask & pooling_mask.bool()


def text_states(
    backbone: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tokens (W, P), padded at the end, through an encoder (BERT, RoBERTa, MPNet, ...) or a causal language model."""
    config = backbone.config.get_text_config()
    if (largest := int(input_ids.max())) >= config.vocab_size:
        raise InputError(
            f"Token {largest} is outside the vocabulary of the {config.model_type} backbone, which has {config.vocab_size}: the tokenizer belongs to "
            "another model"
        )
    longest = longest_text(backbone.config)
    if longest is not None and input_ids.shape[1] > longest:
        raise InputError(
            f"Texts of {input_ids.shape[1]} tokens, but the {config.model_type} backbone takes {longest}: cut them to max_tokens={longest}"
        )
    output = backbone(input_ids=input_ids, attention_mask=attention_mask.long(), output_hidden_states=True)
    return _with_output_last(output), attention_mask.bool()


def waveform_states(
    backbone: nn.Module, input_values: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Samples (W, S), padded at the end, through WavLM, HuBERT or wav2vec 2.0."""
    mask = attention_mask.bool()
    lengths = mask.sum(-1)
    input_values = input_values.to(backbone.dtype).masked_fill(~mask, 0)
    by_length = backbone.config.model_type in _SEE_PADDING
    if (by_length or getattr(backbone.config, "feat_extract_norm", "layer") == "group") and not mask.all():
        # Group norm takes statistics over time, padding included: only rows of one length may go together.
        return _by_length(backbone, input_values, lengths)
    output = backbone(input_values, attention_mask=mask.long(), output_hidden_states=True)
    states = _with_output_last(output)
    positions = backbone._get_feat_extract_output_lengths(lengths)
    return states, torch.arange(states[0].shape[1], device=mask.device) < positions[:, None]


def mel_states(
    encoder: nn.Module, input_features: torch.Tensor, attention_mask: torch.Tensor, depth: int | None = None
) -> list[torch.Tensor]:
    """
    Mel frames (W, M, L) through the layers of Whisper's encoder or Qwen2-Audio's, which transformers' own forward runs on whole windows
    of 30 seconds alone. P is L / 2; a position is attended to where its first frame is. Only the first `depth` layers are run.
    """
    states = F.gelu(encoder.conv1(input_features.to(encoder.conv1.weight.dtype)))
    states = F.gelu(encoder.conv2(states)).transpose(1, 2)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    states = F.dropout(states, encoder.dropout, encoder.training)
    attended = attention_mask[:, ::2][:, : states.shape[1]].bool()
    states = states.masked_fill(~attended.unsqueeze(-1), 0)  # what is not attended to must still be finite
    mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=states, attention_mask=attended.long())
    found = [states]
    for layer in encoder.layers[:depth]:
        states = layer(states, mask)
        states = states[0] if isinstance(states, tuple) else states
        found.append(states)
    return found


def whisper_states(
    encoder: nn.Module,
    input_features: torch.Tensor,
    attention_mask: torch.Tensor,
    pooling_mask: torch.Tensor,
    depth: int | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Mel frames through Whisper's encoder; the utterance's own positions are those of `pooling_mask` (W, L)."""
    states = mel_states(encoder, input_features, attention_mask, depth)
    if len(states) == len(encoder.layers) + 1:
        states[-1] = encoder.layer_norm(states[-1])
    return states, pooling_mask[:, ::2][:, : states[-1].shape[1]].bool()


def audio_language_states(
    backbone: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    input_features: torch.Tensor,
    feature_attention_mask: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """
    Mel frames through Qwen2-Audio's tower, in place of the audio tokens among `input_ids` (W, P), through its language model. The
    tower masks what lies behind the sound, so that the frames there need not be computed.
    """
    tower = backbone.audio_tower
    frames, tokens = tower._get_feat_extract_output_lengths(feature_attention_mask.sum(-1))
    attended = torch.arange(feature_attention_mask.shape[1], device=frames.device) < 2 * frames[:, None]
    states = mel_states(tower, input_features, attended)[-1]
    states = tower.layer_norm(tower.avg_pooler(states.transpose(1, 2)).transpose(1, 2))
    heard = backbone.multi_modal_projector(states)
    heard = heard[torch.arange(heard.shape[1], device=tokens.device) < tokens[:, None]]
    is_audio = input_ids == backbone.config.audio_token_id
    if int(is_audio.sum()) != len(heard):
        raise InputError(f"input_ids hold {int(is_audio.sum())} audio tokens, but the sound gives {len(heard)}")
    embedded = backbone.get_input_embeddings()(input_ids)
    embedded = embedded.masked_scatter(is_audio.unsqueeze(-1), heard.to(embedded.dtype))
    output = backbone.language_model(
        inputs_embeds=embedded, attention_mask=attention_mask.long(), output_hidden_states=True
    )
    return _with_output_last(output), is_audio


def _with_output_last(output) -> list[torch.Tensor]:
    if getattr(output, "hidden_states", None) is None or getattr(output, "last_hidden_state", None) is None:
        raise InputError(
            f"A model whose output is {type(output).__name__} gives no hidden states and cannot be an encoder"
        )
    # With a last layer norm of its own, last_hidden_state is not the last of hidden_states (wav2vec 2.0 large and its like).
    return [*output.hidden_states[:-1], output.last_hidden_state]


def _by_length(
    backbone: nn.Module, input_values: torch.Tensor, lengths: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    positions = backbone._get_feat_extract_output_lengths(lengths)
    whole: list[torch.Tensor] | None = None
    for length in sorted(set(lengths.tolist())):
        rows = (lengths == length).nonzero()[:, 0]
        states = _with_output_last(backbone(input_values[rows, :length], output_hidden_states=True))
        whole = whole or [layer.new_zeros(len(lengths), int(positions.max()), layer.shape[-1]) for layer in states]
        whole = [
            everything.index_put((rows[:, None], torch.arange(layer.shape[1], device=rows.device)[None]), layer)
            for everything, layer in zip(whole, states, strict=True)
        ]
    return whole, torch.arange(whole[0].shape[1], device=lengths.device) < positions[:, None]
