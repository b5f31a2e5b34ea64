"""Pre-train the model of a recipe, without labels, on the dialogues of one corpus or several."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import set_seed

from ..base.errors import InputError, short, unwrapped
from ..base.files import check_output_folder, sync_folder, write_json
from ..base.modalities import MODALITIES
from ..base.whole_files import writing
from ..corpora.licences import published_of_name
from ..hub.checkpoint import save_checkpoint
from ..models.configuration_conversation import ConversationConfig
from ..models.registry import entry_of
from ..vectors.corpus_facts import corpus_facts
from ..vectors.dialogue_vectors import SPLITS, DialogueVectors
from ..vectors.pooled import read_pooled
from ..vectors.store import dialogue_ids
from .pretraining_trainer import PretrainingArguments, PretrainingTrainer
from .recipe import Recipe
from .recipe_widths import picked_columns, take_picked_width
from .run_folder import best_epoch, check_seeds, check_unchanged, learning_history, peak_memory, provenance, run_once
from .vector_trainer import VectorTrainingArguments

logger = logging.getLogger(__name__)

_VALIDATION = "validation"


def pretrain(
    recipe: Recipe,
    output_dir: str | Path,
    corpora: Sequence[str] | None = None,
    splits: Sequence[str] = ("train",),
    seed: int = 0,
) -> dict[str, Any]:
    r"""
    Pre-train the model of a recipe on corpora of vectors. No label is read. The epoch is chosen by the loss on the
    dialogues of validation, which are not trained on.

    Writes a checkpoint folder without heads and `results.json` to `output_dir`. A finished run is skipped; an
    interrupted one resumes from its last complete checkpoint.

    Args:
        recipe: its sections `model` and `pretraining` and `corpus.speech_columns` count.
        output_dir: folder of this run alone.
        corpora: folders or Hub ids; by default the corpus of the recipe and those of `pretraining.corpora`.
        splits: what is trained on. Test dialogues are trained on only if named here, with a warning.
        seed: seed of the initial weights, dropout, masks and the order of dialogues.

    Returns:
        the content of `results.json`.

    Raises:
        InputError: if `output_dir` holds another run, the corpora do not fit one another or the model, or the model
            has no pre-training.
    """
    corpora, data = check_pretraining(recipe, output_dir, corpora, splits, seed)
    return pretrain_on(recipe, Path(output_dir), data, corpora, splits, seed)


def check_pretraining(
    recipe: Recipe, output_dir: str | Path, corpora: Sequence[str] | None, splits: Sequence[str], seed: int
) -> tuple[list[str], dict[str, DialogueVectors]]:
    """The corpora and the dialogues of [`pretrain`], whose arguments and errors these are."""
    own = [recipe.sections["corpus"].get("path"), *further_corpora(recipe)]
    corpora = list(corpora or filter(None, own))
    if not corpora:
        raise InputError(f"{recipe.source}: no corpus given; set corpus.path or pass --corpus")
    check_seeds([seed])
    check_output_folder(output_dir, corpora)
    entry_of(recipe.model_type).pretraining_class()  # or there is none
    pretraining_arguments(recipe, output_dir, seed)  # starts the process group, if there is one
    return corpora, read_dialogues(recipe, corpora, splits)


def pretrain_on(
    recipe: Recipe,
    output_dir: Path,
    data: dict[str, DialogueVectors],
    corpora: Sequence[str],
    splits: Sequence[str],
    seed: int,
    **changes: Any,
) -> dict[str, Any]:
    r"""
    As [`pretrain`], on dialogues that were read already.

    Args:
        recipe, output_dir, seed: as there.
        data: `train` and, if the best epoch is to be kept in place of the last one, `validation`, without labels.
        corpora, splits: where they are from.
        changes: of the section `pretraining`.
    """
    config = pretraining_config(recipe, data["train"])
    fingerprints = {name: each.fingerprint() for name, each in data.items()}
    record = {"recipe": _sections(recipe), "corpora": list(corpora), "splits": list(splits), "seed": seed}

    def run() -> dict[str, Any]:
        set_seed(seed)
        trainer = new_trainer(recipe, config, output_dir, seed, data["train"], data.get(_VALIDATION), **changes)
        resumed = trainer.resume()
        check_unchanged(data, fingerprints)
        results = {"seed": seed, **_facts(trainer, resumed is not None), "data_fingerprints": fingerprints}
        results |= {"corpora": [_named(corpus) for corpus in corpora], "data": _counts(data, splits)}
        results[_VALIDATION] = scores_of(trainer) if _VALIDATION in data else None
        if trainer.is_world_process_zero():
            with writing(output_dir):
                save_checkpoint(output_dir, trainer.own_model, _stored(recipe, trainer.args), results)
                sync_folder(output_dir)
            write_json(output_dir / "results.json", results)
            if trainer.args.push_to_hub:
                trainer.push_folder()
        trainer.accelerator.wait_for_everyone()
        return results

    return run_once(
        f"{recipe.title()}, pre-training, seed {seed}",
        output_dir,
        record | {"data_fingerprints": fingerprints},
        run,
        lambda results: results[_VALIDATION],
    )


def new_trainer(
    recipe: Recipe,
    config: ConversationConfig,
    output_dir: str | Path,
    seed: int,
    train: Dataset,
    validation: Dataset | None = None,
    **changes: Any,
) -> PretrainingTrainer:
    """The trainer of a new pre-training model; without dialogues of validation it keeps the last epoch."""
    if validation is None:
        changes |= {"eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": None}
    arguments = pretraining_arguments(recipe, output_dir, seed, **changes)
    model = entry_of(recipe.model_type).pretraining_class()(config)
    return PretrainingTrainer(model, arguments, train_dataset=train, eval_dataset=validation)


def pretraining_arguments(recipe: Recipe, output_dir: str | Path, seed: int, **changes: Any) -> PretrainingArguments:
    """The arguments of pre-training: the section `pretraining` of a recipe, with some fields changed."""
    try:
        fields = recipe.sections.get("pretraining", {}) | changes
        fields.pop("corpora", None)
        return PretrainingArguments(**fields, output_dir=str(output_dir), seed=seed)
    except Exception as error:  # transformers' own checks raise errors of several kinds
        raise InputError(f"{recipe.source}: section 'pretraining': {short(error)}") from error


def further_corpora(recipe: Recipe) -> list[str]:
    """The corpora of the section `pretraining`, whose train dialogues are read beside those of the recipe's own."""
    return list(recipe.sections.get("pretraining", {}).get("corpora") or ())


