"""What a study leaves out where its corpus has no vectors of a modality, as `mister-e train` does."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..base.errors import InputError
from ..base.modalities import MODALITIES
from ..models.configuration_conversation import ConversationConfig
from ..training.recipe import Recipe
from ..vectors.store import vector_modalities
from .variants import Variant, compared_systems, variants_of

Item = TypeVar("Item", Recipe, Variant)


@dataclass
class Compared(Generic[Item]):
    r"""
    What a study compares on its corpus.

    Args:
        kept: recipes or variants by name, the study's own first, none of which needs what the corpus lacks.
        changed: names of those that were changed for it.
        left_out: names of those that were left out for it.
        lacking: the modalities that these would have read.
        would: what these would do or be without these modalities, after "would".
    """

    kept: dict[str, Item]
    changed: list[str]
    left_out: list[str]
    lacking: list[str]
    would: str

    def sentences(self, asked: Collection[str]) -> Iterator[str]:
        """What was changed and what was left out, each in a line; only of the names that were asked for, if any."""
        lacking, names = " and ".join(self.lacking), list(asked or self.kept)
        if changed := [name for name in names if name in self.changed]:
            who = "everything" if changed == names else ", ".join(changed)
            yield f"the corpus has no vectors of {lacking}; trained without them: {who}"
        if self.left_out and not asked:
            yield f"left out of the study, since without {lacking} they would {self.would}: {', '.join(self.left_out)}"

    def check_asked(self, names: Iterable[str]):
        """Raise an InputError for a name that was left out."""
        for name in names:
            if name in self.left_out:
                raise InputError(
                    f"'{name}' is not part of this study: the corpus has no vectors of {' and '.join(self.lacking)}, "
                    f"and what would {self.would} without them is left out. Choose from {', '.join(self.kept)}"
                )


def systems_on_corpus(recipe: Recipe) -> Compared[Recipe]:
    r"""
    The recipes of [`~mister_e_hf.studies.variants.compared_systems`], without the parts that need what the corpus
    lacks.

    Raises:
        InputError: if the recipe's own model cannot be trained without them.
    """
    absent = _absent_modalities(recipe)
    given = {name: each for name, (_, each) in compared_systems(recipe).items()}
    own = _main_without(recipe, absent)
    found = {name: recipe_without(each, absent) for name, (_, each) in compared_systems(own).items()}
    kept = {name: each for name, each in found.items() if each is not None}
    return _compared(kept, given, kept, absent, "fail")


def variants_on_corpus(recipe: Recipe, begun: Mapping[str, Any]) -> Compared[Variant]:
    r"""
    The variants of [`~mister_e_hf.studies.variants.variants_of`], without the parts that need what the corpus lacks.

    Args:
        recipe: the recipe of a study.
        begun: the variants that the study has recorded, if it is resumed. If these read what the corpus lacks, as
            studies of older versions tried to, none is changed.

    Raises:
        InputError: if the recipe's own model cannot be trained without them.
    """
    absent, given = _absent_modalities(recipe), variants_of(recipe)
    kept: dict[str, Variant] = {}
    for name, each in variants_of(_main_without(recipe, absent)).items():
        changed = recipe_without(each.recipe, absent)
        others = [other.recipe.to_dict() for other in kept.values()]
        if changed is not None and (changed is each.recipe or changed.to_dict() not in others):
            kept[name] = Variant(name, each.description, each.kind, changed)
    before, after = ({name: each.recipe for name, each in variants.items()} for variants in (given, kept))
    found = _compared(kept, before, after, absent, "fail or equal another variant")
    for name in (*found.changed, *found.left_out):
        if name in begun and begun[name].get("recipe") == before[name].to_dict():
            return Compared(given, [], [], [], "")
    return found


def recipe_without(recipe: Recipe, absent: Collection[str]) -> Recipe | None:
    """
    A copy of a recipe without the parts of its model that need an absent modality; the recipe itself if there are
    none, and None if no model is left.
    """
    try:
        config = _config(recipe)
    except InputError:
        return recipe  # the error of its own is raised where it is trained
    changed = recipe.changed({})
    changed.leave_out([name for name in absent if name in config.takes()])
    try:
        left = changed.model_config()
    except InputError:
        return None
    if set(absent) & set(left.required_modalities):
        return None
    # The same modalities in another order are the same model.
    same = left.to_dict() == config.to_dict() and changed.sections["training"] == recipe.sections["training"]
    return recipe if same else changed


def _absent_modalities(recipe: Recipe) -> list[str]:
    """The modalities of which the corpus has no vectors; empty if it has none at all, which reading it refuses."""
    found = vector_modalities(recipe.corpus_path(), recipe.corpus.speech_columns)
    return [name for name in MODALITIES if name not in found] if found else []


def _main_without(recipe: Recipe, absent: Collection[str]) -> Recipe:
    found = recipe_without(recipe, absent)
    if found is None:
        read = [name for name in recipe.model_config().modalities if name in absent]
        raise InputError(
            f"{recipe.source}: the corpus has no vectors of {' and '.join(read)}, without which {recipe.title()} "
            "cannot be trained"
        )
    return found


def _compared(
    kept: dict[str, Item],
    before: Mapping[str, Recipe],
    after: Mapping[str, Recipe],
    absent: Collection[str],
    would: str,
) -> Compared[Item]:
    """`kept`, with the names of what differs between its recipes before and after."""
    same = {name for name in after if name in before and after[name].to_dict() == before[name].to_dict()}
    read = {modality for name in before if name not in same for modality in _config(before[name]).modalities}
    changed, left_out = [name for name in after if name not in same], [name for name in before if name not in after]
    return Compared(kept, changed, left_out, [name for name in absent if name in read], would)


def _config(recipe: Recipe) -> ConversationConfig:
    """The configuration of a recipe, which does not get the widths that it takes of the corpus: a study records it."""
    return recipe.changed({}).model_config()
