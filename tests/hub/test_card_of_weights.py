from types import SimpleNamespace

import numpy as np

from mister_e_hf.evaluation.predictions import mean_weights
from mister_e_hf.hub.card_results import results_section

SCORES = {"weighted_f1": 0.5, "macro_f1": 0.5, "accuracy": 0.5, "num_utterances": 2}


def test_the_card_states_the_mean_weight_of_each_part():
    weights = np.array([[0.2, 0.8, 0.0], [0.0, 0.4, 0.6]], dtype=np.float32)
    config = SimpleNamespace(
        capsules=("speech", "text", "speech+text"), fusion_experts=("a", "b", "c"), weighed_modalities=("x", "y", "z")
    )
    fields = ("capsule_weights", "expert_weights", "modality_weights")
    means = mean_weights(dict.fromkeys(fields, weights), config)
    assert tuple(means) == fields
    for parts in means.values():
        np.testing.assert_allclose([*parts.values()], [0.1, 0.6, 0.3], rtol=1e-6)
    text = results_section({"seed": 0, "test": {"mixture": SCORES}, **means})
    assert "Mean capsule weights on test: speech 0.10, text 0.60, speech+text 0.30." in text
    assert "Mean gate weights on test: a 0.10, b 0.60, c 0.30." in text
    assert "Mean modality weights on test: x 0.10, y 0.60, z 0.30." in text


def test_a_model_without_such_parts_has_no_means():
    assert mean_weights({"mixture": np.zeros((2, 3)), "gate_weights": np.ones((2, 1))}, SimpleNamespace()) == {}
    assert "weights" not in results_section({"seed": 0, "test": {"mixture": SCORES}})
