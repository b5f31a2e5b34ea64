"""Time and memory of embedding as a corpus grows: python scripts/benchmarks/embed_growth.py

Tiny encoders with random weights, so that what is measured is the framework: reading the corpus, its fingerprint,
batches, shards, a second run that finds everything done, reading the vectors. Each size is a process of its own;
seconds are those of the processor, memory is what the process holds at most beyond the start, mapped files left out.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
OURS = HERE.parents[1] / "src"
SIZES = {"text": [1_000, 10_000, 100_000], "speech": [100, 1_000, 10_000]}
QUICK = {"text": [20, 40], "speech": [20]}
PER_DIALOGUE = 10
LABELS = ["joy", "anger"]


class Watch:
    """Seconds of the processor of each step, and the memory that it holds at most beyond the first."""

    def __init__(self):
        self.steps: dict[str, dict[str, float]] = {}
        self._start = self._held()

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        peak, done = self._held(), threading.Event()

        def look():
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, self._held())

        watcher = threading.Thread(target=look)
        watcher.start()
        begin = time.process_time()
        try:
            return work()
        finally:
            seconds = time.process_time() - begin
            done.set()
            watcher.join()
            self.steps[name] = {"seconds": seconds, "mebibytes": (max(peak, self._held()) - self._start) / 2**20}

    def _held(self) -> int:
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
        return 1024 * int(found[1]) if found else 0


def write_corpus(path: Path, modality: str, turns: int):
    """One table of dialogues of ten turns, written in parts: lines of 1 to 12 words, or noise of 0.1 to 0.4 s."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mister_e_hf.corpora.schema import dialogue_features
    from mister_e_hf.media.audio import encode_flac

    generator = np.random.default_rng(0)
    schema = dialogue_features(LABELS).arrow_schema
    kind = schema.field("utterances").type.value_type
    words = np.array([f"w{number}" for number in range(40)])
    lines = pa.array([" ".join(generator.choice(words, generator.integers(1, 13))) for _ in range(5_000)])
    sounds, seconds = [], []
    if modality == "speech":
        for _ in range(50):
            seconds.append(float(generator.uniform(0.1, 0.4)))
            samples = 0.1 * generator.standard_normal(int(16_000 * seconds[-1])).astype(np.float32)
            sounds.append({"bytes": encode_flac(samples), "path": None})
    recordings = pa.array(sounds, kind.field("audio").type)
    with pq.ParquetWriter(path, schema) as file:
        for begin in range(0, turns, 10_000):
            count = min(10_000, turns - begin)
            numbers = np.arange(begin, begin + count)
            columns = {each.name: pa.nulls(count, each.type) for each in kind}
            columns["utterance_id"] = pa.array([f"u{number}" for number in numbers])
            columns["text"] = lines.take(pa.array(generator.integers(len(lines), size=count)))
            columns["emotion"] = pa.array(numbers % 2, kind.field("emotion").type)
            if modality == "speech":
                chosen = generator.integers(len(sounds), size=count)
                columns["audio"] = recordings.take(pa.array(chosen))
                columns["duration"] = pa.array(np.array(seconds)[chosen])
            flat = pa.StructArray.from_arrays(list(columns.values()), fields=list(kind))
            ends = np.append(np.arange(0, count, PER_DIALOGUE), count)
            rows = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), flat).cast(schema.field("utterances").type)
            names = pa.array([f"d{(begin + end) // PER_DIALOGUE}" for end in ends[:-1]])
            file.write_table(pa.table({"dialogue_id": names, "utterances": rows}, schema=schema))


def write_backbone(folder: Path, modality: str):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    if modality == "text":
        names = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(40))]
        tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        config = transformers.BertConfig(vocab_size=len(names), **small)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(folder)
    else:
        layers = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 1}
        config = transformers.Wav2Vec2Config(
            vocab_size=4, feat_extract_norm="layer", do_stable_layer_norm=True, **small, **layers
        )
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    transformers.AutoModel.from_config(config).save_pretrained(folder)


def measure(modality: str, turns: int) -> dict[str, Any]:
    """The steps of one size, in this process."""
    import datasets
    from transformers.utils import logging

    from mister_e_hf import MisterEProcessor, UtteranceEncoder
    from mister_e_hf.base.progress import quiet
    from mister_e_hf.corpora.dialogues import load_dialogues
    from mister_e_hf.encoders.embedding import embed_corpus
    from mister_e_hf.vectors.store import read_corpus

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        os.environ["HF_DATASETS_CACHE"] = place
        datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
        (folder / "corpus").mkdir()
        write_backbone(folder / "backbone", modality)
        options = {"tuning": "frozen", "embedding_dim": 8, "id2label": dict(enumerate(LABELS))}
        encoders = {
            modality: (
                UtteranceEncoder.from_backbone(folder / "backbone", modality, **options),
                MisterEProcessor.from_backbone(folder / "backbone", modality),
            )
        }
        for warm in (True, False):  # a small corpus first, for what is loaded once
            watch, out = Watch(), folder / f"vectors-{warm}"
            count = 200 if warm else turns
            write_corpus(folder / "corpus" / "train.parquet", modality, count)
            corpus = watch("read the corpus", lambda: load_dialogues(folder / "corpus"))
            for name in ("embed", "find it done"):
                watch(name, lambda c=corpus, o=out: embed_corpus(c, encoders, o))
            vectors = watch("read the vectors", lambda o=out: read_corpus(o, splits=("train",)))
            assert vectors["train"].present[modality].sum() == count
        return {"modality": modality, "turns": turns, "steps": watch.steps}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modalities", nargs="+", choices=list(SIZES), default=list(SIZES), help="what is embedded")
    parser.add_argument(
        "--turns", nargs="+", type=int, help="sizes (default: up to 100,000 of text, 10,000 of speech)"
    )
    parser.add_argument("--before", type=Path, help="folder src of another commit, to compare with")
    parser.add_argument("--quick", action="store_true", help="a few turns, to try the script")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(options.modalities[0], options.turns[0])))
        return []
    rows = []
    for modality in options.modalities:
        for turns in options.turns or (QUICK if options.quick else SIZES)[modality]:
            for name, source in {**({"before": options.before} if options.before else {}), "now": OURS}.items():
                environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
                words = [sys.executable, __file__, "--worker", "--modalities", modality, "--turns", str(turns)]
                done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]) | {"version": name})
                print(f"{modality}, {turns:,} turns, {name}")
                for step, found in rows[-1]["steps"].items():
                    each = 1e6 * found["seconds"] / turns
                    numbers = f"{found['seconds']:9.2f} s  {each:8.1f} µs a turn  {found['mebibytes']:7.0f} MiB"
                    print(f"  {step:<18} {numbers}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
