"""All stages on generated recordings, from audio and transcripts to a table of results: offline, in under a minute."""

import csv
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    BertConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ViTImageProcessorPil,
    WhisperConfig,
    WhisperFeatureExtractor,
    set_seed,
)

from ..base.modalities import MODALITIES
from ..base.progress import line
from ..corpora.demo_faces import PIXELS
from ..corpora.demo_recordings import write_demo_recordings
from ..corpora.dialogue_folder import DialogueFolder
from ..corpora.store import write_corpus
from .recipe import Recipe
from .stages import train


def run_demo(output_dir: str | Path, recipe: str | Path = "demo-recordings", overrides: tuple[str, ...] = ()) -> dict:
    r"""
    Generate recordings, make a corpus of them, train tiny encoders from scratch, embed the corpus and train stage 2.

    The recordings are clips of a face if the recipe has a section `visual_encoder`. `output_dir` is the checkpoint
    folder; `output_dir/demo` gets the recordings, the corpus and the untrained backbones.

    Returns:
        the summary of stage 2.
    """
    output_dir = Path(output_dir)
    made = output_dir / "demo"
    sections = Recipe.load(recipe, overrides).sections
    modalities = {name: each.encoder for name, each in MODALITIES.items() if each.encoder in sections}
    torch.set_num_threads(1)  # more threads do not speed up models this small, and slow them down on busy cores
    if (made / "corpus").is_dir():
        line(f"corpus: generated earlier ({made / 'corpus'})")
    else:
        recordings = write_demo_recordings(made / "recordings", video="visual" in modalities)
        builder = DialogueFolder(recordings, cache_dir=str(made / "cache"))
        builder.download_and_prepare()
        corpus = builder.as_dataset()
        write_corpus(corpus, made / "corpus", embed_audio=True, name="demo", license="apache-2.0")
        line(f"corpus: {sum(map(len, corpus.values()))} dialogues generated ({made / 'corpus'})")
    if not (made / "backbones").is_dir():
        write_demo_backbones(made / "backbones", made / "recordings" / "train" / "metadata.csv")
    words = ["--corpus", str(made / "corpus"), *overrides]
    for name, section in modalities.items():
        words += [f"--{section}.backbone", str(made / "backbones" / name)]
    return train(Recipe.load(recipe, words), output_dir)


def write_demo_backbones(folder: Path, metadata: Path):
    """
    Save a tiny Whisper, BERT and ResNet with random weights as pretrained models, with a tokenizer of the transcripts'
    words.
    """
    set_seed(0)
    sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    rest: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 8, "vocab_size": 8}
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    speech = AutoModel.from_config(WhisperConfig(num_mel_bins=40, **sizes, **rest, **tokens))
    with metadata.open(newline="", encoding="utf-8") as file:
        lines = [row["text"] for row in csv.DictReader(file)]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(lines, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = AutoModel.from_config(
        BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64, **sizes)
    )
    visual = AutoModel.from_config(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    )
    partial = folder.with_name(".unfinished-backbones")
    speech.save_pretrained(partial / "speech")
    WhisperFeatureExtractor(feature_size=40).save_pretrained(partial / "speech")
    visual.save_pretrained(partial / "visual")
    ViTImageProcessorPil(size={"height": PIXELS, "width": PIXELS}).save_pretrained(partial / "visual")
    text.save_pretrained(partial / "text")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        partial / "text"
    )
    partial.rename(folder)
