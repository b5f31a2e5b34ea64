"""Studies on a corpus that lacks a modality leave out what `mister-e train` leaves out."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModel

from mister_e_hf import Recipe
from mister_e_hf.base.errors import InputError
from mister_e_hf.studies.ablation import ablate
from mister_e_hf.studies.absent_modalities import recipe_without, variants_on_corpus
from mister_e_hf.studies.search import search
from mister_e_hf.studies.study_reader import read_study
from mister_e_hf.studies.variants import variants_of
from mister_e_hf.training.own_pretraining import OWN_FOLDER
from mister_e_hf.training.preflight import check_run
from mister_e_hf.training.pretraining import pretrain
from support.named_speech import write_named

LABELS = ["joy", "anger"]
NAMES, PICKED = ["loudness", "pitch", "rate"], ["rate", "pitch"]
ONE_EPOCH = {"use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 2}
MISTER_E = {"text_embedding_dim": 3, "hidden_size": 8, "attention_dim": 6, "context_num_layers": 1}
EMO_CAPS = {"model_type": "emo_caps", "text_embedding_dim": 3, "hidden_size": 8, "num_attention_heads": 2}
BASELINES = {f"baseline_{name}" for name in ("logistic_regression", "bc_lstm", "mult", "dialogue_rnn")}


def recipe_of(corpus: Path, model: dict | None = None, *words: str, **sections) -> Recipe:
    """A recipe that picks columns by names, which a corpus without names lacks."""
    found = Recipe(
        {
            "model": model or MISTER_E,
            "corpus": {"path": str(corpus), "labels": LABELS, "speech_columns": PICKED},
            "training": ONE_EPOCH,
            **sections,
        }
    )
    found.override(words)
    return found


def fields(recipe: Recipe, *names: str) -> list:
    return [recipe.value(name) for name in names]


@pytest.fixture(scope="module")
def nameless(tmp_path_factory) -> Path:
    """A corpus that counts as one without speech."""
    return write_named(tmp_path_factory.mktemp("corpora") / "nameless", "d", None, speech=4, labels=LABELS)


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    return write_named(tmp_path_factory.mktemp("corpora") / "named", "m", NAMES, labels=LABELS)


def test_a_search_trains_every_system_without_what_the_corpus_lacks(nameless, tmp_path):
    lines, systems = [], ["mister_e", "logistic_regression"]
    given = recipe_of(nameless, baselines={"logistic_regression": {"training": {"num_train_epochs": 1}}})
    found = search(given, tmp_path / "search", 1, systems, folds=2, report=lines.append)
    assert all(trial["weighted_f1"] is not None for trials in found.values() for trial in trials)
    assert lines[0] == "the corpus has no vectors of speech; trained without them: everything"
    for system in systems:
        run = yaml.safe_load((tmp_path / "search" / system / "trial-0" / "fold-0" / "run.yaml").read_text())
        plan = check_run(given if system == "mister_e" else given.baseline(system), tmp_path / "train")
        assert run["recipe"]["model"] == plan.recipe.to_dict()["model"]
    lines.clear()
    search(given, tmp_path / "search", 1, systems, folds=2, report=lines.append)
    assert lines[-1] == "4 of 4 runs are finished already"
    with pytest.raises(InputError, match="'sdt' is not part of this study.* no vectors of speech.* Choose from "):
        search(given, tmp_path / "search", 1, ["sdt"], folds=2)


def test_variants_that_need_what_the_corpus_lacks_are_left_out(nameless):
    given = recipe_of(nameless, None, "--contrastive_weight", "0.1", "--consistency_weight", "0.1")
    found = variants_on_corpus(given, {})
    assert fields(found.kept["full"].recipe, "model.experts", "training.contrastive_weight") == [["text"], 0]
    assert {"causal", "without_context_layer", "pretrained"} < set(found.kept)
    assert {"baseline_sdt", "speech_expert_only", "text_expert_only", "gate_mean"} < set(found.left_out)
    for name in BASELINES:
        assert fields(found.kept[name].recipe, "model.modalities") == [["text"]]
    assert not set(found.kept) & set(found.left_out)
    assert set(found.kept) | set(found.left_out) == set(variants_of(given))
    said, left = found.sentences([])
    assert said == "the corpus has no vectors of speech; trained without them: everything"
    assert left.startswith("left out of the study, since without speech they would fail or equal another variant: ")
    assert left.endswith("baseline_sdt") and "speech_expert_only, " in left


def test_modalities_that_were_chosen_stay_and_the_baselines_follow_the_corpus(nameless, named):
    found = variants_on_corpus(recipe_of(nameless, EMO_CAPS, "--modalities", "text"), {})
    assert set(found.changed) == BASELINES and found.left_out == ["baseline_sdt"]
    assert list(found.sentences(["full"])) == []
    here = recipe_of(named, EMO_CAPS, "--modalities", "text")
    found = variants_on_corpus(here, {})
    assert (found.changed, found.left_out, list(found.sentences([]))) == ([], [], [])


@pytest.mark.parametrize("model", [MISTER_E, EMO_CAPS, EMO_CAPS | {"modalities": ["text", "speech"]}])
def test_recipes_of_a_corpus_that_lacks_nothing_are_as_given(named, model):
    before = {name: each.recipe.to_dict() for name, each in variants_of(recipe_of(named, model)).items()}
    found = variants_on_corpus(recipe_of(named, model), {})
    assert {name: each.recipe.to_dict() for name, each in found.kept.items()} == before
    assert list(found.kept) == list(before) and not found.changed and not found.left_out


def test_a_model_that_needs_what_the_corpus_lacks_raises(nameless, tmp_path):
    sdt = recipe_of(nameless).baseline("sdt")
    assert recipe_without(sdt, ["speech"]) is None and recipe_without(sdt, ["visual"]) is sdt
    for study in (lambda: search(sdt, tmp_path / "a", 1, folds=2), lambda: ablate(sdt, tmp_path / "b", [0], 2)):
        with pytest.raises(InputError, match="no vectors of speech, without which SDT.* cannot be trained"):
            study()
    with pytest.raises(InputError, match="'speech_expert_only' is not part of this study"):
        ablate(recipe_of(nameless), tmp_path / "b", [0], 2, variants=["full", "speech_expert_only"])
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_study_of_an_older_version_keeps_its_recipes(nameless):
    given = recipe_of(nameless, EMO_CAPS, "--modalities", "text")
    begun = {name: {"recipe": each.recipe.to_dict()} for name, each in variants_of(given).items()}
    found = variants_on_corpus(given, begun)
    assert {name: each.recipe.to_dict() for name, each in found.kept.items()} == {
        name: each["recipe"] for name, each in begun.items()
    }
    assert not found.left_out


def test_models_begin_from_pretraining_with_more_modalities(nameless, named, tmp_path):
    further = ONE_EPOCH | {"corpora": [str(named)]}
    for name, model in {"mister_e": MISTER_E, "emo_caps": EMO_CAPS}.items():
        pretrain(recipe_of(nameless, model, pretraining=further), tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["speech_columns"] == PICKED
    compared = {"mister_e": {"model": MISTER_E, "training": {"pretrained": str(tmp_path / "mister_e")}}}
    words = ["--pretrained", str(tmp_path / "emo_caps")]
    given = recipe_of(nameless, EMO_CAPS, *words, baselines=compared, pretraining=further)
    assert ablate(given, tmp_path / "study", [0], 2, ["full", "baseline_mister_e"], report=print) == []
    for variant in ("full", "baseline_mister_e"):
        run = yaml.safe_load((tmp_path / f"study/development/{variant}/seed-0/fold-0/run.yaml").read_text())
        assert "pretrained_weights" in run


@pytest.mark.slow
def test_a_run_pretrains_itself_without_what_its_corpus_lacks(nameless, named, tmp_path):
    given = recipe_of(nameless, EMO_CAPS, pretraining=ONE_EPOCH | {"corpora": [str(named)]})
    assert ablate(given, tmp_path / "study", [0], 2, ["pretrained"], report=print) == []
    assert ablate(given, tmp_path / "study", [0], 2, ["pretrained"], final=True, report=print) == []
    run = tmp_path / "study/final/pretrained/seed-0"
    assert AutoModel.from_pretrained(run).config.modalities == ["text"]
    assert len(json.loads((run / OWN_FOLDER / "results.json").read_text())["corpora"]) == 2
    assert list(read_study(tmp_path / "study").stages) == ["development", "final"]
