"""Trainer of conversation models."""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import ModelOutput

from ..base.devices import moved
from ..base.errors import InputError
from ..base.losses import consistency_loss, contrastive_loss
from ..base.modalities import IGNORE_INDEX
from ..base.part_weights import WEIGHT_FIELDS
from ..base.threads import few_threads
from ..evaluation.metrics import SCORES, emotion_scores, softmax
from ..evaluation.regression import REGRESSION_SCORES
from ..models.configuration_conversation import ConversationConfig
from ..models.mister_e.modeling_mister_e import MisterEOutput, expert_availability
from ..models.modeling_conversation import ConversationOutput
from ..vectors.collator import DialogueCollator
from ..vectors.dialogue_datasets import check_dialogues, check_scores, target_statistics
from .epoch_trainer import check_metric
from .gathering import gather_rows
from .score_labels import as_bits, as_countable, epoch_scores, from_bits, with_scores
from .vector_trainer import VectorTrainer, VectorTrainingArguments


@dataclass
class DialogueTrainingArguments(VectorTrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] with the defaults of conversation models: evaluate and save each epoch, keep
    the best epoch by validation weighted F1, or by mean absolute error of a model of scores, batches of like length.

    Args:
        standardize (`bool`, defaults to `True`):
            before the first step, fit the model's mean and standard deviation of each vector dimension, and of each
            target of a regression, on the training turns. A model that begins from pre-training keeps those of its
            inputs.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(default=100, metadata={"help": "Number of epochs."})


@dataclass
class MisterETrainingArguments(DialogueTrainingArguments):
    r"""
    [`DialogueTrainingArguments`] with the weights of MiSTER-E's loss terms. Models without these terms ignore them.

    Args:
        contrastive_weight (`float`, defaults to 2.0): factor of the contrastive term; 0 leaves it out.
        contrastive_temperature (`float`, defaults to 1.0): its tau.
        consistency_weight (`float`, defaults to 0.1): factor of the consistency term; 0 leaves it out.
    """

    contrastive_weight: float = field(default=2.0, metadata={"help": "Factor of the contrastive term."})
    contrastive_temperature: float = field(default=1.0, metadata={"help": "Temperature of the contrastive term."})
    consistency_weight: float = field(default=0.1, metadata={"help": "Factor of the consistency term."})


def check_training(config: ConversationConfig, arguments: DialogueTrainingArguments, own_metrics: bool = True):
    r"""
    Check that a model of this configuration can be trained with these arguments.

    Args:
        own_metrics: whether the epoch is chosen by one of this trainer's scores.

    Raises:
        InputError: if a loss term has a weight but the model cannot compute it, or the metric is not one of the
            scores.
    """
    config.check_training(arguments)
    if own_metrics:
        scores, of_head = (REGRESSION_SCORES, "mae") if config.task == "regression" else (SCORES, "weighted_f1")
        check_metric(arguments, (*scores, *(f"{head}_{of_head}" for head in config.heads)))


