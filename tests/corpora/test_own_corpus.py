"""
What a run says of its corpus comes from the corpus: name, licence, origin of the vectors, and what is too little to
score.
"""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from mister_e_hf import MisterEConfig, MisterEModel, Recipe, read_corpus, write_vectors
from mister_e_hf.cli import main
from mister_e_hf.corpora.counts import published
from mister_e_hf.corpora.licences import PUBLISHED, corpus_of_run
from mister_e_hf.corpora.provenance import Provenance
from mister_e_hf.corpora.schema import LABELS
from mister_e_hf.corpora.shortcomings import shortcomings
from mister_e_hf.encoders.embedding import RECORD
from mister_e_hf.hub.model_card import model_card
from mister_e_hf.vectors.corpus_facts import corpus_facts

MELD = LABELS["meld"]
MELD_TABLES = {"corpus": "meld", "name": "MELD"}
OWN_TABLES = {"corpus": "dialogue_folder", "name": "calls", "license": "cc-by-4.0"}
CALLED = {  # tables' word, recipe's name, labels, test turns -> name, test set, whether published, licence
    "whole": (MELD_TABLES, "MELD", MELD, 2610, ("MELD", "MELD", True, "gpl-3.0")),
    "whole, its tables silent": ({}, "MELD", MELD[::-1], 2610, ("MELD", "MELD", True, "gpl-3.0")),
    "part": (MELD_TABLES, "MELD", MELD, 84, ("part of MELD", "MELD, 84 of 2,610 test turns", False, "gpl-3.0")),
    "part, as its tables say": (
        {"corpus": "meld", "name": "part of MELD"},
        None,
        MELD,
        84,
        ("part of MELD", "MELD, 84 of 2,610 test turns", False, "gpl-3.0"),
    ),
    "test whole, train not": (
        {"corpus": "meld", "name": "part of MELD"},
        "MELD",
        MELD,
        2610,
        ("part of MELD", "MELD", True, "gpl-3.0"),
    ),
    "more turns": (
        MELD_TABLES,
        "MELD",
        MELD,
        3000,
        ("changed MELD", "MELD, 3,000 other test turns", False, "gpl-3.0"),
    ),
    "other labels": (
        MELD_TABLES,
        "MELD",
        ["a", "b"],
        2610,
        ("changed MELD", "MELD, 2,610 other test turns", False, "gpl-3.0"),
    ),
    "part, its tables silent": ({}, "MELD", MELD, 84, ("custom", "custom", False, None)),
    "other labels, silent": ({}, "IEMOCAP 6-way", ["a", "b"], 1623, ("custom", "custom", False, None)),
    "own": (OWN_TABLES, "MELD", MELD, 2610, ("calls", "calls", False, "cc-by-4.0")),
    "own without a licence": (
        {"corpus": "dialogue_folder", "name": "calls"},
        "MELD",
        MELD,
        9,
        ("calls", "calls", False, None),
    ),
    "own named by the recipe": ({}, "my calls", ["a", "b"], 9, ("my calls", "my calls", False, None)),
    "a name of the Hub": (
        {"name": "org/meld-like"},
        "MELD",
        MELD,
        2610,
        ("org/meld-like", "org/meld-like", False, None),
    ),
    "nothing": ({}, None, ["a", "b"], 9, ("custom", "custom", False, None)),
    "scores": (
        {},
        "CH-SIMS v2, vectors",
        ["sentiment"],
        1034,
        ("CH-SIMS v2, vectors", "CH-SIMS v2, vectors", True, "unknown"),
    ),
    "whole, and only a total is published": (
        {"corpus": "cherma", "name": "CHERMA"},
        None,
        LABELS["cherma"],
        5744,
        ("CHERMA", "CHERMA", True, "unknown"),
    ),
    "part, and only a total is published": (
        {"corpus": "cherma", "name": "part of CHERMA"},
        None,
        LABELS["cherma"],
        5,
        ("part of CHERMA", "CHERMA, 5 other test turns", False, "unknown"),
    ),
    "four-way": ({}, "IEMOCAP", LABELS["iemocap-4way"], 1242, ("IEMOCAP", "IEMOCAP", True, "other")),
}


@pytest.mark.parametrize(("stated", "name", "labels", "turns", "expected"), CALLED.values(), ids=CALLED)
def test_a_published_name_is_for_the_published_labels_and_turns(stated, name, labels, turns, expected):
    found = corpus_of_run(stated, name, labels, turns)
    assert (found.name, found.test_set, found.is_published, found.license) == expected


