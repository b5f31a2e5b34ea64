"""Write and push checkpoint folders."""

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedModel
from transformers.utils import logging

from ..base.errors import InputError, reading, short
from ..base.modalities import MODALITIES
from ..base.yaml_files import read_yaml
from . import language_models
from .language_models import with_public_name
from .loading import check_weight_files, is_local, read_json
from .model_card import REPOSITORY, model_card
from .pretrained import check_heads_are_trained
from .pretraining_card import pretraining_card

logger = logging.get_logger(__name__)

# Only these files, those that the model declares (`checkpoint_files`) and the encoders' are ever pushed: no optimizer
# state, no training log, no pickle, no predictions on licensed data.
PUSHED_FILES = [
    "config.json",
    "model.safetensors",
    "*.py",
    "README.md",
    "training.yaml",
    "results.json",
    "confusion.png",
]
# Fields of a recipe that hold a folder, or an id on the Hub.
_SOURCES = ("path", "backbone", "pretrained", "corpora", "language_model", "prefix_folder")
_PATHS = (PurePosixPath, PureWindowsPath)
# What a model may declare: nothing that is loaded by running it.
_SAFE_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}
# Files of an encoder. Its code is stored once, beside stage 2's, where transformers looks for remote code.
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


def save_checkpoint(
    folder: str | Path,
    model: PreTrainedModel,
    recipe: dict | None = None,
    results: dict | None = None,
    encoders: Mapping[str, Path] | None = None,
) -> Path:
    r"""
    Write a model's checkpoint folder: weights, configuration, the code that loads it without this package, its recipe
    and a model card made from its results. Each file and sub-folder is replaced whole.

    Args:
        folder: created if it does not exist; its other files are kept.
        model: the trained model. Sub-folders that its `save_pretrained` writes are part of the checkpoint.
        recipe: stored as `training.yaml`; without it, an existing file is kept.
        results: content of `results.json`, for the card.
        encoders: folders of stage 1's encoders by modality; each becomes `speech_encoder/`, `text_encoder/`, ...
    """
    folder = Path(folder)
    unfinished = folder / ".unfinished-model"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(unfinished)
    if recipe is not None:
        (unfinished / "training.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    has_plot = (folder / "confusion.png").is_file()
    if getattr(model, "pretrains", False):
        card = pretraining_card(model, recipe or {}, results or {})
    else:
        card = model_card(model, recipe or {}, results or {}, list(encoders or ()), has_plot)
    (unfinished / "README.md").write_text(str(card), encoding="utf-8")
    for modality, source in (encoders or {}).items():
        _copy_encoder(Path(source), unfinished, MODALITIES[modality].encoder)
    # config.json last: with it the folder counts as a model
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        os.replace(path, folder / path.name)
    unfinished.rmdir()
    return folder


def _copy_encoder(source: Path, folder: Path, name: str):
    for path in _matching(source, ENCODER_FILES):
        target = folder / name / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)  # files may have gigabytes; in the cache they are symbolic links
        except OSError:
            shutil.copyfile(path, target)
    for path in source.glob("*.py"):
        shutil.copyfile(path, folder / path.name)


def _matching(folder: Path, names: Iterable[str]) -> list[Path]:
    return [path for name in names for path in sorted(folder.glob(name)) if path.is_file()]


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    commit_message: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    base_models: Mapping[str, str] | None = None,
) -> str:
    r"""
    Push the files that [`checkpoint_files`] lists to a model repository on the Hub; returns its id.

    Args:
        base_models: by modality, the Hub id of the encoder's base model, recorded instead of a local folder; and as
            `language_model` that of the language model that a model reads with.

    Raises:
        InputError: if an encoder's base model is a local folder, so that nobody else could load it; if the recipe or
            the card cannot be read; or if the Hub cannot be reached.
        OSError: naming the weights that are missing or damaged.
    """
    contents, api = pushed_contents(folder, base_models), HfApi(token=token)
    with _reaching_the_hub():
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if "README.md" in contents:  # the card of a local folder does not know the repository
            card = contents["README.md"]
            card = card if isinstance(card, bytes) else card.read_bytes()
            contents["README.md"] = card.replace(REPOSITORY.encode(), repo_id.encode())
        api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=commit_message or "Add checkpoint",
            revision=revision,
        )
    return repo_id


