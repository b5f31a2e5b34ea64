"""Speed and memory of `MisterEModel` beside a plain padded implementation of the same method, on one machine in one run.

    python scripts/benchmarks/stage2.py                         both corpora at the published size: about half an hour
    python scripts/benchmarks/stage2.py --corpora meld --steps 4 --json stage2.json
    python scripts/benchmarks/stage2.py --quick                 tiny sizes: that it runs, not what it measures

Only the lengths of the corpora's dialogues are used, not their content: vectors and labels are random. What counts are the ratios;
the absolute numbers are those of the machine that runs this.

Letters as in the model: B dialogues, T turns of the longest, N real turns, D embedding width, H hidden, A attention width, C classes.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.base.losses import IGNORE_INDEX, consistency_loss, contrastive_loss
from mister_e_hf.vectors.collator import DialogueCollator
from mister_e_hf.vectors.sampler import LikeLengthSampler

CONTRASTIVE_WEIGHT, CONSISTENCY_WEIGHT, LEARNING_RATE, MAX_GRADIENT_NORM = 2.0, 0.1, 1e-5, 1.0
# (kind, dialogues of a batch); the first is what the others are compared with
CONTESTANTS = {
    "meld": [("plain", 8), ("ours", 8), ("ours", 32), ("ours", 64)],
    "iemocap": [("plain", 8), ("ours", 8), ("ours", 16)],
}
PARTS = ["context experts", "fusion expert", "gate and losses", "backward", "optimizer"]
PAPER_SIZE = {"id2label": {index: f"class {index}" for index in range(6)}}
QUICK_SIZE = {
    "speech_embedding_dim": 8,
    "text_embedding_dim": 8,
    "hidden_size": 16,
    "attention_dim": 12,
    "num_attention_heads": 3,
    **PAPER_SIZE,
}


# The plain implementation: the method as it is usually written down, and as the published code has it. No masks.


class PlainContext(nn.Module):
    def __init__(self, config: MisterEConfig, width: int):
        super().__init__()
        hidden = config.hidden_size
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, hidden, size, padding=size // 2) for size in config.context_kernel_sizes
        )
        self.gru = nn.GRU(hidden, hidden // 2, config.context_num_layers, bidirectional=True, batch_first=True)
        self.skip = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, config.num_labels)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, C)"""
        channels_first = embeddings.transpose(1, 2)
        local = sum(F.relu(convolution(channels_first)) for convolution in self.convolutions)
        states, _ = self.gru(local.transpose(1, 2))
        return self.head(states + self.skip(embeddings))


