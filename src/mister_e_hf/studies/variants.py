"""The variants of an ablation study: each a small change of one recipe, and the baselines on the same corpus."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..base.errors import InputError
from ..corpora.licences import published_of_name
from ..models.baselines import BASELINES, baseline_model
from ..models.mister_e.configuration_mister_e import EXPERTS
from ..training.recipe import Recipe
from .study import FULL

# The loss terms need the experts that they compare.
_ALONE = {"training.contrastive_weight": 0.0, "training.consistency_weight": 0.0}
_CHANGES = {
    FULL: ("the recipe as it stands", {}),
    "without_contrastive": ("no contrastive term", {"training.contrastive_weight": 0.0}),
    "without_consistency": ("no consistency term", {"training.consistency_weight": 0.0}),
    "without_both_terms": ("neither contrastive nor consistency term", _ALONE),
    "gate_mean": ("mean of the experts in place of the gate", {"model.gate": "mean"}),
    "speech_expert_only": ("trained with the speech expert alone", {"model.experts": ["speech"], **_ALONE}),
    "text_expert_only": ("trained with the text expert alone", {"model.experts": ["text"], **_ALONE}),
    "fusion_expert_only": (
        "trained with the fusion expert alone",
        {"model.experts": ["fusion"], "training.consistency_weight": 0.0},
    ),
    "without_speech_expert": ("text and fusion experts", {"model.experts": ["text", "fusion"]}),
    "without_text_expert": ("speech and fusion experts", {"model.experts": ["speech", "fusion"]}),
    "without_fusion_expert": (
        "speech and text experts, so no contrastive term",
        {"model.experts": ["speech", "text"], "training.contrastive_weight": 0.0},
    ),
    "without_context_layer": ("experts of one modality see each turn by itself", {"model.context_layer": False}),
    "concatenation": ("fusion by concatenation in place of co-attention", {"model.fusion": "concatenation"}),
    "without_modality_dropout": ("every modality always there in training", {"model.modality_dropout": 0.0}),
    "cross_entropy": ("cross-entropy in place of the focal loss", {"model.focal_gamma": 0.0}),
    "without_fusion_context": ("fusion of each turn's vectors alone", {"model.fusion_context": False}),
    "without_attention_decay": ("attention that does not know the turns' order", {"model.attention_decay": False}),
    "without_class_weights": ("every turn weighs the same", {"model.class_weights": None}),
    "causal": ("no turn sees later ones", {"model.causal": True}),
}
# What the method has, for recipes without it.
_ADDITIONS = {
    "with_contrastive": ("a contrastive term of weight 0.1", {"training.contrastive_weight": 0.1}),
    "with_consistency": ("a consistency term of weight 0.1", {"training.consistency_weight": 0.1}),
    "with_focal_loss": ("focal loss of gamma 1 in place of cross-entropy", {"model.focal_gamma": 1.0}),
}
# What a field is about has to be there: this many experts at least, of these.
_NEEDS = {
    "model.gate": (2, EXPERTS),
    "model.fusion": (1, ["fusion"]),
    "model.fusion_context": (2, EXPERTS),
    "model.attention_decay": (1, ["fusion"]),
    "model.context_layer": (1, ["speech", "text"]),
    "training.contrastive_weight": (1, ["fusion"]),
    "training.consistency_weight": (2, EXPERTS),
}


@dataclass
class Variant:
    """
    One row of the study.

    Args:
        name: of its folder.
        description: what is different.
        kind: `"full"`, `"ablation"`, `"split"` (another validation split, so that it has no development score) or `"baseline"`.
        recipe: what is run.
    """

    name: str
    description: str
    kind: str
    recipe: Recipe


def variants_of(recipe: Recipe) -> dict[str, Variant]:
    """
    All variants of a recipe of MiSTER-E, by name, `full` first. A change that the recipe has made already is left out, for it would be `full` again;
    and so are one that another variant makes, and one of a part that the recipe has not.
    """
    if recipe.sections["model"].get("model_type", "mister_e") != "mister_e":
        raise InputError(f"{recipe.source}: variants are of a MiSTER-E model; baselines are run beside it")
    found = {}
    for name, (description, changes) in (_CHANGES | _ADDITIONS).items():
        if not _applies(changes, recipe.model_config().experts):
            continue
        changed = recipe.changed(changes)
        before, after = ([each.value(field) for field in changes] for each in (recipe, changed))
        is_new = not any(before) if name in _ADDITIONS else before != after
        if name == FULL or is_new and all(each.recipe.to_dict() != changed.to_dict() for each in found.values()):
            found[name] = Variant(name, description, FULL if name == FULL else "ablation", changed)
    published = published_of_name(recipe.corpus.name)
    if published is not None and published.title == recipe.corpus.name:
        for name, split in published.other_splits.items():
            changed = recipe.changed({"corpus.validation_group": split.validation_group})
            found[name] = Variant(name, split.description, "split", changed)
    for name in BASELINES:
        variant = f"baseline_{name}"
        method = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", baseline_model(name).method)  # without its Markdown link
        found[variant] = Variant(variant, method, "baseline", recipe.baseline(name))
    return found


def _applies(changes: dict[str, Any], experts: Sequence[str]) -> bool:
    """Whether a model of these experts has what is changed. Of the terms that go with an expert there may be none."""
    if "model.experts" in changes:
        return set(changes["model.experts"]) < set(experts)
    needs = [_NEEDS[field] for field in changes if field in _NEEDS]
    return not needs or any(len(set(experts) & set(of)) >= count for count, of in needs)
