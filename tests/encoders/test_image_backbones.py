"""Encoders of video: which vector a frame has, frames as positions, tuning, saving, and what is refused."""

import math

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from mister_e_hf import MisterEProcessor, UtteranceEncoder, UtteranceEncoderConfig
from support.encoder_checks import TUNINGS, assert_same, embedded, run, saved
from support.tiny_backbones import (
    CONVOLUTIONS,
    LABELS,
    PICTURES,
    SIDE,
    clip,
    tiny_batch,
    tiny_encoder,
    tiny_processor,
    turns_of,
    write_backbone,
)

pictures = pytest.mark.parametrize("kind", PICTURES)
TRANSFORMERS = [kind for kind in PICTURES if kind not in CONVOLUTIONS]
WITH_LORA = [kind for kind in PICTURES if kind != "mobilenet_v2"]


def frames_of(folder, turn) -> torch.Tensor:
    """The frames as transformers' own processor prepares them."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(list(turn), return_tensors="pt").pixel_values


def own_output(folder, kind, turn):
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.vision_model if kind in ("clip", "siglip") else model
    with torch.no_grad():
        return model(frames_of(folder, turn), output_hidden_states=True)


def own_vectors(folder, kind, turn) -> list[torch.Tensor]:
    """The vector of each frame (K, H) at every layer, from transformers' own forward."""
    output = own_output(folder, kind, turn)
    if kind in CONVOLUTIONS:
        return [output.last_hidden_state.mean((2, 3))]
    if kind.startswith("siglip"):
        return [*(state.mean(1) for state in output.hidden_states[:-1]), output.pooler_output]
    last = output.pooler_output if kind.startswith("clip") else output.last_hidden_state[:, 0]
    return [*(state[:, 0] for state in output.hidden_states[:-1]), last]


# One turn, one vector


@pictures
@pytest.mark.parametrize("pooling", ["mean", "attentive_statistics"])
def test_a_turn_alone_and_in_any_batch(base, kind, pooling):
    layer = None if kind in CONVOLUTIONS else "weighted_sum"
    encoder = tiny_encoder(base(kind), kind, pooling=pooling, layer=layer).double()
    turns = turns_of(kind)
    alone = [run(encoder, tiny_batch(base(kind), kind, [turn])).embeddings[0] for turn in turns]
    for order in ([0, 1, 2], [2, 1, 0], [1, 1], [2]):
        together = run(encoder, tiny_batch(base(kind), kind, [turns[number] for number in order])).embeddings
        for row, number in enumerate(order):
            torch.testing.assert_close(together[row], alone[number], rtol=0, atol=1e-10)
    assert torch.pdist(torch.stack(alone)).min() > 0.01  # not one vector for all


@pictures
@pytest.mark.parametrize("content", [math.nan, 7.0])
def test_what_padding_frames_hold_changes_nothing(base, kind, content):
    encoder, batch = tiny_encoder(base(kind), kind), tiny_batch(base(kind), kind)
    expected = run(encoder, batch).embeddings
    longer = torch.full((3, 9, 3, SIDE, SIDE), content)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, count in enumerate(batch["attention_mask"].sum(1).tolist()):
        longer[row, :count], mask[row, :count] = batch["pixel_values"][row, :count], True
    torch.testing.assert_close(
        run(encoder, {"pixel_values": longer, "attention_mask": mask}).embeddings, expected, rtol=0, atol=1e-6
    )


@pictures
def test_without_a_mask_every_frame_is_real(base, kind):
    encoder, batch = tiny_encoder(base(kind), kind), tiny_batch(base(kind), kind, [clip(3)])
    without = run(encoder, {"pixel_values": batch["pixel_values"]}).embeddings
    assert torch.equal(without, run(encoder, batch).embeddings)


@pictures
def test_frames_run_together_or_in_parts_give_the_same_vector(base, kind, monkeypatch):
    encoder, batch = tiny_encoder(base(kind), kind, tuning="full").double(), tiny_batch(base(kind), kind)
    together = encoder(**batch).embeddings  # with a gradient, all at once
    monkeypatch.setattr("mister_e_hf.encoders.image_backbones._AT_ONCE", 2)
    torch.testing.assert_close(run(encoder, batch).embeddings, together.detach(), rtol=0, atol=1e-9)


