"""Trainer of pre-training models: vectors are hidden and reconstructed, and the modalities of a turn find one another.

Letters: B dialogues, T turns, M turns of the batch with both modalities of a pair.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler
from transformers import EvalPrediction

from ..base.errors import InputError
from ..base.losses import info_nce_of_turns
from ..base.modalities import IGNORE_INDEX, MODALITIES
from ..base.threads import few_threads
from ..models.pretraining import PretrainingModel, PretrainingOutput
from ..vectors.collator import DialogueCollator
from ..vectors.dialogue_datasets import check_dialogues
from ..vectors.masked_turns import EpochSampler, MaskedDialogues
from ..vectors.sampler import LikeLengthSampler
from .epoch_trainer import check_metric
from .gathering import gather_rows
from .run_folder import pretraining_terms
from .vector_trainer import VectorTrainer, VectorTrainingArguments

logger = logging.getLogger(__name__)

_PROCESS = 2**32  # how far apart the numbers of two processes' dialogues are


@dataclass
class PretrainingArguments(VectorTrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] with the defaults of pre-training: evaluate and save each epoch, keep the best
    epoch by validation loss, batches of like length.

    Args:
        reconstruction_weight (`float`, defaults to 1.0): factor of the reconstruction loss.
        contrastive_weight (`float`, defaults to 0.5): factor of InfoNCE; 0 leaves it out.
        contrastive_temperature (`float`, defaults to 0.1): its temperature.
        negatives (`str`, defaults to `"batch"`):
            what a turn is compared with: `"batch"`, all turns of a batch over all processes, or `"dialogue"`, those
            of other dialogues alone, since neighbours share a mood.
        mask_rate (`float`, defaults to 0.15): probability that a vector is hidden.
        mask_span (`int`, defaults to 3): longest span of turns that is hidden at once.
        standardize (`bool`, defaults to `True`):
            before the first step, fit the model's mean and standard deviation of each vector dimension; fine-tuning
            keeps them.
    """

    reconstruction_weight: float = field(default=1.0, metadata={"help": "Factor of the reconstruction loss."})
    contrastive_weight: float = field(default=0.5, metadata={"help": "Factor of InfoNCE."})
    contrastive_temperature: float = field(default=0.1, metadata={"help": "Temperature of InfoNCE."})
    negatives: str = field(default="batch", metadata={"help": "Compare with the batch, or other dialogues alone."})
    mask_rate: float = field(default=0.15, metadata={"help": "Probability that a vector is hidden."})
    mask_span: int = field(default=3, metadata={"help": "Longest span of turns that is hidden at once."})
    learning_rate: float = field(default=3e-4, metadata={"help": "The initial learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    num_train_epochs: float = field(default=50, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Dialogues per batch."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Dialogues per batch of validation."})
    metric_for_best_model: str | None = field(default="loss", metadata={"help": "What makes an epoch best."})


class PretrainingTrainer(VectorTrainer):
    r"""
    [`~transformers.Trainer`] for pre-training models. What is hidden is drawn from the arguments' `seed`, the epoch
    and the dialogue alone, so that a run that resumes is the same; in evaluation it is the draw of epoch 0.

    The reconstruction loss is the mean over the hidden vectors of a step, over all its micro-batches and processes.
    InfoNCE compares the turns of a micro-batch over all processes, and is their mean weighted by turns. Metrics are
    `reconstruction_loss`, also of each modality alone, `contrastive_loss`, `contrastive_chance` (its value if all
    turns were alike) and their weighted sum `loss`.

    Args:
        model: a [`~mister_e_hf.models.pretraining.PretrainingModel`].
        args: [`PretrainingArguments`].
        train_dataset, eval_dataset: map-style datasets of dialogues as [`DialogueCollator`] takes them; labels are
            neither needed nor read.
        kwargs: as the Trainer's.

    Raises:
        InputError: if `args` are of another class, or InfoNCE has a weight but the model compares no two modalities.
    """

    args: PretrainingArguments

    def __init__(self, model=None, args: PretrainingArguments | None = None, **kwargs):
        args = PretrainingArguments("trainer_output") if args is None else args
        if not isinstance(args, PretrainingArguments):
            raise InputError(f"PretrainingTrainer needs PretrainingArguments, got {type(args).__name__}")
        if not isinstance(model, PretrainingModel):
            raise InputError(
                f"PretrainingTrainer trains pre-training models such as MisterEForPreTraining, got "
                f"{type(model).__name__}"
            )
        if args.contrastive_weight and not model.compares:
            raise InputError(
                f"contrastive_weight is {args.contrastive_weight}, but this {model.title} compares no two modalities; "
                "set it to 0"
            )
        for name in ("train_dataset", "eval_dataset"):
            if kwargs.get(name) is not None:
                check_dialogues(kwargs[name], name, model.config, labelled=False)
                kwargs[name] = self._masked(kwargs[name], model, args)
        if kwargs.get("eval_dataset") is None and args.eval_strategy != "no":
            raise InputError(
                "no eval_dataset: give one, or set eval_strategy='no' and load_best_model_at_end=False to keep the "
                "last epoch"
            )
        kwargs.setdefault("data_collator", DialogueCollator())
        super().__init__(model=model, args=args, compute_metrics=self._metrics, **kwargs)
        check_metric(args, self._metric_names())

    @staticmethod
    def _masked(dataset: Any, model: PretrainingModel, args: PretrainingArguments) -> MaskedDialogues:
        return MaskedDialogues(dataset, model.config.modalities, args.seed, args.mask_rate, args.mask_span)

    @property
    def own_model(self) -> PretrainingModel:
        return self.accelerator.unwrap_model(self.model)

    @property
    def title(self) -> str:
        return f"{self.own_model.title}, pre-training, seed {self.args.seed}"

    def terms_of_loss(self, metrics: Mapping[str, float]) -> str:
        return pretraining_terms(metrics)

    # Data

    def _train(self, checkpoint, **kwargs):
        if not isinstance(self.train_dataset, MaskedDialogues):
            raise InputError("no train_dataset: give one")
        data = self.train_dataset.dataset
        self.say_what_is_not_read(data)
        if self.args.standardize and not checkpoint:
            self.standardize_inputs(data)
        start = time.perf_counter()
        with few_threads(self.own_model, self.args.device):
            self.threads = torch.get_num_threads()
            found = super()._train(checkpoint, **kwargs)
        self.seconds = time.perf_counter() - start
        return found

    def evaluation_loop(self, *arguments, **kwargs):
        with few_threads(self.own_model, self.args.device):
            return super().evaluation_loop(*arguments, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(self._hidden_in(eval_dataset))

    def get_test_dataloader(self, test_dataset):
        return super().get_test_dataloader(self._hidden_in(test_dataset))

    def _hidden_in(self, dataset: Any) -> Any:
        """A dataset that is given to `evaluate` or `predict`, with the draw of what is hidden."""
        if dataset is None or isinstance(dataset, MaskedDialogues | str):
            return dataset
        check_dialogues(dataset, "the dataset", self.own_model.config, labelled=False)
        return self._masked(dataset, self.own_model, self.args)

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, RandomSampler):  # whose order a run that resumes would not know
            sampler = LikeLengthSampler(np.ones(len(sampler)), 1, self.args.seed)
        return EpochSampler(sampler)

    def _get_num_items_in_batch(self, batch_samples, device):
        """The number of hidden vectors in the batches of a step over all processes; that of pairs is remembered."""
        pairs = torch.tensor([sum(int(both.sum()) for _, both in _pairs(batch)) for batch in batch_samples]).sum()
        if self.args.world_size > 1:
            pairs = self.accelerator.gather(pairs.to(device)).sum()
        self._num_pairs = int(pairs)
        hidden = [{"labels": torch.where(_hidden(batch), 0, IGNORE_INDEX)} for batch in batch_samples]
        return super()._get_num_items_in_batch(hidden, device)

    _num_pairs = 0

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        terms = {"reconstruction": outputs.loss}
        loss = self.args.reconstruction_weight * outputs.loss
        if outputs.projections is not None:
            if self.args.contrastive_weight:
                rows = [turns for turns, _, _ in self._matches(outputs, self.accelerator.num_processes > 1)]
                terms["contrastive"] = torch.cat(rows).sum() / max(self._num_pairs, 1)
                loss = loss + self.args.contrastive_weight * terms["contrastive"]
            else:  # a parameter without a gradient would block the other processes
                loss = loss + 0.0 * sum(each.sum() for each in outputs.projections.values())
        self.watch(**terms, loss=loss)
        self.note_terms(terms)
        # Each process holds its part of a sum over all of them, of which the backward pass takes the mean.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _matches(
        self, outputs: PretrainingOutput, in_all_processes: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """InfoNCE of each pair of modalities: of its turns (M,), its chance (M,), and the turns' dialogues (M,)."""
        assert outputs.projections is not None and outputs.present is not None
        for first, second in itertools.combinations(outputs.projections, 2):
            both = outputs.present[first] & outputs.present[second]
            rows = torch.cat([outputs.projections[name][both] for name in (first, second)], dim=1)
            dialogues = both.nonzero()[:, 0]
            numbers, all_rows, all_numbers, offset = dialogues, rows, dialogues, 0
            if in_all_processes:
                numbers = dialogues + _PROCESS * self.accelerator.process_index
                all_rows, all_numbers, offset = gather_rows(self.accelerator, rows, numbers)
            apart = self.args.negatives == "dialogue"
            width = rows.shape[1] // 2
            turns = info_nce_of_turns(
                rows[:, :width],
                rows[:, width:],
                self.args.contrastive_temperature,
                numbers if apart else None,
                all_rows[:, :width],
                all_rows[:, width:],
                all_numbers if apart else None,
                offset,
            )
            others = (numbers[:, None] != all_numbers[None, :]).sum(1) if apart else len(all_rows) - 1
            chance = torch.log1p(torch.zeros_like(turns) + others)
            yield turns, chance, dialogues

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """
        Sums over the turns of each dialogue (B, S), and the number of what was added up (B, S); see `_metrics`.
        InfoNCE compares the turns of a process's batch.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.as_loaded():
            outputs = model(**inputs)
            sums = {name: errors.sum(1) for name, errors in outputs.errors.items()}
            counts = {
                name: inputs[MODALITIES[name].masked].sum(1) for name in sums if MODALITIES[name].masked in inputs
            }
            for name in ("contrastive", "chance") if outputs.projections is not None else ():
                sums[name] = counts[name] = torch.zeros_like(next(iter(sums.values())))
            for turns, chance, dialogues in self._matches(outputs) if outputs.projections is not None else ():
                for name, values in (("contrastive", turns), ("chance", chance)):
                    sums[name] = sums[name].index_add(0, dialogues, values.to(sums[name]))
                    counts[name] = counts[name].index_add(0, dialogues, torch.ones_like(values).to(sums[name]))
        added = torch.stack([sums[name].float() for name in self._sums()], dim=1)
        number = [counts.get(name, torch.zeros(len(added), device=added.device)) for name in self._sums()]
        return None, added, torch.stack([each.float() for each in number], dim=1)

    def _sums(self) -> list[str]:
        return [*self._reconstructed(), *(("contrastive", "chance") if self.own_model.compares else ())]

    def _reconstructed(self) -> list[str]:
        return list(self.own_model.pretraining.decoders)

    def _metric_names(self) -> list[str]:
        reconstructed = [f"{name}_reconstruction_loss" for name in self._reconstructed()]
        return ["reconstruction_loss", "contrastive_loss", *reconstructed]

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        names, reconstructed = self._sums(), self._reconstructed()
        sums = dict(zip(names, np.asarray(prediction.predictions).sum(0).tolist(), strict=True))
        counts = dict(zip(names, np.asarray(prediction.label_ids).sum(0).tolist(), strict=True))
        if not any(counts[name] for name in reconstructed) and self.is_world_process_zero():
            logger.warning(
                "None of the few vectors of these dialogues is hidden, so reconstruction_loss is 0 and says nothing; "
                "give more dialogues of validation, or raise mask_rate"
            )
        found = {
            "reconstruction_loss": sum(sums[name] for name in reconstructed)
            / max(sum(counts[name] for name in reconstructed), 1)
        }
        found |= {f"{name}_reconstruction_loss": sums[name] / counts[name] for name in reconstructed if counts[name]}
        loss = self.args.reconstruction_weight * found["reconstruction_loss"]
        if "contrastive" in names:
            found |= {
                each: sums[name] / max(counts[name], 1)
                for each, name in (("contrastive_loss", "contrastive"), ("contrastive_chance", "chance"))
            }
            loss += self.args.contrastive_weight * found["contrastive_loss"]
        return {"loss": loss, **found}


def _hidden(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which vectors of a batch are hidden, of all modalities (any,)."""
    return torch.cat([batch[each.masked].flatten() for each in MODALITIES.values() if each.masked in batch])


def _pairs(batch: Mapping[str, torch.Tensor]) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
    """The pairs of modalities of a batch, and which turns (B, T) have both."""
    names = [name for name, each in MODALITIES.items() if each.mask in batch]
    for first, second in itertools.combinations(names, 2):
        yield (first, second), batch[MODALITIES[first].mask] & batch[MODALITIES[second].mask]
