"""Estimate the memory and time of a run with a few steps of each stage. Nothing is written to its folder."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from transformers import Trainer, TrainerCallback, set_seed

from ..base import progress
from ..base.modalities import MODALITIES
from ..corpora.dialogues import turns_of_dialogues
from ..encoders.utterances import Utterances
from ..models.configuration_conversation import ConversationConfig
from ..models.modeling_conversation import ConversationPreTrainedModel
from ..vectors.dialogue_vectors import DialogueVectors
from .epoch_trainer import EpochTrainingArguments
from .own_pretraining import own_changes, own_dialogues
from .preflight import Plan, check_run, encoder_folder
from .pretrained_start import OWN
from .pretraining import check_pretraining, new_trainer, pretraining_arguments, pretraining_config
from .recipe import Recipe
from .run_folder import peak_memory, read_results
from .utterance_trainer import UtteranceTrainer

_SHOWN_TURNS = 4  # of the dialogue whose prompt is shown
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
        `peak_memory_bytes` of the process so far; and `reads`, sentences on a language model, if it has one, and a
        prompt.

    Raises:
        InputError: for mistakes that would end the run later.
    """
    plan = check_run(recipe, output_dir, seeds)
    costs = []
    with tempfile.TemporaryDirectory() as folder, progress.quiet():
        for modality in plan.modalities:
            if read_results(encoder_folder(output_dir, modality)) is None:
                costs.append(_encoder_cost(plan, modality, folder))
        costs += _conversation_costs(plan, folder, len(seeds))
    return costs


def dry_run_of_pretraining(
    recipe: Recipe,
    output_dir: str | Path,
    corpora: Sequence[str] | None = None,
    splits: Sequence[str] = ("train",),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """As [`dry_run`], of [`~mister_e_hf.training.pretraining.pretrain`], whose arguments these are."""
    _, data = check_pretraining(recipe, output_dir, corpora, splits, seed)
    config = pretraining_config(recipe, data["train"])
    validation = data["validation"].num_turns if "validation" in data else 0
    with tempfile.TemporaryDirectory() as folder, progress.quiet():
        return [_pretraining_cost(recipe, config, folder, data["train"], validation)]


def format_costs(costs: Sequence[dict[str, Any]]) -> str:
    """A table with a row per stage, and the hours of the whole run."""
    lines = [f"{'stage':24} {'seconds a step':>15} {'steps':>9} {'hours':>9} {'peak memory':>12}"]
    for cost in costs:
        memory = "" if cost["peak_memory_bytes"] is None else f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB"
        lines.append(
            f"{cost['stage']:24} {cost['seconds_a_step']:15.3f} {cost['steps']:9,} {cost['hours']:9.2f} {memory:>12}"
        )
    lines.append(f"{sum(cost['hours'] for cost in costs):.2f} hours to the end")
    return "\n".join([*lines, *(sentence for cost in costs for sentence in cost.get("reads", ()))])


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


def _conversation_costs(plan: Plan, folder: str, runs: int) -> list[dict[str, Any]]:
    recipe = Recipe(plan.recipe.to_dict(), plan.recipe.source)
    real, config = recipe.training_arguments(folder, 0), recipe.model_config()
    train: DialogueVectors | _RandomDialogues
    if plan.vectors is not None:
        train, validation = plan.vectors["train"], plan.vectors["validation"].num_turns
    else:  # the vectors do not exist yet; random ones take as long
        assert plan.corpus is not None
        train = _RandomDialogues(config, plan.modalities, turns_of_dialogues(plan.corpus["train"]))
        validation = int(turns_of_dialogues(plan.corpus["validation"]).sum())
    costs = []
    if recipe.sections["training"].get("pretrained") == OWN:
        dialogues = own_dialogues(recipe, train) if isinstance(train, DialogueVectors) else train
        costs.append(_pretraining_cost(recipe, config, folder, dialogues, 0, runs, **own_changes(recipe)))

    def trainer_on(chosen: Dataset) -> Trainer:
        return recipe.trainer_class(model, arguments, train_dataset=chosen, eval_dataset=chosen)

    recipe.sections["training"] |= _ONE_STEP
    if recipe.sections["training"].get("prefix_folder"):  # of a language model that keeps what it has read
        recipe.sections["training"]["prefix_folder"] = f"{folder}/prefixes"
    arguments, model = recipe.training_arguments(folder, 0), cast(ConversationPreTrainedModel, recipe.model())
    cost = _cost_of_dialogues(recipe.title(), trainer_on, real, train, validation, runs)
    if sentences := model.what_is_trained():
        said = getattr(train, "transcripts", None) or [[]]
        prompt = model.example_prompt(next((each for each in said if any(each)), [])[:_SHOWN_TURNS])
        cost["reads"] = [*sentences, f"the prompt of a turn:\n{prompt}"]
    return [*costs, cost]


def _pretraining_cost(
    recipe: Recipe,
    config: ConversationConfig,
    folder: str,
    train: "DialogueVectors | _RandomDialogues",
    validation: int,
    runs: int = 1,
    **changes: Any,
) -> dict[str, Any]:
    def trainer_on(chosen: Dataset) -> Trainer:
        return new_trainer(recipe, config, folder, 0, chosen, **changes, **_ONE_STEP)

    real = pretraining_arguments(recipe, folder, 0, **changes)
    return _cost_of_dialogues(f"{recipe.title()}, pre-training", trainer_on, real, train, validation, runs)


def _cost_of_dialogues(
    stage: str,
    trainer_on: Callable[[Dataset], Trainer],
    real: EpochTrainingArguments,
    train: "DialogueVectors | _RandomDialogues",
    validation: int,
    runs: int,
) -> dict[str, Any]:
    """
    What a stage over dialogues costs that is run so many times, with so many turns of validation; `trainer_on` makes
    the trainer of the trial steps.
    """
    count = _items_a_step(real)
    order = _order(train.lengths, count)
    chosen: Subset = Subset(train, order)
    step, dialogue = _measure(trainer_on(chosen), Subset(chosen, range(count, 2 * count)))
    steps = _steps(real, len(train))
    epochs = steps / max(_steps(real, len(train), 1), 1)
    turn = dialogue / max(float(np.mean([train.lengths[index] for index in order[count:]])), 1)
    return _cost(stage, step, steps * runs, runs * (steps * step + epochs * validation * turn))


class _RandomDialogues(Dataset):
    def __init__(self, config: ConversationConfig, modalities: Sequence[str], lengths: np.ndarray):
        self.config, self.modalities, self.lengths = config, modalities, lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _random_dialogue(self.config, self.modalities, int(self.lengths[index]))


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
