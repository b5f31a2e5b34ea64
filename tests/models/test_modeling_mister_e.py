import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mister_e_hf import MisterEConfig, MisterEModel
from support.mister_e_settings import LENGTHS, MODALITIES, PER_TURN, SETTINGS, run, settings

SUBSETS = [list(subset) for size in (1, 2, 3) for subset in itertools.combinations(("speech", "text", "fusion"), size)]


@pytest.mark.parametrize("experts", SUBSETS, ids="-".join)
def test_every_parameter_gets_a_gradient_in_every_setting(make_batch, experts):
    for context_layer, fusion, gate, causal, modality_dropout, ours in itertools.product(
        (True, False), ("co_attention", "concatenation"), ("learned", "mean"), (True, False), (0.0, 0.5), (True, False)
    ):
        if "fusion" not in experts and fusion == "concatenation" or len(experts) == 1 and gate == "mean":
            continue
        torch.manual_seed(0)
        switches = {
            "experts": experts,
            "context_layer": context_layer,
            "fusion": fusion,
            "gate": gate,
            "causal": causal,
            "modality_dropout": modality_dropout,
            "attention_decay": ours,
            "fusion_context": ours,
        }
        model = MisterEModel(
            MisterEConfig(
                speech_embedding_dim=3,
                text_embedding_dim=2,
                hidden_size=4,
                context_num_layers=1,
                fusion_num_layers=1,
                attention_dim=3,
                **switches,
            )
        )
        batch = make_batch([4, 2, 3], model.config, dtype=torch.float32, absent=0.3)
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (name, switches)


def loss_by_hand(output, batch, config, divisor=None) -> float:
    def focal(scores, label) -> float:
        total = math.log(sum(math.exp(score) for score in scores))
        log_p = scores[label] - total
        weight = (config.class_weights or {}).get(config.id2label[label], 1.0)
        return -weight * (1 - math.exp(log_p)) ** config.focal_gamma * log_p

    total, count = 0.0, 0
    for row, turn in batch["attention_mask"].nonzero().tolist():
        label = batch["labels"][row, turn].item()
        if label == -100:
            continue
        count += 1
        total += focal(output.logits[row, turn].tolist(), label)
        present = {"fusion": True} | {name: batch[f"{name}_mask"][row, turn].item() for name in MODALITIES}
        for index, expert in enumerate(config.experts):
            if present[expert]:
                total += focal(output.expert_logits[row, turn, index].tolist(), label)
    return total / (divisor or count)


@settings
@pytest.mark.parametrize("class_weights", [None, {"joy": 0.25, "neutral": 2.0}])
def test_loss_is_focal_of_the_mixture_and_of_the_experts_present(tiny_model, make_batch, changes, class_weights):
    model = tiny_model(**changes, class_weights=class_weights, focal_gamma=2.0)
    batch = make_batch(LENGTHS, model.config, absent=0.4)
    batch["labels"][0, 1] = -100
    output = run(model, batch)
    assert output.loss.item() == pytest.approx(loss_by_hand(output, batch, model.config), abs=1e-12)
    output = run(model, batch, num_items_in_batch=40)
    assert output.loss.item() == pytest.approx(loss_by_hand(output, batch, model.config, 40), abs=1e-12)


def test_attention_begins_with_halved_slopes_and_looks_less_far_with_greater_ones(tiny_model, make_batch):
    model = MisterEModel(tiny_model(attention_decay=True).config)
    attention = model.fusion_expert.layers[0].text_to_speech
    torch.testing.assert_close(attention.log_slopes.exp(), torch.tensor([0.5, 0.25, 0.125]))
    near = tiny_model(attention_decay=True)
    for module in near.modules():
        if hasattr(module, "log_slopes"):
            module.log_slopes.data.fill_(8.0)  # each turn sees itself alone
    batch = make_batch([6], near.config)
    whole = run(near, batch).speech_states
    alone = [run(near, {name: value[:, t : t + 1] for name, value in batch.items()}).speech_states for t in range(6)]
    torch.testing.assert_close(whole, torch.cat(alone, 1))


