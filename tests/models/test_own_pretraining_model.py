"""A model that a user registers with a class of its own that pre-trains it."""

from dataclasses import replace

import pytest
from huggingface_hub.dataclasses import strict
from transformers import AutoModel, AutoModelForPreTraining

from mister_e_hf.models import registry
from mister_e_hf.models.emo_caps.configuration_emo_caps import EmoCapsConfig
from mister_e_hf.models.emo_caps.modeling_emo_caps import EmoCapsModel
from mister_e_hf.models.emo_caps.pretraining_emo_caps import EmoCapsForPreTraining
from mister_e_hf.models.registry import RegisteredModel
from mister_e_hf.training.experiment import run_experiment
from mister_e_hf.training.pretraining import pretrain
from mister_e_hf.training.recipe import Recipe
from support.named_speech import write_named


@strict
class OwnCapsConfig(EmoCapsConfig):
    """Configuration of [`OwnCapsModel`]."""

    model_type = "own_caps"


class OwnCapsModel(EmoCapsModel):
    """EMO-Caps with another name."""

    config_class = OwnCapsConfig
    title = "Own capsules"


class OwnCapsForPreTraining(EmoCapsForPreTraining):
    """Its pre-training."""

    config_class, fine_tuned, title = OwnCapsConfig, OwnCapsModel, OwnCapsModel.title


class Misnamed(OwnCapsForPreTraining):
    """A folder would not say of it that it is a pre-training model."""


OWN = RegisteredModel(
    "own_caps",
    "own_caps",
    f"{__name__}:OwnCapsConfig",
    f"{__name__}:OwnCapsModel",
    pretraining=f"{__name__}:OwnCapsForPreTraining",
)
WRONG = {
    "a class is not found, .*OwnCapsPretraining": f"{__name__}:OwnCapsPretraining",
    "must be a PretrainingModel, got .*OwnCapsModel": f"{__name__}:OwnCapsModel",
    "must have config_class OwnCapsConfig and fine_tuned OwnCapsModel": (
        ".emo_caps.pretraining_emo_caps:EmoCapsForPreTraining"
    ),
    "name of Misnamed must end in ForPreTraining": f"{__name__}:Misnamed",
}


@pytest.mark.parametrize(("message", "pretraining"), WRONG.items(), ids=WRONG)
def test_a_class_that_does_not_pretrain_it_is_refused(message, pretraining):
    before = registry.registered()
    with pytest.raises(ValueError, match=message):
        registry.register(replace(OWN, pretraining=pretraining))
    assert registry.registered() == before


def test_it_is_pretrained_and_fine_tuned_by_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    registry.register(OWN)
    corpus = write_named(tmp_path / "a", "a", None, speech=2, labels=["joy", "anger"])
    training = {"use_cpu": True, "num_train_epochs": 1}
    recipe = Recipe(
        {
            "model": {
                "model_type": "own_caps",
                "hidden_size": 4,
                "num_attention_heads": 2,
                "speech_embedding_dim": 2,
                "text_embedding_dim": 3,
            },
            "corpus": {"path": str(corpus), "labels": ["joy", "anger"]},
            "training": training,
            "pretraining": training,
        }
    )
    pretrain(recipe, tmp_path / "pretrained")
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path / "pretrained")) is OwnCapsForPreTraining
    for pretrained in (str(tmp_path / "pretrained"), "self"):
        recipe.set("training.pretrained", pretrained)
        run = tmp_path / f"run-{len(pretrained)}"
        assert run_experiment(recipe, run, 0)["pretraining"]["dialogues"] == 2
        assert type(AutoModel.from_pretrained(run)) is OwnCapsModel
