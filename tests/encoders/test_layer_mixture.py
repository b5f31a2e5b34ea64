import pytest
import torch
import transformers

from mister_e_hf import UtteranceEncoder
from mister_e_hf.encoders.configuration_utterance_encoder import UtteranceEncoderConfig
from mister_e_hf.encoders.layer_mixture import LayerMixture

MASK = torch.tensor([[True, True, False], [False, True, True]])
PLACES = MASK.flatten().nonzero().squeeze(1)


def inputs(dtype=torch.float64) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    weights = torch.rand(4, dtype=torch.float64, requires_grad=True)
    return weights, [torch.randn(2, 3, 5, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(4)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mixture_is_the_weighted_sum_of_the_rows(dtype):
    weights, states = inputs(dtype)
    expected = weights[0] * states[0][MASK].double()
    for weight, state in zip(weights[1:], states[1:], strict=True):
        expected = expected + weight * state[MASK].double()
    found = LayerMixture.apply(weights, PLACES, torch.float64, *states)
    assert torch.equal(found, expected)
    direction = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, [weights, *states], direction),
        torch.autograd.grad(expected, [weights, *states], direction),
        strict=True,
    )
    for actual, wanted in pairs:
        assert actual.dtype == wanted.dtype
        torch.testing.assert_close(actual, wanted)


def test_gradient_of_a_mixture():
    weights, states = inputs()
    assert torch.autograd.gradcheck(lambda w, *s: LayerMixture.apply(w, PLACES, torch.float64, *s), (weights, *states))
    frozen = [state.detach() for state in states]
    (gradient,) = torch.autograd.grad(LayerMixture.apply(weights, PLACES, torch.float64, *frozen).sum(), weights)
    torch.testing.assert_close(gradient, torch.stack([state[MASK].sum() for state in frozen]))


def test_no_copy_of_a_layer_is_kept():
    weights, states = inputs(torch.bfloat16)
    layers = [2 * state for state in states]  # which a layer keeps itself
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LayerMixture.apply(weights, PLACES, torch.float32, *layers)
    own = {layer.data_ptr() for layer in layers} | {weights.data_ptr(), PLACES.data_ptr()}
    assert {each.data_ptr() for each in kept} == own


def test_training_keeps_no_more_for_a_mixture_than_for_the_last_layer():
    layers = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 1}
    backbone = transformers.WavLMConfig(
        feat_extract_norm="layer", do_stable_layer_norm=True, **layers, **convolutions
    ).to_dict()
    kept: dict[str | None, dict[int, int]] = {}
    for layer in (None, "weighted_sum"):
        torch.manual_seed(0)
        options = {"backbone_config": backbone, "tuning": "lora", "layer": layer, "id2label": {0: "a", 1: "b"}}
        config = UtteranceEncoderConfig(modality="speech", backbone="wavlm", **options)
        encoder, sizes, alive = UtteranceEncoder(config).train(), kept.setdefault(layer, {}), []

        def keep(tensor, sizes=sizes, alive=alive):
            alive.append(tensor)
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder(input_values=torch.randn(2, 16_000), labels=torch.zeros(2, dtype=torch.long))
    alone, mixture = (sum(sizes.values()) for sizes in kept.values())
    assert mixture < 1.03 * alone
