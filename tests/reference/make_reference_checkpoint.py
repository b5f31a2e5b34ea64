"""Make `reference_checkpoint.safetensors`: a tiny checkpoint with the names of the authors' code, and its outputs.

    python tests/reference/make_reference_checkpoint.py

The outputs come from a plain computation in float64 that follows the published wiring (queries, keys and values pass
through two linear maps in a row, attention's output through two more) and shares no code with the package.

    weights.NAME                              the state dict (float16, so that the file stays small)
    T{T}.speech_embeddings, .text_embeddings  (1, T, 12)
    T{T}.logits                               (1, T, 4)
    T{T}.expert_logits                        (1, T, 3, 4)    speech, text, fusion
    T{T}.gate_weights                         (1, T, 3)
    T{T}.speech_states, .text_states          (1, T, 8)
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

PATH = Path(__file__).with_name("reference_checkpoint.safetensors")
EMBEDDING, HIDDEN, ATTENTION, HEADS, UNITS, GRU_LAYERS, CLASSES, GATE = 12, 8, 6, 3, 2, 3, 4, 10
TURNS = (1, 2, 6)

Weights = dict[str, torch.Tensor]


def shapes() -> dict[str, tuple[int, ...]]:
    found = {}

    def linear(name: str, outputs: int, *inputs: int):
        found[f"{name}.weight"] = (outputs, *inputs)
        found[f"{name}.bias"] = (outputs,)

    for expert in ("audio_self", "text_self"):
        half = HIDDEN // 2
        for layer in range(GRU_LAYERS):
            for direction in ("", "_reverse"):
                found[f"{expert}.rnn_1.weight_ih_l{layer}{direction}"] = (3 * half, HIDDEN)
                found[f"{expert}.rnn_1.weight_hh_l{layer}{direction}"] = (3 * half, half)
                found[f"{expert}.rnn_1.bias_ih_l{layer}{direction}"] = (3 * half,)
                found[f"{expert}.rnn_1.bias_hh_l{layer}{direction}"] = (3 * half,)
        linear(f"{expert}.fc_1", HIDDEN, EMBEDDING)
        for name, size in (("conv", 1), ("conv3", 3), ("conv5", 5)):
            linear(f"{expert}.{name}", HIDDEN, EMBEDDING, size)
        linear(f"{expert}.fc", CLASSES, HIDDEN)
    linear("fusion.fc", HIDDEN, 2 * HIDDEN)
    linear("fusion.fc_2", CLASSES, HIDDEN)
    for unit in (f"fusion.units.{index}" for index in range(UNITS)):
        for stream in ("aud", "asr"):
            for role in "qkv":
                linear(f"{unit}.fc_{stream}{role}", ATTENTION, HIDDEN)
                linear(f"{unit}.fc_{stream}{role}_s", ATTENTION, HIDDEN)
        for attention in ("asr", "aud", "selfaud", "selfasr"):
            found[f"{unit}.multihead_attn_{attention}.in_proj_weight"] = (3 * ATTENTION, ATTENTION)
            found[f"{unit}.multihead_attn_{attention}.in_proj_bias"] = (3 * ATTENTION,)
            linear(f"{unit}.multihead_attn_{attention}.out_proj", ATTENTION, ATTENTION)
        for name in ("layer_norm_t", "layer_norm_a", "layer_norm_t_s", "layer_norm_a_s"):
            linear(f"{unit}.{name}", HIDDEN)
        for name in ("fc_text", "fc_audio", "fc_text_s", "fc_aud_s"):
            linear(f"{unit}.{name}", HIDDEN, ATTENTION)
    for name in ("fc_aud", "fc_text", "fc_aud_self", "fc_text_self"):
        linear(f"fusion.{name}", HIDDEN, EMBEDDING)
    linear("fusion.bn", 2 * HIDDEN)
    linear("gate.0", GATE, 3 * CLASSES)
    linear("gate.2", 3, GATE)
    linear("proj", 2, HIDDEN)  # created by the published code and used nowhere, like the next
    linear("classifier", CLASSES, 2)
    return found


def compute(weights: Weights, speech: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
    """All outputs for one dialogue: speech, text (T, D) in float64."""
    weights = {name: tensor.double() for name, tensor in weights.items()}

    def linear(name: str, values: torch.Tensor) -> torch.Tensor:
        return F.linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, values: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def context(expert: str, values: torch.Tensor) -> torch.Tensor:
        local = 0
        for name in ("conv", "conv3", "conv5"):
            kernel = weights[f"{expert}.{name}.weight"]
            convolved = F.conv1d(values.T, kernel, weights[f"{expert}.{name}.bias"], padding=kernel.shape[-1] // 2)
            local = local + convolved.relu().T
        own = {name.removeprefix(f"{expert}.rnn_1."): tensor for name, tensor in weights.items()}
        own = {name: tensor for name, tensor in own.items() if name.startswith(("weight_", "bias_"))}
        layers = sum(name.startswith("bias_ih") for name in own) // 2
        recurrence = nn.GRU(local.shape[-1], local.shape[-1] // 2, layers, bidirectional=True).double()
        recurrence.load_state_dict(own)
        return linear(f"{expert}.fc", recurrence(local)[0] + linear(f"{expert}.fc_1", values))

    def attend(unit: str, attention: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        module = nn.MultiheadAttention(query.shape[-1], HEADS).double()
        prefix = f"{unit}.multihead_attn_{attention}."
        module.load_state_dict({n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)})
        return module(query, key, value)[0]

    def co_attention(unit: str, aud: torch.Tensor, asr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def mapped(stream: str, values: torch.Tensor, suffix: str = "") -> list[torch.Tensor]:
            return [linear(f"{unit}.fc_{stream}{role}{suffix}", values) for role in "qkv"]

        (aud_q, aud_k, aud_v), (asr_q, asr_k, asr_v) = mapped("aud", aud), mapped("asr", asr)
        text = asr + linear(f"{unit}.fc_text", attend(unit, "asr", asr_q, aud_k, aud_v))
        audio = aud + linear(f"{unit}.fc_audio", attend(unit, "aud", aud_q, asr_k, asr_v))
        text, audio = norm(f"{unit}.layer_norm_t", text), norm(f"{unit}.layer_norm_a", audio)
        audio = audio + linear(f"{unit}.fc_aud_s", attend(unit, "selfaud", *mapped("aud", audio, "_s")))
        text = text + linear(f"{unit}.fc_text_s", attend(unit, "selfasr", *mapped("asr", text, "_s")))
        return norm(f"{unit}.layer_norm_a_s", audio), norm(f"{unit}.layer_norm_t_s", text)

    aud, asr = linear("fusion.fc_aud", speech), linear("fusion.fc_text", text)
    units = len({name.split(".")[2] for name in weights if name.startswith("fusion.units.")})
    for unit in range(units):
        aud, asr = co_attention(f"fusion.units.{unit}", aud, asr)
    aud, asr = aud + linear("fusion.fc_aud_self", speech), asr + linear("fusion.fc_text_self", text)
    fused = linear("fusion.fc", norm("fusion.bn", torch.cat([asr, aud], dim=-1))).relu()
    expert_logits = torch.stack(
        [context("audio_self", speech), context("text_self", text), linear("fusion.fc_2", fused)], dim=1
    )
    scores = linear("gate.2", linear("gate.0", expert_logits.flatten(1)).relu())
    gate_weights = (scores / 2.0).softmax(-1)
    return {
        "logits": (gate_weights[..., None] * expert_logits).sum(1),
        "expert_logits": expert_logits,
        "gate_weights": gate_weights,
        "speech_states": aud,
        "text_states": asr,
    }


def main():
    generator = torch.Generator().manual_seed(11)
    weights = {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=generator)
        width = noise[0].numel()
        scaled = 0.2 * noise + name.endswith("weight") if width == 1 else noise / width**0.5
        weights[name] = scaled.half()
    tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
    for turns in TURNS:
        speech, text = (torch.randn(turns, EMBEDDING, generator=generator).half() for _ in range(2))
        tensors |= {f"T{turns}.speech_embeddings": speech[None], f"T{turns}.text_embeddings": text[None]}
        for name, value in compute(weights, speech.double(), text.double()).items():
            tensors[f"T{turns}.{name}"] = value[None].detach().float()
    save_file(tensors, PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
