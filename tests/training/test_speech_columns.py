"""Columns of speech vectors picked by name, in every command that reads a corpus with a recipe."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

from mister_e_hf import MisterEConfig, Recipe, cli, read_corpus
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.inference.predict import predict_dialogues
from mister_e_hf.models.registry import registered
from mister_e_hf.studies.search import search
from mister_e_hf.training.dry_run import dry_run
from mister_e_hf.training.evaluate import evaluate_checkpoint
from mister_e_hf.training.stages import train
from support.named_speech import write_named
from support.small_corpora import read_calls, write_calls
from support.small_recipes import with_language_model

NAMES = ["loudness", "pitch", "energy", "rate"]
PICKED = ["rate", "pitch"]
LABELS = ["joy", "anger"]


def corpus_of(folder, names=NAMES, **options):
    return write_named(folder, "d", names, labels=LABELS, **options)


def recipe_of(corpus, columns=PICKED, **model) -> Recipe:
    small = {"text_embedding_dim": 3, "hidden_size": 8, "attention_dim": 6, "context_num_layers": 1}
    return Recipe(
        {
            "model": small | {"fusion_num_layers": 1} | model,
            "corpus": {"path": str(corpus), "labels": LABELS, "speech_columns": columns},
            "training": {"use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 2},
        }
    )


def add_texts(folder):
    """Transcripts, without which a model that reads them is not trained."""
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        texts = [["hello"] * len(ids) for ids in table["utterance_ids"].to_pylist()]
        pq.write_table(table.append_column("texts", pa.array(texts)), path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpus_of(tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(recipe_of(corpus), folder)
    return folder


def test_a_checkpoint_states_the_columns_and_their_number_is_its_width(run):
    config = AutoModel.from_pretrained(run).config
    assert config.speech_columns == PICKED and config.speech_embedding_dim == 2
    stored = yaml.safe_load((run / "training.yaml").read_text())
    assert stored["corpus"]["speech_columns"] == PICKED and stored["model"]["speech_embedding_dim"] == 2
    assert "The columns of its speech vectors are rate, pitch." in (run / "README.md").read_text()


def test_evaluation_picks_the_columns_of_the_checkpoint_from_any_corpus(run, tmp_path):
    own = evaluate_checkpoint(run, use_cpu=True)
    assert own["as_stored"] is True
    # The same speech in other places, and beside other columns.
    moved = corpus_of(tmp_path / "moved", ["pitch", "rate", "jitter"])
    for split, data in read_corpus(moved).items():
        rows = torch.cat([data.vectors["text"].rows(0, 4)[:, :1] * -1 + shift for shift in (1.0, 3.0, 9.0)], dim=1)
        path = moved / f"{split}.safetensors"
        save_file(load_file(path) | {"speech_features": rows.contiguous()}, path)
    assert evaluate_checkpoint(run, moved, use_cpu=True)["scores"] == own["scores"]


def test_predict_picks_the_columns_of_the_checkpoint_from_tables(run, corpus):
    _, lines = predict_dialogues(corpus / "test.parquet", str(run))
    found = {(line["dialogue"], line["label"]) for line in lines}
    stored = pq.read_table(run / "predictions.parquet").to_pylist()
    assert found == {(row["dialogue_id"], row["prediction"]) for row in stored if row["split"] == "test"}


def test_evaluation_on_a_corpus_that_lacks_a_column_raises(run, tmp_path):
    with pytest.raises(InputError, match="test: the speech vectors have no column 'rate'"):
        evaluate_checkpoint(run, corpus_of(tmp_path, ["pitch", "energy"]), use_cpu=True)


def test_a_finished_run_is_skipped_and_other_columns_are_refused(run, corpus):
    before = (run / "results.json").stat().st_mtime_ns
    train(recipe_of(corpus), run)
    assert (run / "results.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="speech_columns"):
        train(recipe_of(corpus, PICKED[::-1]), run)


def test_another_width_in_the_recipe_raises(corpus):
    recipe = recipe_of(corpus, speech_embedding_dim=4)
    message = (
        r"corpus.speech_columns names 2 columns, but model.speech_embedding_dim is 4; leave it out, or set it to 2"
    )
    with pytest.raises(InputError, match=message):
        recipe.model_config()
    assert recipe_of(corpus, speech_embedding_dim=2).model_config().speech_columns == PICKED


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "must be a list of one name or more"),
        (["pitch", "pitch"], "must name each column once, got 'pitch' twice"),
        ([""], "must be names, none of them empty"),
    ],
)
def test_columns_that_are_not_names_raise(corpus, given, message):
    with pytest.raises(InputError, match=f"recipe: corpus.speech_columns {message}"):
        recipe_of(corpus, given).model_config()


def test_the_model_section_does_not_take_them(corpus):
    with pytest.raises(InputError, match="section 'model' has no field 'speech_columns'"):
        Recipe({"model": {"speech_columns": PICKED}})
    recipe = Recipe({"corpus": {"labels": LABELS}})
    recipe.override(["--speech_columns", "pitch"])
    assert recipe.model_config().speech_columns == ["pitch"] and recipe.model_config().speech_embedding_dim == 1


def test_a_configuration_whose_names_do_not_fit_its_width_raises():
    with pytest.raises(StrictDataclassError, match="speech_embedding_dim is 3, got 2 names: pitch, rate"):
        MisterEConfig(speech_embedding_dim=3, speech_columns=["pitch", "rate"])
    with pytest.raises(StrictDataclassError, match="must name each column of the speech vectors once"):
        MisterEConfig(speech_embedding_dim=2, speech_columns=["pitch", "pitch"])


@pytest.mark.parametrize("model", [each.name for each in registered()])
def test_the_recipe_of_every_model_gets_the_width(corpus, model):
    recipe = recipe_of(corpus).baseline(model)
    config = recipe.model_config()
    assert config.speech_embedding_dim == 2 and config.speech_columns == PICKED
    assert recipe.read_corpus()["test"].vectors["speech"].width == 2


def test_a_dry_run_and_several_seeds(corpus, tmp_path):
    (cost,) = dry_run(recipe_of(corpus), tmp_path / "dry")
    assert cost["stage"] == "MiSTER-E"
    train(recipe_of(corpus), tmp_path / "seeds", [0, 1])
    for seed in (0, 1):
        assert AutoModel.from_pretrained(tmp_path / "seeds" / f"seed-{seed}").config.speech_columns == PICKED


def test_search_trains_every_system_on_the_columns(corpus, tmp_path):
    recipe = recipe_of(corpus)
    recipe.override(["--baselines.mult.training.num_train_epochs", "1"])
    found = search(recipe, tmp_path / "search", 1, systems=["mister_e", "mult"], folds=2)
    assert set(found) == {"mister_e", "mult"} and all(
        trials[0]["weighted_f1"] is not None for trials in found.values()
    )


def test_init_writes_a_recipe_with_the_columns(corpus, tmp_path, capsys):
    out = tmp_path / "own.yaml"
    assert cli.main(["init", str(corpus), "--out", str(out), "--speech_columns", *PICKED]) == 0
    recipe = Recipe.load(out)
    assert recipe.corpus.speech_columns == PICKED and recipe.model_config().speech_embedding_dim == 2
    assert cli.main(["init", str(corpus), "--out", str(tmp_path / "b.yaml"), "--speech_columns", "pich"]) == 2
    assert "no column 'pich', which speech_columns name; did you mean 'pitch'" in capsys.readouterr().err


# SDT is a model of several modalities, and refuses the text alone.
@pytest.mark.parametrize("model", [each.name for each in registered() if each.name != "sdt"])
def test_a_corpus_without_names_is_one_without_speech_for_every_model(tmp_path, model):
    nameless = corpus_of(tmp_path / "nameless", None, speech=4)
    add_texts(nameless)
    made = recipe_of(nameless).baseline(model).changed({"training.num_train_epochs": 1})
    train(with_language_model(made), tmp_path / "run")
    run = AutoModel.from_pretrained(tmp_path / "run")
    assert list(run.config.modalities) == ["text"] and run.config.speech_columns == PICKED
    assert evaluate_checkpoint(tmp_path / "run", use_cpu=True)["as_stored"] is True


def test_a_corpus_without_names_gives_the_model_of_a_corpus_without_speech(tmp_path):
    for name, speech in (("nameless", 4), ("speechless", None)):
        train(recipe_of(corpus_of(tmp_path / name, None, speech=speech)), tmp_path / f"{name} run")
    folders = [tmp_path / "nameless run", tmp_path / "speechless run"]
    one, other = (AutoModel.from_pretrained(folder).state_dict() for folder in folders)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    one, other = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one["test"] == other["test"] and one["data_fingerprints"] == other["data_fingerprints"]


def test_nothing_to_pick_from_and_nothing_else_raises(tmp_path):
    calls = write_corpus(read_calls(write_calls(tmp_path / "calls"), tmp_path / "cache"), tmp_path / "corpus")
    with pytest.raises(InputError, match="the corpus holds audio and transcripts, not vectors. Remove it"):
        train(recipe_of(calls), tmp_path / "run")
    speech = corpus_of(tmp_path / "speech", None, speech=4, text=None)
    with pytest.raises(InputError, match="no vectors but those of speech, without such names"):
        train(recipe_of(speech), tmp_path / "run")


def test_a_recipe_with_encoders_takes_the_number_of_columns(corpus, tmp_path):
    recipe = recipe_of(corpus, speech_embedding_dim=384)
    recipe.set("speech_encoder.backbone", "org/speech")
    train(recipe, tmp_path / "run")
    assert AutoModel.from_pretrained(tmp_path / "run").config.speech_embedding_dim == 2


def test_a_vector_of_another_width_is_refused_with_the_names(run):
    erc = pipeline("conversation-emotion-recognition", model=str(run))
    assert len(erc([{"speech_embedding": [1.0, 2.0], "text_embedding": [0.0] * 3}])) == 1
    with pytest.raises(InputError, match=r"speech_embedding must have shape \(2,\): rate, pitch, got \(4,\)"):
        erc([{"speech_embedding": np.ones(4)}])