class DialogueTrainer(VectorTrainer):
    r"""
    [`~transformers.Trainer`] for conversation models: adds the model's own loss terms with their weights, logs every
    term by name, and writes checkpoints that appear whole or not at all. A model is given the vectors of the
    modalities that it reads, whatever others the dialogues have.

    Predictions are a [`ConversationOutput`] of arrays, and so is `predictions` in `compute_metrics`. `eval_loss` is
    the model's own loss without the further terms. For a regression `label_ids` are scores (n, T, S), NaN where one is
    missing and in padding.

    Args:
        model: a [`ConversationPreTrainedModel`].
        args: [`DialogueTrainingArguments`].
        train_dataset, eval_dataset: map-style datasets whose items are what [`DialogueCollator`] takes, with `labels`:
            those of [`read_corpus`], a list of dictionaries, a `torch` or `datasets` dataset, a subset of one. Neither
            is needed for `predict`.
        kwargs: as the Trainer's.

    Raises:
        InputError: if a term has a weight but the model cannot compute it, or `args` are of another class.
    """

    arguments_class: type[DialogueTrainingArguments] = DialogueTrainingArguments
    args: DialogueTrainingArguments

    def __init__(self, model=None, args: DialogueTrainingArguments | None = None, **kwargs):
        if args is None:
            args = self.arguments_class("trainer_output")
        if not isinstance(args, self.arguments_class):
            raise InputError(
                f"{type(self).__name__} needs {self.arguments_class.__name__}, got {type(args).__name__}; they take "
                "the same fields and more"
            )
        if kwargs.get("eval_dataset") is None and args.eval_strategy != "no":
            if kwargs.get("train_dataset") is not None:
                raise InputError(
                    "no eval_dataset: give one, or set eval_strategy='no' and load_best_model_at_end=False to keep "
                    "the last epoch"
                )
            args = copy.copy(args)  # to predict alone
            args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
        if model is not None and model.config.task == "regression":
            args = args.for_regression()
        own_metrics = kwargs.setdefault("compute_metrics", self.emotion_metrics) == self.emotion_metrics
        reads_transcripts = model is not None and model.config.reads_transcripts
        kwargs.setdefault("data_collator", DialogueCollator(transcripts=reads_transcripts))
        super().__init__(model=model, args=args, **kwargs)
        config = self.own_model.config
        self._is_regression = config.task == "regression"
        if self._is_regression and (compute := self.score_metrics if own_metrics else self.compute_metrics):
            self.compute_metrics = lambda prediction: compute(with_scores(prediction))
        check_training(config, self.args, own_metrics)

    # Data

    def _train(self, checkpoint, **kwargs):
        """
        As the Trainer's `train`. Unless training resumes, the model's standardisation is fitted first, if asked for.

        Raises:
            InputError: if a dataset is not one of dialogues with labels, no turn has a modality that is to be
                standardised, or a score of train is outside of those that the model can answer.
        """
        check_dialogues(self.train_dataset, "train_dataset", self.own_model.config)
        check_scores(self.train_dataset, "train_dataset", self.own_model.config)
        if self.args.eval_strategy != "no" and not isinstance(self.eval_dataset, dict):
            check_dialogues(self.eval_dataset, "eval_dataset", self.own_model.config)
        self.say_what_is_not_read(self.train_dataset)
        if self.args.standardize and not checkpoint:
            self._standardize()
        with few_threads(self.own_model, self.args.device):
            self.threads = torch.get_num_threads()
            return super()._train(checkpoint, **kwargs)

    def _standardize(self):
        # The weights of pre-training were trained with its statistics.
        if not self.own_model.begins_from_pretraining:
            self.standardize_inputs(self.train_dataset)
        if self._is_regression:
            self.own_model.target_scale.set_statistics(*target_statistics(self.train_dataset))

    # Loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """The number of scored turns, or of scores, in the batches of a step over all processes."""
        batches = as_countable(batch_samples) if self._is_regression else batch_samples
        return super()._get_num_items_in_batch(batches, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        processes = self.accelerator.num_processes
        # In evaluation a batch's loss is its own mean, whatever the other processes hold.
        num_items_in_batch = num_items_in_batch if model.training else None
        prompts = self.own_model.prompt_counts()
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs["loss"]
        if model.training:
            self.note_prompts(prompts)
            terms = self.loss_terms(outputs, inputs["labels"], num_items_in_batch)
            for name, value in terms.items():
                loss = loss + self._weight_of(name) * value
            self.watch(model=outputs["loss"], **terms, loss=loss)
            self.note_terms(self.own_model.loss_parts(outputs) | terms)
            # Each process holds its part of a sum over all of them, of which the backward pass takes the mean.
            loss = loss * processes if processes > 1 else loss
        return (loss, outputs) if return_outputs else loss

    def loss_terms(
        self, outputs: ModelOutput, labels: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        """Loss terms beside the model's own loss, by name; see [`ConversationPreTrainedModel.loss_terms`]."""
        return self.own_model.loss_terms(outputs, moved(labels, outputs["loss"].device), num_items)

    def _weight_of(self, term: str) -> float:
        name = self.own_model.loss_term_weights.get(term)
        if name is None or term in ("model", "loss"):
            raise InputError(
                f"{type(self.own_model).__name__} computes a loss term '{term}', expected one of those in its "
                f"loss_term_weights ({', '.join(self.own_model.loss_term_weights)}), not named model or loss"
            )
        if not hasattr(self.args, name):
            raise InputError(f"The loss term '{term}' needs {name}, a field that {type(self.args).__name__} lacks")
        return getattr(self.args, name)

    # Evaluation

    def evaluation_loop(self, *arguments, **kwargs):
        with few_threads(self.own_model, self.args.device):
            found = super().evaluation_loop(*arguments, **kwargs)
        if self._is_regression and isinstance(found.label_ids, np.ndarray):
            found = found._replace(label_ids=from_bits(found.label_ids))
        return found

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the Trainer's, but what is predicted keeps its names: the model's common view, without the loss."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.as_loaded():
            if labels is None:
                loss, output = None, model(**inputs)
            else:
                loss, output = self.compute_loss(model, inputs, return_outputs=True)
                loss = loss.detach().mean()
        view = self.own_model.view(output)
        weights = {field: getattr(view, field) for field in WEIGHT_FIELDS}
        view = ConversationOutput(logits=view.logits, head_logits=view.head_logits, **weights)
        if labels is not None:
            labels = moved(as_bits(labels) if self._is_regression else labels, self.args.device)
        return loss, None if prediction_loss_only else view, labels

    def emotion_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Scalar scores of the main head, and weighted F1 of each further head."""
        view: Any = prediction.predictions  # a ConversationOutput of arrays
        scored = prediction.label_ids != IGNORE_INDEX
        names = [self.own_model.config.id2label[index] for index in range(view.logits.shape[-1])]
        labels = prediction.label_ids[scored]
        scores = emotion_scores(labels, softmax(view.logits[scored]), names)
        scores.pop("f1_per_class")
        for head, logits in (view.head_logits or {}).items():
            scores[f"{head}_weighted_f1"] = emotion_scores(labels, softmax(logits[scored]), names)["weighted_f1"]
        return scores

    def score_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Errors and correlations of the predicted scores, and the mean absolute error of each further head."""
        assert isinstance(prediction.label_ids, np.ndarray)
        chosen = (self.args.metric_for_best_model or "").removeprefix("eval_")
        labels = self.own_model.config.id2label
        names = [labels[index] for index in range(len(labels))]
        return epoch_scores(prediction.predictions, prediction.label_ids, names, chosen)


class MisterETrainer(DialogueTrainer):
    r"""
    [`DialogueTrainer`] with the contrastive and consistency terms, for the models that name them. The contrastive term
    compares states across processes.
    """

    arguments_class = MisterETrainingArguments
    args: MisterETrainingArguments

    def loss_terms(self, outputs, labels, num_items):
        own_labels = moved(labels, outputs["loss"].device)
        terms, model = super().loss_terms(outputs, own_labels, num_items), self.own_model
        named = model.loss_term_weights
        if "contrastive" in named and self.args.contrastive_weight and outputs.speech_states is not None:
            # where the labels are: on the host nothing waits
            scored = moved((labels != IGNORE_INDEX).flatten().nonzero().squeeze(1), own_labels.device)
            terms["contrastive"] = self._contrastive(outputs, own_labels, scored, num_items)
        if "consistency" in named and self.args.consistency_weight and len(model.config.heads) > 1:
            available = expert_availability(model.config.experts, outputs.speech_mask, outputs.text_mask)
            terms["consistency"] = consistency_loss(outputs.expert_logits, available, own_labels, num_items)
        return terms

    def _contrastive(
        self, outputs: MisterEOutput, labels: torch.Tensor, scored: torch.Tensor, num_items
    ) -> torch.Tensor:
        """labels (B, T), and the places (K,) among the B * T of those that are scored"""
        assert outputs.speech_mask is not None and outputs.text_mask is not None
        assert outputs.speech_states is not None and outputs.text_states is not None

        def at_scored(*parts: torch.Tensor) -> torch.Tensor:
            return torch.cat([part.flatten(0, 1).index_select(0, scored) for part in parts])

        states = at_scored(outputs.speech_states, outputs.text_states)
        counted = at_scored(outputs.speech_mask, outputs.text_mask)
        state_labels = at_scored(labels, labels)
        options = {"temperature": self.args.contrastive_temperature, "num_items": num_items}
        if self.accelerator.num_processes == 1:
            return contrastive_loss(states, state_labels, counted=counted, **options)
        states, state_labels = states[counted], state_labels[counted]
        all_states, all_labels, offset = gather_rows(self.accelerator, states, state_labels)
        return contrastive_loss(
            states,
            state_labels,
            candidates=all_states,
            candidate_labels=all_labels,
            anchor_offset=offset,
            **options,
        )
