"""MiSTER-E on padded batches without masks, which `stage2.py` compares `MisterEModel` with.

Letters: B dialogues, T turns of the longest, D embedding width, H hidden, C classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mister_e_hf import MisterEConfig


class PlainContext(nn.Module):
    def __init__(self, config: MisterEConfig, width: int):
        super().__init__()
        hidden = config.hidden_size
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, hidden, size, padding=size // 2) for size in config.context_kernel_sizes
        )
        self.gru = nn.GRU(hidden, hidden // 2, config.context_num_layers, bidirectional=True, batch_first=True)
        self.skip = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, config.num_labels)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, C)"""
        channels_first = embeddings.transpose(1, 2)
        local = sum(F.relu(convolution(channels_first)) for convolution in self.convolutions)
        states, _ = self.gru(local.transpose(1, 2))
        return self.head(states + self.skip(embeddings))


class PlainAttention(nn.Module):
    """Linear maps to queries, keys and values, then attention with its own input maps, then a linear map back."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        hidden, width = config.hidden_size, config.attention_dim
        self.query, self.key, self.value = (nn.Linear(hidden, width) for _ in range(3))
        self.attention = nn.MultiheadAttention(
            width, config.num_attention_heads, dropout=config.attention_dropout, batch_first=True
        )
        self.output = nn.Linear(width, hidden)

    def forward(self, stream: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        attended, _ = self.attention(self.query(stream), self.key(other), self.value(other))
        return self.output(attended)


class PlainCoAttention(nn.Module):
    def __init__(self, config: MisterEConfig):
        super().__init__()
        self.speech_to_text, self.text_to_speech = PlainAttention(config), PlainAttention(config)
        self.speech_to_speech, self.text_to_text = PlainAttention(config), PlainAttention(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(4))

    def forward(self, speech: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        speech, text = (
            self.norms[0](speech + self.speech_to_text(speech, text)),
            self.norms[1](text + self.text_to_speech(text, speech)),
        )
        return (
            self.norms[2](speech + self.speech_to_speech(speech, speech)),
            self.norms[3](text + self.text_to_text(text, text)),
        )


class PlainFusion(nn.Module):
    def __init__(self, config: MisterEConfig):
        super().__init__()
        hidden, widths = config.hidden_size, (config.speech_embedding_dim, config.text_embedding_dim)
        self.speech_projection, self.text_projection = (nn.Linear(width, hidden) for width in widths)
        self.speech_skip, self.text_skip = (nn.Linear(width, hidden) for width in widths)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.layers = nn.ModuleList(PlainCoAttention(config) for _ in range(config.fusion_num_layers))
        self.norm = nn.LayerNorm(2 * hidden, eps=config.layer_norm_eps)
        self.dense = nn.Linear(2 * hidden, hidden)
        self.head = nn.Linear(hidden, config.num_labels)

    def forward(self, speech: torch.Tensor, text: torch.Tensor):
        """(B, T, D) twice -> logits (B, T, C), speech and text states (B, T, H)"""
        speech_states = self.dropout(self.speech_projection(speech))
        text_states = self.dropout(self.text_projection(text))
        for layer in self.layers:
            speech_states, text_states = layer(speech_states, text_states)
        speech_states, text_states = speech_states + self.speech_skip(speech), text_states + self.text_skip(text)
        fused = self.norm(torch.cat([text_states, speech_states], dim=-1))
        return self.head(F.relu(self.dense(fused))), speech_states, text_states


class PlainMisterE(nn.Module):
    """The method on padded batches: padding goes through everything, as through the published code."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        self.config = config
        self.speech_expert = PlainContext(config, config.speech_embedding_dim)
        self.text_expert = PlainContext(config, config.text_embedding_dim)
        self.fusion_expert = PlainFusion(config)
        self.gate = nn.Sequential(
            nn.Linear(3 * config.num_labels, config.gate_hidden_size), nn.ReLU(), nn.Linear(config.gate_hidden_size, 3)
        )

    def forward(self, speech: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        fusion, speech_states, text_states = self.fusion_expert(speech, text)
        experts = [self.speech_expert(speech), self.text_expert(text), fusion]
        weights = (self.gate(torch.cat(experts, dim=-1)) / self.config.gate_temperature).softmax(-1)
        experts = torch.stack(experts, dim=2)  # [B, T, 3, C]
        return {
            "logits": (weights[..., None] * experts).sum(2),
            "expert_logits": experts,
            "gate_weights": weights,
            "speech_states": speech_states,
            "text_states": text_states,
        }


def plain_focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
    return ((1 - (-entropy).exp()) ** gamma * entropy).mean()  # padding adds 0 and is counted


def plain_contrastive(speech_states: torch.Tensor, text_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    states = F.normalize(torch.cat([speech_states.flatten(0, 1), text_states.flatten(0, 1)]), dim=-1)
    labels = labels.flatten().repeat(2)  # padding, -1, is a class like the others
    others = 1 - torch.eye(len(labels), device=labels.device)
    positive = (labels[:, None] == labels[None, :]) * others
    similarity = states @ states.T
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    log_probability = similarity - (similarity.exp() * others).sum(1, keepdim=True).log()
    return -((positive * log_probability).sum(1) / positive.sum(1).clamp(min=1)).mean()


def plain_consistency(expert_logits: torch.Tensor) -> torch.Tensor:
    total = 0.0
    for first, second in ((0, 1), (0, 2), (1, 2)):
        p, q = expert_logits[:, :, first], expert_logits[:, :, second]
        total = total + F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
        total = total + F.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="batchmean")
    return total / 3
