import math
import re

import pytest
import torch
from transformers import (
    AutoModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from mister_e_hf import UtteranceEncoder
from support.encoder_checks import EVERY_PART, TUNINGS, run, small_windows
from support.tiny_backbones import (
    KINDS,
    LABELS,
    SPEECH,
    noise,
    tiny_batch,
    tiny_encoder,
    turns_of,
    write_backbone,
)

kinds = pytest.mark.parametrize("kind", KINDS)


# Training


@pytest.mark.parametrize("weights", [None, {"joy": 3.0, "anger": 0.5}])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(7)])
def test_loss_is_the_focal_loss(base, weights, gamma, num_items):
    encoder = tiny_encoder(base("bert"), "bert", class_weights=weights, focal_gamma=gamma)
    labels = torch.tensor([1, -100, 0])
    output = run(encoder, tiny_batch(base("bert"), "bert"), labels=labels, num_items_in_batch=num_items)
    total = 0.0
    for row, label in ((0, 1), (2, 0)):
        p = output.logits[row].softmax(0)[label].item()
        total += {None: 1.0, "weighted": (weights or {}).get(LABELS[label])}["weighted" if weights else None] * (
            (1 - p) ** gamma * -math.log(p)
        )
    assert output.loss.item() == pytest.approx(total / (2 if num_items is None else 7), abs=1e-6)


def test_loss_without_labels_is_zero(base):
    encoder = tiny_encoder(base("bert"), "bert")
    loss = encoder(**tiny_batch(base("bert"), "bert"), labels=torch.full((3,), -100)).loss
    loss.backward()
    assert loss.item() == 0 and encoder.head.weight.grad.abs().max() == 0


