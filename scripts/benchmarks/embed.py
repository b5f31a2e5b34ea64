"""Utterances per second of `embed_corpus` against a loop over single utterances: python scripts/benchmarks/embed.py

Models of the sizes of all-MiniLM-L6-v2 and of Whisper-tiny's encoder with random weights, on generated lines and
recordings of the lengths of MELD's (8 words, 3 seconds on average). The plain loop runs transformers' own processors
and models unchanged, which for Whisper means windows of 30 seconds and all layers. Both read the same files from
disk. Seconds are those of the processor, in alternating rounds of one process. The matrix products of an embedding are
also run alone, on its shapes: what they take of its time is what can be reached at this precision.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
from transformers.utils import logging

from mister_e_hf import DialogueFolder, MisterEProcessor, UtteranceEncoder
from mister_e_hf.encoders.embedding import EmbeddingOptions, embed_turns
from mister_e_hf.encoders.utterances import Utterances

# The encoder, its layer, and the seconds of silence after a turn; the small recipes read Whisper's second layer.
CASES: dict[str, tuple[str, int | None, float | None]] = {
    "text": ("text", None, None),
    "speech, last layer": ("speech", None, None),
    "speech, layer 2 of 4": ("speech", 2, None),
    "speech, layer 2 of 4, one second of silence": ("speech", 2, 1.0),
}
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
    vectors, layer = [], encoder.config.layer
    with torch.inference_mode():
        for item in range(len(utterances)):
            turn = utterances[item]["turn"]
            if processor.modality == "text":
                inputs = processor.tokenizer(turn, return_tensors="pt")
            else:
                inputs = processor.feature_extractor(turn, sampling_rate=16_000, return_tensors="pt")
            output = encoder.backbone(**inputs, output_hidden_states=layer is not None)
            states = (output.last_hidden_state if layer is None else output.hidden_states[layer])[0]
            if processor.modality == "speech":
                states = states[: -(-len(turn) // 320)]
            vectors.append(encoder.projection(encoder.norm(states).mean(0)))
    return torch.stack(vectors)


class Products(TorchFunctionMode):
    """Notes the matrix products that are run (linear layers, convolutions, attention), to run them alone."""

    def __init__(self):
        super().__init__()
        self._noted: list[Callable[[], Any]] = []
        self._inputs: dict[torch.Size, torch.Tensor] = {}  # one of each shape, since all of them do not fit in memory

    def _input(self, shape: torch.Size) -> torch.Tensor:
        return self._inputs.setdefault(shape, torch.rand(shape))

    def __torch_function__(self, function, types, arguments=(), options=None):
        name = getattr(function, "__name__", "")
        if name in ("linear", "conv1d"):
            given, *others = arguments
            self._noted.append(partial(function, self._input(given.shape), *others, **(options or {})))
        elif name == "scaled_dot_product_attention":
            query, key, value = (self._input(each.shape) for each in arguments[:3])
            weights = self._input(torch.Size([*query.shape[:-1], key.shape[-2]]))
            self._noted += [partial(torch.matmul, query, key.transpose(-1, -2)), partial(torch.matmul, weights, value)]
        return function(*arguments, **(options or {}))

    @torch.inference_mode()
    def run(self):
        for product in self._noted:
            product()


def seconds(*works: Callable[[], Any]) -> list[float]:
    """Least seconds of the processor of each, of two alternating rounds."""
    least = [float("inf")] * len(works)
    for _ in range(2):
        for number, work in enumerate(works):
            begin = time.process_time()
            work()
            least[number] = min(least[number], time.process_time() - begin)
    return least


def measure(folder: Path, turns: int) -> dict:
    """Time both ways on one corpus, in this process."""
    logging.disable_progress_bar()
    builder = DialogueFolder(folder / "source", cache_dir=str(folder / "cache"), split_shares=(1, 0, 0))
    builder.download_and_prepare()
    data = builder.as_dataset()["train"]
    found: dict[str, Any] = {"turns": turns}
    for name, (modality, layer, silence) in CASES.items():
        backbone = folder / "backbones" / modality
        options = {"tuning": "frozen", "embedding_dim": 384, "id2label": LABELS, "layer": layer}
        encoder = UtteranceEncoder.from_backbone(backbone, modality, **options)
        processor = MisterEProcessor.from_backbone(backbone, modality, trailing_silence=silence)
        # a window of 30 seconds takes as long as 20 texts
        part = np.arange(len(data)) < (len(data) if modality == "text" else max(1, len(data) // 24))
        utterances = Utterances(data, modality, dialogues=part)
        half = EmbeddingOptions(dtype=torch.bfloat16)
        with Products() as products:
            vectors, present = embed_turns(encoder, processor, utterances)
        rounded, _ = embed_turns(encoder, processor, utterances, half)
        vectors, rounded = vectors[present], rounded[present]
        expected = plain_loop(encoder, processor, utterances)
        plain, ours, bf16, alone = seconds(
            partial(plain_loop, encoder, processor, utterances),
            partial(embed_turns, encoder, processor, utterances),
            partial(embed_turns, encoder, processor, utterances, half),
            products.run,
        )
        found[name] = {
            "plain, a second": len(utterances) / plain,
            "now, a second": len(utterances) / ours,
            "times plain": plain / ours,
            "share of time in matrix products": alone / ours,
            "largest difference": float((vectors - expected).abs().max()),
            "bfloat16, times plain": plain / bf16,
            "bfloat16, largest relative difference": float(
                ((rounded - vectors).norm(dim=1) / vectors.norm(dim=1)).max()
            ),
        }
    found["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[60, 240], help="sizes (default: 60 240)")
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
            call = subprocess.run(words, stdout=subprocess.PIPE, check=True, encoding="utf-8")
        found = json.loads(call.stdout.splitlines()[-1])
        print(f"{turns} turns, peak {found['peak MiB']:.0f} MiB")
        for name in CASES:
            print(f"  {name}")
            for what, value in found[name].items():
                print(f"    {what:40} {value:10.3g}", flush=True)


if __name__ == "__main__":
    main()
