"""Time from a dialogue to its emotions: python scripts/benchmarks/inference.py

A dialogue of ten turns through the pipeline, from vectors and from audio and transcripts, against the plain loop: the
audio and transcript of each turn through transformers' own models one by one, then stage 2. Also the time of a
streamed turn at turn 10, 100 and 1,000, against the whole dialogue so far. Sizes are those of Whisper-tiny's encoder,
all-MiniLM-L6-v2 and the small stage 2, with random weights; times are medians of one run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from embed import plain_loop, write_backbones
from mister_e_hf import ConversationEmotionPipeline, MisterEConfig, MisterEModel, MisterEProcessor, UtteranceEncoder
from mister_e_hf.models.turns import DialogueCache

WIDTH = 384
WORDS = "you know what they said about it when we came home".split()


def median(call: Callable, times: int) -> float:
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def stage_2(**changes) -> MisterEModel:
    sizes = {
        "hidden_size": 192,
        "context_num_layers": 1,
        "fusion_num_layers": 2,
        "attention_dim": 96,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    return MisterEModel(MisterEConfig(speech_embedding_dim=WIDTH, text_embedding_dim=WIDTH, **sizes, **changes)).eval()


class Turns(list):
    """Turns in the form that `plain_loop` reads."""

    def __getitem__(self, item):
        return {"turn": super().__getitem__(item)}


def plain_dialogue(encoders, model: MisterEModel, turns: list[dict]):
    with torch.inference_mode():
        speech = plain_loop(*encoders["speech"], Turns(turn["audio"] for turn in turns))
        text = plain_loop(*encoders["text"], Turns(turn["text"] for turn in turns))
        return model(speech[None], text[None]).logits.softmax(-1)


def ten_turns(folder: Path, times: int):
    write_backbones(folder)
    generator = np.random.default_rng(0)
    turns = [
        {
            "audio": (0.1 * generator.standard_normal(int(16_000 * seconds))).astype(np.float32),
            "sampling_rate": 16_000,
            "text": " ".join(generator.choice(WORDS, size=8)),
        }
        for seconds in generator.uniform(1, 5, size=10)
    ]
    model, options = stage_2(), {"tuning": "frozen", "embedding_dim": WIDTH}
    text = (
        UtteranceEncoder.from_backbone(folder / "text", "text", **options),
        MisterEProcessor.from_backbone(folder / "text", "text"),
    )
    plain = None
    for silence in (None, 1.0):
        processor = MisterEProcessor.from_backbone(folder / "speech", "speech", trailing_silence=silence)
        speech = UtteranceEncoder.from_backbone(folder / "speech", "speech", **options), processor
        encoders = {"speech": speech, "text": text}
        erc = ConversationEmotionPipeline(model, encoders=encoders, device="cpu")
        if plain is None:
            plain = median(lambda encoders=encoders: plain_dialogue(encoders, model, turns), times)
            print(f"ten turns, plain loop, audio and text   {1000 * plain:8.1f} ms")
        ours = median(lambda erc=erc: erc(turns), times)
        name = "audio and text" if silence is None else "with one second of silence"
        print(f"ten turns, pipeline, {name:26} {1000 * ours:8.1f} ms   {plain / ours:.1f} times as fast")
    vectors = [{"speech_embedding": np.ones(WIDTH), "text_embedding": np.ones(WIDTH)} for _ in turns]
    batch = torch.ones(1, 10, WIDTH)
    with torch.inference_mode():
        alone = median(lambda: model(batch, batch), times * 5)
    ours = 1000 * median(lambda: erc(vectors), times * 5)
    print(f"ten turns, pipeline, vectors                {ours:8.1f} ms (the model alone {1000 * alone:.1f} ms)")


def stream(times: int):
    model = stage_2(causal=True)
    vectors = torch.randn(1, 1001, WIDTH)
    for turn in (10, 100, 1000):
        with torch.inference_mode():
            past = DialogueCache()
            model(vectors[:, : turn - 1], vectors[:, : turn - 1], past=past)
            before = past._kept, past.num_turns

            def one(past=past, before=before, turn=turn):
                past._kept, past.num_turns = before  # the same turn again
                return model(vectors[:, turn - 1 : turn], vectors[:, turn - 1 : turn], past=past)

            step = median(one, times * 5)
            whole = median(lambda turn=turn: model(vectors[:, :turn], vectors[:, :turn]), times)
        print(
            f"turn {turn:5} of a stream {1000 * step:8.2f} ms   the whole dialogue again {1000 * whole:8.1f} ms   "
            f"{whole / step:.1f} times"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7, help="repetitions of each (default: 7)")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        ten_turns(Path(folder), times)
    stream(times)


if __name__ == "__main__":
    main()
