import numpy as np

from mister_e_hf.evaluation.predictions import mean_capsule_weights
from mister_e_hf.hub.card_results import results_section

SCORES = {"weighted_f1": 0.5, "macro_f1": 0.5, "accuracy": 0.5, "num_utterances": 2}


def test_the_card_states_the_mean_share_of_each_capsule():
    weights = np.array([[0.2, 0.8, 0.0], [0.0, 0.4, 0.6]], dtype=np.float32)
    shares = mean_capsule_weights({"capsule_weights": weights}, ("speech", "text", "speech+text"))
    np.testing.assert_allclose([*shares.values()], [0.1, 0.6, 0.3], rtol=1e-6)
    results = {"seed": 0, "test": {"mixture": SCORES}, "capsule_weights": shares}
    assert "Mean share of each capsule in the predictions on test: speech 0.10, text 0.60, speech" in results_section(
        results
    )


def test_a_model_without_capsules_has_no_shares():
    assert mean_capsule_weights({"mixture": np.zeros((2, 3))}, ()) == {}
    assert "capsule" not in results_section({"seed": 0, "test": {"mixture": SCORES}})
