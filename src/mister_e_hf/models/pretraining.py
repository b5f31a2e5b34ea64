"""Self-supervised pre-training: hidden vectors are reconstructed, and the modalities of a turn find one another.

A hidden vector is replaced by a learned mask vector, which is not the vector of an absent one: a model that took one
for the other would learn that what is absent has to be guessed.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), D vector width, H hidden,
K width of the states that a vector is reconstructed from, P width of the projections.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization
from transformers.utils import ModelOutput

from ..base.errors import InputError
from ..base.losses import reconstruction_errors
from ..base.modalities import MODALITIES
from ..base.remote_code import write_auto_code
from ..hub.pretrained import holds_pretraining
from .modeling_conversation import ConversationPreTrainedModel
from .turn_layers import ModalityTurns
from .turns import RealTurns

_MASK_DEVIATION = 0.1  # of a new mask vector's entries; an absent vector begins at 0


@dataclass
class PretrainingOutput(ModelOutput):
    """
    Output of a pre-training model; zero at padding. InfoNCE compares the turns of a whole optimizer step, so that the
    trainer computes it from the projections ([`~mister_e_hf.training.pretraining_trainer.PretrainingTrainer`]).

    Args:
        loss (`()`, when a modality has hidden turns to give):
            reconstruction loss, the mean over the hidden vectors of their squared error per dimension, in units of
            the inputs' standard deviations.
        errors (`dict[str, (B, T)]`): by modality, that error of each hidden vector; 0 elsewhere.
        reconstructions (`dict[str, (B, T, D)]`): the hidden vectors as the model guesses them, standardised; 0
            elsewhere.
        projections (`dict[str, (B, T, P)]`): what is compared between modalities; None if only one is read.
        present (`dict[str, (B, T)]`, bool): by modality, which turns have it, hidden ones included.
    """

    loss: torch.Tensor | None = None
    errors: dict[str, torch.Tensor] | None = None
    reconstructions: dict[str, torch.Tensor] | None = None
    projections: dict[str, torch.Tensor] | None = None
    present: dict[str, torch.Tensor] | None = None


class TurnStates(NamedTuple):
    r"""
    States of the real turns by modality.

    Args:
        read (`(N, K)`): what a modality's hidden vectors are reconstructed from.
        compared (`(N, H)`): what is matched between modalities; empty without two of them.
    """

    read: Mapping[str, torch.Tensor]
    compared: Mapping[str, torch.Tensor]


class PretrainingHeads(nn.Module):
    r"""
    What pre-training alone needs: by modality a mask vector, a decoder and a projection.

    Args:
        widths: D of each modality.
        read: K of each modality.
        compared: H of each modality that is matched with another.
        hidden_size: hidden width of the decoders, and width of the projections.
    """

    def __init__(
        self, widths: Mapping[str, int], read: Mapping[str, int], compared: Mapping[str, int], hidden_size: int
    ):
        super().__init__()
        self.mask_vectors = nn.ParameterDict({name: torch.zeros(widths[name]) for name in read})
        self.decoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, widths[name]))
                for name, width in read.items()
            }
        )
        compared = compared if len(compared) > 1 else {}
        self.projections = nn.ModuleDict({name: nn.Linear(width, hidden_size) for name, width in compared.items()})


class PretrainingModel(ConversationPreTrainedModel):
    """
    Base class of pre-training models. It reads the same vectors as the model that is fine-tuned later, and no labels.

    A subclass has the layers that it shares with the fine-tuned model, under the same names, [`PretrainingHeads`] as
    `pretraining`, and computes `states`.

    Attributes:
        fine_tuned: the class of the model that begins from the weights of this one.
    """

    pretrains = True
    fine_tuned: type[ConversationPreTrainedModel]
    pretraining: PretrainingHeads

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, PretrainingHeads):
            for vector in module.mask_vectors.values():
                initialization.normal_(vector, std=_MASK_DEVIATION)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.from_pretrained`], but weights that are missing, unexpected or of another
        shape raise.

        Raises:
            InputError: naming the weights that do not fit; or if the folder does not hold a pre-training model.
            OSError: naming the file that is damaged, or if no weights are stored in safetensors.
        """
        if not holds_pretraining(pretrained_model_name_or_path, kwargs):
            raise InputError(
                f"'{pretrained_model_name_or_path}' is not a pre-training model, so {cls.__name__} cannot be loaded "
                f"from it; load it with AutoModel"
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _write_code(self, folder):
        # AutoModel is the model that begins from this one, as where this package is installed.
        write_auto_code(folder, type(self), "AutoModelForPreTraining", self.config)
        write_auto_code(folder, self.fine_tuned, "AutoModel", self.config)

    @property
    def compares(self) -> bool:
        """Whether there are two modalities whose states are matched."""
        return len(self.pretraining.projections) > 1

    def states(self, modalities: Mapping[str, ModalityTurns], turns: RealTurns) -> TurnStates:
        """The states of the turns, from the vectors of each modality with the hidden ones replaced."""
        raise NotImplementedError

    def forward(
        self,
        speech_embeddings: torch.Tensor | None = None,
        text_embeddings: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        speech_masked: torch.Tensor | None = None,
        text_masked: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        visual_embeddings: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
        visual_masked: torch.Tensor | None = None,
    ) -> PretrainingOutput:
        r"""
        Args:
            speech_embeddings, text_embeddings, visual_embeddings (`(B, T, D)`), attention_mask, speech_mask,
            text_mask, visual_mask (`(B, T)`): as the fine-tuned model takes them.
            speech_masked, text_masked, visual_masked (`(B, T)`): true where the vector is hidden from the model and
                reconstructed; ignored where the turn does not have the modality, and at padding.
            num_items_in_batch: hidden vectors of the whole optimizer step, the divisor of the loss; by default this
                batch's.

        Raises:
            ValueError: if no embeddings are given, or their shapes, the masks' and the configuration's disagree.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        masked = {"speech": speech_masked, "text": text_masked, "visual": visual_masked}
        turns = self.real_turns(embeddings, attention_mask, masks)
        modalities = self.modality_turns(embeddings, turns.present_on_host, turns.layout)
        hidden = {name: self._hidden(name, masked[name], turns) for name in modalities}
        states = self.states({name: self._replaced(name, modalities[name], hidden[name]) for name in hidden}, turns)
        output = PretrainingOutput(present={name: turns.padded(turns.present[name]) for name in modalities})
        errors, guesses = {}, {}
        for name, read in states.read.items():
            rows = hidden[name].nonzero().squeeze(1)
            guessed = self.pretraining.decoders[name](read[rows])
            error = reconstruction_errors(guessed, modalities[name].vectors[rows])
            errors[name] = error.new_zeros(turns.layout.count).index_copy(0, rows, error)
            guesses[name] = guessed.new_zeros(turns.layout.count, guessed.shape[1]).index_copy(0, rows, guessed)
        if any(each is not None for each in masked.values()):
            output.loss = self._loss(errors, hidden, turns, num_items_in_batch)
        output.errors = {name: turns.padded(each) for name, each in errors.items()}
        output.reconstructions = {name: turns.padded(each) for name, each in guesses.items()}
        if self.compares:
            output.projections = {
                name: turns.padded(projection(states.compared[name]))
                for name, projection in self.pretraining.projections.items()
            }
        return output

    def _hidden(self, name: str, masked: torch.Tensor | None, turns: RealTurns) -> torch.Tensor:
        """Which of the turns (N,) are hidden."""
        present = turns.present[name]
        if masked is None:
            return torch.zeros_like(present)
        if masked.shape != turns.mask.shape:
            raise InputError(
                f"{MODALITIES[name].masked} must have shape (B, T) = {tuple(turns.mask.shape)}, got "
                f"{tuple(masked.shape)}"
            )
        return turns.layout.flatten(masked.bool()) & present

    def _replaced(self, name: str, turns: ModalityTurns, hidden: torch.Tensor) -> ModalityTurns:
        vectors = torch.where(hidden[:, None], self.pretraining.mask_vectors[name], turns.vectors)
        return turns._replace(vectors=vectors)

    def _loss(self, errors, hidden, turns: RealTurns, num_items: torch.Tensor | int | None) -> torch.Tensor:
        if num_items is None:
            num_items = torch.stack([each.sum() for each in hidden.values()]).sum()
        divisor = num_items.clamp(min=1) if isinstance(num_items, torch.Tensor) else max(num_items, 1)
        return torch.stack([each.sum() for each in errors.values()]).sum() * turns.weight / divisor
