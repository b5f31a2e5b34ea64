"""Tensors that are computed on the CPU and say that they are on a GPU, so that what a GPU would do can be counted.

What is counted:

- launches: operators that start work on the device, each once, though a few start several kernels (a norm's
  gradient, a sorted index). Views, metadata and empty memory are free. A recurrence is one launch, and so is an
  attention, forwards and backwards, as cuDNN and fused attention are one call.
- casts: copies to another data type, among the launches.
- copies: from the host that do not wait for the device, among the launches.
- waits: where the host waits for the device: a value that Python reads, indices of a mask, a copy to the host, a copy
  from the host that is not `non_blocking`.

Operators that autocast computes in float32 on CUDA, not on the CPU, are computed so here. What reads a tensor of the
host and one of the device together raises, as it does on a GPU.
"""

import collections
import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
_FREE = {"detach", "_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "alias"}
_FREE |= {"new_empty_strided", "_local_scalar_dense", "set_", "resize_"}
_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
}
_WAITS |= {"repeat_interleave", "equal", "is_nonzero"}
# torch/docs/source/amp.md, of those that these models call
_FLOAT32 = {"layer_norm", "softmax", "log_softmax", "sum", "prod", "exp", "log", "pow", "__pow__", "norm", "logsumexp"}
_FLOAT32 |= {"normalize", "cumsum", "l1_loss", "huber_loss", "mse_loss", "nll_loss", "cross_entropy", "reciprocal"}
_FLOAT32 |= {"vector_norm"}
_ON_HOST = {"tolist": lambda host: host.tolist(), "numpy": lambda host: host.numpy(), "cpu": lambda host: host}


class Counts(collections.Counter):
    """How often each operator was launched, by `(kind, name)`, and the lines of the package that waited."""

    def total(self, kind: str) -> int:
        return sum(count for (own, _), count in self.items() if own == kind)

    def totals(self) -> dict[str, int]:
        return {kind: self.total(kind) for kind in ("launch", "cast", "copy", "wait")}

    def launched(self, name: str):
        self["launch", name] += 1

    def waited(self, name: str):
        package = [each for each in traceback.extract_stack() if "mister_e_hf" in each.filename]
        where = f"{Path(package[-1].filename).name}:{package[-1].lineno}" if package else "elsewhere"
        self["wait", f"{name} at {where}"] += 1


_counts = Counts()


