import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    Wav2Vec2Config,
    WavLMConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from mister_e_hf import UtteranceEncoder, UtteranceEncoderConfig
from mister_e_hf.encoders.adapters import lora_targets
from mister_e_hf.encoders.pooling import UtterancePooling
from support.loopback_hub import loopback_hub
from support.tiny_backbones import (
    KINDS,
    LABELS,
    SPEECH,
    TEXT,
    TOKENS,
    WAVES,
    modality_of,
    noise,
    tiny_batch,
    tiny_encoder,
    turns_of,
    write_backbone,
)

TUNINGS = ["frozen", "lora", "full"]
POOLINGS = ["mean", "attentive_statistics", "last_token"]
OWN_PARTS = {"layer_weights", "norm", "pooling", "projection", "head"}
SHORT = {"tuning": "lora", "layer": "weighted_sum", "pooling": "attentive_statistics"}
kinds = pytest.mark.parametrize("kind", KINDS)
tunings = pytest.mark.parametrize("tuning", TUNINGS)
poolings = pytest.mark.parametrize("pooling", POOLINGS)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a pretrained model of a kind, made once; nothing writes to it."""
    folders = {}

    def made(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_backbone(tmp_path_factory.mktemp("base"), kind)
        return folders[kind]

    return made


def run(encoder, batch, **changes):
    with torch.no_grad():
        return encoder(**{**batch, **changes})


def own_states(folder: Path, kind: str, turn) -> list[torch.Tensor]:
    """Hidden states (P, H) at one utterance's own positions, from transformers' own forward; the output in the last place."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    own = slice(None)
    if kind in TEXT:
        inputs = AutoTokenizer.from_pretrained(folder)(turn, return_tensors="pt")
        inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    else:
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        inputs = extractor(turn, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        inputs = {"input_values": inputs["input_values"]} if kind in WAVES else dict(inputs)
    if kind == "whisper":
        model = model.get_encoder()
        frames = int(inputs.pop("attention_mask").sum())
        own = slice(math.ceil(frames / 2))
    if kind == "qwen2_audio":
        mask = inputs.pop("attention_mask")
        count = (int(mask.sum() - 1) // 2 + 1 - 2) // 2 + 1
        names = ["<s>", "<|audio_bos|>", *["<|AUDIO|>"] * count, "<|audio_eos|>", "</s>"]
        ids = torch.tensor([[TOKENS.index(name) for name in names]])
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "feature_attention_mask": mask}
        own = slice(2, 2 + count)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    states = output.hidden_states if hasattr(output, "hidden_states") else output.encoder_hidden_states
    return [layer[0, own] for layer in (*states[:-1], output.last_hidden_state)]


def pooled(encoder, states: torch.Tensor) -> torch.Tensor:
    """One utterance's states (P, H) -> what its pooling must give, by the textbook."""
    if encoder.config.pooling == "mean":
        return states.mean(0)
    if encoder.config.pooling == "last_token":
        return states[-1]
    hidden, score = encoder.pooling.hidden, encoder.pooling.score
    weights = ((states @ hidden.weight.T + hidden.bias).tanh() @ score.weight.T + score.bias).softmax(0)
    mean = (weights * states).sum(0)
    return torch.cat([mean, ((weights * states**2).sum(0) - mean**2).clamp(min=1e-6).sqrt()])


def embedded(encoder, states: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder.projection(pooled(encoder, encoder.norm(states)))


def small_windows(kind: str) -> dict:
    """Settings of a processor that cuts the utterances into windows, and lets Whisper hear less than 30 seconds."""
    return ({"window_seconds": 0.2} if kind in SPEECH else {}) | (
        {"trailing_silence": 0.1} if kind == "whisper" else {}
    )


# One utterance, one vector


BATCHES = {"all": [0, 1, 2], "turned round": [2, 1, 0], "one twice": [1, 2, 1], "two": [0, 2]}


@kinds
@poolings
def test_what_an_utterance_is_batched_with_changes_nothing(base, kind, pooling):
    encoder = tiny_encoder(base(kind), kind, pooling=pooling, layer="weighted_sum").double()
    turns, settings = turns_of(kind), small_windows(kind)
    alone = [run(encoder, tiny_batch(base(kind), kind, [turn], **settings)) for turn in turns]
    # Root mean square norms and rotary positions are computed in float32, whatever the model is.
    tolerance = 1e-5 if kind in ("llama", "qwen2", "qwen2_audio") else 1e-10
    for name, order in BATCHES.items():
        together = run(encoder, tiny_batch(base(kind), kind, [turns[number] for number in order], **settings))
        for row, number in enumerate(order):
            for field in ("embeddings", "logits"):
                torch.testing.assert_close(
                    together[field][row],
                    alone[number][field][0],
                    rtol=0,
                    atol=tolerance,
                    msg=lambda m, n=name, f=field: f"{n}, {f}: {m}",
                )
    embeddings = torch.cat([output.embeddings for output in alone])
    assert torch.pdist(embeddings).min() > 0.01  # not one vector for all


@kinds
def test_padding_changes_nothing_in_float32(base, kind):
    encoder = tiny_encoder(base(kind), kind, **SHORT)
    turns = turns_of(kind)
    together = run(encoder, tiny_batch(base(kind), kind, turns)).embeddings
    alone = torch.cat([run(encoder, tiny_batch(base(kind), kind, [turn])).embeddings for turn in turns])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@kinds
@pytest.mark.parametrize("content", [0.0, math.nan, math.inf, -3.0])
def test_what_padding_holds_changes_nothing(base, kind, content):
    encoder = tiny_encoder(base(kind), kind, layer="weighted_sum")
    batch = tiny_batch(base(kind), kind, **small_windows(kind))
    expected = run(encoder, batch).embeddings
    longer = {}
    for name, values in batch.items():
        more = 0 if name == "utterance_index" else 6
        longer[name] = F.pad(values, (0, more), value=1 if name == "input_ids" else 0)
    if kind in WAVES:
        longer["input_values"].masked_fill_(~longer["attention_mask"], content)
    if "input_features" in batch:
        # Two frames behind the last one that is attended to are heard by its convolutions: they are silence, not padding.
        real = longer["feature_attention_mask" if kind == "qwen2_audio" else "attention_mask"].clone()
        real[:, 2:] |= real[:, :-2].clone()
        longer["input_features"].masked_fill_(~real[:, None], content)
    if "input_ids" in batch:
        longer["input_ids"].masked_fill_(~longer["attention_mask"], 7)
    assert longer["attention_mask"].logical_not().any(1).all()
    torch.testing.assert_close(run(encoder, longer).embeddings, expected, rtol=0, atol=1e-6)


def test_padding_changes_no_gradient(base):
    for kind in ("wavlm", "wav2vec2-group", "roberta"):
        encoder = tiny_encoder(base(kind), kind, tuning="full", layer="weighted_sum").double()
        gradients = []
        for groups in ([turns_of(kind)], [[turn] for turn in turns_of(kind)]):
            encoder.zero_grad()
            for turns in groups:
                encoder(**tiny_batch(base(kind), kind, turns)).logits.square().sum().backward()
            gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
        for name, gradient in gradients[0].items():
            if gradient is not None:
                torch.testing.assert_close(
                    gradients[1][name], gradient, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("kind", SPEECH)
@pytest.mark.parametrize("seconds", [1 / 16_000, 0.001, 0.02])
def test_a_sound_shorter_than_a_frame_has_a_vector(base, kind, seconds):
    encoder = tiny_encoder(base(kind), kind, pooling="attentive_statistics")
    embeddings = run(encoder, tiny_batch(base(kind), kind, [noise(seconds), noise(0.2)])).embeddings
    alone = run(encoder, tiny_batch(base(kind), kind, [noise(seconds)])).embeddings
    assert embeddings.isfinite().all()
    torch.testing.assert_close(embeddings[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["hubert", "whisper", "qwen2_audio", "bert", "llama"])
def test_attention_by_the_textbook_gives_the_same(base, kind):
    batch = tiny_batch(base(kind), kind, **small_windows(kind))
    encoders = [
        tiny_encoder(base(kind), kind, backbone_options={"attn_implementation": name}) for name in ("sdpa", "eager")
    ]
    assert encoders[1].backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(
        run(encoders[0], batch).embeddings, run(encoders[1], batch).embeddings, rtol=0, atol=1e-5
    )


# Which states


@kinds
@pytest.mark.parametrize("layer", [None, 0, 1, 2, -2, -3])
def test_layer_is_that_of_transformers_own_forward(base, kind, layer):
    """Of Whisper on its full window, of Qwen2-Audio on 3000 frames of which fewer are computed here."""
    turn = turns_of(kind)[1]
    encoder = tiny_encoder(base(kind), kind, layer=layer)
    states = own_states(base(kind), kind, turn)
    assert len(states) == 3
    batch = tiny_batch(base(kind), kind, [turn])
    if kind == "qwen2_audio":
        assert batch["input_features"].shape[-1] < 100
    expected = embedded(encoder, states[-1 if layer is None else layer])
    torch.testing.assert_close(run(encoder, batch).embeddings[0], expected, rtol=0, atol=1e-5)


@kinds
def test_weighted_sum_is_a_convex_combination_of_all_layers(base, kind):
    turn = turns_of(kind)[0]
    encoder = tiny_encoder(base(kind), kind, layer="weighted_sum")
    weights = encoder.layer_weights.detach().exp() / encoder.layer_weights.detach().exp().sum()
    states = sum(weight * state for weight, state in zip(weights, own_states(base(kind), kind, turn), strict=True))
    embedding = run(encoder, tiny_batch(base(kind), kind, [turn])).embeddings[0]
    torch.testing.assert_close(embedding, embedded(encoder, states), rtol=0, atol=1e-5)


def test_weighted_sum_starts_even(base):
    encoder = UtteranceEncoder.from_backbone(base("bert"), "text", tuning="frozen", layer="weighted_sum")
    assert torch.equal(encoder.layer_weights, torch.zeros(3))


def test_only_the_layers_that_are_needed_of_whisper_are_run(base):
    encoder = tiny_encoder(base("whisper"), "whisper", layer=1)
    encoder.backbone.layers[1].register_forward_hook(lambda *_: pytest.fail("the second layer was run"))
    run(encoder, tiny_batch(base("whisper"), "whisper", [noise(0.1)]))


@pytest.mark.parametrize("layer", [3, -4])
def test_layer_that_is_not_there_is_refused(base, layer):
    with pytest.raises(ValueError, match=f"layer {layer} is none of the backbone's 3 hidden states"):
        UtteranceEncoder.from_backbone(base("bert"), "text", layer=layer)


def test_trailing_silence_is_heard_and_not_pooled(base):
    encoder = tiny_encoder(base("whisper"), "whisper")
    turns = [noise(0.3), noise(0.07, 1)]
    vectors = {}
    for silence in (0.0, 0.1, 29.0, None):
        vectors[silence] = run(
            encoder, tiny_batch(base("whisper"), "whisper", turns, trailing_silence=silence)
        ).embeddings
        for row, turn in enumerate(turns):
            alone = tiny_batch(base("whisper"), "whisper", [turn], trailing_silence=silence)
            torch.testing.assert_close(run(encoder, alone).embeddings[0], vectors[silence][row], rtol=0, atol=1e-5)
    assert (vectors[0.0] - vectors[0.1]).abs().max() > 1e-4
    # More silence than the window holds is the whole window.
    whole = run(encoder, tiny_batch(base("whisper"), "whisper", turns, trailing_silence=30.0)).embeddings
    torch.testing.assert_close(whole, vectors[None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", TEXT)
def test_prompt_is_read_but_not_pooled(base, kind):
    encoder = tiny_encoder(base(kind), kind)
    before, text, after = "What does he feel? {", "no way", "} It is:"
    batch = tiny_batch(base(kind), kind, [text, "you"], prompt=before + "{text}" + after)
    tokenizer = AutoTokenizer.from_pretrained(base(kind))
    encoded = tokenizer(before + text + after, return_offsets_mapping=True)
    own = [
        start < end and len(before) < end and start < len(before + text) for start, end in encoded["offset_mapping"]
    ]
    assert 0 < sum(own) < len(own) - 2
    states = own_states(base(kind), kind, before + text + after)[-1]
    expected = embedded(encoder, states[torch.tensor(own)])
    embedding = run(encoder, batch).embeddings[0]
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-5)
    assert (embedding - run(encoder, tiny_batch(base(kind), kind, [text])).embeddings[0]).abs().max() > 1e-4


def test_prompt_of_a_model_of_speech_and_language_is_read_but_not_pooled(base):
    kind = "qwen2_audio"
    encoder = tiny_encoder(base(kind), kind)
    batch = tiny_batch(base(kind), kind, prompt='{"a": "<|audio_bos|>{audio}<|audio_eos|>"} said she')
    states = []
    encoder.norm.register_forward_hook(lambda module, arguments, output: states.append(output))
    embeddings = run(encoder, batch).embeddings
    counts = (batch["input_ids"] == TOKENS.index("<|AUDIO|>")).sum(1).tolist()
    assert len(states[0]) == sum(counts)
    for row, own in enumerate(states[0].split(counts)):
        torch.testing.assert_close(embeddings[row], encoder.projection(own.mean(0)), rtol=0, atol=1e-5)
    plain = run(encoder, tiny_batch(base(kind), kind)).embeddings
    assert (embeddings - plain).abs().max() > 1e-4


# Pooling


@poolings
def test_pooling_is_that_of_the_textbook_utterance_by_utterance(pooling):
    torch.manual_seed(0)
    config = UtteranceEncoderConfig(pooling=pooling, pooling_dim=4)
    module = UtterancePooling(config, 3).double()
    lengths = [5, 1, 7, 2]
    states = (3 * torch.randn(sum(lengths), 3, dtype=torch.float64)).requires_grad_()
    utterance = torch.arange(4).repeat_interleave(torch.tensor(lengths))
    holder = torch.nn.Module()
    holder.config, holder.pooling = config, module
    expected = torch.stack([pooled(holder, own) for own in states.split(lengths)])
    torch.testing.assert_close(module(states, utterance, 4), expected, rtol=0, atol=1e-10)
    assert module.output_width == expected.shape[1]
    assert torch.autograd.gradcheck(lambda values: module(values, utterance, 4), states)


def test_attentive_statistics_stand_any_score():
    module = UtterancePooling(UtteranceEncoderConfig(pooling="attentive_statistics", pooling_dim=4), 3)
    module.score.weight.data.fill_(1e4)
    states = torch.randn(6, 3).requires_grad_()
    output = module(states, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    output.sum().backward()
    assert output.isfinite().all() and states.grad.isfinite().all()


@poolings
def test_pooling_counts_in_float32_whatever_it_is_given(pooling):
    torch.manual_seed(0)
    module = UtterancePooling(UtteranceEncoderConfig(pooling=pooling, pooling_dim=4), 3)
    states = torch.full((1500, 3), 1.1) + 1e-3 * torch.randn(1500, 3)
    utterance = torch.zeros(1500, dtype=torch.long)
    expected = module(states, utterance, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(states, utterance, 1)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-4)
    half = module.bfloat16()(states.bfloat16(), utterance, 1)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", SPEECH)
@poolings
def test_windows_pool_as_one_row_of_their_positions(base, kind, pooling):
    encoder = tiny_encoder(base(kind), kind, pooling=pooling)
    long, short = noise(0.5), noise(0.15, 1)
    batch = tiny_batch(base(kind), kind, [long, short], window_seconds=0.2)
    assert batch["utterance_index"].tolist() == [0, 0, 0, 1]
    windows = [long[:2667], long[2667:5334], long[5334:]]  # as even as they go
    expected = [
        embedded(encoder, torch.cat([own_states(base(kind), kind, window)[-1] for window in windows])),
        embedded(encoder, own_states(base(kind), kind, short)[-1]),
    ]
    torch.testing.assert_close(run(encoder, batch).embeddings, torch.stack(expected), rtol=0, atol=1e-5)


# What goes in


def test_inputs_of_another_kind_are_refused(base):
    encoders = {kind: tiny_encoder(base(kind), kind) for kind in ("bert", "wavlm", "whisper", "qwen2_audio")}
    batches = {kind: tiny_batch(base(kind), kind) for kind in encoders}
    for kind, encoder in encoders.items():
        for other, batch in batches.items():
            if other != kind:
                with pytest.raises(ValueError, match=f"A {kind} encoder of .* takes"):
                    encoder(**batch)


@pytest.mark.parametrize("index", [[0, 2, 2], [1, 1, 2], [0, 1, 0]])
def test_utterance_index_must_number_the_utterances(base, index):
    encoder = tiny_encoder(base("bert"), "bert")
    with pytest.raises(ValueError, match="utterance_index must ascend from 0 without gaps"):
        encoder(**tiny_batch(base("bert"), "bert"), utterance_index=torch.tensor(index))


def test_an_utterance_without_a_position_is_refused(base):
    encoder = tiny_encoder(base("bert"), "bert")
    batch = tiny_batch(base("bert"), "bert")
    batch["pooling_mask"][1] = False
    with pytest.raises(ValueError, match=r"Utterances \[1\] of the batch have no position to pool"):
        encoder(**batch)


def test_masks_left_out_stand_for_everything_real(base):
    for kind in ("bert", "wav2vec2-layer", "whisper", "qwen2_audio"):
        encoder = tiny_encoder(base(kind), kind)
        turn = noise(30.0) if kind in ("whisper", "qwen2_audio") else turns_of(kind)[0]
        batch = tiny_batch(base(kind), kind, [turn])
        if kind == "qwen2_audio":
            batch = {name: value[..., :3000] for name, value in batch.items()}
        inputs = {name: value for name, value in batch.items() if name.startswith("input_")}
        torch.testing.assert_close(run(encoder, inputs).embeddings, run(encoder, batch).embeddings, rtol=0, atol=1e-6)


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


def test_nothing_labelled_gives_a_loss_of_zero(base):
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
    encoder = tiny_encoder(base(kind), kind, **SHORT).train()
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
def test_lora_that_wavlm_would_not_notice_is_refused(base, pattern):
    with pytest.raises(ValueError, match="Target the feed-forward layers"):
        tiny_encoder(base("wavlm"), "wavlm", tuning="lora", lora_target_modules=pattern)


def test_lora_that_reaches_nothing_is_refused(base):
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


@pytest.mark.parametrize("kind", ["wavlm", "hubert", "wav2vec2-group"])
@tunings
def test_augmentation_that_a_short_sound_cannot_take_is_off(tmp_path, kind, tuning):
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


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(
    ("kind", "reentrant"),
    # WavLM's layers hand on a bias, which no reentrant checkpoint of transformers can stand.
    [*((kind, False) for kind in CHECKPOINTED), *((kind, True) for kind in CHECKPOINTED[1:])],
)
def test_gradient_checkpointing_changes_no_gradient(base, kind, tuning, reentrant):
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


# Saving and loading


def saved(encoder, folder: Path) -> Path:
    encoder.save_pretrained(folder)
    return folder


def assert_same(loaded, encoder, batch):
    assert type(loaded) is UtteranceEncoder and not loaded.training
    state, expected = loaded.state_dict(), encoder.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    for name, parameter in encoder.named_parameters():
        assert loaded.get_parameter(name).requires_grad == parameter.requires_grad, name
    output, wanted = run(loaded, batch), run(encoder, batch)
    assert torch.equal(output.logits, wanted.logits) and torch.equal(output.embeddings, wanted.embeddings)
    assert loaded.fingerprint() == encoder.fingerprint()


@kinds
@tunings
def test_an_encoder_comes_back_bit_for_bit(base, kind, tuning, tmp_path):
    encoder = tiny_encoder(base(kind), kind, **{**SHORT, "tuning": tuning})
    folder, batch = saved(encoder, tmp_path / "encoder"), tiny_batch(base(kind), kind, **small_windows(kind))
    for loader in (UtteranceEncoder, AutoModel):
        loaded = loader.from_pretrained(folder)
        assert_same(loaded, encoder, batch)
    again = saved(loaded, tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for path in files:
        same = (folder / path).read_bytes() == (again / path).read_bytes()
        assert same, path


@pytest.mark.parametrize("kind", ["wav2vec2-group", "wavlm", "whisper", "qwen2_audio", "bert", "llama"])
@tunings
def test_a_backbone_of_half_precision_works_and_comes_back_as_such(base, kind, tuning, tmp_path):
    options = {"dtype": torch.bfloat16}
    encoder = tiny_encoder(base(kind), kind, **{**SHORT, "tuning": tuning}, backbone_options=options)
    batch = tiny_batch(base(kind), kind, **small_windows(kind))
    for name, parameter in encoder.named_parameters():
        half = name.startswith("backbone.") and "lora_" not in name
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
    output = run(encoder, batch)
    assert output.embeddings.dtype == torch.float32
    encoder.train()(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    encoder.eval()
    folder = saved(encoder, tmp_path / "encoder")
    assert_same(AutoModel.from_pretrained(folder), encoder, batch)
    exact = tiny_encoder(base(kind), kind, **{**SHORT, "tuning": tuning})
    torch.testing.assert_close(output.embeddings, run(exact, batch).embeddings, rtol=0, atol=0.15)
    whole = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    half = AutoModel.from_pretrained(folder, dtype="bfloat16")
    assert {p.dtype for n, p in half.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert run(half, batch).logits.dtype == torch.bfloat16


def test_a_checkpoint_of_half_precision_is_trained_in_float32_by_default(tmp_path):
    folder = write_backbone(tmp_path, "bert", dtype=torch.float16)
    assert next(tiny_encoder(folder, "bert", tuning="full").backbone.parameters()).dtype == torch.float32


@kinds
def test_files_hold_what_was_trained_alone(base, kind, tmp_path):
    # As the pretrained model's own file names its weights, whatever transformers calls them in memory.
    whole = {
        f"backbone.{name.removeprefix('encoder.') if kind == 'whisper' else name}"
        for name in load_file(base(kind) / "model.safetensors")
        if not name.startswith("decoder.")
    }
    for tuning in TUNINGS:
        for save_backbone in (False, True):
            settings = {**SHORT, "tuning": tuning, "save_backbone": save_backbone}
            encoder = tiny_encoder(base(kind), kind, **settings)
            folder = saved(encoder, tmp_path / f"{tuning}-{save_backbone}")
            stored = load_file(folder / "model.safetensors")
            own = {name for name in stored if name.split(".")[0] in OWN_PARTS}
            assert {name.split(".")[0] for name in own} == OWN_PARTS
            assert set(stored) - own == (whole if tuning == "full" or save_backbone else set())
            size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
            assert (folder / "model.safetensors").stat().st_size < size + 150 * len(stored)
            assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".py", ".safetensors"}
            assert (folder / "adapter").is_dir() == (tuning == "lora")
            assert not (folder / "adapter_config.json").exists()  # transformers would take it for the whole model
            if tuning == "lora":
                adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
                wrapped = [name for name, module in encoder.backbone.named_modules() if hasattr(module, "lora_A")]
                prefix = "base_model.model." + ("encoder." if kind == "whisper" else "")
                assert set(adapter) == {f"{prefix}{name}.lora_{part}.weight" for name in wrapped for part in "AB"}


@tunings
@pytest.mark.parametrize("kind", ["wavlm", "whisper", "llama"])
def test_a_checkpoint_that_holds_the_backbone_needs_no_other(tmp_path, kind, tuning):
    folder = write_backbone(tmp_path / "base", kind)
    encoder = tiny_encoder(folder, kind, **{**SHORT, "tuning": tuning}, save_backbone=True)
    batch = tiny_batch(folder, kind)
    saved(encoder, tmp_path / "encoder")
    shutil.rmtree(folder)
    assert_same(AutoModel.from_pretrained(tmp_path / "encoder"), encoder, batch)


def test_an_encoder_is_loaded_from_a_subfolder(base, tmp_path):
    for tuning in TUNINGS:
        encoder = tiny_encoder(base("whisper"), "whisper", tuning=tuning)
        saved(encoder, tmp_path / tuning / "speech_encoder")
        for loader in (UtteranceEncoder, AutoModel):
            loaded = loader.from_pretrained(tmp_path / tuning, subfolder="speech_encoder")
            assert_same(loaded, encoder, tiny_batch(base("whisper"), "whisper"))


@pytest.mark.parametrize("kind", ["wavlm", "whisper", "qwen2_audio", "bert", "gpt2"])
def test_the_adapter_is_an_ordinary_one_of_peft(base, kind, tmp_path):
    encoder = tiny_encoder(base(kind), kind, tuning="lora", layer="weighted_sum")
    saved(encoder, tmp_path / "speech_encoder")
    config = json.loads((tmp_path / "speech_encoder" / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["peft_type"]) == (str(base(kind)), "LORA")
    assert config["inference_mode"] is True
    model = AutoModel.from_pretrained(base(kind), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, tmp_path / "speech_encoder", subfolder="adapter").eval()
    backbone = adapted.base_model.model.get_encoder() if kind == "whisper" else adapted.base_model.model
    expected = encoder.backbone.state_dict()
    assert {name for name in adapted.state_dict() if "lora_" in name} == {
        f"base_model.model.{'encoder.' if kind == 'whisper' else ''}{name}" for name in expected if "lora_" in name
    }
    other = copy.deepcopy(encoder)
    other.backbone = backbone
    batch = tiny_batch(base(kind), kind)
    assert torch.equal(run(other, batch).embeddings, run(encoder, batch).embeddings)


@pytest.fixture
def lora(base, tmp_path) -> Path:
    """A folder of an encoder with LoRA."""
    return saved(tiny_encoder(base("bert"), "bert", tuning="lora"), tmp_path / "lora")


def change_weights(folder: Path, change, name: str = "model.safetensors"):
    state = load_file(folder / name)
    change(state)
    save_file(state, folder / name, metadata={"format": "pt"})


@pytest.mark.parametrize("loader", [UtteranceEncoder, AutoModel])
def test_weights_that_do_not_fit_are_named(lora, loader):
    change_weights(lora, lambda state: state.pop("head.bias"))
    with pytest.raises(ValueError, match="missing: head.bias.*Load them with the config.json they were saved with"):
        loader.from_pretrained(lora)
    change_weights(lora, lambda state: state.update({"head.bias": torch.zeros(4)}))
    with pytest.raises(ValueError, match="of another shape: head.bias.*Load them with the config.json"):
        loader.from_pretrained(lora)
    change_weights(lora, lambda state: state.update({"head.bias": torch.zeros(3), "tail.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="unexpected: tail.bias"):
        loader.from_pretrained(lora)


def test_a_full_checkpoint_without_a_weight_of_the_backbone_is_refused(base, tmp_path):
    folder = saved(tiny_encoder(base("bert"), "bert", tuning="full"), tmp_path / "full")
    name = "backbone.encoder.layer.1.attention.self.query.weight"
    change_weights(folder, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=f"missing: {name}"):
        AutoModel.from_pretrained(folder)


def test_an_adapter_that_does_not_fit_is_refused(lora):
    path = "adapter/adapter_model.safetensors"
    first = sorted(load_file(lora / path))[0]
    with pytest.raises(ValueError, match="of another shape: .*lora_A.*Load it with the config.json"):
        UtteranceEncoder.from_pretrained(lora, lora_r=4)
    tensor = load_file(lora / path)[first]
    change_weights(lora, lambda state: state.pop(first), path)
    with pytest.raises(ValueError, match=f"missing: {first.removeprefix('base_model.model.')}"):
        AutoModel.from_pretrained(lora)
    change_weights(lora, lambda state: state.update({first: tensor, "more": tensor.clone()}), path)
    with pytest.raises(ValueError, match="unexpected: more"):
        AutoModel.from_pretrained(lora)
    shutil.rmtree(lora / "adapter")
    with pytest.raises(OSError, match="has no adapter/adapter_model.safetensors; save or push it whole"):
        AutoModel.from_pretrained(lora)


def test_a_backbone_that_is_gone_is_asked_for_with_the_ways_out(tmp_path):
    folder = write_backbone(tmp_path / "base", "bert")
    encoder = tiny_encoder(folder, "bert", tuning="lora")
    batch = tiny_batch(folder, "bert")
    saved(encoder, tmp_path / "encoder")
    folder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="could not be loaded.*backbone=.*save_backbone=True"):
        AutoModel.from_pretrained(tmp_path / "encoder")
    for loader in (UtteranceEncoder, AutoModel):
        moved = loader.from_pretrained(tmp_path / "encoder", backbone=str(tmp_path / "moved"))
        assert torch.equal(run(moved, batch).logits, run(encoder, batch).logits)
    write_backbone(folder, "bert", hidden_size=32)
    with pytest.raises(ValueError, match="has become another model"):
        AutoModel.from_pretrained(tmp_path / "encoder")


def test_a_pickle_is_never_read(lora):
    torch.save(load_file(lora / "model.safetensors"), lora / "pytorch_model.bin")
    (lora / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(lora)


def test_lora_without_peft_says_what_to_install(lora, base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    for make in (
        lambda: tiny_encoder(base("bert"), "bert", tuning="lora"),
        lambda: UtteranceEncoder.from_pretrained(lora),
    ):
        with pytest.raises(ImportError, match="LoRA needs peft: pip install peft"):
            make()
    tiny_encoder(base("bert"), "bert", tuning="full")


def test_fields_are_overridden_on_the_way(lora):
    for loader in (UtteranceEncoder, AutoModel):
        loaded = loader.from_pretrained(lora, dropout=0.25, focal_gamma=1.0)
        assert (loaded.config.dropout, loaded.dropout.p, loaded.config.focal_gamma) == (0.25, 0.25, 1.0)


def test_other_classes_start_a_new_head_on_request(lora, base):
    labels = {0: "yes", 1: "no", 2: "perhaps", 3: "never"}
    with pytest.raises(ValueError, match="of another shape: head.bias, head.weight.*ignore_mismatched_sizes=True"):
        AutoModel.from_pretrained(lora, id2label=labels)
    before = UtteranceEncoder.from_pretrained(lora)
    for loader in (UtteranceEncoder, AutoModel):
        loaded = loader.from_pretrained(lora, id2label=labels, ignore_mismatched_sizes=True)
        assert loaded.head.weight.shape == (4, 6) and 0 < loaded.head.weight.abs().max() <= 6**-0.5
        batch = tiny_batch(base("bert"), "bert")
        assert torch.equal(run(loaded, batch).embeddings, run(before, batch).embeddings)


def test_loading_tells_what_it_loaded(lora):
    model, info = AutoModel.from_pretrained(lora, output_loading_info=True)
    assert type(model) is UtteranceEncoder and not info["missing_keys"] and not info["unexpected_keys"]


@kinds
@pytest.mark.parametrize(("tuning", "save_backbone"), [*((tuning, False) for tuning in TUNINGS), ("lora", True)])
def test_trained_weights_go_back_into_an_encoder(base, kind, tuning, save_backbone, tmp_path):
    settings = {**SHORT, "tuning": tuning, "save_backbone": save_backbone}
    encoder = tiny_encoder(base(kind), kind, **settings)
    folder, batch = saved(encoder, tmp_path / "encoder"), tiny_batch(base(kind), kind, **small_windows(kind))
    other = tiny_encoder(base(kind), kind, seed=1, **settings)
    assert not torch.equal(run(other, batch).logits, run(encoder, batch).logits)
    other.load_trained_weights(folder)
    assert_same(other, encoder, batch)


@tunings
def test_weights_of_another_encoder_do_not_go_in(base, tuning, tmp_path):
    encoder = tiny_encoder(base("bert"), "bert", tuning=tuning)
    other = saved(
        tiny_encoder(base("bert"), "bert", tuning=tuning, pooling="attentive_statistics"), tmp_path / "other"
    )
    kept = copy.deepcopy(encoder.state_dict())
    with pytest.raises(ValueError, match="is no checkpoint of this encoder .*unexpected: pooling.hidden"):
        encoder.load_trained_weights(other)
    wider = saved(tiny_encoder(base("bert"), "bert", tuning=tuning, embedding_dim=7), tmp_path / "wider")
    with pytest.raises(ValueError, match="of another shape: head.weight, projection"):
        encoder.load_trained_weights(wider)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in encoder.state_dict().items())


def test_a_state_dict_that_is_given_is_what_is_saved(base, tmp_path):
    for tuning in TUNINGS:
        encoder, other = (tiny_encoder(base("bert"), "bert", seed=seed, tuning=tuning) for seed in (0, 1))
        encoder.save_pretrained(tmp_path / tuning, state_dict=other.state_dict())
        assert_same(AutoModel.from_pretrained(tmp_path / tuning), other, tiny_batch(base("bert"), "bert"))


def test_fingerprint_is_of_what_was_trained(base):
    for tuning in TUNINGS:
        encoder = tiny_encoder(base("bert"), "bert", tuning=tuning)
        first = encoder.fingerprint()
        assert copy.deepcopy(encoder).fingerprint() == first
        for name, parameter in encoder.named_parameters():
            kept = parameter.data.clone()
            parameter.data.view(-1)[-1] += 1
            assert (encoder.fingerprint() != first) == (tuning == "full" or parameter.requires_grad), name
            parameter.data.copy_(kept)
        assert tiny_encoder(base("bert"), "bert", tuning=tuning, layer=1).fingerprint() != first


CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
"""


def test_code_of_a_backbones_own_is_never_run(tmp_path):
    folder = write_backbone(tmp_path / "base", "bert")
    encoder = saved(tiny_encoder(folder, "bert"), tmp_path / "encoder")
    whole = saved(tiny_encoder(folder, "bert", tuning="full"), tmp_path / "whole")
    own = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "trust_remote_code": True}
    for where in (folder, encoder, whole):
        (where / "evil.py").write_text(CODE.format(marker=str(tmp_path / "was run")))
        config = json.loads((where / "config.json").read_text())
        config.get("backbone_config", config).update(own)
        (where / "config.json").write_text(json.dumps(config))
    for model in (
        AutoModel.from_pretrained(encoder),
        AutoModel.from_pretrained(whole),
        UtteranceEncoder.from_pretrained(whole, trust_remote_code=True),
        tiny_encoder(folder, "bert"),
    ):
        assert type(model.backbone).__module__ == "transformers.models.bert.modeling_bert"
    config = UtteranceEncoderConfig.from_pretrained(encoder)
    assert not hasattr(config.backbone_config, "auto_map") and not hasattr(config.backbone_config, "trust_remote_code")
    for where in (folder, encoder):
        config = json.loads((where / "config.json").read_text())
        config.get("backbone_config", config)["model_type"] = "evil"
        (where / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="evil|trust_remote_code|only its own code"):
            (UtteranceEncoder if where == encoder else AutoModel).from_pretrained(where)
        with pytest.raises(ValueError, match="evil|trust_remote_code|only its own code"):
            UtteranceEncoder.from_backbone(folder, "text") if where == folder else AutoModel.from_pretrained(encoder)
    assert not (tmp_path / "was run").exists()


# By way of the Hub, each side in a process of its own


PUSH = """
import sys
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from mister_e_hf import MisterEConfig, MisterEModel, MisterEProcessor
from mister_e_hf.hub.checkpoint import push_checkpoint, save_checkpoint
from support.tiny_backbones import TEXTS, tiny_encoder, write_backbone

folder = Path(sys.argv[1])
HfApi().create_repo("org/base")
HfApi().upload_folder(repo_id="org/base", folder_path=write_backbone(folder / "base", "bert"))
encoder = tiny_encoder("org/base", "bert", tuning="lora", revision="main")
unnamed = tiny_encoder("org/base", "bert")
processor = MisterEProcessor.from_backbone("org/base", "text", prompt="Say: {text}")
HfApi().upload_folder(repo_id="org/base", folder_path=write_backbone(folder / "other", "bert", seed=1))

encoder.push_to_hub("org/pushed")
encoder.save_pretrained(folder / "saved", push_to_hub=True, repo_id="org/saved")
processor.save_pretrained(folder / "saved")
stage_2 = MisterEConfig(speech_embedding_dim=3, text_embedding_dim=6, hidden_size=8, attention_dim=6, fusion_num_layers=1)
save_checkpoint(folder / "checkpoint", MisterEModel(stage_2), encoders={"text": folder / "saved"})
push_checkpoint(folder / "checkpoint", "org/checkpoint")

batch = dict(processor(TEXTS))
with torch.no_grad():
    save_file({**batch, "expected": encoder(**batch).logits}, folder / "expected.safetensors")
print(encoder.config.backbone_revision, unnamed.config.backbone_revision)
"""
WITHOUT_PACKAGE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mister_e_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
options = {"trust_remote_code": True}
"""
WITH_PACKAGE = """
import mister_e_hf

options = {}
"""
LOAD = """
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModel

batch = load_file(sys.argv[1] + "/expected.safetensors")
expected = batch.pop("expected")
for repo_id, where in (
    ("org/pushed", {}),
    ("org/saved", {}),
    ("org/checkpoint", {"subfolder": "text_encoder"}),
):
    encoder = AutoModel.from_pretrained(repo_id, **where, **options)
    with torch.no_grad():
        assert torch.equal(encoder(**batch).logits, expected), repo_id
print(type(encoder).__module__.partition(".")[0], encoder.config.backbone, encoder.config.backbone_revision)
"""
LOAD_PARTS = """
from peft import PeftModel
from transformers import AutoProcessor

from support.tiny_backbones import TEXTS

where = {"subfolder": "text_encoder"}
for name, values in AutoProcessor.from_pretrained("org/checkpoint", **where)(TEXTS).items():
    assert torch.equal(values, batch[name]), name
base = AutoModel.from_pretrained("org/base", revision=encoder.config.backbone_revision, dtype=torch.float32)
encoder.backbone = PeftModel.from_pretrained(base, "org/checkpoint", subfolder="text_encoder/adapter").base_model.model
with torch.no_grad():
    assert torch.equal(encoder.eval()(**batch).logits, expected)
"""


def test_an_encoder_and_its_backbone_come_back_from_the_hub(tmp_path):
    with loopback_hub() as hub:

        def python(code: str, home: str) -> list[str]:
            call = subprocess.run(
                [sys.executable, "-c", code, str(tmp_path)],
                env=hub.env(tmp_path / home) | {"OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert call.returncode == 0, call.stdout + call.stderr
            return call.stdout.split()

        pinned = python(PUSH, "pusher")
        commits = hub.commits("org/base")  # an empty one, the backbone, another backbone in its place
        assert len(commits) == 3 and pinned == [commits[1]] * 2
        adapter = {f"adapter/adapter_{part}" for part in ("config.json", "model.safetensors")}
        for repo_id in ("org/pushed", "org/saved"):
            assert adapter | {"config.json", "model.safetensors", "backbones.py"} <= set(hub.files(repo_id))
        assert {f"text_encoder/{name}" for name in adapter} < set(hub.files("org/checkpoint"))
        assert not [name for name in hub.files("org/checkpoint") if name.endswith((".bin", ".pt"))]
        loaded = python(WITH_PACKAGE + LOAD + LOAD_PARTS, "user")
        assert loaded == ["mister_e_hf", "org/base", commits[1]]
        remote = python(WITHOUT_PACKAGE + LOAD, "stranger")
        assert remote == ["transformers_modules", "org/base", commits[1]]


# Making one


def test_a_new_encoder_says_what_it_was_made_of(base):
    encoder = UtteranceEncoder.from_backbone(base("whisper"), "speech", id2label=LABELS)
    config = encoder.config
    assert not encoder.training and encoder.main_input_name
    assert (config.modality, config.backbone, config.backbone_revision) == ("speech", str(base("whisper")), None)
    assert config.backbone_config.model_type == "whisper" and config.num_labels == 3
    assert encoder.projection.weight.shape == (2048, 16)
    weights = AutoModel.from_pretrained(base("whisper")).get_encoder().state_dict()
    found = {
        name.replace(".base_layer.", "."): t
        for name, t in encoder.backbone.state_dict().items()
        if "lora_" not in name
    }
    assert set(found) == set(weights) and all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_backbone_that_is_tuned_whole_is_not_made_twice(base, monkeypatch):
    made = []
    original = AutoModel.from_config
    monkeypatch.setattr(AutoModel, "from_config", lambda *a, **k: made.append(1) or original(*a, **k))
    UtteranceEncoder.from_backbone(base("bert"), "text", tuning="full")
    assert not made


def test_new_weights_start_as_those_of_a_linear_layer(base):
    torch.manual_seed(0)
    for encoder in (
        UtteranceEncoder.from_backbone(base("bert"), "text", tuning="frozen", pooling="attentive_statistics"),
        UtteranceEncoder(
            UtteranceEncoderConfig(
                tuning="full",
                pooling="attentive_statistics",
                backbone_config=BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9),
            )
        ),
    ):
        for module in (encoder.projection, encoder.pooling.hidden, encoder.head):
            bound = module.in_features**-0.5
            assert bound / 2 < module.weight.abs().max() <= bound
        assert torch.equal(encoder.norm.weight, torch.ones(16)) and not encoder.norm.bias.any()
    assert encoder.backbone.embeddings.word_embeddings.weight.std().item() == pytest.approx(
        0.02, rel=0.2
    )  # Bert's own


def test_backbone_options_that_are_none_are_refused(base):
    for name in ("revision", "subfolder", "trust_remote_code", "output_hidden_states"):
        with pytest.raises(ValueError, match=rf"backbone_options has \['{name}'\]; known are \[[^]]*\]$") as error:
            UtteranceEncoder.from_backbone(base("bert"), "text", backbone_options={name: "main"})
        assert f"'{name}'" not in str(error.value).partition("known are")[2]
    UtteranceEncoder.from_backbone(base("bert"), "text", backbone_options={"dtype": None, "local_files_only": True})


# Configuration


REFUSALS = (StrictDataclassError, ValueError, TypeError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modality", "video"),
        ("tuning", "LoRA"),
        ("pooling", "max"),
        ("layer", "last"),
        ("layer", 1.5),
        ("layer", True),
        ("backbone_config", "bert"),
        ("backbone_config", {"hidden_size": 16}),
        ("save_backbone", "yes"),
        ("embedding_dim", 0),
        ("embedding_dim", 6.0),
        ("pooling_dim", 0),
        ("lora_r", 0),
        ("lora_alpha", 0),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("lora_target_modules", "("),
        ("dropout", 1.0),
        ("dropout", math.nan),
        ("focal_gamma", -1.0),
        ("focal_gamma", math.inf),
        ("class_weights", {"LABEL_0": -1.0}),
        ("class_weights", {"joy": 1.0}),
        ("id2label", {1: "anger"}),
    ],
)
def test_wrong_settings_are_refused_by_name(name, value):
    with pytest.raises(REFUSALS, match="model_type" if value == {"hidden_size": 16} else name):
        UtteranceEncoderConfig(**{name: value})


def test_unknown_fields_are_refused_with_a_hint(base):
    with pytest.raises(ValueError, match="has no field 'embeding_dim'.*Did you mean 'embedding_dim'"):
        UtteranceEncoderConfig(embeding_dim=6)
    with pytest.raises(ValueError, match="has no field 'poolin'"):
        UtteranceEncoder.from_backbone(base("bert"), "text", poolin="mean")


def test_backbone_that_could_not_be_found_again_is_refused():
    backbone = {"model_type": "bert", "hidden_size": 16}
    for tuning in ("frozen", "lora"):
        with pytest.raises(REFUSALS, match="no backbone is named; name it, or set save_backbone=True"):
            UtteranceEncoderConfig(tuning=tuning, backbone_config=backbone)
        UtteranceEncoderConfig(tuning=tuning, backbone_config=backbone, save_backbone=True)
    UtteranceEncoderConfig(tuning="full", backbone_config=backbone)


def test_an_encoder_needs_the_configuration_of_its_backbone():
    with pytest.raises(ValueError, match="make the encoder by UtteranceEncoder.from_backbone"):
        UtteranceEncoder(UtteranceEncoderConfig())


def test_configuration_comes_back(tmp_path):
    config = UtteranceEncoderConfig(
        modality="speech",
        backbone="org/name",
        backbone_revision="0123456",
        backbone_config=WavLMConfig(hidden_size=24),
        layer="weighted_sum",
        class_weights={"joy": 2},
        id2label={0: "joy", 1: "anger"},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is UtteranceEncoderConfig and type(loaded.backbone_config) is WavLMConfig
    assert loaded.to_json_string() == config.to_json_string() and loaded.backbone_config.hidden_size == 24
    assert yaml.safe_load(config.to_json_string())["class_weights"] == {"joy": 2}


def test_lora_targets_fit_the_backbone():
    def reached(config, *names):
        targets = lora_targets(UtteranceEncoderConfig(modality="speech", backbone="org/name", backbone_config=config))
        return [bool(re.fullmatch(targets, name)) for name in names]

    assert reached(
        WavLMConfig(), "encoder.layers.0.attention.q_proj", "encoder.layers.0.feed_forward.output_dense"
    ) == [
        False,
        True,
    ]
    assert reached(Wav2Vec2Config(), "encoder.layers.0.attention.q_proj", "encoder.layers.0.attention.v_proj") == [
        True,
        False,
    ]
    assert lora_targets(UtteranceEncoderConfig(lora_target_modules=".*x")) == ".*x"


def test_modality_names_are_those_of_the_kinds():
    assert {modality_of(kind) for kind in SPEECH} == {"speech"} and {modality_of(kind) for kind in TEXT} == {"text"}


# Real models


@pytest.mark.shared
def test_real_whisper_on_its_full_window_is_that_of_transformers(shared_dir):
    folder = shared_dir / "models" / "whisper-tiny.en"
    turn = noise(1.3)
    encoder = tiny_encoder(folder, "whisper", pooling="attentive_statistics")
    states = own_states(folder, "whisper", turn)
    expected = embedded(encoder, states[-1])
    batch = tiny_batch(folder, "whisper", [turn, noise(0.4, 1)])
    torch.testing.assert_close(run(encoder, batch).embeddings[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        embedded(tiny_encoder(folder, "whisper", layer=2), states[2]),
        run(tiny_encoder(folder, "whisper", layer=2), batch).embeddings[0],
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.shared
def test_real_minilm_is_the_mean_over_its_tokens(shared_dir):
    folder = shared_dir / "models" / "all-MiniLM-L6-v2"
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    texts = ["You did what?", "I can not believe that you went all that way without a word."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    with torch.no_grad():
        means = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    encoder = UtteranceEncoder.from_backbone(folder, "text", tuning="frozen", embedding_dim=384)
    encoder.norm = torch.nn.Identity()
    encoder.norm.weight = torch.nn.Parameter(torch.ones(1))
    encoder.projection = torch.nn.Identity()
    encoder.head = torch.nn.Identity()
    torch.testing.assert_close(run(encoder, tiny_batch(folder, "bert", texts)).embeddings, means, rtol=0, atol=1e-5)
