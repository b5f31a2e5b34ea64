"""What the trainers of models of vectors share: their inputs, statistics, log of loss terms and pushes."""

import contextlib
import functools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..base import progress
from ..base.errors import InputError
from ..base.modalities import MODALITIES
from ..base.prompt_counts import counted_since
from ..hub.checkpoint import push_checkpoint, save_checkpoint
from ..models.modeling_conversation import ConversationPreTrainedModel
from ..vectors.dialogue_datasets import dataset_statistics
from ..vectors.dialogue_vectors import DialogueVectors
from .epoch_trainer import EpochTrainer, EpochTrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class VectorTrainingArguments(EpochTrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] of models of vectors.

    Args:
        standardize (`bool`, defaults to `True`):
            before the first step, fit the model's mean and standard deviation of each vector dimension on the
            training turns.
    """

    standardize: bool = field(default=True, metadata={"help": "Fit the model's input mean and deviation on train."})

    def __post_init__(self):
        for name in ("activation_checkpointing", "gradient_checkpointing"):
            if getattr(self, name, None):
                raise InputError(f"{name} is for encoders only; set it in an encoder's section training")
        super().__post_init__()


class VectorTrainer(EpochTrainer):
    """Base class of the trainers of models that read vectors: [`ConversationPreTrainedModel`]."""

    _unwrapped: tuple[Any, Any] = (None, None)

    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        self._term_sums: dict[tuple[str, ...], torch.Tensor] = {}
        self._prompts: dict[str, int] = {}
        self._unread = [name for name in MODALITIES if name not in self.own_model.config.modalities]

    @property
    def own_model(self) -> ConversationPreTrainedModel:
        """The model without what the Trainer wraps around it."""
        wrapped, own = self._unwrapped
        if wrapped is not self.model:  # accelerate looks through all modules, which would be done many times a step
            own = self.accelerator.unwrap_model(self.model)
            self._unwrapped = self.model, own
        return own

    @contextlib.contextmanager
    def as_loaded(self) -> Iterator[None]:
        """
        Compute as the model does that is loaded from its checkpoint: on a CPU in float32 however it was trained. On
        a GPU scores are those of autocast, as in training.
        """
        model = self.own_model
        wrapped = model.__dict__.pop("forward", None) if self.args.device.type == "cpu" else None
        try:
            yield
        finally:
            if wrapped is not None:
                model.forward = wrapped

    @property
    def title(self) -> str:
        return f"{self.own_model.title}, seed {self.args.seed}"

    # Data

    def standardize_inputs(self, data: Any):
        """
        Fit the model's mean and standard deviation of each vector dimension.

        Args:
            data: a dataset that [`check_dialogues`] has checked.

        Raises:
            InputError: if no turn has a modality that the model reads and the dialogues hold.
        """
        first = data[0]
        for name, modality in MODALITIES.items():
            module = self.own_model.input_of(name)
            if module is None or modality.embeddings not in first:
                continue
            own = isinstance(data, DialogueVectors)
            found = data.statistics(name) if own else dataset_statistics(data, name)
            if found is None:
                raise InputError(f"train_dataset: no turn has {name}, so its vectors cannot be standardised")
            mean, deviation = found
            if not deviation.any() and self.is_world_process_zero():
                logger.warning(
                    "train: the %s vectors of all turns are %s, so nothing can be learned from them; check how they "
                    "were made, or leave them out",
                    name,
                    "the same" if mean.any() else "zero",
                )
            module.set_statistics(mean, deviation)

    def say_what_is_not_read(self, data: Any):
        """Report the modalities of these dialogues that the model does not read."""
        first = data[0]
        unread = [name for name in self._unread if MODALITIES[name].embeddings in first]
        if unread and self.is_world_process_zero():
            progress.line(f"{self.title}: the model does not read the dialogues' {' and '.join(unread)} vectors")

    @property
    def host_fields(self) -> frozenset[str]:
        """The fields of a batch that stay on the host, where the model reads them without waiting for the device."""
        masks = (each.mask for each in MODALITIES.values())
        return frozenset({"attention_mask", "labels", *masks} if self.own_model.reads_host else ())

    def _prepare_inputs(self, inputs):
        """As the Trainer's, without the modalities that the model does not read, and but for the `host_fields`."""
        left_out = {field for name in self._unread for field in (MODALITIES[name].embeddings, MODALITIES[name].mask)}
        stay = self.host_fields - left_out
        stays = {name: values for name, values in inputs.items() if name in stay}
        moves = {name: values for name, values in inputs.items() if name not in left_out | {*stays}}
        return super()._prepare_inputs(moves) | stays

    def floating_point_ops(self, inputs) -> int:
        """As the Trainer's, which counts the model's parameters at each step."""
        values = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        return 0 if values is None else 6 * values.numel() * self._parameter_count

    @functools.cached_property
    def _parameter_count(self) -> int:
        return self.own_model.num_parameters(exclude_embeddings=True)

    # The log

    @torch.no_grad()
    def note_terms(self, terms: dict[str, torch.Tensor]):
        """Remember terms of the loss of a training batch, by name, for the log."""
        if not self._term_sums:  # the first batch since the last log, or since training resumed
            self._steps_at_last_log = self.state.global_step
        if terms:
            names, values = tuple(terms), torch.stack([value.detach().float() for value in terms.values()])
            self._term_sums[names] = self._term_sums[names] + values if names in self._term_sums else values

    def note_prompts(self, before: Mapping[str, int]):
        """Remember what was left out of the prompts of a training batch; `before` are the counts before it."""
        for name, count in counted_since(before, self.own_model.prompt_counts()).items():
            self._prompts[name] = self._prompts.get(name, 0) + count

    def over_processes(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts of this process -> of all."""
        sums = self.accelerator.reduce(torch.tensor([*counts.values()], device=self.args.device), reduction="sum")
        return dict(zip(counts, sums.tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        As the Trainer's; a training log gets the mean over its steps of each loss term, before its weight, and the
        counts of its prompts.
        """
        if "loss" in logs and self._prompts:
            logs |= self.over_processes(self._prompts)
            self._prompts.clear()
        if "loss" in logs and self._term_sums:
            steps = max(self.state.global_step - self._steps_at_last_log, 1)
            names = [name for each in self._term_sums for name in each]
            sums = torch.cat(list(self._term_sums.values())).to(self.args.device)
            found: dict[str, float] = defaultdict(float)
            for name, value in zip(names, self.accelerator.reduce(sums, reduction="sum").tolist(), strict=True):
                found[f"{name}_loss"] += value / steps
            logs |= {name: found[name] for name in sorted(found)}
            self._term_sums.clear()
        super().log(logs, start_time)

    _steps_at_last_log = 0

    # The Hub

    @property
    def _folder(self) -> Path:
        assert self.args.output_dir is not None  # the arguments set it
        return Path(self.args.output_dir)

    def push_to_hub(  # type: ignore[override]  # returns the repository's id, as a push of a model does
        self, commit_message: str | None = "End of training", token: str | None = None, **kwargs
    ) -> str:
        """Write the checkpoint folder and push the files on its list: no optimizer state and no pickle."""
        if not self.is_world_process_zero():
            return ""
        save_checkpoint(self._folder, self.accelerator.unwrap_model(self.model))
        return self.push_folder(commit_message, token, kwargs.get("revision"))

    def push_folder(
        self, commit_message: str | None = None, token: str | None = None, revision: str | None = None
    ) -> str:
        """Push the checkpoint folder as it is to the repository of the arguments; returns the repository's id."""
        return push_checkpoint(
            self._folder,
            self.args.hub_model_id or self._folder.absolute().name,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            private=self.args.hub_private_repo,
            revision=revision or self.args.hub_revision,
        )
