"""The variants of an ablation study: the recipe, its model's ablations, other validation splits, and the baselines."""

import contextlib
import re
from dataclasses import dataclass

from ..base.errors import InputError
from ..corpora.licences import PUBLISHED
from ..models.ablations import Ablation
from ..models.registry import RegisteredModel, entry_of
from ..training.recipe import Recipe
from ..training.recipe_baselines import compared_models
from .study import BASELINE, FULL


@dataclass
class Variant:
    """
    One row of the study.

    Args:
        name: name of its folder.
        description: what differs from the full recipe, or the method of a baseline.
        kind: `"full"`, `"ablation"`, `"split"` (another validation split, which has no development score) or
            `"baseline"`.
        recipe: the recipe of its runs.
    """

    name: str
    description: str
    kind: str
    recipe: Recipe


def compared_systems(recipe: Recipe) -> dict[str, tuple[RegisteredModel, Recipe]]:
    """The recipe's own model and those that it is compared with on the same corpus, by name, its own first."""
    main = entry_of(recipe.model_config())
    others = {each.name: (each, recipe.baseline(each.name)) for each in compared_models(recipe)}
    return {main.name: (main, recipe)} | others


def _by_modality(recipe: Recipe) -> dict[str, Ablation]:
    """An ablation for each modality that the model can be without, if its configuration names those it reads."""
    config, found = recipe.model_config(), {}
    if "modalities" in config.own_fields() and len(config.modalities) > 1:
        for name in config.modalities:
            changes = config.without([name])
            with contextlib.suppress(InputError):  # SDT needs both
                recipe.changed(changes).model_config()
                found[f"without_{name}"] = Ablation(f"the model does not read {name}", changes)
    return found


def variants_of(recipe: Recipe) -> dict[str, Variant]:
    """
    All variants of a recipe by name, `full` first. Ablations are those that the registry lists for the recipe's model
    and, for a model that names the modalities it reads, each modality less (`without_visual`). An ablation is left out
    if the recipe already has its changes, if an earlier one makes the same changes, or if the model lacks the part
    that is changed, as one of scores lacks the terms of classes.
    """
    (main, _), *others = compared_systems(recipe).values()
    found = {FULL: Variant(FULL, "the recipe without changes", "full", recipe.changed({}))}
    config = recipe.model_config()
    for name, ablation in (dict(main.ablations) | _by_modality(recipe)).items():
        if not ablation.applies((*config.heads, *config.fusion_experts), config.task):
            continue
        changed = recipe.changed(ablation.changes)
        before, after = ([each.value(field) for field in ablation.changes] for each in (recipe, changed))
        is_new = not any(before) if ablation.adds else before != after
        if is_new and all(each.recipe.to_dict() != changed.to_dict() for each in found.values()):
            found[name] = Variant(name, ablation.description, "ablation", changed)
    for corpus in PUBLISHED.values():
        if corpus.title == recipe.corpus.name:
            for name, split in corpus.other_splits.items():
                changed = recipe.changed({"corpus.validation_group": split.validation_group})
                found[name] = Variant(name, split.description, "split", changed)
    for model, own_recipe in others:
        name = BASELINE + model.name
        method = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", model.method)  # without its Markdown link
        found[name] = Variant(name, method, "baseline", own_recipe)
    return found
