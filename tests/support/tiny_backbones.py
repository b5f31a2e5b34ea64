"""A tiny pretrained model of every kind that stage 1 is built around, with random weights, and utterances for it."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from mister_e_hf import MisterEProcessor, UtteranceEncoder

LABELS = {0: "anger", 1: "joy", 2: "neutral"}
TEXTS = ["hello there", "you did what? I can not believe it, no way", "no"]
TOKENS = ["<unk>", "<pad>", "<s>", "</s>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_WORDS = {**_SIZES, "vocab_size": 330}
_WAVES = {
    **_SIZES,
    # torch 2.13 on CPUs with AMX computes bfloat16 convolutions of fewer channels or more taps wrongly.
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_TOWER = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16, "num_mel_bins": 16}
_CONFIGS = {
    "wav2vec2-group": ("Wav2Vec2", _WAVES),
    "wav2vec2-layer": ("Wav2Vec2", _WAVES | _STABLE),
    "hubert": ("Hubert", _WAVES),
    "wavlm": ("WavLM", _WAVES | _STABLE),
    "whisper": (
        "Whisper",
        {
            **_TOWER,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 16,
            "vocab_size": 50,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
    "qwen2_audio": ("Qwen2Audio", {"audio_token_index": TOKENS.index("<|AUDIO|>")}),
    "bert": ("Bert", _WORDS),
    "roberta": ("Roberta", _WORDS | {"pad_token_id": 1}),
    "mpnet": ("MPNet", _WORDS),
    "llama": ("Llama", _WORDS),
    "qwen2": ("Qwen2", _WORDS | {"num_key_value_heads": 1}),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 330}),
}
# What is tested less widely, with tables of few positions.
_FEW = {**_WORDS, "max_position_embeddings": 40}
_MORE = {
    "albert": ("Albert", {**_FEW, "embedding_size": 8}),
    "camembert": ("Camembert", {**_FEW, "pad_token_id": 1}),
    "deberta-v2": ("DebertaV2", {**_FEW, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "distilbert": ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 330}),
    "electra": ("Electra", {**_FEW, "embedding_size": 8}),
    "mistral": ("Mistral", {**_WORDS, "num_key_value_heads": 1, "head_dim": 8}),
    "modernbert": ("ModernBert", {**_WORDS, "pad_token_id": 1}),
    "opt": ("OPT", {**_SIZES, "vocab_size": 330, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    "qwen3": ("Qwen3", {**_WORDS, "num_key_value_heads": 1, "head_dim": 8}),
    "xlm-roberta": ("XLMRoberta", {**_FEW, "pad_token_id": 1}),
    "data2vec-audio": ("Data2VecAudio", {**_WAVES, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}),
    "unispeech-sat": ("UniSpeechSat", _WAVES | _STABLE),
    "wav2vec2-conformer": (
        "Wav2Vec2Conformer",
        {**_WAVES, "feat_extract_norm": "layer", "conv_depthwise_kernel_size": 5},
    ),
}
# Of pictures of 16 x 16 pixels, or of any size.
_PATCHES = {**_SIZES, "image_size": 16, "patch_size": 8}
_TOWERS = {"text_config": {**_WORDS, "projection_dim": 8}, "vision_config": {**_PATCHES, "projection_dim": 8}}
_DINO = {name: size for name, size in _PATCHES.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
_PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIP", _TOWERS),
    "clip_vision_model": ("CLIPVision", _PATCHES),
    "dinov2": ("Dinov2", _DINO),
    "dinov2_with_registers": ("Dinov2WithRegisters", {**_DINO, "num_register_tokens": 2}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.25}),
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "bottleneck"}),
    "siglip": ("Siglip", _TOWERS),
    "siglip_vision_model": ("SiglipVision", _PATCHES),
    "vit": ("ViT", _PATCHES),
}
PICTURES = list(_PICTURES)
CONVOLUTIONS = ["mobilenet_v2", "resnet"]
SIDE = 16
MORE = list(_MORE)
KINDS = list(_CONFIGS)
SPEECH = KINDS[:6]
WAVES = KINDS[:4]
TEXT = KINDS[6:]
_HEARING = [*SPEECH, *MORE[-3:]]


def modality_of(kind: str) -> str:
    return "visual" if kind in PICTURES else "speech" if kind in _HEARING else "text"


def write_backbone(folder: Path, kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """The folder that a pretrained model of this kind would be, no weight of it at its neutral value."""
    name, settings = (_CONFIGS | _MORE | _PICTURES)[kind]
    if kind == "qwen2_audio":
        text = transformers.Qwen2Config(**_WORDS, num_key_value_heads=1)
        settings = settings | {"audio_config": transformers.Qwen2AudioEncoderConfig(**_TOWER), "text_config": text}
    torch.manual_seed(seed)
    model = AutoModel.from_config(getattr(transformers, f"{name}Config")(**{**settings, **changes}))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if kind in CONVOLUTIONS:
        _fit_batch_norm(model)
    model.to(dtype).save_pretrained(folder)
    if kind in ("whisper", "qwen2_audio"):
        WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    elif modality_of(kind) == "speech":
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    elif modality_of(kind) == "visual":
        square = {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size=square, crop_size=square).save_pretrained(folder)
    if modality_of(kind) == "text" or kind == "qwen2_audio":
        tiny_tokenizer().save_pretrained(folder)
    return folder


def _fit_batch_norm(model: torch.nn.Module):
    """Give batch norm the statistics of some noise, without which nothing of a picture is left after a few layers."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(64, 3, SIDE, SIDE))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def tiny_tokenizer(**settings) -> PreTrainedTokenizerFast:
    """Bytes and a few words of TEXTS; puts <s> before a text and </s> behind it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=TOKENS, initial_alphabet=alphabet, show_progress=False),
    )
    ends = [(token, TOKENS.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, **settings})


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(round(16_000 * seconds))).astype(np.float32)


def clip(frames: int, seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    """Frames (K, H, W, 3) of noise."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def turns_of(kind: str) -> list[Any]:
    """Three utterances of unequal length."""
    if modality_of(kind) == "visual":
        return [clip(4, 1), clip(1, 2), clip(6, 3, 40, 25)]
    return TEXTS if modality_of(kind) == "text" else [noise(0.31, 1), noise(0.1, 2), noise(0.5, 3)]


def tiny_encoder(folder: Path, kind: str, seed: int = 0, **settings) -> UtteranceEncoder:
    """In evaluation mode, with nothing that is trained at its neutral value."""
    torch.manual_seed(seed)
    settings = {"tuning": "frozen", "embedding_dim": 6, "pooling_dim": 5, "id2label": LABELS, **settings}
    encoder = UtteranceEncoder.from_backbone(folder, modality_of(kind), **settings)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return encoder


@functools.cache
def tiny_processor(folder: Path, kind: str, **settings) -> MisterEProcessor:
    return MisterEProcessor.from_backbone(folder, modality_of(kind), **settings)


def tiny_batch(folder: Path, kind: str, turns: Sequence[Any] | None = None, **settings) -> dict[str, torch.Tensor]:
    """What the processor makes of these turns, or of three."""
    return dict(tiny_processor(folder, kind, **settings)(turns_of(kind) if turns is None else turns))