def gradients(encoder, batch) -> dict[str, torch.Tensor | None]:
    encoder.zero_grad()
    torch.manual_seed(5)
    encoder(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    return {name: parameter.grad for name, parameter in encoder.named_parameters()}


@kinds
def test_frozen_backbone_gets_no_gradient_and_stays_in_evaluation_mode(base, kind):
    encoder = tiny_encoder(base(kind), kind, layer="weighted_sum", dropout=0.0)
    batch = tiny_batch(base(kind), kind, **small_windows(kind))
    still = run(encoder, batch).logits
    encoder.train()
    assert encoder.training and not any(module.training for module in encoder.backbone.modules())
    assert torch.equal(encoder(**batch).logits, still)  # none of the backbone's dropout
    for name, gradient in gradients(encoder, batch).items():
        assert (gradient is None) == name.startswith("backbone."), name
    assert not any(parameter.requires_grad for parameter in encoder.backbone.parameters())


@kinds
def test_lora_trains_every_adapter_and_nothing_else_of_the_backbone(base, kind):
    encoder = tiny_encoder(base(kind), kind, **EVERY_PART).train()
    encoder.dropout.p = 0.0
    found = gradients(encoder, tiny_batch(base(kind), kind, **small_windows(kind)))
    lora = {name for name in found if ".lora_" in name}
    assert len(lora) >= 4
    for name, gradient in found.items():
        if name.startswith("backbone.") and name not in lora:
            assert gradient is None, name
        else:
            assert gradient is not None, name
    for name in lora:
        assert found[name].abs().max() > 0, name
    if kind == "qwen2_audio":
        assert all(name.startswith("backbone.language_model.") for name in lora)


@kinds
def test_every_adapter_changes_the_vector(base, kind):
    encoder, batch = tiny_encoder(base(kind), kind, tuning="lora"), tiny_batch(base(kind), kind, turns_of(kind)[:1])
    embedding = run(encoder, batch).embeddings
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            kept = parameter.data.clone()
            parameter.data.zero_()
            assert not torch.equal(run(encoder, batch).embeddings, embedding), name
            parameter.data.copy_(kept)


def test_lora_starts_as_the_backbone_itself(base):
    plain, adapted = (
        UtteranceEncoder.from_backbone(base("bert"), "text", tuning=tuning) for tuning in ("frozen", "lora")
    )
    for name, parameter in plain.named_parameters():
        if not name.startswith("backbone."):
            adapted.get_parameter(name).data.copy_(parameter.data)
    batch = tiny_batch(base("bert"), "bert")
    assert torch.equal(run(plain, batch).logits, run(adapted, batch).logits)


def test_lora_takes_its_settings(base):
    pattern = r".*\.(query|value)"
    encoder = tiny_encoder(
        base("bert"), "bert", tuning="lora", lora_r=3, lora_alpha=12, lora_dropout=0.25, lora_target_modules=pattern
    )
    wrapped = {n: m for n, m in encoder.backbone.named_modules() if hasattr(m, "lora_A")}
    assert set(wrapped) == {
        n for n, _ in AutoModel.from_config(encoder.config.backbone_config).named_modules() if re.fullmatch(pattern, n)
    }
    for module in wrapped.values():
        assert module.lora_A["default"].weight.shape == (3, 16)
        assert module.scaling["default"] == 4.0
        assert module.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize("pattern", [r".*\.(q_proj|k_proj)", r".*attention.*", r".*\.(out_proj|output_dense)"])
def test_lora_in_the_attention_of_wavlm_raises(base, pattern):
    with pytest.raises(ValueError, match="Target the feed-forward layers"):
        tiny_encoder(base("wavlm"), "wavlm", tuning="lora", lora_target_modules=pattern)


def test_lora_targets_without_a_match_raise(base):
    with pytest.raises(ValueError, match="matches no module of the bert backbone"):
        tiny_encoder(base("bert"), "bert", tuning="lora", lora_target_modules="q_proj")


@kinds
def test_full_tuning_reaches_every_weight_that_is_used(base, kind):
    encoder = tiny_encoder(base(kind), kind, tuning="full", layer="weighted_sum").train()
    found = gradients(encoder, tiny_batch(base(kind), kind))
    # Sinusoids are no weights; a pooler and the vector of SpecAugment are not used.
    unused = r"backbone\.(pooler\..*|masked_spec_embed|(audio_tower\.)?embed_positions\.weight)"
    for name, gradient in found.items():
        trained = not re.fullmatch(unused, name) or kind not in (*SPEECH, "bert", "roberta", "mpnet")
        assert encoder.get_parameter(name).requires_grad == trained, name
        assert (gradient is not None) == trained, name


@pytest.mark.parametrize(("kind", "tuning"), [("wavlm", "lora"), ("hubert", "full"), ("wav2vec2-group", "full")])
def test_augmentation_of_short_audio_is_off(tmp_path, kind, tuning):
    off = {name: 0.0 for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")}
    changes = {**off, "apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 30, "layerdrop": 0.9}
    folder = write_backbone(tmp_path, kind, **changes)
    batch = tiny_batch(folder, kind, [noise(0.01), noise(0.02)])
    bare = AutoModel.from_pretrained(folder).train()
    with pytest.raises(ValueError, match="mask_length"):
        bare(batch["input_values"])
    encoder = tiny_encoder(folder, kind, tuning=tuning, dropout=0.0, lora_dropout=0.0)
    still = run(encoder, batch).logits
    for _ in range(3):
        torch.testing.assert_close(run(encoder.train(), batch).logits, still, rtol=0, atol=1e-6)


CHECKPOINTED = ["wavlm", "wav2vec2-layer", "whisper", "qwen2_audio", "bert", "llama"]


@pytest.mark.parametrize(
    ("kind", "reentrant", "tuning"),
    [
        *((kind, False, "lora") for kind in CHECKPOINTED),
        # WavLM's layers return a bias, which reentrant checkpointing in transformers does not support.
        *((kind, True, "lora") for kind in CHECKPOINTED[1:]),
        ("whisper", False, "full"),
        ("bert", True, "full"),
        ("vit", False, "lora"),
        ("siglip", False, "full"),
    ],
)
def test_gradient_checkpointing_changes_no_gradient(base, kind, reentrant, tuning):
    encoder = tiny_encoder(base(kind), kind, tuning=tuning).train()
    batch = tiny_batch(base(kind), kind, **small_windows(kind))
    plain = gradients(encoder, batch)
    encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    layer = next(module for module in encoder.backbone.modules() if isinstance(module, GradientCheckpointingLayer))
    runs = []
    inside = next(module for module in layer.modules() if isinstance(module, torch.nn.LayerNorm | torch.nn.Linear))
    inside.register_forward_pre_hook(lambda *_: runs.append(1))
    again = gradients(encoder, batch)
    assert len(runs) == 2  # forward, and once more on the way back
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_step_of_training_lowers_the_loss(base):
    for kind in ("wavlm", "whisper", "bert", "llama"):
        for tuning in TUNINGS:
            encoder = tiny_encoder(base(kind), kind, tuning=tuning)
            batch = tiny_batch(base(kind), kind, **small_windows(kind)) | {"labels": torch.tensor([0, 1, 2])}
            trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=1e-2)
            before = encoder(**batch).loss
            before.backward()
            optimizer.step()
            assert run(encoder, batch).loss < before, (kind, tuning)
