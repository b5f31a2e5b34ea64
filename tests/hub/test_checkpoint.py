import json
import os
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.hub.checkpoint import push_checkpoint, save_checkpoint
from support.checkpoint_code import CHECKPOINT
from support.loopback_hub import loopback_hub
from support.new_process import run_python

ROOT = Path(__file__).parents[2]

PUSH_CORPUS = """
from datasets import Dataset, DatasetDict
from mister_e_hf.corpora.demo import demo_corpus
sizes = {"train": 16, "validation": 4, "test": 4}
DatasetDict({split: Dataset(table) for split, table in demo_corpus(sizes=sizes).items()}).push_to_hub("org/dialogues")
"""
LOAD = """
import json, mister_e_hf
from transformers import AutoModel
print(json.dumps(AutoModel.from_pretrained("org/demo").config.id2label))
"""


def tiny_model() -> MisterEModel:
    sizes = {
        "speech_embedding_dim": 3,
        "text_embedding_dim": 2,
        "hidden_size": 8,
        "attention_dim": 6,
        "fusion_num_layers": 1,
    }
    return MisterEModel(MisterEConfig(**sizes, id2label={0: "anger", 1: "joy"}))


def test_corpus_from_the_hub_to_a_pushed_checkpoint(tmp_path):
    with loopback_hub() as hub:
        environment = os.environ | hub.env(tmp_path / "home")

        def python(*words: str) -> str:
            call = run_python(*words, env=environment, cwd=ROOT)
            assert call.returncode == 0, call.stdout + call.stderr
            return call.stdout

        python("-c", PUSH_CORPUS)
        words = ["--corpus", "org/dialogues", "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1"]
        push = ["--push_to_hub", "--hub_model_id", "org/demo", "--disable_tqdm"]
        python("scripts/train.py", "hub_configs/demo.yaml", *words, *push)
        pushed = set(hub.files("org/demo")) - {".gitattributes"}
        assert pushed - {"confusion.png"} == CHECKPOINT | {
            "training.yaml",
            "results.json",
        }  # the picture needs matplotlib
        card = hub.read("org/demo", "README.md").decode()
        assert 'from_pretrained("org/demo"' in card
        assert "| mixture |" in card and "None recorded." not in card
        assert len(json.loads(python("-c", LOAD))) == 6


def test_checkpoint_folder_holds_weights_code_recipe_and_card(tmp_path):
    recipe = {"model": {}, "corpus": {"name": "Friends"}, "training": {"learning_rate": 1e-3}}
    block = {"weighted_f1": 0.5, "macro_f1": 0.25, "accuracy": 0.5, "num_utterances": 7}
    save_checkpoint(tmp_path, tiny_model(), recipe, {"seed": 1, "test": {"mixture": block}})
    assert {path.name for path in tmp_path.iterdir()} == CHECKPOINT | {"training.yaml"}
    assert yaml.safe_load((tmp_path / "training.yaml").read_text()) == recipe
    card = ModelCard.load(tmp_path / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["weighted_f1"].metric_value == 0.5
    assert results["weighted_f1"].dataset_split == "test"
    assert "| model | 50.00 | 25.00 | 7 |" in card.text
    assert results["weighted_f1"].metric_config == "seed 1"
    assert "EU AI Act" in card.text and "@article" in card.text


def test_card_without_results_says_so(tmp_path):
    save_checkpoint(tmp_path, tiny_model())
    card = ModelCard.load(tmp_path / "README.md")
    assert "None recorded." in card.text and card.data.eval_results is None


def test_only_a_checkpoint_folder_is_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        push_checkpoint(tmp_path, "org/name")
