"""The sections of the recipe of a baseline, made of those of another model on the same corpus."""

from collections.abc import Mapping
from typing import Any

from ..base.modalities import MODALITIES
from ..models.registry import entry, entry_of, registered
from .recipe_sections import training_fields

# Fields of a model that do not depend on its architecture, beside the widths of its input.
_OF_THE_CORPUS = ("feature_clip", "class_weights", "regression_loss", "huber_delta")


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
    shared = {*(modality.width for modality in MODALITIES.values()), *_OF_THE_CORPUS}
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
    kept = {field for field in known if not field.startswith(("hub_", "push_"))}
    own = {field: value for field, value in sections["training"].items() if field in kept}
    terms = set(other.model_class().loss_term_weights.values())
    weights = [weight for each in registered() for weight in each.model_class().loss_term_weights.values()]
    without = {weight: 0.0 for weight in weights if weight in known and weight not in terms}
    return {
        "model": {"model_type": other.model_type, **model},
        "corpus": sections["corpus"],
        "training": own | dict(other.training) | training | without,
    }
