"""Stage 1 on a GPU: training utterance encoders with LoRA, and embedding, at real sizes with random weights.

Letters: W rows of a batch, P positions of a row.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_egmf import WORDS, write_tokenizer
from gpu_measures import Device, table, training_step

from embed import write_folder
from mister_e_hf import DialogueFolder, MisterEProcessor, UtteranceEncoder
from mister_e_hf.encoders.configuration_utterance_encoder import UtteranceEncoderConfig
from mister_e_hf.encoders.embedding import embed_turns
from mister_e_hf.encoders.utterances import Utterances

LABELS = dict(enumerate("abcdefg"))
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_WIDE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
SIZES: dict[str, dict[str, Any]] = {
    "RoBERTa-large": {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, **_LARGE},
    "WavLM-large": {
        "model_type": "wavlm",
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": False,
        **_LARGE,
    },
    "Llama-3.1-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        **_WIDE,
    },
    "Qwen2-Audio-7B": {
        "model_type": "qwen2_audio",
        "audio_token_index": 1,
        "audio_config": {"model_type": "qwen2_audio_encoder"},  # its defaults are that size
        "text_config": {"model_type": "qwen2", "vocab_size": 156032, "intermediate_size": 11008, **_WIDE},
    },
}
_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_WORDS_OF_TINY = {"vocab_size": 1500, **_SMALL}
_CONVOLUTIONS = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
_TOWER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
TINY: dict[str, dict[str, Any]] = {
    "RoBERTa-large": {"model_type": "roberta", "max_position_embeddings": 514, **_WORDS_OF_TINY},
    "WavLM-large": SIZES["WavLM-large"] | _SMALL | _CONVOLUTIONS,
    "Llama-3.1-8B": {"model_type": "llama", "max_position_embeddings": 512, **_WORDS_OF_TINY},
    "Qwen2-Audio-7B": {
        "model_type": "qwen2_audio",
        "audio_token_index": 1,
        "audio_config": {"model_type": "qwen2_audio_encoder", **_TOWER},
        "text_config": {"model_type": "qwen2", "num_key_value_heads": 2, **_WORDS_OF_TINY},
    },
}
SPEECH = ("WavLM-large", "Qwen2-Audio-7B")
SETTINGS = {"WavLM-large": {"layer": "weighted_sum", "pooling": "attentive_statistics"}}
# Turns of a step, and whether activations are computed again for the gradient instead of kept.
STEPS = {
    "RoBERTa-large": [(128, False)],
    "WavLM-large": [(8, False), (32, False), (32, True)],
    "Llama-3.1-8B": [(64, False)],
    "Qwen2-Audio-7B": [(32, False)],
}
EMBEDDED = ("RoBERTa-large", "WavLM-large")


def write_backbone(folder: Path, size: dict[str, Any]):
    """The configuration of a backbone, and a tokenizer and an extractor of audio for it, without weights."""
    given = dict(size)
    for part in ("audio_config", "text_config"):
        if part in given:
            given[part] = transformers.AutoConfig.for_model(**given[part])
    transformers.AutoConfig.for_model(**given).save_pretrained(folder)
    write_tokenizer(folder, WORDS, ["<pad>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"], pad_token="<pad>")
    if size["model_type"] == "qwen2_audio":
        bands = size["audio_config"].get("num_mel_bins", 128)
        transformers.WhisperFeatureExtractor(feature_size=bands).save_pretrained(folder)
    elif size["model_type"] == "wavlm":
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(folder)


def build(name: str, folder: Path, device: Device, tuning: str) -> UtteranceEncoder:
    """An encoder with random weights on the device; a backbone of several billion weights is in bfloat16."""
    wide = name in ("Llama-3.1-8B", "Qwen2-Audio-7B")
    config = UtteranceEncoderConfig(
        modality="speech" if name in SPEECH else "text",
        backbone=name,  # a name alone: its weights are random
        backbone_config=transformers.AutoConfig.from_pretrained(folder).to_dict(),
        tuning=tuning,
        id2label=LABELS,
        **SETTINGS.get(name, {}),
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if wide else torch.float32)
    try:
        with device.device:
            encoder = UtteranceEncoder(config)
    finally:
        torch.set_default_dtype(before)
    for name_of, parameter in encoder.named_parameters():
        if parameter.requires_grad or not name_of.startswith("backbone."):
            parameter.data = parameter.data.float()  # what is trained
    return encoder


def turns_of(name: str, count: int, seed: int) -> list[Any]:
    """Texts of MELD's lengths, or noise of its durations."""
    generator = np.random.default_rng(seed)
    if name not in SPEECH:
        return [" ".join(generator.choice(WORDS, max(1, int(generator.lognormal(1.8, 0.8))))) for _ in range(count)]
    seconds = np.clip(generator.lognormal(0.9, 0.7, count), 0.3, 15)
    return [0.1 * generator.standard_normal(int(16_000 * each)).astype(np.float32) for each in seconds]