def test_the_counts_are_those_that_the_corpora_are_checked_against():
    iemocap = published("iemocap")
    for classes in ("6way", "4way"):
        turns = sum(n for name, n in iemocap[f"utterances_{classes}"].items() if name.startswith("Ses05"))
        assert PUBLISHED["iemocap"].test_turns[frozenset(LABELS[f"iemocap-{classes}"])] == turns
    assert PUBLISHED["meld"].test_turns[frozenset(MELD)] == sum(published("meld")["test"])
    assert PUBLISHED["cmu_mosi"].test_turns[frozenset(LABELS["cmu_mosi"])] == sum(
        published("cmu_mosi")["test"].values()
    )
    for corpus in ("cmu_mosei", "ch_sims_v2"):
        assert set(PUBLISHED[corpus].test_turns.values()) == {published(corpus)["utterances"]["test"]}


# The card


def card_of(stated: dict, recipe_name: str | None = None, **results) -> ModelCard:
    sizes = {"hidden_size": 8, "attention_dim": 6, "fusion_num_layers": 1}
    model = MisterEModel(
        MisterEConfig(speech_embedding_dim=3, text_embedding_dim=2, **sizes, id2label=dict(enumerate(MELD)))
    )
    block = {"weighted_f1": 0.5, "macro_f1": 0.25, "accuracy": 0.5, "num_utterances": 84}
    block |= {
        "expected_calibration_error": 0.1,
        "f1_per_class": dict.fromkeys(MELD, 0.5) | {"fear": None, "disgust": 0.0},
        "confusion": np.diag([12, 20, 0, 10, 20, 0, 22]).tolist(),
    }
    results = {"seed": 1, "corpus": {"stated": stated}, "test": {"mixture": block}} | results
    return model_card(model, {"corpus": {"name": recipe_name}}, results)


def test_card_of_own_data_does_not_mention_the_corpus_of_the_recipe():
    card = card_of(OWN_TABLES | {"name": "ca|lls\x1b"}, "MELD")
    assert not any(word in str(card) for word in ("MELD", "gpl", "television", "\x1b"))
    assert card.data.license == "cc-by-4.0" and "Its licence is cc-by-4.0." in card.text
    (found,) = {(result.dataset_name, result.dataset_type) for result in card.data.eval_results}
    assert found[0].startswith("ca|lls") and found[1] == "custom" and r"# MiSTER-E, ca\|lls" in card.text


def test_a_card_of_a_part_says_so_where_machines_read_it():
    card = card_of(MELD_TABLES, "MELD")
    (found,) = {(result.dataset_name, result.dataset_type) for result in card.data.eval_results}
    assert found == ("MELD, 84 of 2,610 test turns", "custom")
    assert "# MiSTER-E, part of MELD" in card.text and "television" in card.text


@pytest.mark.parametrize(
    ("experts", "task", "taken"),
    [
        (["speech", "text", "fusion"], "audio-text-classification", "speech and text"),
        (["fusion"], "audio-text-classification", "speech and text"),
        (["text"], "text-classification", "text"),
        (["speech"], "audio-classification", "speech"),
    ],
    ids=str,
)
def test_code_of_a_card_passes_the_right_vectors(experts, task, taken):
    sizes = {"hidden_size": 8, "attention_dim": 6, "fusion_num_layers": 1}
    config = MisterEConfig(speech_embedding_dim=3, text_embedding_dim=2, experts=experts, **sizes)
    model = MisterEModel(config).eval()
    block = {"weighted_f1": 0.5, "macro_f1": 0.25, "accuracy": 0.5, "num_utterances": 4}
    card = model_card(model, {}, {"seed": 1, "test": {"mixture": block}})
    assert card.data.eval_results[0].task_type == task and f"from vectors of {taken}, " in card.text
    (line,) = re.findall(r"^output = .*$", card.text, flags=re.MULTILINE)
    names = {"model": model, "speech_embeddings": torch.randn(1, 4, 3), "text_embeddings": torch.randn(1, 4, 2)}
    exec(line, names)
    assert names["output"].logits.shape[:2] == (1, 4)
    assert line.count("(B, T, ") == len(taken.split(" and "))


EPOCHS = {
    "last": ({"best_epoch": None, "epochs": 8.0}, "computed once; the last of 8 epochs; one seed"),
    "chosen": ({"best_epoch": 3.0, "epochs": 8.0}, "computed once; epoch 3 of 8, chosen on validation; one seed"),
    "not recorded": ({}, "computed once; one seed"),
}


@pytest.mark.parametrize(("results", "sentence"), EPOCHS.values(), ids=EPOCHS)
def test_card_states_the_epoch(results, sentence):
    assert sentence in card_of({}, **results).text


def test_a_card_gives_each_class_its_turns_and_one_without_a_dash():
    text = card_of({}).text
    assert "| surprise | 50.00 | 20 |" in text and "| fear | – | 0 |" in text
    assert "| disgust | – | 0 |" in text  # results of before stored a 0


