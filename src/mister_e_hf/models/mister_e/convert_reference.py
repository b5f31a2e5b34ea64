"""Convert weights saved by the authors' stage-2 code to [`MisterEModel`]."""

import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from ...base.errors import InputError, reading, short, unwrapped
from ...hub.loading import check_weights
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

_SAVE = "Save `model.state_dict()` with the authors' code."


class _Reader:
    """Hands out the tensors of a state dict and remembers which were taken."""

    def __init__(self, state_dict: dict[str, torch.Tensor]):
        self.state_dict = state_dict
        self.taken: set[str] = set()

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor of that name, of that shape if one is given."""
        if name not in self.state_dict:
            raise InputError(
                f"The checkpoint has no tensor '{name}'. Expected the state dict that the authors' stage-2 code "
                f"saves; this one begins with {list(self.state_dict)[:3]}."
            )
        tensor = self.state_dict[name]
        if shape and tensor.shape != shape:
            raise InputError(
                f"'{name}' has shape {tuple(tensor.shape)}, but the checkpoint's other tensors imply {shape}"
            )
        self.taken.add(name)
        return tensor.double()

    def layer(self, name: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's weight, of that shape, and its bias."""
        return self(f"{name}.weight", *shape), self(f"{name}.bias", shape[0])

    def count(self, pattern: str) -> int:
        """
        How many different first groups `pattern` has among the names; at least 1, so that what is missing is named.
        """
        return max(len({found[1] for name in self.state_dict if (found := re.match(pattern, name))}), 1)

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
    The published stage-2 model as ours. The published code maps queries, keys and values by two linear maps in a row,
    and attention's output by two more; each pair becomes the one map that it equals, computed in float64.

    Args:
        state_dict: names and tensors as the authors' code saves them.
        id2label: class names, in the order of the authors' label indices; `LABEL_0`, ... by default.
        num_attention_heads: cannot be read off the weights; 3 is published.

    Raises:
        InputError: if a tensor is missing, left over, of another shape than the rest implies, not of floating-point
            numbers, or not finite.
    """
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"Expected names and tensors, got {short(repr(name), 80)}: {type(tensor).__name__}. {_SAVE}"
            )
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2 or tensor.is_quantized:
            raise InputError(
                f"'{name}' holds {tensor.dtype}; weights must be floating-point numbers of 16 bits or more"
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "no values (device meta)" if tensor.is_meta else f"the layout {tensor.layout}"
            raise InputError(f"'{name}' has {kind}; expected a dense tensor")
    read = _Reader({name.removeprefix("module."): tensor for name, tensor in state_dict.items()})
    num_labels, hidden = read("fusion.fc_2.bias").numel(), read("fusion.fc_aud.bias").numel()
    if id2label is not None and len(id2label) != num_labels:
        raise InputError(f"id2label names {len(id2label)} classes, but the checkpoint has {num_labels}")
    widths = {
        "speech": read("fusion.fc_aud.weight").numel() // max(hidden, 1),
        "text": read("fusion.fc_text.weight").numel() // max(hidden, 1),
    }
    try:
        config = MisterEConfig(
            speech_embedding_dim=widths["speech"],
            text_embedding_dim=widths["text"],
            hidden_size=hidden,
            context_kernel_sizes=list(_KERNELS.values()),
            context_num_layers=read.count(r"audio_self\.rnn_1\.bias_ih_l(\d+)"),
            fusion_num_layers=read.count(r"fusion\.units\.(\d+)\."),
            attention_dim=read("fusion.units.0.fc_audq.bias").numel(),
            num_attention_heads=num_attention_heads,
            gate_hidden_size=read("gate.0.bias").numel(),
            id2label=id2label or {index: f"LABEL_{index}" for index in range(num_labels)},
        )
    except StrictDataclassError as error:
        raise InputError(
            f"The checkpoint's tensors imply a configuration that no model can have: {short(unwrapped(error))}"
        ) from error
    model = MisterEModel(config)

    def put(module: str, weight: torch.Tensor, bias: torch.Tensor):
        model.get_parameter(f"{module}.weight").data.copy_(weight)
        model.get_parameter(f"{module}.bias").data.copy_(bias)

    for (source, expert), width in zip(_EXPERTS.items(), widths.values(), strict=True):
        for name, parameter in getattr(model, expert).gru.named_parameters():
            parameter.data.copy_(read(f"{source}.rnn_1.{name}", *parameter.shape))
        for index, (name, size) in enumerate(_KERNELS.items()):
            weight, bias = read.layer(f"{source}.{name}", hidden, width, size)
            put(f"{expert}.convolutions.{index}", weight.permute(2, 0, 1), bias)
        put(f"{expert}.skip", *read.layer(f"{source}.fc_1", hidden, width))
        put(f"{expert}.head", *read.layer(f"{source}.fc", num_labels, hidden))

    inside = config.attention_dim
    for layer in range(config.fusion_num_layers):
        unit, ours = f"fusion.units.{layer}", f"fusion_expert.layers.{layer}"
        for attention, (query, other, suffix, source, output) in _ATTENTIONS.items():
            weights = read(f"{unit}.{source}.in_proj_weight", 3 * inside, inside).chunk(3)
            biases = read(f"{unit}.{source}.in_proj_bias", 3 * inside).chunk(3)
            for index, (name, stream) in enumerate((("query", query), ("key", other), ("value", other))):
                inner = read.layer(f"{unit}.fc_{stream}{name[0]}{suffix}", inside, hidden)
                put(f"{ours}.{attention}.{name}", *_compose((weights[index], biases[index]), inner))
            outer = read.layer(f"{unit}.{output}", hidden, inside)
            put(
                f"{ours}.{attention}.output", *_compose(outer, read.layer(f"{unit}.{source}.out_proj", inside, inside))
            )
        for name, source in _NORMS.items():
            put(f"{ours}.{name}", *read.layer(f"{unit}.{source}", hidden))
    for name, source in _FUSION.items():
        module = f"fusion_expert.{name}"
        put(module, *read.layer(f"fusion.{source}", *model.get_parameter(f"{module}.weight").shape))
    put("gate.dense", *read.layer("gate.0", config.gate_hidden_size, 3 * num_labels))
    put("gate.output", *read.layer("gate.2", 3, config.gate_hidden_size))

    if left := read.untaken():
        raise InputError(f"The checkpoint has tensors that this model does not have: {', '.join(left)}")
    check_weights(model.named_parameters(), "The checkpoint's weights")
    return model.eval()


def convert_reference_checkpoint(path: str | Path, id2label: dict[int, str] | None = None) -> MisterEModel:
    """As [`convert_reference_state_dict`], from a `.pth` file, which is read as tensors alone and runs no code."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at '{path}'. Give the .pth file that the authors' stage-2 code saved.")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of several libraries; PyTorch's message advises to run the pickle
        raise InputError(
            f"'{path}' is not a file of tensors alone that torch.save wrote: it is damaged, something else, or holds "
            "objects that could run code, and is not read. Save `model.state_dict()` with the authors' code."
        ) from error
    with reading(path, "the authors' weights"):
        if not isinstance(state_dict, dict):
            raise InputError(f"expected a state dict of tensors, got {type(state_dict).__name__}. {_SAVE}")
        return convert_reference_state_dict(state_dict, id2label)
