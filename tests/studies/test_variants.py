from pathlib import Path

import pytest

from mister_e_hf import Recipe
from mister_e_hf.models.registry import baselines
from mister_e_hf.studies.variants import variants_of

CONFIGS = Path(__file__).parents[2] / "hub_configs"


def recipe(name: str = "mister-e-iemocap6", *words: str) -> Recipe:
    return Recipe.load(CONFIGS / f"{name}.yaml", words)


def difference(one: dict, other: dict) -> dict:
    """Fields of the second that the first has not, or has otherwise."""
    return {
        f"{section}.{field}": value
        for section, fields in other.items()
        for field, value in fields.items()
        if section not in one or field not in one[section] or one[section][field] != value
    }


CHANGES = {
    "full": {},
    "without_contrastive": {"training.contrastive_weight": 0.0},
    "without_consistency": {"training.consistency_weight": 0.0},
    "without_both_terms": {"training.contrastive_weight": 0.0, "training.consistency_weight": 0.0},
    "gate_mean": {"model.gate": "mean"},
    "fusion_expert_only": {"model.experts": ["fusion"], "training.consistency_weight": 0.0},
    "without_text_expert": {"model.experts": ["speech", "fusion"]},
    "without_fusion_expert": {"model.experts": ["speech", "text"], "training.contrastive_weight": 0.0},
    "without_context_layer": {"model.context_layer": False},
    "concatenation": {"model.fusion": "concatenation"},
    "cross_entropy": {"model.focal_gamma": 0.0},
    "causal": {"model.causal": True},
    "pretrained": {"training.pretrained": "self"},
    "authors_split": {"corpus.validation_group": "Ses01"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_variant_changes_only_its_fields(name):
    given = recipe()
    variant = variants_of(given)[name]
    assert difference(given.to_dict(), variant.recipe.to_dict()) == CHANGES[name]


@pytest.mark.parametrize("name", ["mister-e-iemocap6-small", "mister-e-meld-small", "emo-caps-mosi-small", "demo"])
def test_every_variant_of_every_recipe_can_be_trained(name, tmp_path):
    found = variants_of(recipe(name))
    assert next(iter(found)) == "full"
    for variant in found.values():
        variant.recipe.model_config()
        arguments = variant.recipe.training_arguments(tmp_path, 0)
        experts = variant.recipe.sections["model"].get("experts", ["speech", "text", "fusion"])
        assert "fusion" in experts or not getattr(arguments, "contrastive_weight", 0)
        assert len(experts) > 1 or not getattr(arguments, "consistency_weight", 0)
    assert {f"baseline_{each.name}" for each in baselines()} <= set(found)


def test_changes_that_a_recipe_already_has_are_left_out():
    found = variants_of(recipe("mister-e-meld", "--focal_gamma", "0.0", "--consistency_weight", "0.0"))
    assert not {"cross_entropy", "without_consistency", "without_modality_dropout"} & set(found)
    assert not {"with_contrastive", "without_both_terms"} & set(found)  # which without_contrastive is already
    assert found["without_contrastive"].recipe.sections["training"]["contrastive_weight"] == 0
    assert found["with_consistency"].recipe.sections["training"]["consistency_weight"] == 0.1
    assert found["with_focal_loss"].recipe.sections["model"]["focal_gamma"] == 1
    assert not {"with_consistency", "with_focal_loss"} & set(variants_of(recipe("mister-e-meld")))


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        (["text"], {"full", "without_context_layer", "cross_entropy", "causal", "pretrained"}),
        (
            ["text", "fusion"],
            {"gate_mean", "text_expert_only", "fusion_expert_only", "concatenation", "without_contrastive"},
        ),
    ],
)
def test_variants_change_only_experts_that_the_model_has(experts, expected):
    words = ["--experts", *experts, "--contrastive_weight", "0.1" if len(experts) > 1 else "0"]
    found = variants_of(recipe("mister-e-meld", *words, "--consistency_weight", "0"))
    names = {name for name, each in found.items() if each.kind != "baseline"}
    assert expected <= names
    if len(experts) == 1:
        assert names == expected
    assert not {"speech_expert_only", "without_text_expert", "without_both_terms"} & names


def test_only_iemocap_has_another_validation_split():
    assert [name for name, each in variants_of(recipe()).items() if each.kind == "split"] == ["authors_split"]
    assert not [each for each in variants_of(recipe("mister-e-meld")).values() if each.kind == "split"]


def test_a_baseline_as_the_main_model_is_compared_with_the_others():
    found = variants_of(recipe("mister-e-meld-small").baseline("bc_lstm"))
    assert found["full"].recipe.sections["model"]["model_type"] == "erc_bc_lstm"
    expected = {f"baseline_{each.name}" for each in baselines()} - {"baseline_bc_lstm"}
    assert {name for name, each in found.items() if each.kind == "baseline"} == expected
    assert set(found) == {"full", "without_speech", "without_text"} | expected
