"""What the trainers of both stages share: defaults of a run, and checkpoints that are there whole or not at all."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import scipy.special
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import AcceleratorConfig

from .collator import LikeLengthSampler
from .dialogue_datasets import dialogue_lengths
from .epoch_lines import EpochLines
from .errors import InputError, short
from .files import UNFINISHED
from .metrics import SCORES
from .training_fields import FIELDS, check_field, check_launcher, check_together, greater_is_better


@dataclass
class EpochTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] with other defaults: evaluate and save each epoch, keep the best epoch by validation weighted F1, batches
    of like length.

    Args:
        early_stopping_patience (`int`, *optional*):
            stop after this many epochs without a better validation score.
    """

    early_stopping_patience: int | None = field(default=None, metadata={"help": "Epochs without a better score."})

    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on validation."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept beside the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Load the best epoch at the end."})
    metric_for_best_model: str | None = field(default="weighted_f1", metadata={"help": "What makes an epoch best."})
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether more of it is better; by default what the metric says."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Early stopping goes on counting after a resume."}
    )
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Batches of like length."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Dialogues have no columns."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Label fields."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Warns where there is no accelerator."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss of NaN must be seen."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    hub_strategy: str = field(default="end", metadata={"help": "Push the finished run alone."})

    def __post_init__(self):
        for each in fields(self):
            if each.name not in FIELDS and each.name not in TrainingArguments.__dataclass_fields__:
                continue  # a subclass's own
            if each.name == "accelerator_config" and self.accelerator_config == AcceleratorConfig():
                continue  # what transformers makes of the default
            check_field(each.name, getattr(self, each.name), type(self))
        check_together(self)
        check_launcher(self)
        self._choose_direction()
        super().__post_init__()
        if self.n_gpu > 1:
            raise InputError(
                f"{self.n_gpu} GPUs in one process: start one process a GPU with `accelerate launch` or `torchrun`, or "
                "choose one with CUDA_VISIBLE_DEVICES"
            )
        if self.fp16 and self.device.type == "cpu":
            raise InputError("fp16 has no effect on a CPU; leave it out, or use bf16")

    def _choose_direction(self):
        """transformers takes every metric but a loss for one of which more is better, and a plateau for one of a loss."""
        better = greater_is_better(self.metric_for_best_model)
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = better
        known = not better or (self.metric_for_best_model or "").removeprefix("eval_").endswith(SCORES)
        if known and self.greater_is_better not in (None, better):
            raise InputError(
                f"greater_is_better is {self.greater_is_better}, but {'more' if better else 'less'} of metric_for_best_model "
                f"'{self.metric_for_best_model}' is better: the worst epoch would be kept; leave it out"
            )
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            mode = "max" if self.greater_is_better else "min"
            if (self.lr_scheduler_kwargs or {}).get("mode", mode) != mode:
                raise InputError(
                    f"lr_scheduler_kwargs: mode must be '{mode}' with metric_for_best_model '{self.metric_for_best_model}'"
                )
            self.lr_scheduler_kwargs = {**(self.lr_scheduler_kwargs or {}), "mode": mode}


def check_metric(arguments: EpochTrainingArguments, scores: Sequence[str]):
    """Whether the metric that chooses an epoch is one of these scores, or the loss; InputError where it is not."""
    chosen = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if chosen not in (*scores, "loss"):
        raise InputError(f"metric_for_best_model must be one of {', '.join((*scores, 'loss'))}, got '{short(chosen)}'")


class EpochTrainer(Trainer):
    """[`~transformers.Trainer`] with batches of like length, early stopping by its arguments, and checkpoints that appear whole or not at all."""

    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(EpochLines(self.title))
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    @property
    def title(self) -> str:
        """What is trained, in a line of its progress."""
        return "model"

    def _get_train_sampler(self, train_dataset=None):
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LikeLengthSampler(dialogue_lengths(dataset), self.args.train_batch_size * self.args.world_size, seed)

    def _get_eval_sampler(self, eval_dataset):
        # Predictions come back in the order of the dataset.
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size == 1 else None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        return self._train(resume_from_checkpoint, **kwargs)

    def _train(self, checkpoint: str | bool | Path | None, **kwargs):
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / UNFINISHED, ignore_errors=True)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _save_checkpoint(self, model, trial):
        """As the Trainer's, but under a name of its own until it is whole: a killed run leaves no half a checkpoint."""
        output_dir, args = Path(self._get_output_dir(trial)), self.args
        folder = f"checkpoint-{self.state.global_step}"
        args.output_dir = str(output_dir / UNFINISHED)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.output_dir = str(output_dir)
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{self.state.best_global_step}")
        if args.should_save:
            self.state.save_to_json(str(output_dir / UNFINISHED / folder / TRAINER_STATE_NAME))
            shutil.rmtree(output_dir / folder, ignore_errors=True)
            os.replace(output_dir / UNFINISHED / folder, output_dir / folder)
            self._delete_old_checkpoints(output_dir)
            shutil.rmtree(output_dir / UNFINISHED)
        self.accelerator.wait_for_everyone()

    def _delete_old_checkpoints(self, output_dir: Path):
        checkpoints = finished_checkpoints(output_dir)
        best = self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint)
        for checkpoint in checkpoints[: -self.args.save_total_limit] if self.args.save_total_limit else []:
            if checkpoint != best:
                # renamed first, so that a half-deleted one is never taken for a whole one
                os.replace(checkpoint, output_dir / UNFINISHED / checkpoint.name)


def finished_checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in float64."""
    return scipy.special.softmax(logits.astype(np.float64), axis=-1)