class PlainAttention(nn.Module):
    """Linear maps to queries, keys and values, then attention with its own input maps, then a linear map back."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        hidden, width = config.hidden_size, config.attention_dim
        self.query, self.key, self.value = (nn.Linear(hidden, width) for _ in range(3))
        self.attention = nn.MultiheadAttention(
            width, config.num_attention_heads, dropout=config.attention_dropout, batch_first=True
        )
        self.output = nn.Linear(width, hidden)

    def forward(self, stream: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        attended, _ = self.attention(self.query(stream), self.key(other), self.value(other))
        return self.output(attended)


class PlainCoAttention(nn.Module):
    def __init__(self, config: MisterEConfig):
        super().__init__()
        self.speech_to_text, self.text_to_speech = PlainAttention(config), PlainAttention(config)
        self.speech_to_speech, self.text_to_text = PlainAttention(config), PlainAttention(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(4))

    def forward(self, speech: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        speech, text = (
            self.norms[0](speech + self.speech_to_text(speech, text)),
            self.norms[1](text + self.text_to_speech(text, speech)),
        )
        return (
            self.norms[2](speech + self.speech_to_speech(speech, speech)),
            self.norms[3](text + self.text_to_text(text, text)),
        )


class PlainFusion(nn.Module):
    def __init__(self, config: MisterEConfig):
        super().__init__()
        hidden, widths = config.hidden_size, (config.speech_embedding_dim, config.text_embedding_dim)
        self.speech_projection, self.text_projection = (nn.Linear(width, hidden) for width in widths)
        self.speech_skip, self.text_skip = (nn.Linear(width, hidden) for width in widths)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.layers = nn.ModuleList(PlainCoAttention(config) for _ in range(config.fusion_num_layers))
        self.norm = nn.LayerNorm(2 * hidden, eps=config.layer_norm_eps)
        self.dense = nn.Linear(2 * hidden, hidden)
        self.head = nn.Linear(hidden, config.num_labels)

    def forward(self, speech: torch.Tensor, text: torch.Tensor):
        """(B, T, D) twice -> logits (B, T, C), speech and text states (B, T, H)"""
        speech_states = self.dropout(self.speech_projection(speech))
        text_states = self.dropout(self.text_projection(text))
        for layer in self.layers:
            speech_states, text_states = layer(speech_states, text_states)
        speech_states, text_states = speech_states + self.speech_skip(speech), text_states + self.text_skip(text)
        fused = self.norm(torch.cat([text_states, speech_states], dim=-1))
        return self.head(F.relu(self.dense(fused))), speech_states, text_states


class PlainMisterE(nn.Module):
    """The method on padded batches: padding goes through everything, as through the published code."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        self.config = config
        self.speech_expert = PlainContext(config, config.speech_embedding_dim)
        self.text_expert = PlainContext(config, config.text_embedding_dim)
        self.fusion_expert = PlainFusion(config)
        self.gate = nn.Sequential(
            nn.Linear(3 * config.num_labels, config.gate_hidden_size), nn.ReLU(), nn.Linear(config.gate_hidden_size, 3)
        )

    def forward(self, speech: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        fusion, speech_states, text_states = self.fusion_expert(speech, text)
        experts = [self.speech_expert(speech), self.text_expert(text), fusion]
        weights = (self.gate(torch.cat(experts, dim=-1)) / self.config.gate_temperature).softmax(-1)
        experts = torch.stack(experts, dim=2)  # [B, T, 3, C]
        return {
            "logits": (weights[..., None] * experts).sum(2),
            "expert_logits": experts,
            "gate_weights": weights,
            "speech_states": speech_states,
            "text_states": text_states,
        }


def plain_focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
    return ((1 - (-entropy).exp()) ** gamma * entropy).mean()  # padding adds 0 and is counted


def plain_contrastive(speech_states: torch.Tensor, text_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    states = F.normalize(torch.cat([speech_states.flatten(0, 1), text_states.flatten(0, 1)]), dim=-1)
    labels = labels.flatten().repeat(2)  # padding, -1, is a class like the others
    others = 1 - torch.eye(len(labels))
    positive = (labels[:, None] == labels[None, :]) * others
    similarity = states @ states.T
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    log_probability = similarity - (similarity.exp() * others).sum(1, keepdim=True).log()
    return -((positive * log_probability).sum(1) / positive.sum(1).clamp(min=1)).mean()


def plain_consistency(expert_logits: torch.Tensor) -> torch.Tensor:
    total = 0.0
    for first, second in ((0, 1), (0, 2), (1, 2)):
        p, q = expert_logits[:, :, first], expert_logits[:, :, second]
        total = total + F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
        total = total + F.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="batchmean")
    return total / 3


# One contestant: a model and what it does with a batch


class Contestant:
    """A model of one kind with its optimizer; notes how long the parts of its forward pass take."""

    def __init__(self, kind: str, config: MisterEConfig):
        torch.manual_seed(0)
        self.kind = kind
        self.model = (PlainMisterE if kind == "plain" else MisterEModel)(config)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, fused=True
        )  # as the Trainer's default
        self.seconds = defaultdict(float)
        for part, modules in (
            ("context experts", [self.model.speech_expert, self.model.text_expert]),
            ("fusion expert", [self.model.fusion_expert]),
        ):
            for module in modules:
                module.register_forward_pre_hook(lambda *_, part=part: self._note(part, -1))
                module.register_forward_hook(lambda *_, part=part: self._note(part, 1))

    def _note(self, part: str, sign: int):
        self.seconds[part] += sign * time.perf_counter()

    def forward(self, batch: dict[str, torch.Tensor]):
        if self.kind == "plain":
            return self.model(batch["speech_embeddings"], batch["text_embeddings"])
        return self.model(**{name: value for name, value in batch.items() if name != "labels"})

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Focal, contrastive and consistency, weighted as published."""
        labels = batch["labels"]
        if self.kind == "plain":
            gamma = self.model.config.focal_gamma
            labels = labels.masked_fill(labels == IGNORE_INDEX, -1)
            output = self.forward(batch)
            experts = output["expert_logits"]
            focal = plain_focal(output["logits"], labels, gamma)
            focal = focal + sum(plain_focal(experts[:, :, expert], labels, gamma) for expert in range(3))
            contrastive = plain_contrastive(output["speech_states"], output["text_states"], labels)
            consistency = plain_consistency(experts)
        else:
            output = self.model(**batch)
            focal = output.loss
            scored = labels != IGNORE_INDEX
            states = torch.cat([output.speech_states[scored], output.text_states[scored]])
            contrastive = contrastive_loss(states, labels[scored].repeat(2), num_items=scored.sum())
            available = scored[..., None].expand(*scored.shape, 3)
            consistency = consistency_loss(output.expert_logits, available, labels)
        return focal + CONTRASTIVE_WEIGHT * contrastive + CONSISTENCY_WEIGHT * consistency

    def train_step(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """One optimizer step; seconds of the whole and of each part."""
        self.seconds.clear()
        moments = [time.perf_counter()]

        def note():
            moments.append(time.perf_counter())

        self.optimizer.zero_grad()
        loss = self.loss(batch)
        note()
        loss.backward()
        note()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        note()
        forward, backward, optimizer = np.diff(moments).tolist()
        seconds = dict(self.seconds)
        seconds["gate and losses"] = forward - sum(seconds.values())
        return {**seconds, "backward": backward, "optimizer": optimizer, "step": moments[-1] - moments[0]}

    @torch.no_grad()
    def predict(self, batch: dict[str, torch.Tensor]) -> float:
        """Seconds of one forward pass in evaluation mode."""
        self.model.eval()
        start = time.perf_counter()
        self.forward(batch)
        seconds = time.perf_counter() - start
        self.model.train()
        return seconds


# Batches: which dialogues come together, and random vectors of their lengths


def dialogue_lengths(corpus: str) -> list[int]:
    return json.loads((Path(__file__).parent / "dialogue_lengths.json").read_text(encoding="utf-8"))[corpus]


def epoch_batches(kind: str, lengths: list[int], batch_size: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch as lists of lengths: shuffled for the plain contestant, of like length for ours."""
    if kind == "plain":
        order = np.random.default_rng([0, epoch]).permutation(len(lengths)).tolist()
    else:
        sampler = LikeLengthSampler(lengths, batch_size, seed=0)
        sampler.set_epoch(epoch)
        order = list(sampler)
    return [[lengths[index] for index in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]


def work(kind: str, batch: list[int]) -> int:
    """Turns that go through the model: padding goes through the plain one."""
    return len(batch) * max(batch) if kind == "plain" else sum(batch)


def sample(kind: str, batches: list[list[int]], steps: int) -> list[list[int]]:
    """`steps` of the batches, evenly spread from the lightest to the heaviest: their mean stands for the epoch's mean."""
    batches = sorted(batches, key=lambda batch: work(kind, batch))
    steps = min(steps, len(batches))
    return [batches[int((step + 0.5) * len(batches) / steps)] for step in range(steps)]


def make_batch(config: MisterEConfig, lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return DialogueCollator()(
        [
            {
                "speech_embeddings": torch.randn(turns, config.speech_embedding_dim, generator=generator),
                "text_embeddings": torch.randn(turns, config.text_embedding_dim, generator=generator),
                "labels": torch.randint(config.num_labels, (turns,), generator=generator),
            }
            for turns in lengths
        ]
    )


def padding_share(kind: str, lengths: list[int], batch_size: int, epochs: int = 20) -> float:
    batches = [batch for epoch in range(epochs) for batch in epoch_batches(kind, lengths, batch_size, epoch)]
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


# Floating-point operations that each contestant carries out, by formula


def step_flops(kind: str, config: MisterEConfig, batch: list[int]) -> dict[str, float]:
    """Of one training step. A multiply-add counts 2; activations, norms and softmaxes are left out."""
    rows, pairs = work(kind, batch), len(batch) * max(batch) ** 2
    hidden, width, classes = config.hidden_size, config.attention_dim, config.num_labels
    embedding = config.speech_embedding_dim + config.text_embedding_dim
    half = hidden // 2
    taps = sum(config.context_kernel_sizes) + 1  # the skip is one more
    first = 2 * rows * embedding * hidden * taps
    recurrent = (
        2 * 2 * rows * config.context_num_layers * 2 * 3 * half * (hidden + half) + 2 * 2 * rows * hidden * classes
    )
    projections = 2 * rows * embedding * hidden * 2
    maps = 4 * 2 * rows * hidden * width
    if kind == "plain":
        maps += 4 * 2 * rows * width * width  # the attention's own maps, one more in a row each
    attention = 4 * config.fusion_num_layers * (maps + 2 * 2 * pairs * width)
    rest = 2 * rows * (2 * hidden * hidden + hidden * classes)
    gate = 2 * rows * (3 * classes + 3) * config.gate_hidden_size
    contrastive = 2 * (2 * rows) ** 2 * hidden
    # Inputs of the first maps get no gradient; every other product has two in the backward pass.
    backward = first + projections + 2 * (recurrent + attention + rest + gate + contrastive)
    parameters = parameter_count(kind, config)
    return {
        "context experts": first + recurrent,
        "fusion expert": projections + attention + rest,
        "gate and losses": gate + contrastive,
        "backward": backward,
        "optimizer": 15 * parameters,  # 3 for the norm and clipping, 12 for Adam
    }


def parameter_count(kind: str, config: MisterEConfig) -> int:
    with torch.device("meta"):
        model = PlainMisterE(config) if kind == "plain" else MisterEModel(config)
    return sum(parameter.numel() for parameter in model.parameters())


def matmul_rate(size: int, repeats: int = 7) -> float:
    """The best of several float32 products of two square matrices, in GFLOP/s."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


# Measurements


def peak_memory(measured: Callable[[], Callable[[], None]], threads: int) -> int:
    """
    Bytes by which the memory of a process grows at its peak while it does what `measured` returns, above what it held after
    calling `measured`. The process is forked, so this one must not have run anything on several threads before.
    """

    def child(connection):
        torch.set_num_threads(threads)
        run = measured()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        connection.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)  # kilobytes on Linux

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the process that measured memory ended early; is there enough memory?") from None
    finally:
        process.join()


def training_memory(kind: str, config: MisterEConfig, batch: list[int], threads: int) -> int:
    """Weights, gradients, Adam's moments and activations, over two steps on `batch`."""

    def measured():
        data = make_batch(config, batch)

        def run():
            contestant = Contestant(kind, config)
            for _ in range(2):
                contestant.train_step(data)

        return run

    return peak_memory(measured, threads)


def forward_memory(kind: str, config: MisterEConfig, turns: int, threads: int) -> int:
    """What a prediction needs beside the weights and its input."""

    def measured():
        contestant = Contestant(kind, config)
        data = make_batch(config, [turns])
        contestant.predict(make_batch(config, [2]))  # what libraries set up once
        return lambda: contestant.predict(data)

    return peak_memory(measured, threads)


def alternate(calls: dict, rounds: int) -> Iterator[tuple]:
    """Each call in turn, `rounds` times over, so that a slow moment of the machine meets all of them: (key, result)."""
    for _ in range(rounds):
        for key, call in calls.items():
            yield key, call()


def measure_training(corpus: str, contestants: dict[str, Contestant], config, steps: int, rounds: int) -> list[dict]:
    """
    One row per entry of CONTESTANTS. A round takes every contestant over its sample of an epoch's batches, taking turns
    step by step; its speed in that round is the corpus's turns by the time of the epoch that the sample stands for.
    """
    lengths = dialogue_lengths(corpus)
    rows = []
    for kind, batch_size in CONTESTANTS[corpus]:
        batches = epoch_batches(kind, lengths, batch_size, epoch=0)
        chosen = sample(kind, batches, steps)
        flops = [step_flops(kind, config, batch) for batch in chosen]
        rows.append(
            {
                "corpus": corpus,
                "contestant": kind,
                "batch_size": batch_size,
                "steps_per_epoch": len(batches),
                "sampled_steps": len(chosen),
                "heaviest_batch": max(batches, key=lambda batch: (work(kind, batch), max(batch))),
                "flops_per_step": {part: statistics.fmean(step[part] for step in flops) for part in PARTS},
                "_data": [make_batch(config, batch, seed) for seed, batch in enumerate(chosen)],
                "_seconds": [[] for _ in range(rounds)],
            }
        )
    for row in rows:  # warm-up, not counted
        for data in (row["_data"][0], row["_data"][-1]):
            contestants[row["contestant"]].train_step(data)
    for number in range(rounds):
        for step in range(max(row["sampled_steps"] for row in rows)):
            for row in rows:
                if step < row["sampled_steps"]:
                    seconds = contestants[row["contestant"]].train_step(row["_data"][step])
                    row["_seconds"][number].append(seconds)
    for row in rows:
        row.pop("_data")
        measured = row.pop("_seconds")
        means = [statistics.fmean(step["step"] for step in steps) for steps in measured]
        row["turns_per_second"] = [sum(lengths) / (mean * row["steps_per_epoch"]) for mean in means]
        row["seconds_per_step"] = {
            part: statistics.median(statistics.fmean(step[part] for step in steps) for steps in measured)
            for part in [*PARTS, "step"]
        }
    for row in rows:
        pairs = zip(row["turns_per_second"], rows[0]["turns_per_second"], strict=True)
        row["times_plain"] = [ours / plain for ours, plain in pairs]
    return rows


def measure_prediction(contestants: dict[str, Contestant], config: MisterEConfig, turns: int, budget: float) -> dict:
    """Seconds of a prediction by contestant: as many as `budget` seconds allow, three at least."""
    data = make_batch(config, [turns])
    calls = {kind: lambda contestant=contestant: contestant.predict(data) for kind, contestant in contestants.items()}
    once = dict(alternate(calls, 1))  # warm-up
    seconds = defaultdict(list)
    for kind, value in alternate(calls, max(3, min(50, int(budget / sum(once.values()))))):
        seconds[kind].append(value)
    return dict(seconds)


# The report


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
                f"{row['bytes'][kind] / max(row['bytes']['plain'], 1):.2f}",
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
