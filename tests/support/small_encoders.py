"""Tiny pretrained models with random weights, and a corpus of spoken lines, for the tests of stage 1."""

import csv
import itertools
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    BertConfig,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    ViTConfig,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

from mister_e_hf import DialogueFolder, MisterEProcessor, UtteranceEncoder

LABELS = ["anger", "joy", "neutral"]
RATE = 16_000
_FILLERS = "so you see this is what they said about it when we came back".split()
_KEYWORDS = {"anger": "grr", "joy": "hooray", "neutral": "well"}


def write_backbone(folder: Path, modality: str) -> Path:
    """A BERT that knows the lines' words, a WavLM or a ViT, as a pretrained model would be stored there."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes["initializer_range"] = 0.3  # so that attention is not all but even, and its gradient all but zero
    if modality == "text":
        words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.train_from_iterator(
            [*_FILLERS, *_KEYWORDS.values()], trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"])
        )
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
        config = BertConfig(**sizes, vocab_size=words.get_vocab_size(), max_position_embeddings=64)
    elif modality == "visual":
        size = {"height": 16, "width": 16}
        CLIPImageProcessorPil(size=size, do_center_crop=False, do_convert_rgb=False).save_pretrained(folder)
        config = ViTConfig(**sizes, image_size=16, patch_size=8)
    else:
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        convolutions = {
            "conv_dim": (32, 32),  # see tiny_backbones.py
            "conv_kernel": (20, 16),
            "conv_stride": (20, 16),
            "feat_extract_norm": "layer",
        }
        positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        config = WavLMConfig(**sizes, **convolutions, **positions, do_stable_layer_norm=True)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def tiny_encoder(folder: Path, modality: str, seed: int = 0, **settings) -> tuple[UtteranceEncoder, MisterEProcessor]:
    """An encoder with vectors of 6 numbers around the backbone in the folder, and its processor."""
    torch.manual_seed(seed)
    settings = {"tuning": "frozen", "embedding_dim": 6, "id2label": dict(enumerate(LABELS))} | settings
    return UtteranceEncoder.from_backbone(folder, modality, **settings), MisterEProcessor.from_backbone(
        folder, modality
    )


def write_lines(folder: Path, sizes: Mapping[str, int], turns: int = 4, seed: int = 0) -> Path:
    """
    Write a table and WAV files with so many dialogues per split, of about so many turns.

    One word of the transcript determines the emotion. Every fifth turn has no audio, every seventh no transcript; the
    third of each dialogue has no label.
    """
    folder.mkdir(parents=True)
    generator, count = np.random.default_rng(seed), itertools.count(1)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["dialogue_id", "order", "text", "file_name", "speaker", "emotion", "sentiment", "split"])
        for split, size in sizes.items():
            for dialogue in range(size):
                for turn in range(generator.integers(max(1, turns - 2), turns + 3)):
                    number, emotion = next(count), LABELS[generator.integers(3)]
                    words = list(generator.choice(_FILLERS, size=generator.integers(1, 9)))
                    words.insert(generator.integers(len(words) + 1), _KEYWORDS[emotion])
                    name = f"{split}_{dialogue}_{turn}.wav" if number % 5 else None
                    if name:
                        soundfile.write(folder / name, tone(generator.uniform(0.1, 0.5), 100 + number), RATE)
                    text, label = " ".join(words) if number % 7 else None, emotion if turn % 3 != 2 else None
                    table.writerow(
                        [f"{split}_{dialogue}", turn, text, name, "AB"[turn % 2], label, number / 10, split]
                    )
    return folder


def tone(seconds: float, pitch: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(RATE * seconds)) / RATE)


def read_lines(folder: Path, cache: Path, **settings) -> datasets.DatasetDict:
    builder = DialogueFolder(folder, cache_dir=str(cache), **{"labels": LABELS, **settings})
    builder.download_and_prepare()
    return builder.as_dataset()
