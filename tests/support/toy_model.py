"""A model of three modalities that also reads the transcripts, as another package could register it."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from mister_e_hf.base.modalities import IGNORE_INDEX, MODALITIES
from mister_e_hf.models import registry
from mister_e_hf.models.ablations import Ablation
from mister_e_hf.models.configuration_conversation import ConversationConfig
from mister_e_hf.models.modeling_conversation import ConversationOutput, ConversationPreTrainedModel
from mister_e_hf.models.registry import RegisteredModel
from mister_e_hf.models.turn_layers import ModalityInput, TurnLinear
from mister_e_hf.vectors.dialogue_vectors import DialogueVectors
from support.model_contract import LABELS, WIDTHS


@strict
class ToyConfig(ConversationConfig):
    """Configuration of [`ToyModel`]."""

    model_type = "toy"

    speech_embedding_dim: int = 5
    text_embedding_dim: int = 4
    visual_embedding_dim: int = 3
    hidden_size: int = 8

    @property
    def heads(self) -> tuple[str, ...]:
        return self.modalities

    @property
    def reads_transcripts(self) -> bool:
        return True


class ToyModel(ConversationPreTrainedModel):
    """A recurrence over the sum of the projected modalities and of transcript lengths; a head per modality, a gate."""

    config_class = ToyConfig
    title = "Toy"
    method = "a toy"
    tags = ("toy",)
    checkpoint_files = ("vocabulary/*.txt",)
    loss_term_weights = {"agreement": "consistency_weight"}

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        hidden = config.hidden_size
        for name in config.modalities:
            width = getattr(config, MODALITIES[name].width)
            setattr(self, f"{name}_input", ModalityInput(width, config.feature_clip))
        self.projections = nn.ModuleDict(
            {name: TurnLinear(getattr(config, MODALITIES[name].width), hidden) for name in config.modalities}
        )
        self.words = nn.Linear(1, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.gate = nn.Linear(hidden, len(config.heads))
        self.experts = nn.ModuleDict({name: ToyExpert(hidden, config.num_labels) for name in config.heads})
        self.post_init()

    def forward(
        self,
        speech_embeddings: torch.Tensor | None = None,
        text_embeddings: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        visual_embeddings: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
        transcripts: list[list[str | None]] | None = None,
    ) -> ConversationOutput:
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        read = self.real_turns(embeddings, attention_mask, masks)
        real, layout = read.mask, read.layout
        turns = self.modality_turns(embeddings, read.present, layout)
        states = {name: self.projections[name](turn).tanh() for name, turn in turns.items()}
        texts = transcripts or [[None] * real.shape[1]] * real.shape[0]
        lengths = torch.tensor([[len(text or "") for text in dialogue] for dialogue in texts], device=real.device)
        heard = self.words(layout.flatten(lengths)[:, None].to(self.words.weight) / 10)
        context = layout.recur(self.gru, heard + torch.stack([*states.values()]).sum(0))
        heads = {name: self.in_label_unit(self.experts[name](state + context)) for name, state in states.items()}
        gate = self.gate(context).softmax(-1)
        logits = (gate[..., None] * torch.stack([*heads.values()], 1)).sum(1)
        loss = None
        if labels is not None:
            loss = self.label_loss(logits, layout.flatten(self.scored_labels(labels, real)), num_items_in_batch)
        return ConversationOutput(
            loss=loss,
            logits=read.padded(logits),
            head_logits={name: read.padded(values) for name, values in heads.items()},
            gate_weights=read.padded(gate),
        )

    def loss_terms(self, output, labels, num_items):
        scored = labels != IGNORE_INDEX
        spread = torch.stack([logits[scored] for logits in output.head_logits.values()]).var(0).sum()
        return {"agreement": spread / (scored.sum() if num_items is None else num_items)}


class ToyExpert(nn.Module):
    """A head of one modality."""

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.head = nn.Linear(hidden_size, num_labels)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.head(states)


TOY = RegisteredModel(
    "toy",
    "toy",
    f"{__name__}:ToyConfig",
    f"{__name__}:ToyModel",
    training={"learning_rate": 1e-2, "num_train_epochs": 2},
    search_space={"model.hidden_size": [8, 16]},
    ablations={"narrow": Ablation("half as wide", {"model.hidden_size": 4})},
)


@contextlib.contextmanager
def registered_toy() -> Iterator[RegisteredModel]:
    """The toy model, known to the package for a while."""
    try:
        registry.register(TOY)
        yield TOY
    finally:
        registry._ENTRIES.pop("toy", None)


def toy_table(name: str, dialogues: int = 6) -> pa.Table:
    """Dialogues whose emotion can be read off their vectors and transcripts."""
    generator = np.random.default_rng(len(name))
    rows = []
    for number in range(dialogues):
        turns = 3 + number % 3
        emotions = generator.integers(0, 3, turns)
        rows.append(
            {
                "dialogue_id": f"{name}_{number}",
                "utterance_ids": [f"{name}_{number}_{turn}" for turn in range(turns)],
                "labels": [LABELS[emotion] for emotion in emotions],
                "texts": ["yes " * (int(emotion) + 1) for emotion in emotions],
                **{
                    f"{key}_features": (generator.normal(size=(turns, width)) + emotions[:, None]).tolist()
                    for key, width in WIDTHS.items()
                },
                "has_video": [turn != 1 for turn in range(turns)],
            }
        )
    return pa.Table.from_pylist(rows)


def toy_split(name: str) -> DialogueVectors:
    return DialogueVectors(toy_table(name), {label: index for index, label in LABELS.items()}, name=name)
