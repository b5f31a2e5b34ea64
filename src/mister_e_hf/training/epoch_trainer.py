"""
What the trainers of both stages share: defaults of a run, atomic checkpoints, and a stop at losses that are not
finite.
"""

import copy
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import AcceleratorConfig

from ..base.devices import moved
from ..base.errors import InputError, short
from ..base.modalities import IGNORE_INDEX
from ..base.whole_files import UNFINISHED, sync, writing
from ..evaluation.metrics import SCORES
from ..vectors.dialogue_datasets import dialogue_lengths
from ..vectors.sampler import LikeLengthSampler
from .checkpoints import check_precision, damage, finished_checkpoints, newest_whole, remove, seal
from .epoch_lines import EpochLines
from .first_steps import FirstSteps
from .gradient_clipping import clip_in_step
from .training_fields import check_field, check_launcher, check_together, greater_is_better

logger = logging.getLogger(__name__)

_WHOLE_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU)  # each process holds those of all parameters


@dataclass
class EpochTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] with other defaults: evaluate and save each epoch, keep the best epoch by
    validation weighted F1, and batch items of similar length.

    Args:
        early_stopping_patience (`int`, *optional*):
            stop training after this many epochs without a better validation score.
    """

    early_stopping_patience: int | None = field(default=None, metadata={"help": "Epochs without a better score."})

    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on validation."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept beside the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Load the best epoch at the end."})
    metric_for_best_model: str | None = field(default="weighted_f1", metadata={"help": "What makes an epoch best."})
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether more is better; by default as the metric says."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Early stopping keeps counting after a resume."}
    )
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Batches of similar length."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Dialogues have no columns."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Label fields."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "It warns without an accelerator."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss of NaN must show."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    disable_tqdm: bool | None = field(default=False, metadata={"help": "Null: as the verbosity says."})
    hub_strategy: str = field(default="end", metadata={"help": "Push only the finished run."})

    def __post_init__(self):
        for each in fields(self):
            if each.name == "accelerator_config" and self.accelerator_config == AcceleratorConfig():
                continue  # transformers makes this of the default
            check_field(each.name, getattr(self, each.name), type(self))
        check_together(self)
        check_launcher(self)
        self._choose_direction()
        super().__post_init__()
        if self.n_gpu > 1:
            raise InputError(
                f"{self.n_gpu} GPUs in one process: start one process per GPU with `accelerate launch` or "
                "`torchrun`, or choose one with CUDA_VISIBLE_DEVICES"
            )
        if self.fp16 and self.device.type == "cpu":
            raise InputError("fp16 has no effect on a CPU; leave it out, or use bf16")

    @property
    def precision(self) -> str:
        """Of the matrix products of training: `"bf16"`, `"fp16"` or `"float32"`."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "float32"

    def for_regression(self) -> Self:
        """
        These arguments with `mae` as the metric that chooses the epoch, unless they name another than the default,
        which is for classes.
        """
        if self.metric_for_best_model != type(self).metric_for_best_model:
            return self
        other = copy.copy(self)
        other.metric_for_best_model, other.greater_is_better = "mae", None
        if isinstance(other.lr_scheduler_kwargs, dict):  # the mode of a plateau is that of the metric
            other.lr_scheduler_kwargs = {k: v for k, v in other.lr_scheduler_kwargs.items() if k != "mode"}
        other._choose_direction()
        return other

    def _choose_direction(self):
        """
        Set `greater_is_better` and the mode of a plateau schedule: transformers knows neither for errors that are not
        a loss.
        """
        better = greater_is_better(self.metric_for_best_model)
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = better
        known = not better or (self.metric_for_best_model or "").removeprefix("eval_").endswith(SCORES)
        if known and self.greater_is_better not in (None, better):
            kept = f"the worst epoch by '{self.metric_for_best_model}' would be kept"
            if self.greater_is_better:
                raise InputError(f"greater_is_better is true, but {kept}, since less is better; leave it out")
            logger.warning("greater_is_better is false, so %s, since more is better", kept)
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            mode = "max" if self.greater_is_better else "min"
            given = self.lr_scheduler_kwargs or {}
            assert isinstance(given, dict)  # check_field has seen to it
            if given.get("mode", mode) != mode:
                raise InputError(
                    f"lr_scheduler_kwargs: mode must be '{mode}' with metric_for_best_model "
                    f"'{self.metric_for_best_model}'"
                )
            self.lr_scheduler_kwargs = given | {"mode": mode}


