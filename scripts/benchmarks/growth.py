"""How time and memory of each model grow with the turns of a dialogue, and what a long dialogue costs short ones.

    python scripts/benchmarks/growth.py
    python scripts/benchmarks/growth.py --before OTHER/src      beside the package of another commit
    python scripts/benchmarks/growth.py --train
    python scripts/benchmarks/growth.py --models mister_e --turns 10000 20000 --budget 600
    python scripts/benchmarks/growth.py --quick                 tiny sizes: that it runs, not what it measures

Every number is that of a process of its own: seconds of the processor, and bytes by which its memory grew at its peak.
Between the sizes of a row, time that doubles with the turns is linear, and time that grows four times is quadratic. A
row ends with "long" where the next size would take longer than the budget if time grew with the square, and with a
dash where a process ended early, as for want of memory.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OURS = Path(__file__).parents[2] / "src"
SETTINGS: dict[str, dict[str, Any]] = {
    "mister_e": {},
    "mister_e, attention_decay": {"attention_decay": True},
    "mister_e, causal, attention_decay": {"attention_decay": True, "causal": True},
    "emo_caps": {},
    "emo_caps, causal": {"causal": True},
    "egmf_fusion": {},
    "egmf_fusion, causal": {"causal": True},
    "logistic_regression": {},
    "bc_lstm": {},
    "dialogue_rnn": {},
    "mult": {},
    "sdt": {},
}
WIDTH, SHORT, SHORT_TURNS = 32, 63, 3
TURNS = [1000, 2000, 5000, 10000, 20000, 50000]


def measure(name: str, lengths: list[int], train: bool) -> dict[str, float]:
    """Seconds and bytes of a prediction, or of a training step, of dialogues of these lengths in one batch."""
    import torch

    from mister_e_hf.models.registry import entry
    from mister_e_hf.vectors.collator import DialogueCollator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = entry(name.partition(",")[0])
    sizes = {"hidden_size": 32, "attention_dim": 32, "num_attention_heads": 4, "fusion_num_layers": 2}
    fields = {field: size for field, size in sizes.items() if field in kind.config_class().own_fields()}
    fields |= {"speech_embedding_dim": WIDTH, "text_embedding_dim": WIDTH, **SETTINGS[name]}
    model = kind.model_class()(kind.config_class()(id2label=dict(enumerate("abcdefg")), **fields)).train(train)

    def batch_of(lengths: list[int]) -> dict[str, Any]:
        vectors = [
            {f"{name}_embeddings": torch.randn(turns, WIDTH) for name in ("speech", "text")} for turns in lengths
        ]
        return DialogueCollator()(
            [{**own, "labels": torch.zeros(len(own["text_embeddings"])).long()} for own in vectors]
        )

    def run(batch: dict[str, Any]):
        with torch.set_grad_enabled(train):
            output = model(**batch)
            if train:
                output.loss.backward()

    run(batch_of([2, 1]))  # what libraries set up once
    batch = batch_of(lengths)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before, start = _status("VmRSS"), time.process_time()
    run(batch)
    return {"seconds": time.process_time() - start, "bytes": max(0, _status("VmHWM") - before)}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def work(turns: list[int], train: bool, budget: float):
    """For each line of input, which names a model, a line of its measurements: each of them forked, one at a time."""
    import torch  # noqa: F401  # before the forks

    import mister_e_hf.models.registry
    import mister_e_hf.vectors.collator  # noqa: F401

    for line in sys.stdin:
        name, found = line.strip(), {}
        for before, count in zip([0, *turns], turns, strict=False):
            if before and found[before]["seconds"] * (count / before) ** 2 > budget:
                found[count] = {"long": True}
            else:
                found[count] = forked(name, [count], train)
            if not found[count] or "long" in found[count]:
                break
        found["beside"] = forked(name, [turns[1], *[SHORT_TURNS] * SHORT], train)
        print(json.dumps(found), flush=True)


def forked(*arguments: Any) -> dict[str, float] | None:
    """As `measure`, in a process of its own; None if that ended early."""
    receiver, sender = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            os.write(sender, json.dumps(measure(*arguments)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def shown(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "-"
    return "long" if "long" in cell else f"{cell['seconds']:.2f} s {cell['bytes'] / 2**20:,.0f} MiB"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--models",
        nargs="+",
        choices=SETTINGS,
        default=list(SETTINGS),
        metavar="MODEL",
        help=f"models to measure, of {'; '.join(SETTINGS)} (default: all)",
    )
    parser.add_argument(
        "--turns",
        nargs="+",
        type=int,
        help="lengths of the dialogue, two or more (default: up to 50,000, of training 10,000)",
    )
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds of the processor that a cell may take (default: 60)"
    )
    parser.add_argument("--train", action="store_true", help="a training step in place of a prediction")
    parser.add_argument("--before", type=Path, help="folder src of another commit")
    parser.add_argument("--quick", action="store_true", help="8 and 16 turns")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    turns = (
        [8, 16] if options.quick else options.turns or [each for each in TURNS if not options.train or each <= 10000]
    )
    if len(turns) < 2:
        parser.error(f"--turns must be two or more lengths, got {turns[0]}")
    if options.worker:
        work(turns, options.train, options.budget)
        return {}
    pipe, results = subprocess.PIPE, {}
    words = [sys.executable, __file__, "--worker", "--turns", *map(str, turns), "--budget", str(options.budget)]
    words += ["--train"] * options.train
    workers = {}
    for which, source in {"before": options.before, "now": OURS}.items():
        if source:
            environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            workers[which] = subprocess.Popen(words, stdin=pipe, stdout=pipe, encoding="utf-8", env=environment)
    columns = {**{str(count): f"{count:,}" for count in turns}, "beside": f"{turns[1]:,} + {SHORT} of {SHORT_TURNS}"}
    print(f"{'turns':<40}" + "".join(f"{name:>20}" for name in columns.values()))
    for name in options.models:
        results[name] = {}
        for which, worker in workers.items():
            assert worker.stdin and worker.stdout
            worker.stdin.write(f"{name}\n")
            worker.stdin.flush()
            results[name][which] = found = json.loads(worker.stdout.readline())
            cells = (f"{shown(found[column]) if column in found else '':>20}" for column in columns)
            print(f"{f'{name}, {which}':<40}" + "".join(cells), flush=True)
    for worker in workers.values():
        worker.communicate()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
