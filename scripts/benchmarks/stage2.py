"""Compare speed and memory of `MisterEModel` with a plain padded implementation of the same method.

    python scripts/benchmarks/stage2.py                         both corpora at the published size: about half an hour
    python scripts/benchmarks/stage2.py --corpora meld --steps 4 --json stage2.json
    python scripts/benchmarks/stage2.py --quick                 tiny sizes: that it runs, not what it measures

Only the lengths of the corpora's dialogues are used, not their content: vectors and labels are random. What counts are
the ratios; the absolute numbers are those of the machine that runs this.

Letters as in the model: B dialogues, T turns of the longest, N real turns, D embedding width, H hidden, A attention
width, C classes.
"""

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

import torch
from stage2_measures import (
    CONTESTANTS,
    PARTS,
    Contestant,
    dialogue_lengths,
    epoch_batches,
    forward_memory,
    matmul_rate,
    measure_prediction,
    measure_training,
    padding_share,
    training_memory,
    work,
)

from mister_e_hf import MisterEConfig

PAPER_SIZE = {"id2label": {index: f"class {index}" for index in range(6)}}
QUICK_SIZE = {
    "speech_embedding_dim": 8,
    "text_embedding_dim": 8,
    "hidden_size": 16,
    "attention_dim": 12,
    "num_attention_heads": 3,
    **PAPER_SIZE,
}


def machine() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, float32"


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(header: list[str], rows: list[list]) -> str:
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def name_of(row: dict) -> str:
    return f"{row['contestant']}, batch {row['batch_size']}"


def report_training(rows: list[dict], rate: float) -> str:
    speed = table(
        ["training", "turns per second", "times plain", "peak memory", "of plain"],
        [
            [
                name_of(row),
                spread(row["turns_per_second"]),
                spread(row["times_plain"], 2),
                f"{row['peak_bytes'] / 2**20:,.0f} MiB",
                f"{row['peak_bytes'] / rows[0]['peak_bytes']:.2f}",
            ]
            for row in rows
        ],
    )
    parts = table(
        ["part of a step", "contestant", "ms", "share", "GFLOP", "GFLOP/s", "of the rate"],
        [
            [
                part,
                name_of(row),
                f"{seconds * 1e3:,.0f}",
                f"{seconds / row['seconds_per_step']['step']:.0%}",
                f"{flops / 1e9:,.2f}",
                f"{flops / seconds / 1e9:,.1f}",
                f"{flops / seconds / 1e9 / rate:.0%}",
            ]
            for part in [*PARTS, "step"]
            for row in rows
            for seconds in [row["seconds_per_step"][part]]
            for flops in [sum(row["flops_per_step"].values()) if part == "step" else row["flops_per_step"][part]]
        ],
    )
    return f"{speed}\n\n{parts}"


def report_prediction(rows: list[dict]) -> str:
    return table(
        ["turns", "contestant", "ms", "times plain", "memory beside weights", "of plain"],
        [
            [
                row["turns"],
                kind,
                spread([seconds * 1e3 for seconds in row["seconds"][kind]], 2),
                f"{statistics.median(row['seconds']['plain']) / statistics.median(row['seconds'][kind]):.2f}",
                f"{row['bytes'][kind] / 2**20:,.1f} MiB",
                f"{row['bytes'][kind] / row['bytes']['plain']:.2f}" if row["bytes"]["plain"] else "-",
            ]
            for row in rows
            for kind in row["seconds"]
        ],
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpora", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="whose lengths")
    parser.add_argument(
        "--steps", type=int, default=8, help="training steps of a round, spread over an epoch's batches"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median and the extremes are reported")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, 2 steps, 1 thread")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    options = parser.parse_args(arguments)
    if min(options.steps, options.rounds, options.threads) < 1:
        parser.error("--steps, --rounds and --threads must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> dict:
    options = parse(arguments)
    if options.quick:
        options.steps, options.rounds, options.threads = 2, 2, 1
    config = MisterEConfig(**(QUICK_SIZE if options.quick else PAPER_SIZE))
    dialogue_turns = (8, 64) if options.quick else (8, 64, 512, 4096)
    budget = 0.1 if options.quick else 10.0
    kinds = ("plain", "ours")

    # Memory first: see `peak_memory`.
    forward_bytes = {
        turns: {kind: forward_memory(kind, config, turns, options.threads) for kind in kinds}
        for turns in (10, *dialogue_turns)
    }
    training_bytes = {}
    for corpus in options.corpora:
        for kind, batch_size in CONTESTANTS[corpus]:
            batches = epoch_batches(kind, dialogue_lengths(corpus), batch_size, epoch=0)
            heaviest = max(batches, key=lambda batch: (work(kind, batch), max(batch)))
            training_bytes[corpus, kind, batch_size] = training_memory(kind, config, heaviest, options.threads)

    torch.set_num_threads(options.threads)
    rate = matmul_rate(256 if options.quick else 4096)
    results = {"machine": machine(), "matmul_gflops": rate, "training": [], "padding": [], "prediction": []}
    print(f"{results['machine']}")
    print(f"float32 matrix product: {rate:,.0f} GFLOP/s, the rate that parts of a step are compared with")
    print("medians, with the smallest and largest round in brackets; 'times plain' above 1 is faster than plain")

    contestants = {kind: Contestant(kind, config) for kind in kinds}
    for corpus in options.corpora:
        lengths = dialogue_lengths(corpus)
        rows = measure_training(corpus, contestants, config, options.steps, options.rounds)
        for row in rows:
            row["peak_bytes"] = training_bytes[corpus, row["contestant"], row["batch_size"]]
        shares = {kind: padding_share(kind, lengths, 8) for kind in kinds}
        results["training"] += rows
        results["padding"].append(
            {"corpus": corpus, "batch_size": 8, "shuffled": shares["plain"], "like": shares["ours"]}
        )
        print(
            f"\n{corpus}: {len(lengths)} dialogues, {sum(lengths)} turns, {statistics.fmean(lengths):.1f} a dialogue"
        )
        print(f"padding in batches of 8: shuffled {shares['plain']:.1%}, of like length {shares['ours']:.1%}\n")
        print(report_training(rows, rate))

    for turns in (10, *dialogue_turns):
        seconds = measure_prediction(contestants, config, turns, budget)
        results["prediction"].append({"turns": turns, "seconds": seconds, "bytes": forward_bytes[turns]})
    print("\none dialogue, prediction\n")
    print(report_prediction(results["prediction"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
