"""Co-attention of speech and text.

Letters: N real turns of the batch (as flat rows, see `turns.py`), H hidden.
"""

import torch
from torch import nn

from ..turn_layers import TurnAttention
from ..turns import TurnLayout
from .configuration_mister_e import MisterEConfig


def _attention(config: MisterEConfig) -> TurnAttention:
    return TurnAttention(
        config.hidden_size,
        config.attention_dim,
        config.num_attention_heads,
        config.attention_dropout,
        config.causal,
        config.attention_decay,
    )


class CoAttentionLayer(nn.Module):
    """Text attends to speech and speech to text, then each stream to itself; residual and LayerNorm after either."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        self.speech_to_text = _attention(config)
        self.text_to_speech = _attention(config)
        self.speech_to_speech = _attention(config)
        self.text_to_text = _attention(config)
        self.speech_cross_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.text_cross_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.speech_self_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.text_self_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, speech: torch.Tensor, text: torch.Tensor, layout: TurnLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """speech, text (N, H) -> (N, H) each"""
        if layout.joins_streams and self.speech_to_text.log_slopes is None:
            return self._together(torch.stack([speech, text]), layout)
        speech, text = (
            self.speech_cross_norm(speech + self.speech_to_text(speech, text, layout)),
            self.text_cross_norm(text + self.text_to_speech(text, speech, layout)),
        )
        speech = self.speech_self_norm(speech + self.speech_to_speech(speech, speech, layout))
        text = self.text_self_norm(text + self.text_to_text(text, text, layout))
        return speech, text

    def _together(self, streams: torch.Tensor, layout: TurnLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, with one call where it has one for each stream, query, key and value: (2, N, H)."""
        attended = _both(self.speech_to_text, self.text_to_speech, streams, layout, crosses=True)
        speech, text = (streams + attended).unbind()
        streams = torch.stack([self.speech_cross_norm(speech), self.text_cross_norm(text)])
        attended = _both(self.speech_to_speech, self.text_to_text, streams, layout, crosses=False)
        speech, text = (streams + attended).unbind()
        return self.speech_self_norm(speech), self.text_self_norm(text)


def _both(
    first: TurnAttention, second: TurnAttention, streams: torch.Tensor, layout: TurnLayout, crosses: bool
) -> torch.Tensor:
    """Attention of two streams, each to itself, or each to the other if it `crosses`: (2, N, H) -> (2, N, H)."""
    of_first, of_second = (second, first) if crosses else (first, second)  # that ask the stream
    maps = [first.query, of_first.key, of_first.value, second.query, of_second.key, of_second.value]
    dropout = first.dropout if first.training else 0.0
    rows = layout.attend_streams(_product(streams, maps), first.num_heads, first.causal, dropout, crosses)
    return _product(rows, [first.output, second.output])


def _product(streams: torch.Tensor, maps: list[nn.Linear]) -> torch.Tensor:
    """The first of the maps of the first of S streams, the others of the next: (S, N, I) -> (S, N, outputs)."""
    weight = torch.cat([each.weight for each in maps]).unflatten(0, (len(streams), -1))
    bias = torch.cat([each.bias for each in maps]).unflatten(0, (len(streams), 1, -1))
    return torch.baddbmm(bias, streams, weight.transpose(1, 2))
