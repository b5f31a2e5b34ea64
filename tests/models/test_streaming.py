import itertools

import pytest
import torch
from torch import nn

from mister_e_hf.models.mister_e.modeling_mister_e import TurnConvolution
from mister_e_hf.models.turns import DialogueCache
from support.model_contract import assert_same, streamed

MODELS = {
    "published form": {},
    "deep": {"context_num_layers": 3, "fusion_num_layers": 4, "context_kernel_sizes": [1, 3, 7]},
    "concatenation": {"fusion": "concatenation"},
    "no context": {"context_layer": False},
    "speech alone": {"experts": ["speech"]},
    "mean gate": {"gate": "mean"},
    "attention that sees distance, states in context": {"attention_decay": True, "fusion_context": True},
}


def dialogue(model, turns: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Some turns lack speech, some text, some both."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    made = {
        f"{name}_embeddings": torch.randn(1, turns, width, generator=generator, dtype=torch.float64)
        for name, width in (("speech", config.speech_embedding_dim), ("text", config.text_embedding_dim))
    }
    return made | {f"{name}_mask": torch.rand(1, turns, generator=generator) > 0.3 for name in ("speech", "text")}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 1, 6], [1, 11]], ids=["one by one", "in pieces", "the rest at once"])
def test_a_stream_gives_what_the_whole_dialogue_gives(tiny_model, changes, sizes):
    model = tiny_model(causal=True, **changes)
    inputs = dialogue(model, 12)
    with torch.no_grad():
        whole = model(**inputs)
    assert_same(streamed(model, inputs, sizes), dict(whole))


def test_single_precision_at_the_stated_tolerance(tiny_model):
    model = tiny_model(dtype=torch.float32, causal=True, hidden_size=64, attention_dim=60)
    inputs = {
        name: value.float() if value.is_floating_point() else value for name, value in dialogue(model, 200).items()
    }
    with torch.no_grad():
        whole = model(**inputs)
    torch.testing.assert_close(streamed(model, inputs, [1] * 200)["logits"], whole.logits, rtol=0, atol=1e-5)


def test_nothing_past_is_computed_again(tiny_model):
    model = tiny_model(causal=True)
    inputs, rows = dialogue(model, 9), []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.GRU | nn.LayerNorm) and not hasattr(module, "null_embedding")
        if type(module) in (nn.Linear, nn.GRU, nn.LayerNorm)
    ]
    streamed(model, inputs, [1] * 9)
    for hook in hooks:
        hook.remove()
    assert hooks and set(rows) == {1}


def test_what_is_kept_grows_with_attention_alone(tiny_model):
    model = tiny_model(causal=True, context_kernel_sizes=[1, 3, 5])
    convolutions = [module for module in model.modules() if isinstance(module, TurnConvolution)]

    def kept(turns: int) -> tuple[int, int]:
        """Numbers kept for attention, and for all else."""
        past = DialogueCache()
        with torch.no_grad():
            model(**dialogue(model, turns), past=past)
        attention = sum(
            a.numel() + b.numel() for value in past._kept.values() if isinstance(value, tuple) for a, b in [value]
        )
        return attention, sum(value.numel() for value in past._kept.values() if not isinstance(value, tuple))

    config = model.config
    assert convolutions and kept(20)[1] == kept(500)[1]
    for turns in (20, 500):
        assert kept(turns)[0] == turns * 8 * config.attention_dim * config.fusion_num_layers


def test_two_dialogues_do_not_mix(tiny_model):
    model = tiny_model(causal=True)
    first, second = dialogue(model, 6, seed=1), dialogue(model, 6, seed=2)
    pasts, found = (DialogueCache(), DialogueCache()), ([], [])
    with torch.no_grad():
        for turn, number in itertools.product(range(6), range(2)):
            inputs = {name: value[:, turn : turn + 1] for name, value in (first, second)[number].items()}
            found[number].append(model(**inputs, past=pasts[number]).logits)
        for inputs, logits in zip((first, second), found, strict=True):
            torch.testing.assert_close(torch.cat(logits, dim=1), model(**inputs).logits, rtol=0, atol=1e-10)


def test_a_call_that_fails_leaves_the_past_as_it_was(tiny_model):
    model = tiny_model(causal=True)
    inputs, past = dialogue(model, 4), DialogueCache()

    def turn(number: int) -> dict[str, torch.Tensor]:
        return {name: value[:, number : number + 1] for name, value in inputs.items()}

    with torch.no_grad():
        model(**turn(0), past=past)
        hook = model.fusion_expert.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**turn(1), past=past)
        hook.remove()
        assert past.num_turns == 1
        rest = [model(**turn(number), past=past).logits for number in (1, 2, 3)]
        torch.testing.assert_close(torch.cat(rest, dim=1), model(**inputs).logits[:, 1:], rtol=0, atol=1e-10)


def test_what_cannot_be_streamed_is_named(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="Only a causal model can take turns.*Train with --model.causal true"):
        model(**dialogue(model, 1), past=DialogueCache())
    model = tiny_model(causal=True)
    two = {name: value.repeat(2, 1, *[1] * (value.dim() - 2)) for name, value in dialogue(model, 1).items()}
    with pytest.raises(ValueError, match="A cache holds one dialogue"):
        model(**two, past=DialogueCache())
    with pytest.raises(ValueError, match="whose next turns must all be real"):
        model(**dialogue(model, 2), attention_mask=torch.tensor([[True, False]]), past=DialogueCache())
