"""Models that begin from the weights of pre-training."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..base.errors import InputError, short
from ..base.files import file_digest
from ..hub.loading import find_file, read_json, require_config
from ..hub.pretrained import is_pretraining
from ..models.configuration_conversation import ConversationConfig
from ..models.registry import entry_of

OWN = "self"  # in place of a folder: each run pre-trains first, on its own training dialogues


def new_model(config: ConversationConfig, pretrained: str | None = None) -> PreTrainedModel:
    r"""
    A new model.

    Args:
        config: its configuration.
        pretrained: folder or Hub id of a pre-training model that it begins from; None, or [`OWN`] before a run has
            pre-trained, for new ones.

    Raises:
        InputError: if it cannot begin from that one.
    """
    if pretrained in (None, OWN):
        return entry_of(config).model_class().begin(config)
    check_pretrained(config, pretrained)
    model = entry_of(config).model_class().from_pretrained(_place(pretrained), config=config)
    model.config.name_or_path = ""  # what is beside the pre-training model is not part of this one
    return model


def check_pretrained(config: ConversationConfig, pretrained: str | None):
    r"""
    Check that a model of this configuration can begin from a pre-training model; nothing to check without one.

    Raises:
        InputError: if it is missing, not a pre-training model, or one of another model, or of other sizes, naming the
            fields, or its results are damaged.
    """
    if pretrained is None:
        return
    if pretrained == OWN:
        entry_of(config).pretraining_class()  # or there is none
        return
    stored = require_config(_place(pretrained), {})
    where = f"training.pretrained '{pretrained}'"
    if not is_pretraining(stored):
        raise InputError(f"{where} is not a pre-training model; give a folder that mister-e pretrain has written")
    if stored.get("model_type") != config.model_type:
        raise InputError(
            f"{where} is a pre-training model of type '{stored.get('model_type')}', but the model of this recipe is "
            f"'{config.model_type}'"
        )
    found = type(config)(**stored)
    if fields := config.differs_from(found):
        differences = [f"{name} {_value(found, name)} and not {_value(config, name)}" for name in fields]
        raise InputError(
            f"{where} does not fit the model of this recipe: it has {', '.join(differences)}. Pre-train with the same "
            "section model and corpus.speech_columns, or change them here"
        )
    pretraining_facts(pretrained)  # a damaged file is found before the training whose results need it


def check_other_folder(output_dir: Path, pretrained: str | None):
    r"""
    Check that a run does not write to the folder that it begins from.

    Raises:
        InputError: if it does.
    """
    folder = None if pretrained in (None, OWN) else Path(_place(pretrained))
    if folder is not None and folder.exists() and output_dir.exists() and folder.samefile(output_dir):
        raise InputError(
            f"'{output_dir}' is the folder of training.pretrained, which the run would write over; choose another "
            "--output_dir"
        )


def weights_of(pretrained: str | None) -> dict[str, str]:
    """For the record of a run, a hash of the weights that it begins from, if they are in a folder."""
    weights = None if pretrained in (None, OWN) else Path(_place(pretrained)) / "model.safetensors"
    return {} if weights is None or not weights.is_file() else {"pretrained_weights": file_digest(weights)}


def pretraining_facts(pretrained: str | None) -> dict[str, Any]:
    """For the results of a run, the dialogues without labels that its model began with, as far as they are stored."""
    path = None if pretrained is None else find_file(_place(pretrained), "results.json", {})
    stored = {} if path is None else read_json(path)
    corpora, data = stored.get("corpora"), stored.get("data")
    if not isinstance(corpora, list) or not isinstance(data, dict):
        return {} if pretrained is None else {"pretraining": {}}
    names = [each.get("name") for each in corpora if isinstance(each, dict)]
    counts = data.get("training")
    return {"pretraining": {"corpora": names, **(counts if isinstance(counts, dict) else {})}}


def _value(config: Any, field: str) -> str:
    return short(getattr(config, field), 80)


def _place(pretrained: str) -> str:
    """A folder, with the home directory written out, or a Hub id."""
    folder = Path(pretrained).expanduser()
    return str(folder) if folder.exists() else pretrained
