"""Utterances per second of `embed_corpus` against a loop over single utterances: python scripts/benchmarks/embed.py

Models of the sizes of all-MiniLM-L6-v2 and of Whisper-tiny's encoder with random weights, on generated lines and
recordings of the lengths of MELD's (8 words, 3 seconds on average). The plain loop runs transformers' own processors
and models unchanged, which for Whisper means windows of 30 seconds. Both read the same files from disk.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
from transformers.utils import logging

from mister_e_hf import DialogueFolder, MisterEProcessor, UtteranceEncoder
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.encoders.embedding import embed_turns
from mister_e_hf.encoders.packing import packed_batches
from mister_e_hf.encoders.utterances import Utterances

LABELS = {0: "joy", 1: "anger"}
WORDS = (
    "you know what they said about it when we came home again today and it was so very good to see her there".split()
)


def write_folder(folder: Path, turns: int):
    generator = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["dialogue_id", "order", "text", "file_name", "emotion"])
        for turn in range(turns):
            seconds = float(np.clip(generator.lognormal(0.9, 0.7), 0.3, 20))
            words = generator.choice(WORDS, size=max(1, int(generator.lognormal(1.8, 0.8))))
            soundfile.write(folder / f"{turn}.wav", 0.1 * generator.standard_normal(int(16_000 * seconds)), 16_000)
            table.writerow([f"d{turn // 10}", turn % 10, " ".join(words), f"{turn}.wav", LABELS[turn % 2]])


def write_backbones(folder: Path):
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    speech = {
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "decoder_layers": 1,
    }
    AutoModel.from_config(WhisperConfig(**speech, vocab_size=8, **tokens)).save_pretrained(folder / "speech")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "speech")
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(WORDS, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    text = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    AutoModel.from_config(BertConfig(vocab_size=30522, **text)).save_pretrained(folder / "text")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder / "text"
    )


def plain_loop(encoder: UtteranceEncoder, processor: MisterEProcessor, utterances: Utterances) -> torch.Tensor:
    """Embed the utterances one at a time, with transformers alone."""
    vectors = []
    with torch.inference_mode():
        for item in range(len(utterances)):
            turn = utterances[item]["turn"]
            if processor.modality == "text":
                states = encoder.backbone(**processor.tokenizer(turn, return_tensors="pt")).last_hidden_state[0]
            else:
                features = processor.feature_extractor(turn, sampling_rate=16_000, return_tensors="pt").input_features
                states = encoder.backbone(features).last_hidden_state[0, : -(-len(turn) // 320)]
            vectors.append(encoder.projection(encoder.norm(states).mean(0)))
    return torch.stack(vectors)


def measure(folder: Path, turns: int) -> dict:
    """Time both ways on one corpus, in this process."""
    logging.disable_progress_bar()
    builder = DialogueFolder(folder / "source", cache_dir=str(folder / "cache"), split_shares=(1, 0, 0))
    builder.download_and_prepare()
    data = builder.as_dataset()["train"]
    found = {"turns": turns}
    for modality in MODALITIES:
        backbone = folder / "backbones" / modality
        options = {"tuning": "frozen", "embedding_dim": 384, "id2label": LABELS}
        encoder = UtteranceEncoder.from_backbone(backbone, modality, **options)
        utterances = Utterances(data, modality)
        ways = {"ours": MisterEProcessor.from_backbone(backbone, modality)}
        if modality == "speech":
            ways["ours, one second of silence"] = MisterEProcessor.from_backbone(
                backbone, modality, trailing_silence=1.0
            )
        block = found.setdefault(modality, {})
        start = time.perf_counter()
        expected = plain_loop(encoder, next(iter(ways.values())), utterances)
        block["plain"] = len(utterances) / (time.perf_counter() - start)
        for name, processor in ways.items():
            start = time.perf_counter()
            vectors, _ = embed_turns(encoder, processor, utterances)
            block[name] = len(utterances) / (time.perf_counter() - start)
            block[f"{name}: largest difference"] = float((vectors - expected).abs().max())
        sizes = (
            utterances.lengths
            if modality == "speech"
            else [len(utterances[i]["turn"].split()) for i in range(len(utterances))]
        )
        batches = list(packed_batches(sizes, 120.0 if modality == "speech" else 8192, 256))
        padded = sum(max(sizes[i] for i in batch) * len(batch) for batch in batches)
        block["padding"] = 1 - float(np.sum(sizes)) / padded
    found["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[200, 800], help="sizes (default: 200 800)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(arguments.folder, arguments.turns[0])))
        return
    for turns in arguments.turns:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder) / "source", turns)
            write_backbones(Path(folder) / "backbones")
            words = [sys.executable, __file__, "--folder", folder, "--turns", str(turns)]
            call = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, encoding="utf-8"
            )
        found = json.loads(call.stdout.splitlines()[-1])
        print(f"{turns} turns, peak {found['peak MiB']:.0f} MiB")
        for modality in MODALITIES:
            for name, value in found[modality].items():
                ratio = (
                    ""
                    if name == "plain" or ":" in name or name == "padding"
                    else f"  {value / found[modality]['plain']:.1f} times plain"
                )
                print(f"  {modality:7} {name:50} {value:10.3g}{ratio}")


if __name__ == "__main__":
    main()
