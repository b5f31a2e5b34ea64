"""Train an utterance encoder on labelled turns."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..base.errors import InputError
from ..base.losses import IGNORE_INDEX
from ..base.threads import few_threads
from ..encoders.backbones import width_and_states
from ..encoders.modeling_utterance_encoder import ENCODER_INPUTS, UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..encoders.utterances import UtteranceCollator, Utterances
from ..evaluation.metrics import SCORES, emotion_scores, softmax
from ..evaluation.regression import REGRESSION_SCORES, regression_scores
from .epoch_trainer import EpochTrainer, EpochTrainingArguments, check_metric
from .parameter_groups import give_rate


@dataclass
class UtteranceTrainingArguments(EpochTrainingArguments):
    r"""
    [`EpochTrainingArguments`] for stage 1.

    Args:
        head_learning_rate (`float`, *optional*):
            learning rate of everything but the backbone, which starts from random weights; by default `learning_rate`.
    """

    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of everything but the backbone."}
    )

    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(default=10, metadata={"help": "Number of epochs."})
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "Layers above the chosen one and heads of the backbone are not used."}
    )


class UtteranceTrainer(EpochTrainer):
    """
    [`EpochTrainer`] for [`UtteranceEncoder`]: saves only trained weights, and has a separate learning rate for new
    ones. Of a regression, location and scale of the targets are fitted before the first step.
    """

    args: UtteranceTrainingArguments

    def __init__(
        self,
        model: UtteranceEncoder,
        args: UtteranceTrainingArguments,
        processor: MisterEProcessor,
        title: str | None = None,
        **kwargs,
    ):
        self._title = title
        kwargs.setdefault("data_collator", UtteranceCollator(processor))
        regression = model.config.task == "regression"
        metrics = self.score_metrics if regression else self.emotion_metrics
        own_metrics = kwargs.setdefault("compute_metrics", metrics) == metrics
        super().__init__(model=model, args=args, **kwargs)
        if own_metrics:
            check_metric(self.args, REGRESSION_SCORES if regression else SCORES)
        self.processor = processor

    def get_train_dataloader(self):
        evaluation, self.data_collator = self.data_collator, UtteranceCollator(self.processor, random_crop=True)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = evaluation

    @property
    def host_fields(self) -> frozenset[str]:
        """The fields of a batch that stay on the host, where the encoder checks them before it moves them."""
        inputs = {*ENCODER_INPUTS, "utterance_index"}
        return frozenset(inputs | {"labels"} if self.trained_model.training else inputs)

    def _prepare_inputs(self, inputs):
        """As the Trainer's, but for the `host_fields`. Labels that are gathered from all processes are moved."""
        stays = {name: values for name, values in inputs.items() if name in self.host_fields}
        return self._prepare_input({name: inputs[name] for name in inputs if name not in stays}) | stays

    def create_optimizer(self, *arguments, **kwargs):
        optimizer = super().create_optimizer(*arguments, **kwargs)
        rate = self.args.head_learning_rate
        if rate is not None:
            named = self.trained_model.named_parameters()
            give_rate(optimizer, (parameter for name, parameter in named if not name.startswith("backbone.")), rate)
        return optimizer

    def emotion_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The scalar scores of the encoder's own head."""
        scored = prediction.label_ids != IGNORE_INDEX
        scores = emotion_scores(
            prediction.label_ids[scored], softmax(logits_of(prediction.predictions)[scored]), self.label_names_in_order
        )
        scores.pop("f1_per_class")
        return scores

    def score_metrics(self, prediction: EvalPrediction) -> dict[str, float | None]:
        """The scalar scores of the predicted targets, means over them."""
        labels, predictions = prediction.label_ids, logits_of(prediction.predictions)
        assert isinstance(labels, np.ndarray)  # the only labels are the scores
        scores = regression_scores(labels, predictions, self.label_names_in_order)
        return {name: scores[name] for name in REGRESSION_SCORES}

    def _train(self, checkpoint, **kwargs):
        if self.encoder.config.task == "regression" and checkpoint is None:
            self._fit_scale()
        with self._few_threads():
            return super()._train(checkpoint, **kwargs)

    def evaluation_loop(self, *arguments, **kwargs):
        with self._few_threads():
            return super().evaluation_loop(*arguments, **kwargs)

    def _few_threads(self):
        return few_threads(self.encoder, self.args.device, width_and_states(self.encoder.config)[0])

    def _fit_scale(self):
        data: Any = self.train_dataset
        own = isinstance(data, Utterances)  # whose items would be decoded
        labels = data.labels[data.indices] if own else np.stack([item["label"] for item in data])
        labels = np.asarray(labels, dtype=np.float64)
        for target, values in zip(self.label_names_in_order, labels.T, strict=True):
            if np.isnan(values).all():
                raise InputError(f"train_dataset: no turn has a score of '{target}', so it cannot be learned")
        found = (np.nanmean(labels, axis=0), np.nanstd(labels, axis=0))
        scale = self.encoder.target_scale
        scale.set_statistics(*(torch.as_tensor(values).to(scale.mean) for values in found))

    @property
    def encoder(self) -> UtteranceEncoder:
        """The model without what the Trainer wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def title(self) -> str:
        return self._title or f"{self.encoder.config.modality} encoder"

    @property
    def label_names_in_order(self) -> list[str]:
        """Names of the classes by index."""
        labels = self.encoder.config.id2label
        return [labels[index] for index in range(len(labels))]

    # The files of the encoder hold only trained weights, which the loading of the Trainer does not expect.

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.accelerator.unwrap_model(model or self.model).load_trained_weights(resume_from_checkpoint)

    def _load_best_model(self):
        self.accelerator.unwrap_model(self.model).load_trained_weights(self.state.best_model_checkpoint)


def logits_of(predictions: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """Logits (N, C) among the outputs of an encoder."""
    return predictions[0] if isinstance(predictions, tuple) else predictions
