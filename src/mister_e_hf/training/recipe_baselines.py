"""The sections of the recipe of a baseline, made of those of another model on the same corpus."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..base.modalities import MODALITIES
from ..models.registry import RegisteredModel, entry, entry_of, registered
from .recipe_sections import training_fields

if TYPE_CHECKING:
    from .recipe import Recipe

# Fields of a model that do not depend on its architecture, beside the widths of its input.
_OF_ANY_MODEL = ("feature_clip", "class_weights", "regression_loss", "huber_delta")


def compared_models(recipe: "Recipe") -> list[RegisteredModel]:
    """What a recipe's model is compared with: the baselines, and other models that its section `baselines` names."""
    named = {section.split(".")[1] for section in recipe.sections if section.startswith("baselines.")}
    return [
        each for each in registered() if (each.baseline or each.name in named) and each.model_type != recipe.model_type
    ]


def kept_values(recipe: "Recipe", words: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    r"""
    Yield a sentence for each field of training on the command line that some baselines do not follow, since their
    training sets it.

    Args:
        recipe: the recipe with the command line applied.
        words: the command line.
        names: the baselines that are compared.
    """
    fields = {word[2:].partition("=")[0].removeprefix("training.") for word in words if word.startswith("--")}
    for field in sorted(fields & set(recipe.sections["training"])):
        value = recipe.sections["training"][field]
        own = {name: recipe.baseline(name).sections["training"].get(field, value) for name in names}
        if kept := {name: each for name, each in own.items() if each != value}:
            yield (
                f"{field} {value} is for {recipe.title()} alone; the baselines keep their own: "
                f"{', '.join(f'{name} {each}' for name, each in kept.items())} "
                f"(--baselines.{next(iter(kept))}.training.{field} {value} changes one)"
            )


def sections_of_baseline(name: str, sections: Mapping[str, dict[str, Any]], model_type: str) -> dict[str, Any]:
    r"""
    The sections of the recipe of another model: see [`Recipe.baseline`].

    Args:
        name: short name of a registered model.
        sections: those of the recipe, by their dotted names.
        model_type: type of the recipe's own model.

    Raises:
        InputError: if the name is unknown.
    """
    other = entry(name)
    model, training = ({**sections.get(f"baselines.{name}.{part}", {})} for part in ("model", "training"))
    shared = {*(modality.width for modality in MODALITIES.values()), *_OF_ANY_MODEL}
    shared &= set(other.config_class().own_fields())
    given = {field: value for field, value in sections["model"].items() if field in shared}
    # A width that this recipe leaves out is the default of its model, which the other's may not be.
    own_class, other_class = entry_of(model_type).config_class(), other.config_class()
    for width in {field for field in shared - {*given} if field.endswith("_dim") and hasattr(own_class, field)}:
        if getattr(own_class, width) != getattr(other_class, width):
            given[width] = getattr(own_class, width)
    # What the recipe's model reads beyond the default of the other one, which takes it, too.
    read, usual = sections["model"].get("modalities") or (), getattr(other_class, "modalities", ())
    if "modalities" in other_class.own_fields() and set(read) & set(other_class.takes()) - set(usual):
        given["modalities"] = [name for name in read if name in other_class.takes()]
    model = given | model
    # One model is pushed, and terms of another model's loss are not among this one's.
    known = training_fields(other.model_type)
    kept = {field for field in known if not field.startswith(("hub_", "push_")) and field != "pretrained"}
    own = {field: value for field, value in sections["training"].items() if field in kept}
    terms = set(other.model_class().loss_term_weights.values())
    weights = [weight for each in registered() for weight in each.model_class().loss_term_weights.values()]
    without = {weight: 0.0 for weight in weights if weight in known and weight not in terms}
    return {
        "model": {"model_type": other.model_type, **model},
        "corpus": sections["corpus"],
        "training": own | dict(other.training) | training | without,
    }
