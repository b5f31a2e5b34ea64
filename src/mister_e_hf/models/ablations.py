"""Changes of a recipe that an ablation study measures: what one is, and those of each model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ablation:
    r"""
    A change of a model's recipe whose effect an ablation study measures.

    Args:
        description: what is different, for the report.
        changes: new values of fields, by `model.field` or `training.field`.
        needs: how many heads, or experts without heads, the model must have at least, of which; enough if one of
            several is met. Empty: any model.
        leaves: the heads or experts that are left, fewer than the model has.
        adds: whether it adds what the recipe goes without, in place of leaving out what it has.
        tasks: the tasks of a model that has what is changed.
    """

    description: str
    changes: Mapping[str, Any]
    needs: tuple[tuple[int, tuple[str, ...]], ...] = ()
    leaves: tuple[str, ...] | None = None
    adds: bool = False
    tasks: tuple[str, ...] = ("classification", "regression")

    def applies(self, heads: Sequence[str], task: str = "classification") -> bool:
        """Whether a model of this task with these heads and experts has what is changed."""
        if task not in self.tasks:
            return False
        if self.leaves is not None:
            return set(self.leaves) < set(heads)
        return not self.needs or any(len(set(heads) & set(of)) >= count for count, of in self.needs)


# How a field of MiSTER-E is bound to its experts: how many it needs at least, of which.
_ALL = (2, ("speech", "text", "fusion"))
_CLASSES = ("classification",)
_FUSION = (1, ("fusion",))
_WITHOUT_TERMS = {"training.contrastive_weight": 0.0, "training.consistency_weight": 0.0}
_PRETRAINING = {
    "without_pretraining": Ablation("random initial weights", {"training.pretrained": None}),
    "pretrained": Ablation(
        "pre-trained first, on the training dialogues of each run, whose labels are not read",
        {"training.pretrained": "self"},
        adds=True,
    ),
}
MISTER_E = {
    "without_contrastive": Ablation(
        "no contrastive term", {"training.contrastive_weight": 0.0}, needs=(_FUSION,), tasks=_CLASSES
    ),
    "without_consistency": Ablation(
        "no consistency term", {"training.consistency_weight": 0.0}, needs=(_ALL,), tasks=_CLASSES
    ),
    "without_both_terms": Ablation(
        "neither contrastive nor consistency term", _WITHOUT_TERMS, needs=(_FUSION, _ALL), tasks=_CLASSES
    ),
    "gate_mean": Ablation("mean of the experts in place of the gate", {"model.gate": "mean"}, needs=(_ALL,)),
    "speech_expert_only": Ablation(
        "trained with the speech expert alone", {"model.experts": ["speech"], **_WITHOUT_TERMS}, leaves=("speech",)
    ),
    "text_expert_only": Ablation(
        "trained with the text expert alone", {"model.experts": ["text"], **_WITHOUT_TERMS}, leaves=("text",)
    ),
    "fusion_expert_only": Ablation(
        "trained with the fusion expert alone",
        {"model.experts": ["fusion"], "training.consistency_weight": 0.0},
        leaves=("fusion",),
    ),
    "without_speech_expert": Ablation(
        "text and fusion experts", {"model.experts": ["text", "fusion"]}, leaves=("text", "fusion")
    ),
    "without_text_expert": Ablation(
        "speech and fusion experts", {"model.experts": ["speech", "fusion"]}, leaves=("speech", "fusion")
    ),
    "without_fusion_expert": Ablation(
        "speech and text experts, so no contrastive term",
        {"model.experts": ["speech", "text"], "training.contrastive_weight": 0.0},
        leaves=("speech", "text"),
    ),
    "without_context_layer": Ablation(
        "experts of one modality see each turn by itself",
        {"model.context_layer": False},
        needs=((1, ("speech", "text")),),
    ),
    "concatenation": Ablation(
        "fusion by concatenation in place of co-attention", {"model.fusion": "concatenation"}, needs=(_FUSION,)
    ),
    "without_modality_dropout": Ablation("every modality always there in training", {"model.modality_dropout": 0.0}),
    "cross_entropy": Ablation("cross-entropy in place of the focal loss", {"model.focal_gamma": 0.0}, tasks=_CLASSES),
    "huber": Ablation(
        "Huber's loss in place of the absolute error", {"model.regression_loss": "huber"}, tasks=("regression",)
    ),
    "without_fusion_context": Ablation(
        "fusion of each turn's vectors alone", {"model.fusion_context": False}, needs=(_ALL,)
    ),
    "without_attention_decay": Ablation(
        "attention that does not know the turns' order", {"model.attention_decay": False}, needs=(_FUSION,)
    ),
    "without_class_weights": Ablation("every turn weighs the same", {"model.class_weights": None}, tasks=_CLASSES),
    "causal": Ablation("no turn sees later ones", {"model.causal": True}),
    **_PRETRAINING,
    # What the method has, for recipes without it.
    "with_contrastive": Ablation(
        "a contrastive term of weight 0.1",
        {"training.contrastive_weight": 0.1},
        needs=(_FUSION,),
        adds=True,
        tasks=_CLASSES,
    ),
    "with_consistency": Ablation(
        "a consistency term of weight 0.1",
        {"training.consistency_weight": 0.1},
        needs=(_ALL,),
        adds=True,
        tasks=_CLASSES,
    ),
    "with_focal_loss": Ablation(
        "focal loss of gamma 1 in place of cross-entropy", {"model.focal_gamma": 1.0}, adds=True, tasks=_CLASSES
    ),
}

EMO_CAPS = {
    "without_interactions": Ablation("capsules of single modalities alone", {"model.interactions": False}),
    "dynamic_routing": Ablation("dynamic routing in place of attention", {"model.routing": "dynamic"}),
    "attention_routing": Ablation("attention in place of dynamic routing", {"model.routing": "attention"}),
    "one_routing_pass": Ablation("one pass of routing", {"model.num_routing": 1}),
    "three_routing_passes": Ablation("three passes of routing", {"model.num_routing": 3}),
    "detached_routing": Ablation("no gradient through the routing coefficients", {"model.detach_routing": True}),
    "without_recurrence": Ablation("no recurrence over the turns", {"model.context": "none"}),
    "recurrence_after": Ablation("the recurrence after the class capsules", {"model.context": "after"}),
    "shallow_mapping": Ablation("mapping networks of one layer", {"model.mapping_layers": 1}),
    "margin_loss": Ablation(
        "margin loss and dynamic routing", {"model.loss": "margin", "model.routing": "dynamic"}, tasks=_CLASSES
    ),
    "huber": MISTER_E["huber"],
    "without_class_weights": MISTER_E["without_class_weights"],
    "causal": MISTER_E["causal"],
    **_PRETRAINING,
}


def _fusion_experts(description: str, *names: str) -> Ablation:
    changes: dict[str, Any] = {"model.experts": list(names)}
    if len(names) == 1:
        changes["model.balance_weight"] = 0.0
    return Ablation(description, changes, leaves=names)


_FUSION_EXPERTS = (2, ("local", "semantic", "global"))
EGMF_FUSION = {
    "without_local_expert": _fusion_experts("semantic and global experts", "semantic", "global"),
    "without_semantic_expert": _fusion_experts("local and global experts", "local", "global"),
    "without_global_expert": _fusion_experts("local and semantic experts", "local", "semantic"),
    "local_expert_only": _fusion_experts("the local expert alone", "local"),
    "semantic_expert_only": _fusion_experts("the semantic expert alone, so each turn by itself", "semantic"),
    "global_expert_only": _fusion_experts("the global expert alone", "global"),
    "mean_of_experts": Ablation(
        "mean of the experts in place of their gate",
        {"model.expert_gate": "mean", "model.balance_weight": 0.0},
        needs=(_FUSION_EXPERTS,),
    ),
    "mean_of_modalities": Ablation(
        "mean of a turn's modalities in place of the gate within each expert", {"model.modality_gate": "mean"}
    ),
    "mean_of_both": Ablation(
        "means in place of both gates",
        {"model.modality_gate": "mean", "model.expert_gate": "mean", "model.balance_weight": 0.0},
        needs=(_FUSION_EXPERTS,),
    ),
    "without_neighbours": Ablation(
        "a local expert that sees each turn by itself", {"model.kernel_sizes": [1]}, needs=((1, ("local",)),)
    ),
    "with_balance": Ablation(
        "a balance loss of weight 0.1", {"model.balance_weight": 0.1}, needs=(_FUSION_EXPERTS,), adds=True
    ),
    "huber": MISTER_E["huber"],
    "without_class_weights": MISTER_E["without_class_weights"],
    "causal": MISTER_E["causal"],
}

# With a language model an ablation costs as much as the whole: those of the gates are left to the fusion by itself.
_OF_THE_FUSION = ("without_local_expert", "without_semantic_expert", "without_global_expert", "mean_of_both")
EGMF = {
    "without_pseudo_tokens": Ablation(
        "a language model that reads words alone, without pseudo tokens", {"model.use_pseudo_tokens": False}
    ),
    "shuffled_pseudo_tokens": Ablation(
        "each turn has the pseudo tokens of another turn of its dialogue", {"model.shuffle_pseudo_tokens": True}
    ),
    "without_context": Ablation("prompts without earlier turns", {"model.context_turns": 0}),
    "context_of_4": Ablation("prompts with four earlier turns", {"model.context_turns": 4}),
    "without_auxiliary_head": Ablation("no loss of a head on the fusion", {"model.auxiliary_weight": 0.0}),
    "frozen_language_model": Ablation(
        "a language model that is not trained", {"model.lora": None, "model.train_language_model": False}
    ),
    "one_pseudo_token": Ablation("one pseudo token", {"model.num_pseudo_tokens": 1}),
    "pseudo_tokens_first": Ablation("pseudo tokens before the words", {"model.pseudo_position": "first"}),
    "index_answers": Ablation("labels answered by their numbers", {"model.answer": "index"}, tasks=_CLASSES),
    "without_numeric_loss": Ablation(
        "no loss of the expected score", {"model.numeric_weight": 0.0}, tasks=("regression",)
    ),
    **{name: EGMF_FUSION[name] for name in _OF_THE_FUSION},
    "without_class_weights": MISTER_E["without_class_weights"],
    "causal": MISTER_E["causal"],
}
