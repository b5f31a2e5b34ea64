"""Pre-training on corpora that share some columns of speech, and fine-tuning where they are missing."""

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

from mister_e_hf import Recipe, read_corpus
from mister_e_hf.base.errors import InputError
from mister_e_hf.training.experiment import run_experiment
from mister_e_hf.training.pretrained_start import new_model
from mister_e_hf.training.pretraining import pretrain
from mister_e_hf.training.stages import train
from mister_e_hf.vectors.named_columns import speech_names
from support.named_speech import write_named

PICKED = ["rate", "pitch"]
LABELS = ["joy", "anger"]
MODELS = {
    "emo_caps": {"model_type": "emo_caps", "hidden_size": 8, "num_attention_heads": 2, "capsule_size": 4},
    "mister_e": {"hidden_size": 8, "attention_dim": 6, "context_num_layers": 1, "fusion_num_layers": 1},
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """One with more columns, one with other places of them, one without names."""
    folder = tmp_path_factory.mktemp("corpora")
    return [
        write_named(folder / "a", "a", ["loudness", "pitch", "energy", "rate"], labels=LABELS),
        write_named(folder / "b", "b", ["rate", "pitch"], labels=LABELS[:1]),
        write_named(folder / "c", "c", None, speech=7, labels=LABELS),
    ]


def recipe_of(model, corpus=None, **training):
    arguments = {"use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 2}
    sections = {
        "model": MODELS[model] | {"text_embedding_dim": 3},
        "corpus": {"speech_columns": PICKED},
        "training": arguments | training,
        "pretraining": dict(arguments),
    }
    if corpus is not None:
        sections["corpus"] |= {"path": str(corpus), "labels": LABELS}
    return Recipe(sections)


@pytest.fixture(scope="module", params=MODELS)
def pretrained(request, corpora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / request.param
    pretrain(recipe_of(request.param), folder, [str(corpus) for corpus in corpora])
    return request.param, folder


def test_a_pre_training_folder_states_its_columns(pretrained):
    _, folder = pretrained
    config = AutoModelForPreTraining.from_pretrained(folder).config
    assert config.speech_columns == PICKED and config.speech_embedding_dim == 2
    assert "The columns of its speech vectors are rate, pitch." in (folder / "README.md").read_text()


def test_fine_tuning_on_a_corpus_with_these_columns(pretrained, corpora, tmp_path):
    model, folder = pretrained
    recipe = recipe_of(model, corpora[0], pretrained=str(folder))
    run_experiment(recipe, tmp_path / "run", seed=0)
    assert AutoModel.from_pretrained(tmp_path / "run").config.speech_columns == PICKED


def test_fine_tuning_on_a_corpus_without_speech_begins_from_the_text_alone(pretrained, corpora, tmp_path):
    model, folder = pretrained
    train(recipe_of(model, corpora[2], pretrained=str(folder)), tmp_path / "run")
    tuned = AutoModel.from_pretrained(tmp_path / "run")
    assert list(tuned.config.modalities) == ["text"]
    begun, stored = new_model(tuned.config, str(folder)), load_file(folder / "model.safetensors")
    shared = {name: value for name, value in begun.state_dict().items() if begun.is_pretrained(name)}
    assert shared and all(torch.equal(value, stored[name]) for name, value in shared.items())
    assert not any("speech" in name for name in shared)
    name = next(name for name in shared if name.endswith("input.mean"))
    assert torch.equal(tuned.state_dict()[name], stored[name])  # statistics of pre-training are kept


def test_other_columns_of_the_same_width_are_refused(pretrained, corpora, tmp_path):
    model, folder = pretrained
    recipe = recipe_of(model, corpora[0], pretrained=str(folder))
    recipe.set("corpus.speech_columns", ["energy", "pitch"])
    message = r"does not fit the model of this recipe: it has speech_columns \['rate', 'pitch'\] and not \['energy'"
    with pytest.raises(InputError, match=message):
        train(recipe, tmp_path / "run")


def test_more_modalities_than_pre_training_are_refused(corpora, tmp_path):
    recipe = recipe_of("emo_caps")
    recipe.set("model.modalities", ["text"])
    recipe.set("pretraining.contrastive_weight", 0.0)
    pretrain(recipe, tmp_path / "text", [str(corpora[0])])
    with pytest.raises(InputError, match=r"it has modalities \['text'\] and not \['speech', 'text'\]"):
        train(recipe_of("emo_caps", corpora[0], pretrained=str(tmp_path / "text")), tmp_path / "run")


@pytest.mark.shared
def test_the_praat_measures_that_two_real_corpora_share(shared_dir, tmp_path):
    """They are IEMOCAP's last ten columns and all of MELD's; CMU-MOSI names none."""
    data = shared_dir / "data"
    names = speech_names(pq.read_schema(data / "meld" / "train.parquet"), "meld")
    recipe = recipe_of("emo_caps")
    for field, value in {
        "corpus.speech_columns": names,
        "model.text_embedding_dim": 768,
        "pretraining.max_steps": 2,
        "pretraining.eval_strategy": "no",
        "pretraining.load_best_model_at_end": False,
    }.items():
        recipe.set(field, value)
    results = pretrain(recipe, tmp_path / "run", [str(data / name) for name in ("iemocap", "meld", "mosi")])
    assert results["data"]["training"] == {"splits": ["train"], "dialogues": 1198, "turns": 16436}
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "run")
    assert model.config.speech_columns == names and model.config.speech_embedding_dim == 10
    # The statistics are those of the two corpora that have speech.
    train = [
        read_corpus(data / name, splits=("train",), speech_columns=names)["train"] for name in ("iemocap", "meld")
    ]
    rows = torch.cat([each.vectors["speech"].rows(0, each.num_turns)[each.present["speech"]] for each in train])
    torch.testing.assert_close(model.backbone.speech_input.mean, rows.double().mean(0).float())