@pictures
@pytest.mark.parametrize("pooling", ["mean", "attentive_statistics"])
def test_a_clip_that_does_not_change_has_the_vector_of_its_frame(base, kind, pooling):
    encoder = tiny_encoder(base(kind), kind, pooling=pooling)
    frame = clip(1, 5)
    still, single = run(encoder, tiny_batch(base(kind), kind, [frame.repeat(6, axis=0), frame])).embeddings
    torch.testing.assert_close(still, single, rtol=0, atol=1e-5)
    if pooling == "attentive_statistics":
        states = []
        encoder.pooling.register_forward_hook(lambda module, inputs, output: states.append(output))
        run(encoder, tiny_batch(base(kind), kind, [frame.repeat(6, axis=0)]))
        # Its standard deviation is 0, raised to the floor that keeps gradients finite.
        torch.testing.assert_close(states[0][0, states[0].shape[1] // 2 :].max().item(), 1e-3, rtol=0, atol=1e-6)


# Which vector a frame has


@pictures
def test_a_layer_equals_that_of_the_transformers_model(base, kind):
    turn = turns_of(kind)[0]
    vectors, batch = own_vectors(base(kind), kind, turn), tiny_batch(base(kind), kind, [turn])
    assert len(vectors) == (1 if kind in CONVOLUTIONS else 3)
    for layer in (None, *range(-len(vectors), len(vectors))):
        encoder = tiny_encoder(base(kind), kind, layer=layer)
        expected = embedded(encoder, vectors[-1 if layer is None else layer])
        torch.testing.assert_close(run(encoder, batch).embeddings[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_weighted_sum_is_a_convex_combination_of_all_layers(base, kind):
    turn = turns_of(kind)[2]
    encoder = tiny_encoder(base(kind), kind, layer="weighted_sum", pooling="attentive_statistics")
    weights = encoder.layer_weights.detach().softmax(0)
    states = sum(w * state for w, state in zip(weights, own_vectors(base(kind), kind, turn), strict=True))
    embedding = run(encoder, tiny_batch(base(kind), kind, [turn])).embeddings[0]
    torch.testing.assert_close(embedding, embedded(encoder, states), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_layers_of_several_widths_are_refused(base, kind):
    with pytest.raises(ValueError, match=f"needs layers of one width, which a {kind} backbone does not have"):
        tiny_encoder(base(kind), kind, layer="weighted_sum")
    with pytest.raises(ValueError, match="layer 1 is not one of the backbone's 1 hidden states"):
        tiny_encoder(base(kind), kind, layer=1)


def test_the_last_frame_is_not_a_pooling(base):
    with pytest.raises(StrictDataclassError, match="pooling='last_token' is for text and speech"):
        tiny_encoder(base("vit"), "vit", pooling="last_token")
    UtteranceEncoderConfig(modality="text", pooling="last_token")


def test_of_a_model_of_pictures_and_text_only_what_sees_is_kept(base):
    encoder = tiny_encoder(base("clip"), "clip")
    assert type(encoder.backbone).__name__ == "CLIPVisionModel"
    assert encoder.config.backbone_config.model_type == "clip_vision_model"
    whole = AutoModel.from_pretrained(base("clip")).vision_model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in encoder.backbone.state_dict().items())


# Tuning


@pictures
def test_a_frozen_backbone_stays_as_it_is(base, kind):
    encoder, batch = tiny_encoder(base(kind), kind, dropout=0.0), tiny_batch(base(kind), kind)
    still = run(encoder, batch).logits
    encoder.train()
    assert not any(module.training for module in encoder.backbone.modules())
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    output = encoder(**batch, labels=torch.tensor([0, 1, 2]))
    output.loss.backward()
    assert torch.equal(output.logits, still)
    assert all(torch.equal(value, before[name]) for name, value in encoder.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())


@pytest.mark.parametrize("kind", WITH_LORA)
def test_lora_trains_every_adapter_and_nothing_else_of_the_backbone(base, kind):
    encoder = tiny_encoder(base(kind), kind, tuning="lora").train()
    encoder(**tiny_batch(base(kind), kind)).embeddings.square().sum().backward()
    found = {name: parameter.grad for name, parameter in encoder.backbone.named_parameters()}
    lora = [name for name in found if ".lora_" in name]
    assert len(lora) >= 8 and all(found[name].abs().max() > 0 for name in lora)
    assert all(found[name] is None for name in found if name not in lora)


def test_lora_in_convolutions_that_do_not_take_it_is_refused(base):
    with pytest.raises(ValueError, match="which LoRA's layers do not have. Choose tuning 'full' or 'frozen'"):
        tiny_encoder(base("mobilenet_v2"), "mobilenet_v2", tuning="lora")


@pictures
def test_full_tuning_reaches_every_weight_that_is_used(base, kind):
    layer = None if kind in CONVOLUTIONS else "weighted_sum"
    encoder = tiny_encoder(base(kind), kind, tuning="full", layer=layer).train()
    encoder(**tiny_batch(base(kind), kind)).embeddings.square().sum().backward()
    for name, parameter in encoder.backbone.named_parameters():
        used = not name.startswith("pooler.") and name != "embeddings.mask_token"
        assert parameter.requires_grad == used and (parameter.grad is not None) == used, name


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_batch_norm_keeps_its_statistics_in_training(base, kind):
    encoder, turns = tiny_encoder(base(kind), kind, tuning="full", dropout=0.0).train(), turns_of(kind)
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    with torch.no_grad():
        together = encoder(**tiny_batch(base(kind), kind, turns)).embeddings
        alone = torch.cat([encoder(**tiny_batch(base(kind), kind, [turn])).embeddings for turn in turns])
    # MobileNetV2 has dropout in its classifier alone, which is not here.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


# Saving


@pictures
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_saved_encoder_is_loaded_bit_equal(base, tmp_path, kind, tuning):
    if tuning == "lora" and kind == "mobilenet_v2":
        tuning = "frozen"
    pooling = "attentive_statistics"
    encoder = tiny_encoder(base(kind), kind, tuning=tuning, pooling=pooling)
    processor = tiny_processor(base(kind), kind, num_frames=3)
    processor.save_pretrained(saved(encoder, tmp_path))
    assert_same(UtteranceEncoder.from_pretrained(tmp_path), encoder, tiny_batch(base(kind), kind))
    loaded = MisterEProcessor.from_pretrained(tmp_path)
    assert repr(loaded) == repr(processor) and loaded.num_frames == 3
    for name, value in loaded(turns_of(kind)).items():
        assert torch.equal(value, processor(turns_of(kind))[name])


def test_an_adapter_fits_the_tower_that_transformers_loads(base, tmp_path):
    import peft

    encoder = tiny_encoder(base("clip"), "clip", tuning="lora")
    encoder.save_pretrained(tmp_path)
    tower = transformers.CLIPVisionModel.from_pretrained(base("clip"))
    adapted = peft.PeftModel.from_pretrained(tower, tmp_path / "adapter").eval()
    batch = tiny_batch(base("clip"), "clip", [clip(2)])
    with torch.no_grad():
        expected = adapted(pixel_values=batch["pixel_values"][0]).pooler_output
    torch.testing.assert_close(run(encoder, batch).embeddings[0], embedded(encoder, expected), rtol=0, atol=1e-5)


# What is refused


def test_pixels_of_another_shape_raise(base):
    encoder = tiny_encoder(base("vit"), "vit")
    with pytest.raises(ValueError, match=r"pixel_values must have the shape \(turns, frames, 3, height, width\)"):
        encoder(pixel_values=torch.zeros(2, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match=r"Turns \[1\] of the batch have no position to pool"):
        encoder(pixel_values=torch.zeros(2, 1, 3, SIDE, SIDE), attention_mask=torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="A vit encoder of visual takes"):
        encoder(input_ids=torch.zeros(2, 3, dtype=torch.long))


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OTHERS = {
    "taken: one class token more": (
        lambda: transformers.DeiTConfig(**SIZES, image_size=16, patch_size=8),
        None,
    ),
    "taken: a convolutional network": (
        lambda: transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        None,
    ),
    "text": (lambda: transformers.BertConfig(**SIZES, vocab_size=330), "it takes input_ids, not pixel_values"),
    "masked at random": (
        lambda: transformers.ViTMAEConfig(**SIZES, image_size=16, patch_size=8),
        "changes its states by|the states of one sample have the shapes",
    ),
    "patches of any size": (
        lambda: transformers.Siglip2VisionConfig(**SIZES, num_patches=4, patch_size=8),
        "google/siglip2-base-patch16-224, are of the type siglip",
    ),
    "layers of several widths": (
        lambda: transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2),
        "expected|num_hidden_layers",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_any_other_backbone_is_tried_or_refused(tmp_path, case):
    config, message = OTHERS[case]
    torch.manual_seed(0)
    model = AutoModel.from_config(config())
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)

    def make():
        return UtteranceEncoder.from_backbone(tmp_path, "visual", id2label=LABELS, tuning="frozen", embedding_dim=4)

    if message is None:
        assert run(make(), {"pixel_values": torch.rand(2, 3, 3, SIDE, SIDE)}).embeddings.isfinite().all()
    else:
        with pytest.raises(ValueError, match=message):
            make()


def test_a_fingerprint_depends_on_what_a_backbone_computes(tmp_path):
    folder, found = write_backbone(tmp_path / "base", "vit"), set()
    for size, patch in ((16, 8), (16, 16), (32, 8)):
        config = AutoConfig.from_pretrained(folder, image_size=size, patch_size=patch)
        encoder = tiny_encoder(folder, "vit", tuning="frozen")
        encoder.config.backbone_config = config
        found.add(encoder.fingerprint())
    assert len(found) == 3


# The processor


def test_frames_are_prepared_as_transformers_does(base):
    turn = clip(3, 9, 33, 47)
    batch = tiny_batch(base("vit"), "vit", [turn, clip(1)])
    assert batch["pixel_values"].shape == (2, 3, 3, SIDE, SIDE)
    assert torch.equal(batch["pixel_values"][0], frames_of(base("vit"), turn))
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False]]


def test_frames_of_three_pixels_height_keep_their_axes(base):
    turn = clip(2, 1, height=3, width=7)
    expected = AutoImageProcessor.from_pretrained(base("vit"), backend="pil")(
        list(turn.transpose(0, 3, 1, 2)), return_tensors="pt", input_data_format="channels_first"
    ).pixel_values
    assert torch.equal(tiny_batch(base("vit"), "vit", [turn])["pixel_values"][0], expected)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (np.zeros((2, 8, 8, 3)), "in uint8, got float64"),
        (np.zeros((2, 8, 8), dtype=np.uint8), r"got uint8 of shape \(2, 8, 8\)"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), r"got uint8 of shape \(0, 8, 8, 3\)"),
        (None, "Turn 1 of the batch has no video"),
    ],
)
def test_what_is_not_frames_raises(base, turn, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor(base("vit"), "vit")([clip(1), turn])


def test_pictures_of_several_sizes_are_not_mixed(base, tmp_path):
    processor = MisterEProcessor.from_backbone(base("vit"), "visual")
    processor.image_processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False)
    with pytest.raises(ValueError, match="makes pictures of different sizes"):
        processor([clip(1, height=20, width=30), clip(1, height=30, width=20)])


def test_the_number_of_frames_must_be_positive(base):
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        MisterEProcessor.from_backbone(base("vit"), "visual", num_frames=0)


def test_a_turn_costs_its_frames(base):
    assert tiny_processor(base("vit"), "vit", num_frames=5).sizes([1.0, 1.0]) == [5.0, 5.0]
