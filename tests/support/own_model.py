"""A model that a user registers, of the two modalities of this package."""

from huggingface_hub.dataclasses import strict

from mister_e_hf.models.ablations import Ablation
from mister_e_hf.models.baselines.bc_lstm import BcLstmModel
from mister_e_hf.models.baselines.configuration import BcLstmConfig
from mister_e_hf.models.registry import RegisteredModel


@strict
class OwnConfig(BcLstmConfig):
    """Configuration of [`OwnModel`]."""

    model_type = "own"


class OwnModel(BcLstmModel):
    """A bc-LSTM with another name."""

    config_class = OwnConfig
    title = "Own"


OWN = RegisteredModel(
    "own",
    "own",
    f"{__name__}:OwnConfig",
    f"{__name__}:OwnModel",
    ablations={"narrow": Ablation("half as wide", {"model.hidden_size": 8})},
)