def check_repository(repo_id: str):
    """Check that a repository can have this name; else an InputError."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"'{short(repo_id)}' is not a valid repository name: expected ORG/NAME ({short(error)})"
        ) from error


@contextlib.contextmanager
def _reaching_the_hub() -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError:  # the Hub was reached, and its message has the reason
        raise
    except Exception as error:
        # By name: which HTTP library raises depends on the version of huggingface_hub.
        if {"TransportError", "ConnectionError", "Timeout"} & {kind.__name__ for kind in type(error).__mro__}:
            raise InputError(f"The Hub cannot be reached, so nothing was pushed ({short(error)})") from error
        raise


def checkpoint_files(folder: str | Path) -> dict[str, int]:
    """The files of a checkpoint folder that a push sends, with their sizes in bytes."""
    return {name: path.stat().st_size for name, path in _pushed(Path(folder)).items()}


def card_claims(contents: Mapping[str, Path | bytes]) -> dict[str, Any]:
    """
    What the card among [`pushed_contents`] publishes in its metadata: `model_name`, `license`, `base_model`, `scores`;
    empty without a card.
    """
    card = contents.get("README.md")
    if card is None:
        return {}
    data: Any = (ModelCard(card.decode()) if isinstance(card, bytes) else _card(card)).data
    scores = [
        f"{found.metric_type} {_rounded(found.metric_value)} on {found.dataset_name} ({found.dataset_split})"
        for found in data.eval_results or ()
    ]
    return {**{name: data.get(name) for name in ("model_name", "license", "base_model")}, "scores": scores}


def _rounded(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _card(path: Path) -> ModelCard:
    with reading(path, "a model card"):
        return ModelCard.load(path)


def pushed_contents(folder: str | Path, base_models: Mapping[str, str] | None = None) -> dict[str, Path | bytes]:
    """What a push sends, by name: a file, or its content with local paths removed. See [`push_checkpoint`]."""
    paths, base_models = _pushed(Path(folder)), base_models or {}
    check_weight_files(folder)
    contents: dict[str, Path | bytes] = dict(paths)
    recipe = read_yaml(paths["training.yaml"]) if "training.yaml" in paths else {}
    if not isinstance(recipe, dict):
        raise InputError(f"'{paths['training.yaml']}' must contain sections, got {short(repr(recipe), 80)}")
    stored = copy.deepcopy(recipe)
    for modality, name in _encoder_folders().items():
        if f"{name}/config.json" in paths:
            check_weight_files(folder, name)
        else:
            if modality in base_models:
                raise InputError(f"'{folder}' has no {name}/, so '{base_models[modality]}' is not its base model")
            continue
        config = read_json(paths[f"{name}/config.json"])
        if config.get("tuning") == "lora" and f"{name}/adapter/adapter_model.safetensors" not in paths:
            raise InputError(f"'{folder}/{name}' has no adapter/adapter_model.safetensors; save the encoder again")
        backbone = config.get("backbone")
        local = isinstance(backbone, str) and is_local(backbone)
        given = base_models.get(modality)
        if local and given is None and config.get("tuning") != "full" and not config.get("save_backbone"):
            raise InputError(
                f"The base model of {name}/ is a local folder, '{backbone}', which nobody else can load. Name the "
                f"same model on the Hub with --base_model {modality}=ORGANISATION/NAME, or train with "
                f"--{name}.save_backbone true, which stores its weights in the checkpoint."
            )
        if local or given is not None:
            public = given or Path(str(backbone)).name
            config |= {"backbone": public, "backbone_revision": None}
            if isinstance(config.get("backbone_config"), dict) and "_name_or_path" in config["backbone_config"]:
                config["backbone_config"] |= {"_name_or_path": public}
            contents[f"{name}/config.json"] = _json(config)
            adapter = f"{name}/adapter/adapter_config.json"
            if adapter in paths:
                contents[adapter] = _json(read_json(paths[adapter]) | {"base_model_name_or_path": public})
            if isinstance(recipe.get(name), dict) and "backbone" in recipe[name]:
                recipe[name] |= {"backbone": public, "backbone_revision": None}
    changed = with_public_name(Path(folder), paths, recipe, base_models.get(language_models.FIELD))
    contents |= {name: _json(content) for name, content in changed.items()}
    recipe = _without_local_paths(recipe)
    if recipe != stored:
        contents["training.yaml"] = yaml.safe_dump(recipe, sort_keys=False).encode()
    if base_models and "README.md" in paths:
        card = _card(paths["README.md"])
        data: Any = card.data  # a ModelCardData, of any fields
        named = data.base_model or ()
        named = [named] if isinstance(named, str) else named
        data.base_model = sorted({*map(str, named), *base_models.values()})
        contents["README.md"] = str(card).encode()
    return contents


def weights_elsewhere(contents: Mapping[str, Path | bytes]) -> dict[str, str]:
    """
    The sub-folders among [`pushed_contents`] without the weights of their encoder's backbone, or of the language
    model, and the Hub id of these.
    """
    found = {}
    for name in _encoder_folders().values():
        if (content := contents.get(f"{name}/config.json")) is not None:
            config = json.loads(content) if isinstance(content, bytes) else read_json(content)
            if config.get("tuning") != "full" and not config.get("save_backbone"):
                found[name] = str(config.get("backbone"))
    content = contents["config.json"]
    config = json.loads(content) if isinstance(content, bytes) else read_json(content)
    if isinstance(config.get(language_models.FIELD), str) and not language_models.is_held(config):
        found[language_models.FOLDER] = config[language_models.FIELD]
    return found


def _without_local_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe that names the folders of this machine by their last part alone."""

    def shortened(value: Any, is_source: bool = False) -> Any:
        if isinstance(value, dict):
            return {key: shortened(each, key in _SOURCES) for key, each in value.items()}
        if isinstance(value, list):
            return [shortened(each, is_source) for each in value]
        is_path = isinstance(value, str) and (
            value.startswith(("~", "./", "../")) or any(kind(value).is_absolute() for kind in _PATHS)
        )
        return (
            PureWindowsPath(value).name
            if is_path or (is_source and isinstance(value, str) and is_local(value))
            else value
        )

    return {name: shortened(section) for name, section in recipe.items()}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _pushed(folder: Path) -> dict[str, Path]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"'{folder}' is not a checkpoint folder: it has no config.json")
    paths = _matching(folder, [*PUSHED_FILES, *_declared_files(folder)])
    for name in _encoder_folders().values():
        paths += _matching(folder / name, ENCODER_FILES)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _declared_files(folder: Path) -> tuple[str, ...]:
    """
    The patterns that the class of a folder's model declares as its `checkpoint_files`.

    Raises:
        InputError: if one leaves the folder, or asks for pickles.
    """
    model_type = read_json(folder / "config.json").get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return ()
    config_class = CONFIG_MAPPING[model_type]
    patterns = getattr(MODEL_MAPPING[config_class], "checkpoint_files", ()) if config_class in MODEL_MAPPING else ()
    for pattern in patterns:
        path = PurePosixPath(pattern)
        if path.is_absolute() or {"..", "**"} & {*path.parts} or path.suffix not in _SAFE_SUFFIXES:
            raise InputError(
                f"A model of type '{model_type}' declares '{pattern}' as a file of its checkpoint; expected a pattern "
                f"below the folder that ends in one of {', '.join(sorted(_SAFE_SUFFIXES))}"
            )
    return patterns


