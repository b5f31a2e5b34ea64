"""Measures of a training step and of a prediction of stage 2: time, memory and floating-point operations.

Letters: B dialogues, T turns of the longest, N real turns, D embedding width, H hidden, A attention width, C classes.
"""

import json
import multiprocessing
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from plain_mister_e import PlainMisterE, plain_consistency, plain_contrastive, plain_focal
from torch import nn

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.base.losses import IGNORE_INDEX, consistency_loss, contrastive_loss
from mister_e_hf.training.gradient_clipping import clip_in_step
from mister_e_hf.vectors.collator import DialogueCollator
from mister_e_hf.vectors.sampler import LikeLengthSampler

CONTRASTIVE_WEIGHT, CONSISTENCY_WEIGHT, LEARNING_RATE, MAX_GRADIENT_NORM = 2.0, 0.1, 1e-5, 1.0
# (kind, dialogues of a batch); the first is what the others are compared with
CONTESTANTS = {
    "meld": [("plain", 8), ("ours", 8), ("ours", 32), ("ours", 64)],
    "iemocap": [("plain", 8), ("ours", 8), ("ours", 16)],
}
PARTS = ["context experts", "fusion expert", "gate and losses", "backward", "optimizer"]


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
        if self.kind == "plain":
            nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        else:
            clip_in_step(self.optimizer, MAX_GRADIENT_NORM)
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
    """`steps` of the batches, evenly spread from the lightest to the heaviest, to estimate the epoch's mean."""
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
    Bytes by which the memory of a process grows at its peak while it does what `measured` returns, above what it held
    after calling `measured`. The process is forked, so this one must not have run anything on several threads before.
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
    """Make the calls in turn, `rounds` times, so that a slow moment of the machine affects all: (key, result)."""
    for _ in range(rounds):
        for key, call in calls.items():
            yield key, call()


def measure_training(corpus: str, contestants: dict[str, Contestant], config, steps: int, rounds: int) -> list[dict]:
    """
    One row per entry of CONTESTANTS. A round takes every contestant over its sample of an epoch's batches, taking
    turns step by step; its speed in that round is the corpus's turns by the time of the epoch that the sample stands
    for.
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
