"""Compare training steps of models with two and three modalities, with another commit, and with one another.

    git worktree add /tmp/before fab2a68
    python scripts/benchmarks/modalities.py --before /tmp/before/src
    python scripts/benchmarks/modalities.py --side_by_side 128   models of this hidden size beside one another
    python scripts/benchmarks/modalities.py --quick              tiny sizes: that it runs, not what it measures

Every contestant is a process of its own, which takes one step when it is asked; they take turns, so that a slow moment
of the machine affects all. Seconds are those of the processor. Dialogues have MELD's lengths, vectors are random.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS = HERE.parents[1] / "src"
TWO, THREE = ("speech", "text"), ("speech", "text", "visual")
COMPARED = ("mister_e", "emo_caps", "egmf_fusion", "logistic_regression", "bc_lstm", "dialogue_rnn", "mult", "sdt")
ONLY_TWO = ("mister_e", "sdt")  # which read speech and text alone


class Contestant:
    """A process that trains one model, with the package of one source folder."""

    def __init__(self, source: Path, model: str, modalities: tuple[str, ...], width: int, hidden_size: int = 0):
        settings = json.dumps({"model": model, "modalities": modalities, "width": width, "hidden_size": hidden_size})
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--worker", settings]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8", env=environment)
        self.seconds: dict[str, list[float]] = {"train": [], "predict": []}

    def ask(self, kind: str) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{kind}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a contestant ended early with status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> int:
        """Bytes by which the process grew at its peak since before it made the model."""
        grown = self.ask("memory")
        self.process.communicate()
        return grown


def work(settings: dict[str, Any]):
    """One contestant: build the model, then time a step for each line of input."""
    import torch

    from mister_e_hf.models.registry import entry
    from mister_e_hf.vectors.collator import DialogueCollator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    modalities, width = settings["modalities"], settings["width"]
    kind = entry(settings["model"])
    fields: dict[str, Any] = {f"{name}_embedding_dim": width for name in modalities}
    if settings["model"] == "mister_e":
        fields["hidden_size"] = 192
    elif "visual" in modalities:
        fields["modalities"] = modalities
    if hidden_size := settings["hidden_size"]:
        fields["hidden_size"] = hidden_size
        if settings["model"] == "mister_e":  # as many layers as the others have, as wide
            fields |= {"attention_dim": hidden_size, "num_attention_heads": 4}
            fields |= {"context_num_layers": 1, "fusion_num_layers": 1}
    model = kind.model_class()(kind.config_class()(id2label=dict(enumerate("abcdefg")), **fields)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    lengths = json.loads((HERE / "dialogue_lengths.json").read_text(encoding="utf-8"))["meld"]
    batches = [[_dialogue(turns, modalities, width) for turns in lengths[at : at + 8]] for at in range(0, 64, 8)]
    data = [DialogueCollator()(batch) for batch in batches]
    for number, line in enumerate(sys.stdin):
        if line.strip() == "memory":
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, flush=True)
            continue
        batch, start = data[number // 2 % len(data)], time.process_time()
        if line.strip() == "train":
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        else:
            with torch.no_grad():
                model.eval()(**batch)
            model.train()
        print(time.process_time() - start, flush=True)


def _dialogue(turns: int, modalities: list[str], width: int) -> dict[str, Any]:
    import torch

    vectors = {f"{name}_embeddings": torch.randn(turns, width) for name in modalities}
    masks = {f"{name}_mask": torch.rand(turns) > 0.1 for name in modalities}
    return {**vectors, **masks, "labels": torch.randint(7, (turns,))}


def measure(contestants: dict[str, Contestant], rounds: int) -> dict[str, Any]:
    """Median seconds of a step of each contestant, and the ratio of every later one's to the first's, by round."""
    for _ in range(2):  # warm-up
        for each in contestants.values():
            for kind in each.seconds:
                each.ask(kind)
    for number in range(rounds):
        order = list(contestants.values())
        for each in order if number % 2 else order[::-1]:  # what runs first finds a cold cache
            for kind in each.seconds:
                each.seconds[kind].append(each.ask(kind))
    first = next(iter(contestants.values()))
    found: dict[str, Any] = {}
    for name, each in contestants.items():
        ratios = {
            kind: statistics.median(
                own / base for own, base in zip(each.seconds[kind], first.seconds[kind], strict=True)
            )
            for kind in each.seconds
        }
        medians = {kind: statistics.median(seconds) for kind, seconds in each.seconds.items()}
        found[name] = {"seconds": medians, "ratio": ratios, "peak_bytes": each.close()}
    return found


def _print_row(model: str, contestant: str, row: dict[str, Any]):
    cells = [
        f"{row[part][kind] * (1e3 if part == 'seconds' else 1):.{2 if part == 'seconds' else 3}f}"
        for kind in ("train", "predict")
        for part in ("seconds", "ratio")
    ]
    print(
        f"{model:<20}  {contestant:<16}  {cells[0]:>8}  {cells[1]}  {cells[2]:>10}  {cells[3]}  "
        f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="folder src of another commit, to compare two modalities with")
    parser.add_argument("--models", nargs="+", choices=COMPARED, default=list(COMPARED), help="models to measure")
    parser.add_argument(
        "--side_by_side", type=int, metavar="H", help="hidden size of all models; ratios are to the first of --models"
    )
    parser.add_argument("--rounds", type=int, default=60, help="steps of each contestant; the median is reported")
    parser.add_argument("--width", type=int, default=768, help="width of every modality's vectors")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, 2 steps")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker)
        return {}
    rounds, width = (2, 8) if options.quick else (options.rounds, options.width)
    results: dict[str, Any] = {}
    print("model                 contestant        train ms  ratio  predict ms  ratio  peak memory")
    if size := options.side_by_side:
        for number, modalities in {"two": TWO, "three": THREE}.items():
            of = [model for model in options.models if modalities is TWO or model not in ONLY_TWO]
            of = [model for model in of if model != "logistic_regression"]  # which has no hidden size
            found = measure({model: Contestant(OURS, model, modalities, width, size) for model in of}, rounds)
            for model, row in found.items():
                results.setdefault(model, {})[number] = row
                _print_row(model, number, row)
    for model in () if size else options.models:
        contestants = {"before, two": Contestant(options.before, model, TWO, width)} if options.before else {}
        contestants["two"] = Contestant(OURS, model, TWO, width)
        if model not in ONLY_TWO:
            contestants["three"] = Contestant(OURS, model, THREE, width)
        results[model] = measure(contestants, rounds)
        for name, row in results[model].items():
            _print_row(model, name, row)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
