"""Every registered model: trained by a recipe that names it, and scored again by `evaluate`."""

import json

import pyarrow.parquet as pq
import pytest

from mister_e_hf.corpora.demo import demo_corpus
from mister_e_hf.models.registry import registered
from mister_e_hf.training.evaluate import evaluate_checkpoint
from mister_e_hf.training.experiment import run_experiment
from support.small_recipes import recipe
from support.tiny_language_models import tiny_language_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for split, table in demo_corpus(0, sizes={"train": 8, "validation": 4, "test": 4}, transcripts="en").items():
        pq.write_table(table, folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize("name", [each.name for each in registered()])
def test_train_and_evaluate(corpus, tmp_path, name):
    made = recipe("--corpus", corpus, "--disable_tqdm").baseline(name)
    made.set("training.num_train_epochs", 1)
    if "language_model" in made.fields()["model"]:
        made.set("model.language_model", tiny_language_model("gpt2"))
        made.set("model.lora", {"r": 2})
    if "hidden_size" in made.fields()["model"]:
        made.set("model.hidden_size", 8)
    results = run_experiment(made, tmp_path / "run", seed=0)
    heads = ("mixture", *made.model_config().heads)
    assert tuple(results["test"]) == heads
    found = evaluate_checkpoint(tmp_path / "run", use_cpu=True)
    assert found["as_stored"] and tuple(found["scores"]) == heads
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    # An earlier version stored fewer heads of some models; those that it stored are compared.
    stored["test"] = {"mixture": stored["test"]["mixture"]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(stored))
    assert evaluate_checkpoint(tmp_path / "run", use_cpu=True)["as_stored"]
    stored["test"]["mixture"]["weighted_f1"] += 0.1
    (tmp_path / "run" / "results.json").write_text(json.dumps(stored))
    assert not evaluate_checkpoint(tmp_path / "run", use_cpu=True)["as_stored"]
    columns = pq.read_table(tmp_path / "run" / "predictions.parquet").column_names
    assert [f"{head}_probabilities" for head in heads[1:]] == [
        each for each in columns if each.endswith("_probabilities")
    ]