def check_metric(arguments: EpochTrainingArguments, scores: Sequence[str]):
    """
    Check that the metric which chooses an epoch is one of these scores, or the loss.

    Raises:
        InputError: if it is not.
    """
    chosen = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if chosen not in (*scores, "loss"):
        raise InputError(f"metric_for_best_model must be one of {', '.join((*scores, 'loss'))}, got '{short(chosen)}'")


def _marked(labels: torch.Tensor) -> torch.Tensor:
    """Labels whose scores, if they are scores, are -100 where they are missing and 0 elsewhere."""
    return torch.where(labels.isnan(), IGNORE_INDEX, 0) if labels.is_floating_point() else labels


class EpochTrainer(Trainer):
    """
    [`~transformers.Trainer`] with batches of similar length, early stopping, checkpoints that appear whole or not at
    all, and an error as soon as a loss or a weight is not finite.
    """

    args: EpochTrainingArguments

    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(EpochLines(self.title, self.terms_of_loss))
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self._not_finite = FirstSteps()

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.args.output_dir or "trainer_output")  # transformers' own default

    @property
    def trained_model(self) -> torch.nn.Module:
        """The model, which the Trainer's annotations allow to be absent."""
        assert self.model is not None
        return self.model

    @property
    def title(self) -> str:
        """Name of what is trained, for the lines of progress."""
        return "model"

    def terms_of_loss(self, metrics: Mapping[str, float]) -> str:
        """What the loss of a training or an evaluation consists of, for the lines of progress; nothing by default."""
        return ""

    def _get_train_sampler(self, train_dataset=None):
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LikeLengthSampler(dialogue_lengths(dataset), self.args.train_batch_size * self.args.world_size, seed)

    def _get_eval_sampler(self, eval_dataset):
        # Predictions are in the order of the dataset.
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size == 1 else None

    def _get_dataloader(self, *arguments, **kwargs):
        loader = super()._get_dataloader(*arguments, **kwargs)
        if isinstance(loader, DataLoaderShard):
            loader.device = None  # or all of a batch would be on the device before `_prepare_inputs` sees it
        return loader

    def _prepare_input(self, data):
        if isinstance(data, torch.Tensor) and self.args.device.type == "cuda":
            return moved(data, self.args.device)  # the Trainer's own waits
        return super()._prepare_input(data)

    def _get_num_items_in_batch(self, batch_samples, device):
        # transformers counts the labels that are not -100; a score that is missing is NaN.
        counted = [
            {**batch, "labels": _marked(batch["labels"])} if "labels" in batch else batch for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(counted, device)

    def _clip_grad_norm(self, model):
        if self.args.device.type != "cpu" or self.accelerator.distributed_type not in _WHOLE_GRADIENTS:
            return super()._clip_grad_norm(model)
        optimizer: Any = self.optimizer  # accelerate's, around torch's
        return clip_in_step(optimizer.optimizer, self.args.max_grad_norm)

    # Resuming

    def resume(self) -> Path | None:
        """
        Train from the newest complete checkpoint in the output folder, or from the start; returns the checkpoint.
        """
        checkpoint = self._newest_whole()
        self._train(checkpoint)
        return checkpoint

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        r"""
        Like [`~transformers.Trainer.train`]; `True` resumes from the newest complete checkpoint.

        Raises:
            InputError: if the checkpoint to resume from is missing or incomplete, or a loss or weight is not finite.
        """
        checkpoint: Path | None = None
        if resume_from_checkpoint is True:
            checkpoint = self._newest_whole()
            if checkpoint is None:
                raise InputError(f"'{self.args.output_dir}' holds no whole checkpoint to resume from")
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            if not checkpoint.is_dir():
                raise InputError(f"The checkpoint '{checkpoint}' to resume from does not exist")
            if problem := damage(checkpoint):
                raise InputError(f"'{checkpoint}' is not whole ({problem}); resume from an earlier checkpoint")
        return self._train(checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)

    def _newest_whole(self) -> Path | None:
        found: list[Path | None] = [None]
        if self.args.process_index == 0:
            checkpoint, problems = newest_whole(self.output_dir, self.args.load_best_model_at_end)
            found = [checkpoint]
            for problem in problems:
                logger.warning("'%s': %s", self.args.output_dir, problem)
            if problems:
                start = f"resuming from {checkpoint.name}" if checkpoint else "training starts from the beginning"
                logger.warning("'%s': %s", self.args.output_dir, start)
        return broadcast_object_list(found)[0]

    def _train(self, checkpoint: Path | None, **kwargs):
        if checkpoint is not None:
            check_precision(checkpoint, self.args.precision)
        if self.args.should_save:
            shutil.rmtree(self.output_dir / UNFINISHED, ignore_errors=True)
        return super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs)

    def _init_training_state(self, *arguments, **kwargs):
        found = super()._init_training_state(*arguments, **kwargs)
        # The state stores the path of the best checkpoint, but the folder of the run may have moved.
        best = self._checkpoint(self.state.best_global_step)
        self.state.best_model_checkpoint = str(best) if self.state.best_global_step and best.is_dir() else None
        return found

    # Checkpoints

    def _checkpoint(self, step: int | None) -> Path:
        return self.output_dir / f"checkpoint-{step}"

    def _save_checkpoint(self, model, trial):
        """
        Like the Trainer's, but under another name until it is complete, so that a killed run never leaves half a
        checkpoint.
        """
        output_dir, args = Path(self._get_output_dir(trial)), self.args
        folder = f"checkpoint-{self.state.global_step}"
        unfinished = output_dir / UNFINISHED / folder
        args.output_dir = str(output_dir / UNFINISHED)
        try:
            with writing(unfinished):
                super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(output_dir / UNFINISHED, ignore_errors=True)  # or a full disk stays full
            raise
        finally:
            args.output_dir = str(output_dir)
        self.accelerator.wait_for_everyone()
        if args.should_save:
            with writing(unfinished):
                # The step of the best checkpoint is stored, not its path: the folder of the run may move.
                self.state.best_model_checkpoint = None
                self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
                seal(unfinished, self.args.precision)
            if (output_dir / folder).exists():
                remove(output_dir / folder)
            os.replace(unfinished, output_dir / folder)
            sync(output_dir)
            self._delete_old_checkpoints(args.save_total_limit)
            shutil.rmtree(output_dir / UNFINISHED)
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._checkpoint(self.state.best_global_step))
        self.accelerator.wait_for_everyone()

    def _delete_old_checkpoints(self, kept: int | None):
        checkpoints = finished_checkpoints(self.output_dir)
        for checkpoint in checkpoints[: len(checkpoints) - kept] if kept is not None else []:
            if checkpoint != self._checkpoint(self.state.best_global_step):
                remove(checkpoint)

    def _finalize_training(self, *arguments, **kwargs):
        """
        Like the Trainer's, which deletes all but the best checkpoint if one is to be kept; here each is renamed first.
        """
        self._check_finite(weights=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            found = super()._finalize_training(*arguments, **kwargs)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save and self.state.best_model_checkpoint is not None and limit == 1:
            self._delete_old_checkpoints(0)
            shutil.rmtree(self.output_dir / UNFINISHED, ignore_errors=True)
        return found

    # Losses and weights that are not finite

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.watch(loss=found[0] if isinstance(found, tuple) else found)
        return found

    def watch(self, **terms: torch.Tensor):
        """
        Watch terms of the loss, by name: training ends with an error that names the first step at which one was not
        finite.
        """
        if self.trained_model.training:
            self._not_finite.note(self.state.global_step + 1, terms)

    def _maybe_log_save_evaluate(self, *arguments, **kwargs):
        control = self.control
        # On an accelerator a check at each step would wait for the device.
        if self.args.world_size == 1 and self.args.device.type == "cpu":
            self._check_finite(weights=control.should_save)
        elif control.should_log or control.should_evaluate or control.should_save:
            self._check_finite(weights=control.should_save)
        super()._maybe_log_save_evaluate(*arguments, **kwargs)

    def _check_finite(self, weights: bool):
        found = self._not_finite.first()
        if found is not None:
            step, term = found
            found = step, "the loss" if term == "loss" else f"the loss's term {term}"
        elif weights:
            found = next(
                (
                    (self.state.global_step, f"the weight {name}")
                    for name, parameter in self.trained_model.named_parameters()
                    if parameter.requires_grad and not parameter.detach().isfinite().all()
                ),
                None,
            )
        if self.args.world_size > 1:  # all processes stop together
            found = next(filter(None, gather_object([found])), None)
        if found is not None:
            step, what = found
            raise InputError(
                f"Training ended at step {step}: {what} is not finite (NaN or infinity). Lower learning_rate or set "
                "max_grad_norm, and check the range of the input"
            )