@pytest.mark.parametrize("gate", ["learned", "mean"])
def test_gate_weights_sum_to_one_and_are_zero_for_an_absent_expert(tiny_model, make_batch, gate):
    model = tiny_model(gate=gate)
    batch = make_batch([9, 6, 8], model.config, absent=0.5)
    output = run(model, batch)
    real = batch["attention_mask"]
    weights = output.gate_weights[real]
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[:, 0]))
    present = torch.stack([batch["speech_mask"], batch["text_mask"], real], -1)[real]
    assert (weights[~present] == 0).all() and (weights[present] > 0).all()
    if gate == "mean":
        torch.testing.assert_close(weights, present / present.sum(-1, keepdim=True).double())
    mixture = (output.gate_weights[..., None] * output.expert_logits).sum(2)
    torch.testing.assert_close(output.logits, mixture)
    neither = real & ~batch["speech_mask"] & ~batch["text_mask"]
    assert neither.any()
    assert torch.equal(
        output.gate_weights[neither], torch.tensor([[0.0, 0, 1]]).double().expand(int(neither.sum()), 3)
    )
    assert torch.equal(output.logits[neither], output.expert_logits[neither][:, 2])


def test_gate_does_not_hear_an_absent_expert(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch([6], model.config)
    batch["speech_mask"][0, 2] = False
    before = run(model, batch)
    model.speech_expert.head.bias.data += 50.0
    after = run(model, batch)
    assert torch.equal(before.gate_weights[0, 2], after.gate_weights[0, 2])
    assert torch.equal(before.logits[0, 2], after.logits[0, 2])
    assert not torch.equal(before.gate_weights[0, 3], after.gate_weights[0, 3])


@pytest.mark.parametrize("gate", ["learned", "mean"])
def test_without_a_fusion_expert_all_experts_count_where_both_modalities_are_absent(tiny_model, make_batch, gate):
    model = tiny_model(experts=["speech", "text"], gate=gate)
    batch = make_batch([4], model.config)
    batch["speech_mask"][0, 1] = batch["text_mask"][0, 1] = False
    output = run(model, batch)
    weights = output.gate_weights[0, 1]
    assert (weights > 0).all() and weights.sum().item() == pytest.approx(1)
    if gate == "mean":
        assert weights.tolist() == [0.5, 0.5]
    alone = run(tiny_model(experts=["speech"]), batch)
    assert (alone.gate_weights == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_shapes_and_types(tiny_model, make_batch, dtype):
    model = tiny_model(dtype=dtype)
    output = run(model, make_batch([3, 5], model.config, dtype=torch.float16))
    assert {name: tuple(value.shape) for name, value in output.items()} == {
        "loss": (),
        "logits": (2, 5, 3),
        "expert_logits": (2, 5, 3, 3),
        "gate_weights": (2, 5, 3),
        "speech_states": (2, 5, 8),
        "text_states": (2, 5, 8),
        "speech_mask": (2, 5),
        "text_mask": (2, 5),
        "focal_losses": (4,),
    }
    assert all(getattr(output, name).dtype == dtype for name in PER_TURN)
    assert output.speech_mask.dtype == output.text_mask.dtype == torch.bool
    assert output.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert all(value.isfinite().all() for value in output.values())


@pytest.mark.parametrize("experts", SUBSETS, ids="-".join)
def test_outputs_list_the_experts_there_are(tiny_model, make_batch, experts):
    model = tiny_model(experts=list(reversed(experts)))
    output = run(model, make_batch([2, 4], model.config))
    assert model.config.experts == experts
    assert output.expert_logits.shape == (2, 4, len(experts), 3)
    assert output.gate_weights.shape == (2, 4, len(experts))
    assert (output.speech_states is not None) == (output.text_states is not None) == ("fusion" in experts)
    for index, name in enumerate(experts):
        assert hasattr(model, f"{name}_expert")
        getattr(model, f"{name}_expert").head.bias.data += 7.0
        after = run(model, make_batch([2, 4], model.config))
        change = (after.expert_logits - output.expert_logits)[0, 0].mean(-1)
        torch.testing.assert_close(change, 7.0 * F.one_hot(torch.tensor(index), len(experts)).double())
        output = after


def without_dropout(**changes) -> dict:
    return {"attention_dropout": 0.0, "projection_dropout": 0.0, **changes}


@pytest.mark.parametrize("context_layer", [True, False])
def test_context_dropout_acts_in_training_alone(tiny_model, make_batch, context_layer):
    model = tiny_model(**without_dropout(context_dropout=0.5, context_layer=context_layer))
    batch = make_batch([6, 4], model.config)
    first, second = run(model.train(), batch), run(model, batch)
    for expert in (0, 1):
        assert not torch.equal(first.expert_logits[:, :, expert], second.expert_logits[:, :, expert])
    assert torch.equal(first.expert_logits[:, :, 2], second.expert_logits[:, :, 2])
    assert torch.equal(run(model.eval(), batch).logits, run(model, batch).logits)


def test_context_dropout_acts_before_the_recurrence(tiny_model, make_batch):
    model = tiny_model(context_dropout=0.5, experts=["speech"]).train()
    seen = []
    model.speech_expert.gru.register_forward_pre_hook(lambda module, args: seen.append(args[0].data))
    batch = make_batch([30, 20], model.config)
    run(model, batch), run(model, batch), run(model.eval(), batch)
    first, second, whole = seen
    kept = first != 0
    torch.testing.assert_close(first[kept], 2 * whole[kept])
    assert not torch.equal(kept, second != 0)
    assert 0.35 < kept[whole != 0].double().mean() < 0.65


def test_context_dropout_acts_between_the_layers_of_the_recurrence(tiny_model):
    assert tiny_model(context_dropout=0.4, context_num_layers=2).speech_expert.gru.dropout == 0.4
    assert tiny_model(context_dropout=0.4, context_num_layers=1).speech_expert.gru.dropout == 0.0


@pytest.mark.parametrize("name", ["attention_dropout", "projection_dropout"])
def test_fusion_dropout_acts_in_training_alone(tiny_model, make_batch, name):
    model = tiny_model(**without_dropout(**{name: 0.5}))
    batch = make_batch([6, 4], model.config)
    first, second = run(model.train(), batch), run(model, batch)
    assert torch.equal(first.expert_logits[:, :, :2], second.expert_logits[:, :, :2])
    assert not torch.equal(first.expert_logits[:, :, 2], second.expert_logits[:, :, 2])
    assert torch.equal(run(model.eval(), batch).logits, run(model, batch).logits)


def test_modality_dropout_takes_modalities_away_in_training_alone(tiny_model, make_batch):
    model = tiny_model(**without_dropout(modality_dropout=0.25))
    batch = make_batch([300, 200], model.config, absent=0.1)
    evaluated = run(model, batch)
    assert torch.equal(evaluated.speech_mask, batch["speech_mask"])
    assert torch.equal(evaluated.logits, run(model, batch).logits)
    torch.manual_seed(0)
    output = run(model.train(), batch)
    kept = []
    for name in MODALITIES:
        given, mask = batch[f"{name}_mask"], output[f"{name}_mask"]
        assert not (mask & ~given).any()
        kept.append(mask[batch["speech_mask"] & batch["text_mask"]])
        assert 0.65 < kept[-1].double().mean() < 0.85
    assert 0.47 < (kept[0] & kept[1]).double().mean() < 0.65  # independently: 0.75 squared
    # as if the masks had been given
    again = run(model.eval(), batch, speech_mask=output.speech_mask, text_mask=output.text_mask)
    torch.testing.assert_close(output.logits, again.logits)
    torch.testing.assert_close(output.loss, again.loss)


def test_statistics_standardise_the_vectors(tiny_model, make_batch):
    model = tiny_model()
    batch = make_batch([4, 6], model.config, absent=0.2)
    plain = copy.deepcopy(model)
    standardised = dict(batch)
    for name in MODALITIES:
        module = getattr(model, f"{name}_input")
        standardised[f"{name}_embeddings"] = (batch[f"{name}_embeddings"] - module.mean) / module.std
        plain.get_submodule(f"{name}_input").set_statistics(torch.zeros_like(module.mean), torch.ones_like(module.std))
    torch.testing.assert_close(run(model, batch).logits, run(plain, standardised).logits, rtol=0, atol=1e-12)


def test_dimension_that_does_not_vary_is_only_centred(tiny_model):
    module = tiny_model().speech_input
    module.set_statistics(torch.tensor([3.0, 0, -2, 1e6, 0]), torch.tensor([0.0, 0, 2.0, 1e-2, 1e-3]))
    assert module.mean.tolist() == [3, 0, -2, 1e6, 0]
    assert module.std.tolist() == pytest.approx([1, 1, 2, 1, 1e-3])
    turns = module(torch.tensor([[3.5, 0.25, 0, 1e6, 1e-3]], dtype=torch.float64), torch.tensor([True]))
    assert turns.vectors[0].tolist() == pytest.approx([0.5, 0.25, 1, 0, 1])


def test_feature_clip_clips_standardised_vectors(tiny_model, make_batch):
    clipped, free = tiny_model(feature_clip=0.8), tiny_model()
    batch = make_batch([4, 6], clipped.config)
    inside = dict(batch)
    for name in MODALITIES:
        module = getattr(free, f"{name}_input")
        vectors = (batch[f"{name}_embeddings"] - module.mean) / module.std
        inside[f"{name}_embeddings"] = vectors.clamp(-0.8, 0.8) * module.std + module.mean
    torch.testing.assert_close(run(clipped, batch).logits, run(free, inside).logits, rtol=0, atol=1e-12)
    assert not torch.allclose(run(clipped, batch).logits, run(free, batch).logits)


def test_recurrence_is_torchs_with_its_names(tiny_model):
    for causal in (False, True):
        model = tiny_model(causal=causal)
        size, width = (8, 8) if causal else (8, 4)
        reference = nn.GRU(size, width, num_layers=2, bidirectional=not causal).double()
        for expert in (model.speech_expert, model.text_expert):
            assert isinstance(expert.gru, nn.GRU)
            reference.load_state_dict(expert.gru.state_dict())
    assert "speech_expert.gru.weight_ih_l0" in model.state_dict()


def directly(model, vectors: dict[str, torch.Tensor], present: dict[str, torch.Tensor]):
    """
    Logits, expert logits and gate weights of one dialogue from the model's weights: vectors (T, D), present (T,).
    """
    config = model.config
    causal = config.causal
    weights = model.state_dict()

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name, stream, other):
        query, key, value = (
            linear(f"{name}.{part}", x)
            for part, x in zip(("query", "key", "value"), (stream, other, other), strict=True)
        )
        width = config.attention_dim // config.num_attention_heads
        heads = []
        for head in range(config.num_attention_heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / math.sqrt(width)
            if config.attention_decay:
                place = torch.arange(len(scores), dtype=scores.dtype)
                scores = scores - weights[f"{name}.log_slopes"][head].exp() * (place[:, None] - place).abs()
            if causal:
                scores = scores + torch.full_like(scores, -math.inf).triu(1)
            exponentials = (scores - scores.max(-1, keepdim=True).values).exp()
            heads.append(exponentials / exponentials.sum(-1, keepdim=True) @ value[:, part])
        return linear(f"{name}.output", torch.cat(heads, -1))

    inputs = {}
    for name in MODALITIES:
        x = (vectors[name] - weights[f"{name}_input.mean"]) / weights[f"{name}_input.std"]
        x = x if config.feature_clip is None else x.clamp(-config.feature_clip, config.feature_clip)
        inputs[name] = torch.where(present[name][:, None], x, weights[f"{name}_input.null_embedding"])

    expert_logits, context = [], {}
    for name in MODALITIES:
        x, expert = inputs[name], f"{name}_expert"
        states = linear(f"{expert}.skip", x)
        if config.context_layer:
            local = 0
            for index, size in enumerate(config.context_kernel_sizes):
                kernel = weights[f"{expert}.convolutions.{index}.weight"].permute(1, 2, 0)
                padding = (size - 1, 0) if causal else (size // 2, size // 2)
                out = F.conv1d(F.pad(x.T[None], padding), kernel, weights[f"{expert}.convolutions.{index}.bias"])
                local = local + F.relu(out[0].T)
            hidden = config.hidden_size if causal else config.hidden_size // 2
            gru = nn.GRU(config.hidden_size, hidden, config.context_num_layers, bidirectional=not causal).to(x.dtype)
            gru.load_state_dict(model.get_submodule(f"{expert}.gru").state_dict())
            states = states + gru(local)[0]
        context[name] = states if config.fusion_context else 0.0
        expert_logits.append(linear(f"{expert}.head", states))

    speech = linear("fusion_expert.speech_projection", inputs["speech"]) + context["speech"]
    text = linear("fusion_expert.text_projection", inputs["text"]) + context["text"]
    if config.fusion == "co_attention":
        for index in range(config.fusion_num_layers):
            layer = f"fusion_expert.layers.{index}"
            crossed = (
                norm(f"{layer}.speech_cross_norm", speech + attention(f"{layer}.speech_to_text", speech, text)),
                norm(f"{layer}.text_cross_norm", text + attention(f"{layer}.text_to_speech", text, speech)),
            )
            speech, text = crossed
            speech = norm(f"{layer}.speech_self_norm", speech + attention(f"{layer}.speech_to_speech", speech, speech))
            text = norm(f"{layer}.text_self_norm", text + attention(f"{layer}.text_to_text", text, text))
        speech = speech + linear("fusion_expert.speech_skip", inputs["speech"])
        text = text + linear("fusion_expert.text_skip", inputs["text"])
    fused = norm("fusion_expert.norm", torch.cat([text, speech], -1))
    expert_logits.append(linear("fusion_expert.head", linear("fusion_expert.dense", fused).relu()))

    expert_logits = torch.stack(expert_logits, 1)
    available = torch.stack([present["speech"], present["text"], torch.ones_like(present["text"])], 1)
    if config.gate == "learned":
        heard = torch.where(available[..., None], expert_logits, 0.0).flatten(1)
        scores = linear("gate.output", linear("gate.dense", heard).relu()) / config.gate_temperature
        gate_weights = scores.exp() * available
    else:
        gate_weights = available.to(expert_logits)
    gate_weights = gate_weights / gate_weights.sum(1, keepdim=True)
    return {
        "logits": (gate_weights[..., None] * expert_logits).sum(1),
        "expert_logits": expert_logits,
        "gate_weights": gate_weights,
        "speech_states": speech,
        "text_states": text,
    }


@pytest.mark.parametrize(
    "changes",
    [value for value in SETTINGS.values() if "experts" not in value]
    + [{"causal": True, "context_kernel_sizes": [5, 1], "gate_temperature": 0.7}],
)
@pytest.mark.parametrize("turns", [1, 2, 9])
@pytest.mark.parametrize("absent", [0.0, 0.4])
def test_outputs_equal_a_direct_computation_from_the_weights(tiny_model, make_batch, changes, turns, absent):
    model = tiny_model(**changes)
    batch = make_batch([turns], model.config, absent=absent)
    output = run(model, batch)
    expected = directly(
        model,
        {name: batch[f"{name}_embeddings"][0] for name in MODALITIES},
        {name: batch[f"{name}_mask"][0] for name in MODALITIES},
    )
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(output, name)[0], value, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_new_model_is_initialised_as_torch_initialises_its_layers(tiny_config):
    torch.manual_seed(0)
    model = MisterEModel(tiny_config(hidden_size=16, speech_embedding_dim=64))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bounds, expected = {"weight", "bias"}, module.in_features**-0.5
        elif isinstance(module, nn.GRU):
            bounds, expected = dict(module.named_parameters()).keys(), module.hidden_size**-0.5
        elif "convolutions." in name:
            kernel_size, _, width = module.weight.shape
            bounds, expected = {"weight", "bias"}, (kernel_size * width) ** -0.5
        else:
            continue
        for part in bounds:
            values = getattr(module, part)
            assert values.std() > 0 and values.abs().max() <= expected, f"{name}.{part}"
            assert values.numel() < 16 or values.abs().max() > 0.7 * expected, f"{name}.{part}"
    for name in MODALITIES:
        module = model.get_submodule(f"{name}_input")
        assert (module.mean == 0).all() and (module.std == 1).all() and (module.null_embedding == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings
def test_autocast_gives_a_finite_loss_and_gradient(tiny_model, make_batch, changes, dtype):
    model = tiny_model(dtype=torch.float32, **changes)
    batch = make_batch(LENGTHS, model.config, dtype=torch.float32, absent=0.3)
    with torch.autocast("cpu", dtype):
        output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(output.logits.float(), run(model, batch).logits, rtol=0, atol=0.1)
