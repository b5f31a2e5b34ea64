"""Train EGMF: the language model has a learning rate of its own, and its weights are stored beside the others."""

from dataclasses import dataclass, field

import torch

from ..models.egmf.modeling_egmf import EgmfModel
from .dialogue_trainer import DialogueTrainer, DialogueTrainingArguments
from .parameter_groups import give_rate


@dataclass
class EgmfTrainingArguments(DialogueTrainingArguments):
    r"""
    [`DialogueTrainingArguments`] of [`EgmfModel`].

    Args:
        language_model_learning_rate (`float`, defaults to 2e-4): learning rate of LoRA's weights, or of the whole
            language model if that is trained; `learning_rate` is that of all others.
        prefix_folder (`str`, *optional*):
            folder in which a frozen language model keeps the texts that it has read, so that a later epoch, run or
            evaluation reads the pseudo tokens and the answers alone; see [`EgmfModel.keep_prefixes`].
    """

    language_model_learning_rate: float = field(
        default=2e-4, metadata={"help": "Learning rate of the language model's weights."}
    )
    prefix_folder: str | None = field(
        default=None, metadata={"help": "Where a frozen language model keeps what it has read."}
    )

    learning_rate: float = field(default=5e-4, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(default=3, metadata={"help": "Number of epochs."})


class EgmfTrainer(DialogueTrainer):
    """[`DialogueTrainer`] for [`EgmfModel`], whose checkpoints hold a language model only as far as it is trained."""

    arguments_class = EgmfTrainingArguments
    args: EgmfTrainingArguments

    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        language_model = self._egmf.language_model
        if self.args.device.type == "cpu" and language_model.dtype == torch.bfloat16:
            # measured: the gradient of PyTorch's fused attention makes a step take 1.4 times as long
            language_model.set_attn_implementation("eager")
        if self.args.prefix_folder is not None:
            self._egmf.keep_prefixes(self.args.prefix_folder)

    @property
    def _egmf(self) -> EgmfModel:
        model = self.own_model
        assert isinstance(model, EgmfModel)  # the registry binds this trainer to it
        return model

    def create_optimizer(self, *arguments, **kwargs):
        optimizer = super().create_optimizer(*arguments, **kwargs)
        give_rate(optimizer, self._egmf.language_model.parameters(), self.args.language_model_learning_rate)
        return optimizer

    # Weights that are not in `model.safetensors` are not what the loading of the Trainer expects.

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._egmf.load_trained_weights(resume_from_checkpoint)

    def _load_best_model(self):
        assert self.state.best_model_checkpoint is not None
        self._egmf.load_trained_weights(self.state.best_model_checkpoint)
