"""SDT, a transformer with self-distillation, without its speaker embedding.

Ma, Wang, Lin, Zhang, Zhang and Xu, "A Transformer-Based Model With Self-Distillation for Multimodal Emotion
Recognition in Conversations", IEEE Transactions on Multimedia 26, 2024, arXiv 2310.20494.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ...base.modalities import IGNORE_INDEX
from ..turn_layers import TurnLinear
from ..turn_transformer import Transformer, sinusoidal_positions
from ..turns import TurnLayout
from .configuration import SdtConfig
from .modeling import BaselineModel


class Gate(nn.Module):
    """Multiply each number with a gate in (0, 1) computed from its turn: (N, H) -> (N, H)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.dense(states).sigmoid() * states


class Student(nn.Module):
    """One modality in its own context and in the other's, with a head."""

    def __init__(self, config: SdtConfig):
        super().__init__()
        hidden = config.hidden_size
        self.intra, self.inter = Transformer(config), Transformer(config)
        self.intra_gate, self.inter_gate = Gate(hidden), Gate(hidden)
        self.merge = nn.Linear(2 * hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(hidden, config.num_labels)

    def forward(self, own: torch.Tensor, other: torch.Tensor, layout: TurnLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """own, other (N, H) -> states (N, H), logits (N, C)"""
        intra, inter = self.intra_gate(self.intra(own, layout)), self.inter_gate(self.inter(own, layout, other))
        states = self.merge(torch.cat([intra, inter], dim=-1))
        return states, self.head(self.dropout(F.relu(states)))


class SdtModel(BaselineModel):
    """Intra- and inter-modal transformers, gates, and a fusion whose predictions teach a student per modality."""

    config_class = SdtConfig
    title = "SDT without speakers"
    method = "SDT without a speaker embedding (Ma et al., [IEEE TMM 2024](https://arxiv.org/abs/2310.20494))"

    def __init__(self, config: SdtConfig):
        super().__init__(config)
        hidden = config.hidden_size
        self.speech_projection = TurnLinear(config.speech_embedding_dim, hidden)
        self.text_projection = TurnLinear(config.text_embedding_dim, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.speech_student = Student(config)
        self.text_student = Student(config)
        self.fusion_gate = nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, config.num_labels)
        self.post_init()

    def heads(self, turns, layout) -> tuple[torch.Tensor, ...]:
        speech, text = self.speech_projection(turns["speech"]), self.text_projection(turns["text"])
        positions = sinusoidal_positions(layout, self.config.hidden_size, speech)
        speech, text = self.dropout(speech + positions), self.dropout(text + positions)
        speech_states, speech_logits = self.speech_student(speech, text, layout)
        text_states, text_logits = self.text_student(text, speech, layout)
        states = torch.stack([speech_states, text_states])  # [2, N, H]
        fused = (self.fusion_gate(states).softmax(0) * states).sum(0)
        return self.head(fused), speech_logits, text_logits

    def turn_loss(self, heads, labels, num_items) -> torch.Tensor:
        """
        Cross-entropy of teacher and students plus KL(teacher || student) per student, unweighted as published. For
        scores, which have no distribution to teach, the regression loss of teacher and students.
        """
        if self.config.task == "regression":
            return torch.stack([self.label_loss(scores, labels, num_items) for scores in heads]).sum()
        if num_items is None:
            num_items = (labels != IGNORE_INDEX).sum()
        return sum(self.label_loss(logits, labels, num_items) for logits in heads) + self._distillation(
            heads, labels, num_items
        )

    def _distillation(self, heads, labels, num_items) -> torch.Tensor:
        # As in the authors' code, the gradient goes through the teacher too.
        # A turn that is not scored gets the same logits from all, which adds 0; a mask as an index would have the host
        # wait for an accelerator.
        left_out, temperature = (labels == IGNORE_INDEX)[:, None], self.config.distillation_temperature
        known = (logits.masked_fill(left_out, 0.0) for logits in heads)
        teacher, *students = (F.log_softmax(logits / temperature, -1) for logits in known)
        divergences = [F.kl_div(student, teacher, reduction="sum", log_target=True) for student in students]
        return sum(divergences) / torch.as_tensor(num_items).clamp(min=1)