def read_dialogues(recipe: Recipe, corpora: Sequence[str], splits: Sequence[str]) -> dict[str, DialogueVectors]:
    """
    The dialogues that are trained on as `train`, and those of validation, if there are any that are not trained on.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise InputError(f"Unknown split '{unknown[0]}'; expected some of {', '.join(SPLITS)}")
    columns = picked_columns(recipe)
    data = {"train": read_pooled(corpora, splits, columns)}
    if PartialState().is_main_process and "test" in splits:
        logger.warning(
            "Test dialogues are trained on: scores of fine-tuned models on them will not be those of unknown "
            "dialogues. The card says so."
        )
    held_out = [corpus for corpus in corpora if _VALIDATION in dialogue_ids(corpus)]
    if _VALIDATION in splits or not held_out:
        if PartialState().is_main_process:
            why = "validation is trained on" if held_out else "no corpus has dialogues of validation"
            logger.warning("The last epoch is kept, since %s", why)
        return data
    data[_VALIDATION] = read_pooled(held_out, (_VALIDATION,), columns)
    return data


def pretraining_config(recipe: Recipe, data: DialogueVectors) -> ConversationConfig:
    r"""
    The configuration of a recipe's model, without the labels. A width that neither recipe nor model states is that of
    the vectors.

    Raises:
        InputError: naming the field, if the vectors do not fit the model.
    """
    take_picked_width(recipe)
    kind = entry_of(recipe.model_type).config_class()
    of_labels = ("model_type", "class_weights")
    fields = {name: value for name, value in recipe.sections["model"].items() if name not in of_labels}
    if (columns := picked_columns(recipe)) is not None:
        fields["speech_columns"] = columns
    for name in fields.get("modalities") or kind.takes():
        width = MODALITIES[name].width if name in MODALITIES else None
        if width is not None and name in data.vectors and getattr(kind, width) is None:
            fields.setdefault(width, data.vectors[name].width)
    try:
        config = kind(**fields)
    except Exception as error:  # the checks of a configuration raise errors of several kinds
        raise InputError(f"{recipe.source}: section 'model': {unwrapped(error)}") from error
    data.check(config.read_widths)
    for name in config.modalities:
        if name not in data.present or not data.present[name].any():
            field = next(iter(config.without([name])), None)
            hint = f"leave it out of {field}" if field else "leave it out of model.modalities, or add a corpus with it"
            raise InputError(f"No turn of the corpora has a {name} vector, so nothing can be learned from it; {hint}")
    vectors = np.stack([data.present[name] for name in config.modalities]).sum(0)
    if np.add.reduceat(vectors, data.offsets[:-1]).max() < 2:
        raise InputError(
            "Every dialogue has one vector alone, of one turn and one modality, so none can be hidden and guessed "
            "from another; add dialogues of several turns, or another modality (model.modalities)"
        )
    return config


def scores_of(trainer: PretrainingTrainer) -> dict[str, float]:
    """The metrics on the dialogues of validation."""
    found = trainer.evaluate()
    names = [name for name in found if name.startswith("eval_") and name.endswith(("loss", "chance"))]
    return {name.removeprefix("eval_"): found[name] for name in names}


def _facts(trainer: PretrainingTrainer, resumed: bool) -> dict[str, Any]:
    return {
        "best_epoch": best_epoch(trainer),
        "epochs": trainer.state.epoch,
        "training_seconds": None if resumed else round(trainer.seconds, 1),
        "peak_memory_bytes": peak_memory(),
        "threads": trainer.threads,
        "parameters": trainer.own_model.num_parameters(),
        "history": learning_history(trainer),
        **provenance(trainer.args.device),
    }


def _named(corpus: str) -> dict[str, Any]:
    """Name and licence of a corpus for the card; of a folder without its path."""
    stated = corpus_facts(corpus, {}, [])["stated"]
    name = stated.get("name") or Path(corpus).name
    known = published_of_name(name)
    return {"name": name, "license": stated.get("license") or (known.license if known else None)}


def _counts(data: dict[str, DialogueVectors], splits: Sequence[str]) -> dict[str, Any]:
    roles = {"train": ("training", list(splits)), _VALIDATION: (_VALIDATION, [_VALIDATION])}
    return {
        roles[name][0]: {"splits": roles[name][1], "dialogues": len(each), "turns": each.num_turns}
        for name, each in data.items()
    }


def _sections(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The sections of a recipe that pre-training reads."""
    columns = recipe.sections["corpus"].get("speech_columns")
    return {
        "model": dict(recipe.sections["model"]),
        "corpus": {} if columns is None else {"speech_columns": columns},
        "pretraining": dict(recipe.sections.get("pretraining", {})),
    }


def _stored(recipe: Recipe, arguments: PretrainingArguments) -> dict[str, dict[str, Any]]:
    """The recipe as it is stored with the weights: the objective is written out where it was left at its default."""
    inherited = {field.name for field in dataclasses.fields(VectorTrainingArguments)}
    own = [field.name for field in dataclasses.fields(arguments) if field.name not in inherited]
    sections = _sections(recipe)
    return sections | {"pretraining": {name: getattr(arguments, name) for name in own} | sections["pretraining"]}