class Work:
    """The operations of a backbone's linear layers and attention on the real positions of a batch, forwards."""

    def __init__(self, encoder: UtteranceEncoder, batch: dict[str, torch.Tensor]):
        lengths = batch["attention_mask"].sum(-1).float()
        if "input_values" in batch:
            lengths = lengths / 320  # samples of a position
        frames = batch["feature_attention_mask"].sum(-1).float() / 2 if "feature_attention_mask" in batch else None
        self.positions, self.operations = float(lengths.sum()), 0.0
        for name, module in encoder.backbone.named_modules():
            own = frames if "audio_tower" in name and frames is not None else lengths
            if isinstance(module, torch.nn.Linear):
                self.operations += 2 * module.weight.numel() * float(own.sum())
            elif name.endswith(("self_attn", "attention.self", ".attention")) and hasattr(module, "config"):
                width = getattr(module.config, "hidden_size", None) or module.config.d_model
                self.operations += 4 * width * float(own.square().sum())


def measure_training(device: Device, rate: float, quick: bool) -> list[dict[str, Any]]:
    """A row for each backbone and step. What is frozen has a gradient of its input, none of its weights."""
    rows = []
    for name, steps in STEPS.items():
        for turns, again in [(3, False)] if quick else steps:
            if not device.has_time:
                break
            with tempfile.TemporaryDirectory() as place:
                write_backbone(Path(place), (TINY if quick else SIZES)[name])
                row = {"backbone": name, "turns": turns, "recomputed": again}
                try:
                    rows.append(row | _train(name, Path(place), turns, again, device, rate, quick))
                except torch.OutOfMemoryError:
                    print(f"{name}: {turns} turns do not fit in memory")
            device.forget_peak()
    columns = [
        ("backbone", lambda row: row["backbone"]),
        ("turns a step", lambda row: str(row["turns"])),
        ("recomputed", lambda row: "yes" if row["recomputed"] else ""),
        ("turns/s", lambda row: f"{row['turns_per_second']:,.0f}"),
        ("of the rate", lambda row: f"{row['share_of_rate']:.1%}"),
        ("padding", lambda row: f"{row['padding']:.0%}"),
        ("peak", lambda row: "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB"),
    ]
    print(table(rows, columns))
    return rows


def _train(name: str, folder: Path, turns: int, again: bool, device: Device, rate: float, quick: bool):
    encoder = build(name, folder, device, "lora").train()
    if again:
        encoder.gradient_checkpointing_enable()
    processor = MisterEProcessor.from_backbone(folder, encoder.config.modality)
    # of like length, as the trainer makes them: the middle of eight batches
    pool = sorted(turns_of(name, 8 * turns, 0), key=len)
    batch = dict(processor(pool[4 * turns : 5 * turns], random_crop=True))
    work = Work(encoder, batch)
    moved = {key: value.to(device.device) for key, value in batch.items()}
    moved["labels"] = torch.arange(turns, device=device.device) % len(LABELS)
    device.forget_peak()
    seconds = device.seconds(training_step(encoder, moved), 0.0 if quick else 1.5, 1 if quick else 10)
    mask = moved["attention_mask"]
    return {
        "seconds": seconds,
        "turns_per_second": turns / seconds,
        "share_of_rate": 2 * work.operations / seconds / rate,
        "padding": 1 - float(mask.float().mean()),
        "peak_bytes": device.peak_bytes(),
    }


def measure_embedding(device: Device, rate: float, quick: bool) -> list[dict[str, Any]]:
    """A row for each backbone: through the model alone on batches of like length, and from files by `embed_turns`."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder, count = Path(place), 20 if quick else 2000
        write_folder(folder / "source", count)
        builder = DialogueFolder(folder / "source", cache_dir=str(folder / "cache"), split_shares=(1, 0, 0))
        builder.download_and_prepare()
        data = builder.as_dataset()["train"]
        for name in EMBEDDED:
            if not device.has_time:
                break
            write_backbone(folder / name, (TINY if quick else SIZES)[name])
            encoder = build(name, folder / name, device, "frozen").eval()
            processor = MisterEProcessor.from_backbone(folder / name, encoder.config.modality)
            utterances = Utterances(data, encoder.config.modality)
            batch = dict(processor(sorted(turns_of(name, 256, 0), key=len)[96:160]))
            work = Work(encoder, batch)
            moved = {key: value.to(device.device) for key, value in batch.items()}

            @torch.inference_mode()
            def alone(encoder=encoder, moved=moved):
                with torch.autocast(device.device.type, torch.bfloat16):
                    return encoder(**moved).embeddings

            seconds = device.seconds(alone, 0.0 if quick else 1.0, 1 if quick else 30)
            whole = device.once(lambda e=encoder, p=processor, u=utterances: embed_turns(e, p, u))
            rows.append(
                {
                    "backbone": name,
                    "model_turns_per_second": len(moved["attention_mask"]) / seconds,
                    "share_of_rate": work.operations / seconds / rate,
                    "turns_per_second": len(utterances) / whole,
                    "positions_per_second": work.positions / seconds,
                }
            )
            del encoder
    columns = [
        ("backbone", lambda row: row["backbone"]),
        ("the model alone, turns/s", lambda row: f"{row['model_turns_per_second']:,.0f}"),
        ("of the rate", lambda row: f"{row['share_of_rate']:.1%}"),
        ("embed_turns, turns/s", lambda row: f"{row['turns_per_second']:,.0f}"),
        ("of the model's", lambda row: f"{row['turns_per_second'] / row['model_turns_per_second']:.0%}"),
    ]
    print(table(rows, columns))
    return rows
