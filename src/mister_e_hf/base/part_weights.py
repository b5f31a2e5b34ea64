"""The weights of a model's parts at each turn, such as heads or capsules, and their names in files and plots."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PartWeights:
    r"""
    One kind of weights of a model's parts at a turn. They are at least 0 and sum to 1, or are all 0 where the turn has
    nothing that the model reads.

    Args:
        field: in a model's output, and the column of a run's predictions.
        answer: field of the pipeline's result for a turn; two kinds that no model has both of may share it.
        parts: property of the configuration that names the parts, in the order of the weights.
        part: what a part is called.
        title: what its weight is called.
    """

    field: str
    answer: str
    parts: str
    part: str
    title: str


GATE = PartWeights("gate_weights", "gate", "heads", "expert", "gate weight")
CAPSULES = PartWeights("capsule_weights", "capsules", "capsules", "capsule", "capsule weight")
EXPERTS = PartWeights("expert_weights", "gate", "fusion_experts", "expert", "gate weight")
MODALITY_GATE = PartWeights("modality_weights", "modality_gate", "weighed_modalities", "modality", "modality weight")
PART_WEIGHTS = (GATE, CAPSULES, EXPERTS, MODALITY_GATE)
WEIGHT_FIELDS = tuple(each.field for each in PART_WEIGHTS)
# One kind for each field of the pipeline's result.
ANSWERED_WEIGHTS = tuple({each.answer: each for each in PART_WEIGHTS}.values())
