import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
)

from mister_e_hf import UtteranceEncoder, UtteranceEncoderConfig
from mister_e_hf.encoders.pooling import UtterancePooling
from support.encoder_checks import EVERY_PART, embedded, own_states, pooled, run, small_windows
from support.tiny_backbones import (
    KINDS,
    SPEECH,
    TEXT,
    TOKENS,
    WAVES,
    noise,
    tiny_batch,
    tiny_encoder,
    turns_of,
)

kinds = pytest.mark.parametrize("kind", KINDS)
poolings = pytest.mark.parametrize("pooling", ["mean", "attentive_statistics", "last_token"])


# One utterance, one vector


BATCHES = {"all": [0, 1, 2], "turned round": [2, 1, 0], "one twice": [1, 2, 1], "two": [0, 2]}


@kinds
@poolings
def test_a_turn_alone_and_in_any_batch(base, kind, pooling):
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
    encoder = tiny_encoder(base(kind), kind, **EVERY_PART)
    turns = turns_of(kind)
    together = run(encoder, tiny_batch(base(kind), kind, turns)).embeddings
    alone = torch.cat([run(encoder, tiny_batch(base(kind), kind, [turn])).embeddings for turn in turns])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@kinds
@pytest.mark.parametrize("content", [math.nan, -3.0])
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
        # Convolutions see two frames after the last one that is attended to: they are silence, not padding.
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
@pytest.mark.parametrize("seconds", [1 / 16_000, 0.02])
def test_audio_shorter_than_a_frame_has_a_vector(base, kind, seconds):
    encoder = tiny_encoder(base(kind), kind, pooling="attentive_statistics")
    embeddings = run(encoder, tiny_batch(base(kind), kind, [noise(seconds), noise(0.2)])).embeddings
    alone = run(encoder, tiny_batch(base(kind), kind, [noise(seconds)])).embeddings
    assert embeddings.isfinite().all()
    torch.testing.assert_close(embeddings[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["hubert", "whisper", "qwen2_audio", "bert", "llama"])
def test_eager_attention_equals_sdpa(base, kind):
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
def test_layer_equals_that_of_the_transformers_model(base, kind):
    """For Whisper with its full window; for Qwen2-Audio with 3000 frames, of which fewer are computed here."""
    turn = turns_of(kind)[1]
    states, batch = own_states(base(kind), kind, turn), tiny_batch(base(kind), kind, [turn])
    assert len(states) == 3
    if kind == "qwen2_audio":
        assert batch["input_features"].shape[-1] < 100
    for layer in (None, 0, 1, 2, -2, -3):
        encoder = tiny_encoder(base(kind), kind, layer=layer)
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


def test_weighted_sum_starts_with_equal_weights(base):
    encoder = UtteranceEncoder.from_backbone(base("bert"), "text", tuning="frozen", layer="weighted_sum")
    assert torch.equal(encoder.layer_weights, torch.zeros(3))


def test_whisper_stops_at_the_chosen_layer(base):
    encoder = tiny_encoder(base("whisper"), "whisper", layer=1)
    encoder.backbone.layers[1].register_forward_hook(lambda *_: pytest.fail("the second layer was run"))
    run(encoder, tiny_batch(base("whisper"), "whisper", [noise(0.1)]))


@pytest.mark.parametrize("layer", [3, -4])
def test_layer_out_of_range_raises(base, layer):
    with pytest.raises(ValueError, match=f"layer {layer} is not one of the backbone's 3 hidden states"):
        UtteranceEncoder.from_backbone(base("bert"), "text", layer=layer)


def test_trailing_silence_is_heard_but_not_pooled(base):
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


def test_prompt_of_an_audio_language_model_is_read_but_not_pooled(base):
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
def test_pooling_equals_its_formula(pooling):
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


def test_attentive_statistics_of_large_scores_are_finite():
    module = UtterancePooling(UtteranceEncoderConfig(pooling="attentive_statistics", pooling_dim=4), 3)
    module.score.weight.data.fill_(1e4)
    states = torch.randn(6, 3).requires_grad_()
    output = module(states, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    output.sum().backward()
    assert output.isfinite().all() and states.grad.isfinite().all()


@poolings
def test_pooling_accumulates_in_float32(pooling):
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
def test_windows_pool_as_one_row_of_their_positions(base, kind):
    encoder = tiny_encoder(base(kind), kind, pooling="attentive_statistics")
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


def test_inputs_of_another_kind_raise(base):
    encoders = {kind: tiny_encoder(base(kind), kind) for kind in ("bert", "wavlm", "whisper", "qwen2_audio")}
    batches = {kind: tiny_batch(base(kind), kind) for kind in encoders}
    for kind, encoder in encoders.items():
        for other, batch in batches.items():
            if other != kind:
                with pytest.raises(ValueError, match=f"A {kind} encoder of .* takes"):
                    encoder(**batch)


@pytest.mark.parametrize("index", [[0, 2, 2], [1, 1, 2], [0, 1, 0]])
def test_utterance_index_with_gaps_raises(base, index):
    encoder = tiny_encoder(base("bert"), "bert")
    with pytest.raises(ValueError, match="utterance_index must ascend from 0 without gaps"):
        encoder(**tiny_batch(base("bert"), "bert"), utterance_index=torch.tensor(index))


def test_a_turn_without_positions_raises(base):
    encoder = tiny_encoder(base("bert"), "bert")
    batch = tiny_batch(base("bert"), "bert")
    batch["pooling_mask"][1] = False
    with pytest.raises(ValueError, match=r"Turns \[1\] of the batch have no position to pool"):
        encoder(**batch)


def test_without_masks_every_position_is_real(base):
    for kind in ("bert", "wav2vec2-layer", "whisper", "qwen2_audio"):
        encoder = tiny_encoder(base(kind), kind)
        turn = noise(30.0) if kind in ("whisper", "qwen2_audio") else turns_of(kind)[0]
        batch = tiny_batch(base(kind), kind, [turn])
        if kind == "qwen2_audio":
            batch = {name: value[..., :3000] for name, value in batch.items()}
        inputs = {name: value for name, value in batch.items() if name.startswith("input_")}
        torch.testing.assert_close(run(encoder, inputs).embeddings, run(encoder, batch).embeddings, rtol=0, atol=1e-6)


# Real models


@pytest.mark.shared
def test_real_whisper_equals_transformers(shared_dir):
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
def test_real_minilm_pools_the_mean_over_its_tokens(shared_dir):
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
