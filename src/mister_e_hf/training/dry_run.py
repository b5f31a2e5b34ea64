"""Estimate the memory and time of a run with a few steps of each stage. Nothing is written to its folder."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from transformers import Trainer, TrainerCallback, set_seed

from ..base import progress
from ..base.modalities import MODALITIES
from ..corpora.dialogues import turns_of_dialogues
from ..encoders.utterances import Utterances
from ..models.configuration_conversation import ConversationConfig
from .epoch_trainer import EpochTrainingArguments
from .preflight import Plan, check_run, encoder_folder
from .recipe import Recipe
from .run_folder import peak_memory, read_results
from .utterance_trainer import UtteranceTrainer

# Training arguments of the trial steps, in place of those of the recipe.
_ONE_STEP: dict[str, Any] = {
    "max_steps": 2,
    "train_sampling_strategy": "sequential",
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "report_to": "none",
    "push_to_hub": False,
    "disable_tqdm": True,
}


def dry_run(recipe: Recipe, output_dir: str | Path, seeds: Sequence[int] = (0,)) -> list[dict[str, Any]]:
    r"""
    Build and check what a run needs ([`~mister_e_hf.training.preflight.check_run`]), and take two steps of each stage
    that is not finished: one with the longest turns or dialogues, for the memory, and one with those of median length,
    for the time.

    Returns:
        for each stage `stage`, `seconds_a_step`, `steps`, `hours` (training, evaluation and embedding) and
        `peak_memory_bytes` of the process so far.

    Raises:
        InputError: for mistakes that would end the run later.
    """
    plan = check_run(recipe, output_dir, seeds)
    costs = []
    with tempfile.TemporaryDirectory() as folder, progress.quiet():
        for modality in plan.modalities:
            if read_results(encoder_folder(output_dir, modality)) is None:
                costs.append(_encoder_cost(plan, modality, folder))
        costs.append(_conversation_cost(plan, folder, len(seeds)))
    return costs


def format_costs(costs: Sequence[dict[str, Any]]) -> str:
    """A table with a row per stage, and the hours of the whole run."""
    lines = [f"{'stage':16} {'seconds a step':>15} {'steps':>9} {'hours':>9} {'peak memory':>12}"]
    for cost in costs:
        memory = "" if cost["peak_memory_bytes"] is None else f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB"
        lines.append(
            f"{cost['stage']:16} {cost['seconds_a_step']:15.3f} {cost['steps']:9,} {cost['hours']:9.2f} {memory:>12}"
        )
    return "\n".join([*lines, f"{sum(cost['hours'] for cost in costs):.2f} hours to the end"])


class _Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = _now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(_now() - self._start)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _order(lengths: np.ndarray, count: int) -> list[int]:
    """Indices of the `count` longest items, then of `count` items of median length."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    middle = max((len(order) - count) // 2, 0)
    chosen = [*order[:count], *order[middle : middle + count]]
    return [int(index) for index in np.resize(chosen, 2 * count)]


def _encoder_cost(plan: Plan, modality: str, folder: str) -> dict[str, Any]:
    assert plan.corpus is not None  # encoders are trained on dialogues
    settings = plan.recipe.encoder(modality)
    label2id, options = plan.recipe.label2id, plan.recipe.corpus.turn_labels() | settings.reading
    turns = {
        split: Utterances(plan.corpus[split], modality, labelled_only=True, **options)
        for split in ("train", "validation")
    }
    real = settings.training_arguments(folder, 0)
    arguments = dataclasses.replace(settings, training=settings.training | _ONE_STEP).training_arguments(folder, 0)
    set_seed(0)
    model, processor = settings.model(label2id), settings.processor()
    count = _items_a_step(real)
    order = _order(turns["train"].lengths, count)
    trainer = UtteranceTrainer(model, arguments, processor, train_dataset=Subset(turns["train"], order))
    step, turn = _measure(trainer, Subset(turns["train"], order[count:]))
    steps = _steps(real, len(turns["train"]))
    others = sum(len(Utterances(data, modality)) for data in plan.corpus.values())
    epochs = steps / max(_steps(real, len(turns["train"]), 1), 1)
    seconds = (1 + settings.folds) * (steps * step + epochs * len(turns["validation"]) * turn) + others * turn
    return _cost(f"{modality} encoder", step, steps * (1 + settings.folds), seconds)


def _conversation_cost(plan: Plan, folder: str, runs: int) -> dict[str, Any]:
    recipe = Recipe(plan.recipe.to_dict(), plan.recipe.source)
    real = recipe.training_arguments(folder, 0)
    recipe.sections["training"] |= _ONE_STEP
    arguments = recipe.training_arguments(folder, 0)
    if plan.corpus is None:
        data = recipe.read_corpus()
        lengths, validation, train = data["train"].lengths, data["validation"].num_turns, data["train"]
    else:
        lengths = turns_of_dialogues(plan.corpus["train"])
        validation, train = int(turns_of_dialogues(plan.corpus["validation"]).sum()), None
    count = _items_a_step(real)
    order = _order(lengths, count)
    model = recipe.model()
    chosen: Dataset
    if train is None:  # the vectors do not exist yet; random ones take as long
        config = recipe.model_config()
        chosen = _Dialogues([_random_dialogue(config, plan.modalities, int(lengths[index])) for index in order])
    else:
        chosen = Subset(train, order)
    trainer = recipe.trainer_class(model, arguments, train_dataset=chosen, eval_dataset=chosen)
    step, dialogue = _measure(trainer, Subset(chosen, range(count, 2 * count)))
    steps = _steps(real, len(lengths))
    epochs = steps / max(_steps(real, len(lengths), 1), 1)
    turn = dialogue / max(float(np.mean([lengths[index] for index in order[count:]])), 1)
    return _cost(recipe.title(), step, steps * runs, runs * (steps * step + epochs * validation * turn))


class _Dialogues(Dataset):
    def __init__(self, items: list[dict[str, Any]]):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._items[index]


def _random_dialogue(config: ConversationConfig, modalities: Sequence[str], length: int) -> dict[str, Any]:
    item: dict[str, Any] = {
        MODALITIES[name].embeddings: torch.randn(length, config.widths[name]) for name in modalities
    }
    if config.reads_transcripts:
        item["transcripts"] = ["word"] * length
    if config.task == "regression":
        return item | {"labels": torch.randn(length, config.num_labels)}
    return item | {"labels": torch.randint(config.num_labels, (length,))}


def _measure(trainer: Trainer, data: Any) -> tuple[float, float]:
    """Seconds of the second training step, and of one item in evaluation."""
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train()
    start = _now()
    trainer.predict(data)
    return clock.seconds[-1], (_now() - start) / len(data)


def _items_a_step(arguments: EpochTrainingArguments) -> int:
    """Items per step of one process."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps


def _steps(arguments: EpochTrainingArguments, items: int, epochs: float | None = None) -> int:
    """Steps of a training, or of this number of its epochs."""
    if epochs is None and arguments.max_steps > 0:
        return arguments.max_steps
    batches = math.ceil(items / (arguments.per_device_train_batch_size * arguments.world_size))
    per_epoch = math.ceil(batches / arguments.gradient_accumulation_steps)
    return math.ceil(per_epoch * (arguments.num_train_epochs if epochs is None else epochs))


def _cost(stage: str, step: float, steps: int, seconds: float) -> dict[str, Any]:
    return {
        "stage": stage,
        "seconds_a_step": step,
        "steps": steps,
        "hours": seconds / 3600,
        "peak_memory_bytes": peak_memory(),
    }
