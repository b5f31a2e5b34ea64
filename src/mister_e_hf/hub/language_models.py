"""The language model that a conversation model reads with, which its checkpoint folder names or holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..base.errors import InputError
from .loading import find_file, is_local, read_json

FIELD = "language_model"  # of a configuration, the model's name on the Hub or its folder
FOLDER = "language_model"  # of a checkpoint
_ADAPTER = f"{FOLDER}/adapter/adapter_config.json"


def is_held(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with this `config.json` holds the weights of the language model."""
    return bool(config.get("train_language_model") or config.get("save_language_model"))


def with_public_name(
    folder: Path, paths: Mapping[str, Path], recipe: dict[str, Any], given: str | None
) -> dict[str, dict[str, Any]]:
    r"""
    The JSON files of a checkpoint folder that change where a push sends them, because they name the language model.

    Args:
        folder: the checkpoint folder.
        paths: its files by name.
        recipe: content of `training.yaml`, in which the name is changed, too.
        given: the Hub id of the language model, to be recorded instead of a local folder.

    Raises:
        InputError: if the language model is a local folder, so that nobody else could load it, or there is none.
    """
    config = read_json(paths["config.json"])
    name = config.get(FIELD)
    if not isinstance(name, str):
        if given is not None:
            raise InputError(f"'{folder}' has no language model, so '{given}' is not its base model")
        return {}
    if given is None and not is_local(name):
        return {}
    if given is None and not is_held(config):
        raise InputError(
            f"The language model of '{folder}' is a local folder, '{name}', which nobody else can load. Name the same "
            f"model on the Hub with --base_model {FIELD}=ORGANISATION/NAME, or train with --model.save_language_model "
            "true, which stores its weights in the checkpoint."
        )
    public = given or Path(name).name
    changed = {FIELD: public, "language_model_revision": None}
    if isinstance(recipe.get("model"), dict) and FIELD in recipe["model"]:
        recipe["model"] |= changed
    contents = {"config.json": config | changed}
    if _ADAPTER in paths:
        contents[_ADAPTER] = read_json(paths[_ADAPTER]) | {"base_model_name_or_path": public, "revision": None}
    return contents


def licence_of(name: str, **hub: Any) -> str | None:
    r"""
    What the card of a language model says of its licence; None without one, or if it cannot be read.

    Args:
        name: a folder, or its id on the Hub.
        hub: revision, token, cache_dir, local_files_only.
    """
    try:
        path = find_file(name, "README.md", hub)
        data = None if path is None else ModelCard.load(path).data
    except Exception:  # any of huggingface_hub, or of YAML
        return None
    found = None if data is None else data.get("license_name") or data.get("license")
    return found if isinstance(found, str) else None


def language_model_sentence(config: Any) -> str:
    """What a card says of the language model, after a space; empty without one."""
    name = getattr(config, FIELD, None)
    if name is None:
        return ""
    how = "trained whole" if config.train_language_model else "as it is" if config.lora is None else "with LoRA"
    shown = f"`{Path(name).name}`" if is_local(name) else f"[{name}](https://huggingface.co/{name})"
    where = "are downloaded from there"
    if config.holds_language_model:
        where = "are part of this checkpoint"
    elif is_local(name):
        where = "are in a folder on the machine where it was trained"
    return (
        f" It reads the transcripts with the language model {shown}, {how}, whose weights {where} and whose own "
        "licence applies to them."
    )
