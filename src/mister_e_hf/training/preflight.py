"""Build and check everything that a run of all stages needs, before the first step."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModel

from ..base import progress
from ..base.errors import InputError, short
from ..base.files import check_output_folder
from ..base.modalities import MODALITIES
from ..corpora.dialogues import load_dialogues
from ..encoders.utterances import UtteranceCollator, Utterances
from ..evaluation.metrics import SCORES
from ..evaluation.regression import REGRESSION_SCORES
from ..models.registry import entry_of
from ..vectors.dialogue_datasets import check_scores
from ..vectors.dialogue_vectors import SPLITS, DialogueVectors
from ..vectors.store import vector_modalities
from .dialogue_trainer import check_training
from .epoch_trainer import check_metric
from .own_pretraining import check_own_pretraining
from .pretrained_start import check_other_folder, check_pretrained
from .recipe import Recipe
from .recipe_widths import take_widths
from .run_folder import check_seeds, read_results
from .transcript_check import check_transcripts


def encoder_folder(output_dir: str | Path, modality: str) -> Path:
    """The folder of a run that holds the encoder of a modality."""
    return Path(output_dir) / "encoders" / modality


@dataclass
class Plan:
    r"""
    The stages of a run.

    Args:
        recipe: the recipe, changed where the corpus lacks a modality.
        modalities: modalities whose encoders are trained and make the vectors; none for a corpus of vectors.
        corpus: the dialogues; None for a corpus of vectors.
        vectors: the splits of a corpus of vectors; None for one of dialogues.
    """

    recipe: Recipe
    modalities: list[str]
    corpus: datasets.DatasetDict | None = None
    vectors: dict[str, DialogueVectors] | None = None


def check_run(recipe: Recipe, output_dir: str | Path, seeds: Sequence[int] = (0,)) -> Plan:
    r"""
    Build and check everything that the stages of a run need. Modalities that the corpus lacks are left out of the
    recipe, with a report.

    Args:
        recipe: the recipe, which is not changed.
        output_dir: folder of the run. Encoders that are finished there are not built.
        seeds: seeds of stage 2.

    Raises:
        InputError: for mistakes that would end a run later, naming section and field, or split.
    """
    check_seeds(seeds)
    check_output_folder(output_dir, [recipe.corpus_path()])
    check_other_folder(Path(output_dir), recipe.sections["training"].get("pretrained"))
    recipe = Recipe(recipe.to_dict(), recipe.source)
    recipe.training_arguments(output_dir, seeds[0])  # first: it starts the process group, if there is one
    columns = recipe.corpus.speech_columns
    found = vector_modalities(recipe.corpus_path(), columns)
    if found:
        for sentence in take_widths(recipe):
            progress.line(sentence)
        _leave_out(recipe, [name for name in MODALITIES if name not in found], "the corpus has no vectors of")
        check_conversation_model(recipe, output_dir)
        vectors = recipe.read_corpus()
        check_transcripts(recipe, vectors)
        check_scores(vectors["train"], "train", recipe.model_config())
        return Plan(recipe, [], vectors=vectors)
    if columns is not None:
        only = vector_modalities(recipe.corpus_path())
        holds = "no vectors but those of speech, without such names" if only else "audio and transcripts, not vectors"
        raise InputError(
            f"{recipe.source}: corpus.speech_columns picks columns of speech vectors by name, and the corpus holds "
            f"{holds}. Remove it (--corpus.speech_columns null)"
        )
    corpus = load_dialogues(recipe.corpus_path())
    named = named_encoders(recipe)
    if named and not any(recipe.sections[MODALITIES[name].encoder].get("backbone") for name in named):
        recipe.encoder(named[0])  # raises: the recipes of the demos are not for other corpora
    modalities, lacking = _keep_encoders(recipe, corpus)
    if not modalities:
        raise InputError(
            f"{recipe.source}: no section of an encoder that this corpus can train, so nothing makes vectors"
        )
    _leave_out(recipe, lacking, "nothing makes vectors of")
    for modality in modalities:
        width = recipe.encoder(modality).config(recipe.label2id).embedding_dim
        recipe.set(f"model.{MODALITIES[modality].width}", width)
    check_conversation_model(recipe, output_dir)
    check_transcripts(recipe, corpus)
    _check_splits(recipe, corpus, modalities)
    with progress.bar("checking the encoders", len(modalities), "encoders") as bar:
        for modality in modalities:
            _check_encoder(recipe, modality, corpus, encoder_folder(output_dir, modality))
            bar.update()
    return Plan(recipe, modalities, corpus)


def named_encoders(recipe: Recipe) -> list[str]:
    """The modalities for which the recipe has a section of an encoder."""
    return [name for name, modality in MODALITIES.items() if recipe.sections.get(modality.encoder)]


def with_turns(modalities: Sequence[str], corpus: datasets.DatasetDict) -> list[str]:
    """The modalities that some turn of the corpus has; the others are reported."""
    kept = [name for name in modalities if any(len(Utterances(data, name)) for data in corpus.values())]
    for name in modalities:
        if name not in kept:
            progress.line(f"{name} encoder: skipped, no turn has {name}")
    return kept


def _keep_encoders(recipe: Recipe, corpus: datasets.DatasetDict) -> tuple[list[str], list[str]]:
    """
    The modalities whose encoder the model needs and the corpus can train, and those without vectors. The sections of
    other encoders are removed from the recipe.
    """
    kept, lacking = [], [modality for modality in MODALITIES if modality not in named_encoders(recipe)]
    for modality in named_encoders(recipe):
        if "train" in corpus and not len(_labelled(recipe, corpus, "train", modality)):
            lacking.append(modality)
            reason = f"no labelled turn of train has {modality}"
        elif modality not in recipe.model_config().modalities:
            reason = "the model does not use it"
        else:
            kept.append(modality)
            continue
        progress.line(f"{modality} encoder: skipped, {reason}")
        recipe.drop_encoder(modality)
    return kept, lacking


def _labelled(recipe: Recipe, corpus: datasets.DatasetDict, split: str, modality: str, **options: Any) -> Utterances:
    return Utterances(corpus[split], modality, labelled_only=True, **recipe.corpus.turn_labels(), **options)


def _leave_out(recipe: Recipe, absent: list[str], reason: str):
    absent = [name for name in absent if name in recipe.model_config().takes()]
    read = [name for name in absent if name in recipe.model_config().modalities]
    if absent and (changes := recipe.leave_out(absent)):
        progress.line(f"{reason} {' and '.join(read or absent)}: {changes}")


def check_conversation_model(recipe: Recipe, output_dir: str | Path):
    """
    Check the sections of stage 2.

    Raises:
        InputError: if the model cannot be built, does not fit into memory, or cannot be trained or pre-trained with
            these arguments and corpora.
    """
    config, arguments = recipe.model_config(), recipe.training_arguments(output_dir, 0)
    try:
        check_training(config, arguments)
    except InputError as error:
        raise InputError(f"{recipe.source}: section 'training': {error}") from error
    check_pretrained(config, recipe.sections["training"].get("pretrained"))
    check_own_pretraining(recipe, output_dir)
    try:
        config = entry_of(config).model_class().described(config)
        with torch.device("meta"):
            needed = 4 * sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    except (InputError, OSError) as error:  # a language model that the configuration names is out of reach
        raise InputError(f"{recipe.source}: section 'model': {error}") from error
    there = _memory()
    if there is not None and needed > there:
        raise InputError(
            f"{recipe.source}: section 'model': its weights alone take {needed / 2**30:,.0f} GiB, this machine has "
            f"{there / 2**30:,.0f} GiB; lower hidden_size or the number of layers"
        )


def _memory() -> int | None:
    """Bytes of main memory; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _check_splits(recipe: Recipe, corpus: datasets.DatasetDict, modalities: list[str]):
    for split in SPLITS:
        if split not in corpus:
            raise InputError(
                f"The corpus has no dialogues in {split}; it has {', '.join(corpus)}, and all three are needed"
            )
        for modality in modalities if split == "validation" else ():
            if not len(_labelled(recipe, corpus, split, modality)):
                raise InputError(f"{split}: no labelled turn has {modality}; its encoder cannot be trained")
        if not any(len(_labelled(recipe, corpus, split, modality)) for modality in modalities):
            raise InputError(f"{split}: no turn has a label")


