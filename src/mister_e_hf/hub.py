"""The checkpoint folder: writing it and pushing it."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from transformers import PreTrainedModel

from .model_card import REPOSITORY, model_card

# Only these names are ever pushed: no optimizer state, no training log, no pickle, no predictions on licensed data.
PUSHED_FILES = [
    "config.json",
    "model.safetensors",
    "*.py",
    "README.md",
    "training.yaml",
    "results.json",
    "confusion.png",
]
# Of an encoder: its code stands once, beside stage 2's, where remote code is looked up.
ENCODER_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
]
_ENCODERS = ("speech_encoder", "text_encoder")


def save_checkpoint(
    folder: str | Path,
    model: PreTrainedModel,
    recipe: dict | None = None,
    results: dict | None = None,
    encoders: Mapping[str, Path] | None = None,
) -> Path:
    r"""
    Write a model's checkpoint folder: weights, configuration, the code that loads it without this package, the recipe that made
    it and a card made from its results. Each file is replaced whole.

    Args:
        folder: made where it is not there; other files in it stay.
        model: the trained model.
        recipe: goes to `training.yaml`; without it, one that stands there stays.
        results: as `results.json` holds them, for the card.
        encoders: folders of stage 1's encoders by modality; each becomes `speech_encoder/` or `text_encoder/`.
    """
    folder = Path(folder)
    unfinished = folder / ".unfinished-model"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(unfinished)
    if recipe is not None:
        (unfinished / "training.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    has_picture = (folder / "confusion.png").is_file()
    card = model_card(model, recipe or {}, results or {}, list(encoders or ()), has_picture)
    (unfinished / "README.md").write_text(str(card), encoding="utf-8")
    for modality, source in (encoders or {}).items():
        _copy_encoder(Path(source), unfinished, f"{modality}_encoder")
    for name in _ENCODERS:
        if (unfinished / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
    # config.json last: with it the folder counts as a model
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
    unfinished.rmdir()
    return folder


def _copy_encoder(source: Path, folder: Path, name: str):
    for path in _matching(source, ENCODER_FILES):
        target = folder / name / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)  # one file of many gigabytes is enough; in the cache it is behind a link
        except OSError:
            shutil.copyfile(path, target)
    for path in source.glob("*.py"):
        shutil.copyfile(path, folder / path.name)


def _matching(folder: Path, names: list[str]) -> list[Path]:
    return [path for name in names for path in sorted(folder.glob(name))]


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    commit_message: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Push a checkpoint folder's files, of the names in `PUSHED_FILES`, to a model repository of the Hub; returns its id."""
    paths, api = _pushed(Path(folder)), HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    contents: dict[str, Path | bytes] = dict(paths)
    if "README.md" in contents:  # the folder on disk cannot know where it goes
        contents["README.md"] = paths["README.md"].read_bytes().replace(REPOSITORY.encode(), repo_id.encode())
    api.create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in contents.items()],
        commit_message=commit_message or "Add MiSTER-E checkpoint",
        revision=revision,
    )
    return repo_id


def checkpoint_files(folder: str | Path) -> dict[str, int]:
    """What a push of this checkpoint folder sends, and how many bytes each file has."""
    return {name: path.stat().st_size for name, path in _pushed(Path(folder)).items()}


def _pushed(folder: Path) -> dict[str, Path]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"'{folder}' is no checkpoint folder: it has no config.json")
    paths = _matching(folder, PUSHED_FILES)
    for name in _ENCODERS:
        paths += _matching(folder / name, ENCODER_FILES)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def push_model(model: PreTrainedModel, repo_id: str, *options) -> str:
    """Push a model as a checkpoint folder, with the recipe, results and encoders that it was loaded with; returns the repository's id."""
    source = _source(model)
    with tempfile.TemporaryDirectory() as folder:
        recipe, results, encoders = None, None, {}
        if source is not None and (source / "training.yaml").is_file():
            recipe = yaml.safe_load((source / "training.yaml").read_text(encoding="utf-8"))
        if source is not None:
            for name in {"results.json", "confusion.png"} & {path.name for path in source.iterdir()}:
                shutil.copyfile(source / name, Path(folder) / name)
            if (source / "results.json").is_file():
                results = json.loads((source / "results.json").read_text(encoding="utf-8"))
            encoders = {name.partition("_")[0]: source / name for name in _ENCODERS if (source / name).is_dir()}
        save_checkpoint(folder, model, recipe, results, encoders)
        return push_checkpoint(folder, repo_id, *options)


def _source(model: PreTrainedModel) -> Path | None:
    """The folder that a model was loaded from; of one from the Hub, what is beside its weights."""
    name = model.config._name_or_path
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    files = ["training.yaml", "results.json", "confusion.png", *(f"{encoder}/*" for encoder in _ENCODERS)]
    return Path(snapshot_download(name, allow_patterns=files, **getattr(model, "hub_options", {})))
