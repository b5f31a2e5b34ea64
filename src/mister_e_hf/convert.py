"""Weights saved by the authors' stage-2 code -> [`MisterEModel`]."""

from pathlib import Path

import torch

from .configuration_mister_e import MisterEConfig
from .modeling_mister_e import MisterEModel

# Parameters that the published code creates and never uses.
_UNUSED = ("proj.", "classifier.")

_EXPERTS = {"audio_self": "speech_expert", "text_self": "text_expert"}
_KERNELS = {"conv": 1, "conv3": 3, "conv5": 5}
# (query stream, key and value stream, suffix of its linear maps, its attention, its output map) -> ours
_ATTENTIONS = {
    "speech_to_text": ("aud", "asr", "", "multihead_attn_aud", "fc_audio"),
    "text_to_speech": ("asr", "aud", "", "multihead_attn_asr", "fc_text"),
    "speech_to_speech": ("aud", "aud", "_s", "multihead_attn_selfaud", "fc_aud_s"),
    "text_to_text": ("asr", "asr", "_s", "multihead_attn_selfasr", "fc_text_s"),
}
_NORMS = {
    "speech_cross_norm": "layer_norm_a",
    "text_cross_norm": "layer_norm_t",
    "speech_self_norm": "layer_norm_a_s",
    "text_self_norm": "layer_norm_t_s",
}
_FUSION = {
    "speech_projection": "fc_aud",
    "text_projection": "fc_text",
    "speech_skip": "fc_aud_self",
    "text_skip": "fc_text_self",
    "norm": "bn",
    "dense": "fc",
    "head": "fc_2",
}


class _Reader:
    """Hands out the tensors of a state dict and remembers which were taken."""

    def __init__(self, state_dict: dict[str, torch.Tensor]):
        self.state_dict = state_dict
        self.taken = set()

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self.state_dict:
            raise ValueError(
                f"The checkpoint has no tensor '{name}'. Expected the state dict that the authors' stage-2 code saves; "
                f"this one begins with {list(self.state_dict)[:3]}."
            )
        self.taken.add(name)
        return self.state_dict[name].double()

    def linear(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self(f"{name}.weight"), self(f"{name}.bias")

    def untaken(self) -> list[str]:
        return sorted(name for name in self.state_dict if name not in self.taken and not name.startswith(_UNUSED))


def _compose(outer: tuple[torch.Tensor, torch.Tensor], inner: tuple[torch.Tensor, torch.Tensor]):
    """Two linear maps in a row as one: outer(inner(x))."""
    (outer_weight, outer_bias), (inner_weight, inner_bias) = outer, inner
    return outer_weight @ inner_weight, outer_weight @ inner_bias + outer_bias


def convert_reference_state_dict(
    state_dict: dict[str, torch.Tensor], id2label: dict[int, str] | None = None, num_attention_heads: int = 3
) -> MisterEModel:
    r"""
    The published stage-2 model as ours. The published code maps queries, keys and values by two linear maps in a row, and
    attention's output by two more; each pair becomes the one map that it equals, computed in float64.

    Args:
        state_dict: names and tensors as the authors' code saves them.
        id2label: class names, in the order of the authors' label indices; `LABEL_0`, ... by default.
        num_attention_heads: cannot be read off the weights; 3 is published.

    Raises:
        ValueError: if a tensor is missing, left over, or of another shape than the rest implies.
    """
    read = _Reader({name.removeprefix("module."): tensor for name, tensor in state_dict.items()})
    num_labels = len(read("fusion.fc_2.bias"))
    if id2label is not None and len(id2label) != num_labels:
        raise ValueError(f"id2label names {len(id2label)} classes, but the checkpoint has {num_labels}")
    config = MisterEConfig(
        speech_embedding_dim=read("fusion.fc_aud.weight").shape[1],
        text_embedding_dim=read("fusion.fc_text.weight").shape[1],
        hidden_size=len(read("fusion.fc_aud.bias")),
        context_kernel_sizes=list(_KERNELS.values()),
        context_num_layers=sum(name.startswith("audio_self.rnn_1.bias_ih_l") for name in state_dict) // 2 or 3,
        fusion_num_layers=len({name.split(".")[2] for name in state_dict if name.startswith("fusion.units.")}) or 4,
        attention_dim=len(read("fusion.units.0.fc_audq.bias")),
        num_attention_heads=num_attention_heads,
        gate_hidden_size=len(read("gate.0.bias")),
        id2label=id2label or {index: f"LABEL_{index}" for index in range(num_labels)},
    )
    model = MisterEModel(config)

    def put(module: str, weight: torch.Tensor, bias: torch.Tensor):
        for name, tensor in (("weight", weight), ("bias", bias)):
            target = model.get_parameter(f"{module}.{name}")
            if target.shape != tensor.shape:
                raise ValueError(
                    f"'{module}.{name}' would have shape {tuple(tensor.shape)}, but the other tensors imply "
                    f"{tuple(target.shape)}"
                )
            target.data.copy_(tensor)

    for source, expert in _EXPERTS.items():
        for name, parameter in getattr(model, expert).gru.named_parameters():
            parameter.data.copy_(read(f"{source}.rnn_1.{name}"))
        for index, name in enumerate(_KERNELS):
            weight, bias = read.linear(f"{source}.{name}")  # [H, D, k]
            put(f"{expert}.convolutions.{index}", weight.permute(2, 0, 1), bias)
        put(f"{expert}.skip", *read.linear(f"{source}.fc_1"))
        put(f"{expert}.head", *read.linear(f"{source}.fc"))

    for layer in range(config.fusion_num_layers):
        unit, ours = f"fusion.units.{layer}", f"fusion_expert.layers.{layer}"
        for attention, (query, other, suffix, source, output) in _ATTENTIONS.items():
            weights = read(f"{unit}.{source}.in_proj_weight").chunk(3)
            biases = read(f"{unit}.{source}.in_proj_bias").chunk(3)
            for index, (name, stream) in enumerate((("query", query), ("key", other), ("value", other))):
                inner = read.linear(f"{unit}.fc_{stream}{name[0]}{suffix}")
                put(f"{ours}.{attention}.{name}", *_compose((weights[index], biases[index]), inner))
            outer = read.linear(f"{unit}.{output}")
            put(f"{ours}.{attention}.output", *_compose(outer, read.linear(f"{unit}.{source}.out_proj")))
        for name, source in _NORMS.items():
            put(f"{ours}.{name}", *read.linear(f"{unit}.{source}"))
    for name, source in _FUSION.items():
        put(f"fusion_expert.{name}", *read.linear(f"fusion.{source}"))
    put("gate.dense", *read.linear("gate.0"))
    put("gate.output", *read.linear("gate.2"))

    if left := read.untaken():
        raise ValueError(f"The checkpoint has tensors that this model has no place for: {', '.join(left)}")
    return model.eval()


def convert_reference_checkpoint(path: str | Path, id2label: dict[int, str] | None = None) -> MisterEModel:
    """As [`convert_reference_state_dict`], from a `.pth` file, which is read as tensors alone and runs no code."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at '{path}'. Give the .pth file that the authors' stage-2 code saved.")
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"'{path}' holds no state dict of tensors; save `model.state_dict()` with the authors' code.")
    return convert_reference_state_dict(state_dict, id2label)
