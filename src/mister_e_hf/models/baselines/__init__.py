"""Published systems of emotion recognition in conversations to compare MiSTER-E with. None uses who speaks."""

from ..registry import baselines, entry

BASELINES = tuple(each.name for each in baselines())
TRAINING = {each.name: dict(each.training) for each in baselines()}


def baseline_config(name: str) -> type:
    """The configuration class of a baseline by its short name."""
    return entry(name).config_class()


def baseline_model(name: str) -> type:
    """The model class of a baseline by its short name."""
    return entry(name).model_class()