def _check_encoder(recipe: Recipe, modality: str, corpus: datasets.DatasetDict, folder: Path):
    """Check the arguments of an encoder's training and, unless it is finished, run the encoder on two turns."""
    settings, section = recipe.encoder(modality), f"{recipe.source}: section '{MODALITIES[modality].encoder}'"
    arguments = settings.training_arguments(folder, 0)
    try:
        check_metric(arguments, REGRESSION_SCORES if recipe.regression else SCORES)
    except InputError as error:
        raise InputError(f"{section[:-1]}.training': {error}") from error
    if settings.folds and not 2 <= settings.folds <= len(corpus["train"]):
        raise InputError(f"{section}: folds must be from 2 to {len(corpus['train'])}, the dialogues of train")
    if read_results(folder) is not None:
        return
    model, processor = settings.model(recipe.label2id), settings.processor()
    turns = _labelled(recipe, corpus, "train", modality, **settings.reading)
    items = [turns[int(index)] for index in turns.lengths.argsort(kind="stable")[:2]]
    try:
        batch = UtteranceCollator(processor)(items)
        with torch.no_grad():
            device = arguments.device
            torch.nn.Module.to(model, device)(**{name: value.to(device) for name, value in batch.items()})
    except InputError as error:
        raise InputError(f"{section}: {error}") from error
    except Exception as error:  # backbones raise errors of every kind
        raise InputError(
            f"{section}: '{settings.fields['backbone']}' could not read two turns: {type(error).__name__}: "
            f"{short(error)}"
        ) from error
