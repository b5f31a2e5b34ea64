"""Widths of a model's input that the recipe does not state, or states for the vectors of its own encoders."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..base.errors import InputError
from ..base.modalities import MODALITIES
from ..models.registry import entry_of
from ..vectors.store import vector_modalities, vector_width

if TYPE_CHECKING:
    from .recipe import Recipe


def find_widths(recipe: "Recipe"):
    """Set each width that neither recipe nor model states to that of the corpus or of the encoder."""
    take_picked_width(recipe)
    section, defaults = recipe.sections["model"], entry_of(recipe.model_type).config_class()
    for name in section.get("modalities") or ():
        modality = MODALITIES.get(name)
        if modality is None or modality.width in section or getattr(defaults, modality.width, 0) is not None:
            continue
        path = recipe.sections["corpus"].get("path")
        width = vector_width(path, name) if path else None
        if width is None and recipe.sections.get(modality.encoder):
            width = recipe.encoder(name).config(recipe.label2id).embedding_dim
        if width is not None:
            section[modality.width] = width


def picked_columns(recipe: "Recipe") -> list[str] | None:
    """The columns of speech vectors that the section `corpus` names; None if all are kept, or the model reads none."""
    takes = entry_of(recipe.model_type).config_class().takes()
    return recipe.sections["corpus"].get("speech_columns") if "speech" in takes else None


def take_picked_width(recipe: "Recipe"):
    """
    Set the width of the speech vectors to the number of columns that the section `corpus` names; raises `InputError`
    if the recipe states another one.
    """
    if (columns := picked_columns(recipe)) is None:
        return
    width, count = MODALITIES["speech"].width, len(columns)
    given = recipe.sections["model"].setdefault(width, count)
    if given != count:
        raise InputError(
            f"{recipe.source}: corpus.speech_columns names {count} columns, but model.{width} is {given}; leave it "
            f"out, or set it to {count} (--model.{width} {count})"
        )


def take_widths(recipe: "Recipe") -> Iterator[str]:
    r"""
    Take the widths of a corpus of vectors for the modalities whose encoder the recipe names: the widths that it states
    are then those of what its own encoders would make. A recipe that states which vectors it is for (`corpus.vectors`)
    keeps its widths, so that other vectors are refused.

    Args:
        recipe: changed in place; it must name a corpus.

    Yields:
        a sentence for each width that changed.
    """
    path, stated = recipe.corpus_path(), recipe.sections["corpus"].get("vectors") or {}
    takes, columns = entry_of(recipe.model_type).config_class().takes(), picked_columns(recipe)
    widths = {name: vector_width(path, name) for name in vector_modalities(path)}
    for name, width in (widths if columns is None else widths | {"speech": len(columns)}).items():
        modality = MODALITIES[name]
        if name in stated or name not in takes or not recipe.sections.get(modality.encoder):
            continue
        before = recipe.value(f"model.{modality.width}")
        if width is not None and width != before:
            recipe.set(f"model.{modality.width}", width)
            yield f"{modality.width} is {width}, the width of the vectors of the corpus (the recipe's is {before})"
