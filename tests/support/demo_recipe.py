"""The recipe `demo`, and options that make a study of it short."""

from pathlib import Path

DEMO = Path(__file__).parents[2] / "hub_configs" / "demo.yaml"
SHORT = [
    "--num_train_epochs",
    "1",
    "--hidden_size",
    "16",
    "--baselines.logistic_regression.training.num_train_epochs",
    "1",
]