@pytest.mark.parametrize(("temperature", "words"), [(1.0, "not calibrated"), (1.5, "with a temperature of 1.500")])
def test_a_card_says_whether_probabilities_are_calibrated(temperature, words):
    without = {"test without it": {"expected_calibration_error": 0.2}}
    assert words in card_of({}, calibration={"temperature": temperature} | without).text


# What is too little

COUNTS = {"joy": 60, "anger": 60}
SHORT = {
    "none": (COUNTS, COUNTS, 10, []),
    "test lacks a class": (COUNTS, {"joy": 60, "anger": 0}, 10, ["test has no turn of anger: it has no score"]),
    "validation lacks a class": ({"joy": 120, "anger": 0}, COUNTS, 10, ["validation has no turn of anger"]),
    "few validation turns": ({"joy": 50, "anger": 49}, COUNTS, 10, ["validation has 99 labelled turns"]),
    "few dialogues": (COUNTS, COUNTS, 9, ["test has 9 dialogues"]),
    "nothing labelled": (COUNTS, {"joy": 0, "anger": 0}, 10, ["test has no labelled turn."]),
}


@pytest.mark.parametrize(("validation", "test", "dialogues", "expected"), SHORT.values(), ids=SHORT)
def test_shortage_of_data_is_reported(validation, test, dialogues, expected):
    found = list(shortcomings({"train": COUNTS, "validation": validation, "test": test}, {"test": dialogues}))
    assert len(found) == len(expected)
    for sentence, start in zip(found, expected, strict=True):
        assert sentence.startswith(start)


# From the tables to the card


@pytest.fixture
def vectors(tmp_path):
    """An own corpus of vectors with MELD's labels, of which test has none of disgust."""
    generator = np.random.default_rng(0)
    for split, dialogues in {"train": 6, "validation": 2, "test": 3}.items():
        names = MELD if split == "train" else [name for name in MELD if name != "disgust"]
        rows = [
            {
                "dialogue_id": f"{split}{number}",
                "utterance_ids": [str(turn) for turn in range(7)],
                "labels": [names[turn % len(names)] for turn in range(7)],
            }
            for number in range(dialogues)
        ]
        table = pa.Table.from_pylist(rows).replace_schema_metadata(Provenance(**OWN_TABLES).metadata())
        features = {f"{name}_features": generator.normal(size=(7 * dialogues, 4)) for name in ("speech", "text")}
        write_vectors(tmp_path / "vectors", split, table, **{name: tensor(each) for name, each in features.items()})
    return tmp_path / "vectors"


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def test_a_run_on_own_vectors_by_a_recipe_of_meld(vectors, tmp_path, caplog):
    (vectors / RECORD).write_text(json.dumps({"encoders": {"speech": "x", "text": "y"}}))
    words = ["mister-e-meld-small", "--corpus", str(vectors), "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    sizes = ["--model.speech_embedding_dim", "4", "--model.text_embedding_dim", "4", "--num_train_epochs", "1"]
    assert main(["train", *words, *sizes, "--disable_tqdm"]) == 0
    assert "test has no turn of disgust" in caplog.text and "test has 3 dialogues" in caplog.text
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert not any(word in str(card) for word in ("MELD", "gpl", "television"))
    assert card.data.license == "cc-by-4.0" and "# MiSTER-E, calls" in card.text
    assert "its only epoch" in card.text and "not calibrated" in card.text
    assert "| disgust | – | 0 |" in card.text and "Test has no turn of disgust" in card.text
    assert "Test: 21 labelled turns in 3 dialogues." in card.text
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["mixture"]["f1_per_class"]["disgust"] is None
    assert results["calibration"]["temperature"] == 1.0
    assert "vectors" not in yaml.safe_load((tmp_path / "run" / "training.yaml").read_text())["corpus"]
    assert main(["evaluate", str(tmp_path / "run"), "--use_cpu"]) == 0


def test_the_origin_of_vectors_is_the_recipe_s_unless_encoders_made_them(vectors):
    words = ["--corpus", str(vectors)]
    assert "Praat" in Recipe.load("mister-e-meld-small", words).corpus.vectors["speech"]
    (vectors / RECORD).write_text("{}")
    assert Recipe.load("mister-e-meld-small", words).corpus.vectors is None
    own = ["--corpus.vectors", "{text: my encoder}"]
    assert Recipe.load("mister-e-meld-small", [*words, *own]).corpus.vectors == {"text": "my encoder"}


def test_facts_of_a_corpus_without_metadata_and_of_one_on_the_hub(vectors):
    splits = read_corpus(vectors, dict(zip(MELD, range(7), strict=True)))
    assert corpus_facts(vectors, splits, MELD)["stated"] == OWN_TABLES
    assert corpus_facts("org/name", splits, MELD)["stated"] == {"name": "org/name"}
    facts = corpus_facts(None, splits, MELD)
    assert facts["stated"] == {} and facts["dialogues"] == {"train": 6, "validation": 2, "test": 3}