def _encoder_folders() -> dict[str, str]:
    return {name: modality.encoder for name, modality in MODALITIES.items()}


def push_model(model: PreTrainedModel, repo_id: str, *options) -> str:
    """Push a model as a checkpoint folder, with the recipe, results and encoders of the checkpoint that it was loaded
    from; returns the repository's id. What is beside a pre-training model is not part of one that begins from it."""
    check_heads_are_trained(model)
    source = None if getattr(model, "begins_from_pretraining", False) else _source(model)
    with tempfile.TemporaryDirectory() as folder:
        recipe, results, encoders = None, None, {}
        if source is not None and (source / "training.yaml").is_file():
            recipe = read_yaml(source / "training.yaml")
        if source is not None:
            for name in {"results.json", "confusion.png"} & {path.name for path in source.iterdir()}:
                shutil.copyfile(source / name, Path(folder) / name)
            if (source / "results.json").is_file():
                results = read_json(source / "results.json")
            folders = {modality: source / name for modality, name in _encoder_folders().items()}
            encoders = {modality: path for modality, path in folders.items() if path.is_dir()}
        save_checkpoint(folder, model, recipe, results, encoders)
        if not encoders and not getattr(model, "pretrains", False):
            logger.warning(
                f"'{repo_id}' gets no encoders, so its pipeline takes only vectors: the model was "
                + (
                    "not loaded from a checkpoint folder"
                    if source is None
                    else f"loaded from '{source}', which has none"
                )
                + ". `mister-e push` pushes a whole folder."
            )
        return push_checkpoint(folder, repo_id, *options)


def _source(model: PreTrainedModel) -> Path | None:
    """The folder that a model was loaded from; from the Hub, what is stored beside its weights is downloaded."""
    name = model.config._name_or_path
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    files = ["training.yaml", "results.json", "confusion.png", *(f"{name}/*" for name in _encoder_folders().values())]
    return Path(snapshot_download(name, allow_patterns=files, **getattr(model, "hub_options", {})))