class OnGpu(torch.Tensor):
    """A tensor on the pretended device; `host` holds its numbers."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype
        )

    def __init__(self, host: torch.Tensor):
        self.host = host

    @property
    def device(self):
        return GPU

    @property
    def is_cuda(self):
        return True

    def __repr__(self):
        return f"OnGpu({self.host})"

    def __deepcopy__(self, memo):
        return OnGpu(self.host.clone())

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        options = dict(options or {})
        name = getattr(function, "__name__", "")
        if name in _ON_HOST and isinstance(arguments[0], OnGpu):
            _counts.waited(name)
            return _ON_HOST[name](arguments[0].detach().host)
        if name == "to":
            arguments, options = _without_device(arguments, options)
            if isinstance(arguments, torch.Tensor):
                return arguments
        if name == "scaled_dot_product_attention":
            return _attend(*arguments, **options)
        if name in ("gru", "lstm"):
            return _recur(*arguments, **options)
        if name == "dropout" and function is nn.functional.dropout:
            return _dropout(*arguments, **options)
        if name in _FLOAT32 and torch.is_autocast_enabled("cpu"):
            arguments, options = tree_map(_widened, (arguments, options))
        return super().__torch_function__(function, types, arguments, options)

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def _without_device(arguments, options):
    """`to` of a tensor that is on the device already: without the device, or the tensor itself if it goes nowhere."""
    tensor, *others = arguments
    where = next((each for each in (*others, options.get("device")) if isinstance(each, (str, torch.device))), None)
    if where is not None and torch.device(where).type == "cpu":
        if any(Path(each.filename).name == "clip_grad.py" for each in traceback.extract_stack()):
            return tensor, options  # which asks torch itself where a gradient is
        _counts.waited("to")
        return tensor.detach().host, options
    others = [each for each in others if not isinstance(each, (str, torch.device)) and each is not None]
    others = [each.dtype if isinstance(each, torch.Tensor) else each for each in others]
    options = {name: value for name, value in options.items() if name not in ("device", "non_blocking")}
    dtype = next((each for each in others if isinstance(each, torch.dtype)), options.get("dtype"))
    return (tensor, options) if dtype is None or dtype == tensor.dtype else ((tensor, *others), options)


def _run(function, arguments, options):
    name = function.overloadpacket.__name__
    given = tree_leaves((arguments, options))
    if any(isinstance(each, OnGpu) for each in given):
        strays = [each for each in given if isinstance(each, torch.Tensor) and not isinstance(each, OnGpu)]
        if any(each.dim() for each in strays) and name not in ("copy_", "_fused_adamw_"):
            raise RuntimeError(f"{name} reads tensors of the host and of the device together")
    to_device = options.get("device") is not None and torch.device(options["device"]).type == "cuda"
    if to_device:
        options = options | {"device": torch.device("cpu")}
    from_host = name in ("_to_copy", "copy_") and any(type(each) is torch.Tensor and each.dim() >= 0 for each in given)
    on_device = to_device or any(isinstance(each, OnGpu) for each in given)
    host = tree_map(lambda value: value.host if isinstance(value, OnGpu) else value, (arguments, options))
    found = function(*host[0], **host[1])
    if not on_device:
        return found
    returns = [each.alias_info for each in function._schema.returns]
    is_view = bool(returns) and all(alias is not None and not alias.is_write for alias in returns)
    if name in _WAITS or (name in ("index", "index_put", "index_put_") and _has_mask(arguments)):
        _counts.waited(name)
    if from_host:
        _counts["copy", name] += 1
        if not options.get("non_blocking"):
            _counts.waited(name)
    elif name == "_to_copy":
        _counts["cast", name] += 1
    if name not in _FREE and not is_view:
        _counts.launched(name)
    if returns and all(alias is not None and alias.is_write for alias in returns):
        return arguments[0]  # in place
    return tree_map(lambda value: OnGpu(value) if type(value) is torch.Tensor else value, found)


def _has_mask(arguments) -> bool:
    indices = tree_leaves(arguments[1])
    return any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in indices)


class _OneCall(torch.autograd.Function):
    """One launch forwards and one backwards, of the right shapes and without the right values."""

    @staticmethod
    def forward(context, name: str, shapes: list[torch.Size], *inputs: torch.Tensor):
        context.name, context.inputs = name, inputs
        _counts.launched(name)
        dtype = inputs[0].dtype
        if name == "attention":  # fused attention has the heads beside one another in memory
            return (OnGpu(torch.zeros(shapes[0], dtype=dtype).transpose(1, 2).contiguous().transpose(1, 2)),)
        return tuple(OnGpu(torch.zeros(shape, dtype=dtype)) for shape in shapes)

    @staticmethod
    def backward(context, *gradients):
        _counts.launched(f"{context.name}_backward")
        needed = context.needs_input_grad[2:]
        own = [OnGpu(torch.zeros_like(each.detach().host)) for each in context.inputs]
        return None, None, *(each if need else None for each, need in zip(own, needed, strict=True))


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") and value.is_floating_point() else value


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    query, key, value = _half(query), _half(key), _half(value)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = _half(attn_mask)  # its gradient, of learned slopes, is not followed
    elif attn_mask is not None:
        _counts.launched("convert_boolean_attn_mask")
    return _OneCall.apply("attention", [query.shape[:-1] + value.shape[-1:]], query, key, value)[0]


def _recur(rows, *others, **options):
    packed = isinstance(others[0], torch.Tensor) and not isinstance(others[0], OnGpu)  # batch sizes, on the host
    states, weights, has_bias, layers, _, _, two_ways, *_ = others[1:] if packed else others
    first = states[0] if isinstance(states, tuple) else states
    output = rows.shape[:-1] + (first.shape[-1] * (2 if two_ways else 1),)
    # cuDNN's autocast copies each weight into one buffer of the other type
    given = [_half(rows), _half(first), *map(_half, weights)]
    found = _OneCall.apply("recurrence", [output, first.shape], *given)
    return (found[0], found[1], found[1].clone()) if isinstance(states, tuple) else found


def _dropout(values, p=0.5, training=True, inplace=False):
    return torch.native_dropout(values, p, True)[0] if training and p else values


class _Factories(TorchDispatchMode):
    """Makes what is created on the device one of the pretended tensors."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})


def put_on_gpu(value: Any) -> Any:
    """A module with its weights, or the tensors of a batch, on the pretended device; not counted."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for own in (module._parameters, module._buffers):
                for name, tensor in own.items():
                    if tensor is not None and not isinstance(tensor, OnGpu):
                        moved: torch.Tensor = OnGpu(tensor.detach())
                        own[name] = nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        return value
    return tree_map(lambda each: OnGpu(each) if type(each) is torch.Tensor else each, value)


@contextlib.contextmanager
def counting(bf16: bool) -> Iterator[Counts]:
    """Count what the device would do within the block, under bf16 autocast or in float32."""
    _counts.clear()
    init, lazy = torch.autocast.__init__, torch.cuda._lazy_init

    def of_cpu(self, device_type, *arguments, **options):
        init(self, "cpu", *arguments, **options)

    torch.autocast.__init__, torch.cuda._lazy_init = of_cpu, lambda: None  # type: ignore[method-assign]
    try:
        with _Factories(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            yield _counts
    finally:
        torch.autocast.__init__, torch.cuda._lazy_init = init, lazy  # type: ignore[method-assign]
