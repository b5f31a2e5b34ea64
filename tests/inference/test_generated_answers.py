"""Answers that the language model of EGMF writes, in the pipeline and in tables of predictions."""

import json
import logging

import pyarrow.parquet as pq
import pytest
import torch
from transformers import pipeline

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import TASK
from mister_e_hf.corpora.demo import LABELS, SPEECH_DIM, TEXT_DIM, demo_corpus
from mister_e_hf.inference.generated_answers import read_answer
from mister_e_hf.inference.predict import predict_dialogues
from mister_e_hf.inference.predicted_turns import read_predictions
from mister_e_hf.inference.prediction_output import turn_table, write_predictions
from mister_e_hf.models.baselines.bc_lstm import BcLstmModel
from mister_e_hf.models.baselines.configuration import BcLstmConfig
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel
from mister_e_hf.models.registry import _ENTRIES
from support.tiny_language_models import language_model_fields

WIDTHS = {"speech_embedding_dim": SPEECH_DIM, "text_embedding_dim": TEXT_DIM}
TASKS = {
    "classes": {"id2label": dict(enumerate(LABELS))},
    "score": {"id2label": {0: "valence"}, "problem_type": "regression"},
    "scores": {"id2label": {0: "valence", 1: "arousal"}, "problem_type": "regression"},
}


def model_of(task: str, **changes) -> EgmfModel:
    torch.manual_seed(0)
    fields = TASKS[task] | WIDTHS | {"hidden_size": 16} | language_model_fields("llama", **changes)
    return EgmfModel.from_language_model(EgmfConfig(**fields)).eval()


def dialogues(language: str = "en") -> list[list[dict]]:
    found = []
    for row in demo_corpus(sizes={"train": 3}, transcripts=language)["train"].to_pylist():
        turns = []
        for number, vector in enumerate(row["text_features"]):
            turn = {"text_embedding": vector, "text": row["texts"][number]}
            turns.append(turn | ({"speech_embedding": row["speech_features"][number]} if number % 2 else {}))
        found.append(turns[:5])
    return found


def written(dialogue: list[dict]) -> list:
    return [(turn["answer"], turn.get("unparsed")) for turn in dialogue]


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_read_or_unparsed(task):
    model, given = model_of(task), dialogues()
    erc = pipeline(TASK, model=model)
    plain, found = erc(given), erc(given, answers=True)
    for before, after in zip(sum(plain, []), sum(found, []), strict=True):
        assert "answer" not in before and "unparsed" not in before
        assert before == {name: value for name, value in after.items() if name not in ("answer", "unparsed")}
        scores = after["answer"].values() if task == "scores" else [after["answer"]]
        assert len(after.get("unparsed", ())) == sum(score is None for score in scores)
    assert any("unparsed" in turn for turn in sum(found, []))  # a language model with random weights
    assert model.prompt_counts()["prompts"] == 2 * len(sum(given, []))  # once for each call, with answers or without
    for again in ([erc(dialogue, answers=True) for dialogue in given], erc(given, answers=True, batch_size=3)):
        assert [written(dialogue) for dialogue in again] == [written(dialogue) for dialogue in found]


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_read_by_the_kind_of_answer(task):
    model = model_of(task)
    expected = {
        "classes": [(["joy"], "joy", []), (["who knows"], None, ["who knows"])],
        "score": [(["+2"], 2.0, []), (["many"], None, ["many"])],
        "scores": [
            (["-1", "+3"], {"valence": -1.0, "arousal": 3.0}, []),
            (["", "+3"], {"valence": None, "arousal": 3.0}, [""]),
        ],
    }
    for texts, answer, unparsed in expected[task]:
        assert read_answer(model, texts) == {"answer": answer} | ({"unparsed": unparsed} if unparsed else {})


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_constrained_answer_is_the_predicted_label(language):
    model = model_of("classes", language=language)
    batch = {
        "text_embeddings": torch.randn(2, 3, TEXT_DIM),
        "speech_embeddings": torch.randn(2, 3, SPEECH_DIM),
        "attention_mask": torch.tensor([[True, True, True], [False, True, True]]),
        "transcripts": [["你好", None, "hooray"], [None, "a", "b"]],
    }
    with torch.no_grad():
        logits = model(**batch).logits
    written = model.generate_answers(**batch, constrained=True)
    free = model.generate_answers(**batch)
    for dialogue, turn in batch["attention_mask"].nonzero().tolist():
        (text,) = written[dialogue][turn]
        assert model.answers.parse(text) == int(logits[dialogue, turn].argmax())
        assert len(free[dialogue][turn]) == 1
    assert written[1][0] == free[1][0] == []


def test_a_model_that_writes_none_raises():
    model = BcLstmModel(BcLstmConfig(id2label=dict(enumerate(LABELS)), **WIDTHS)).eval()
    erc = pipeline(TASK, model=model)
    with pytest.raises(InputError, match="answers=True is for a model with a language model, such as EGMF"):
        erc(dialogues(), answers=True)
    assert erc(dialogues()[0], answers=False)
    with pytest.raises(InputError, match="answers must be True or False, got 'yes'"):
        erc(dialogues(), answers="yes")


@pytest.mark.skipif("egmf" not in _ENTRIES, reason="commands load registered models alone")
@pytest.mark.parametrize("task", TASKS)
def test_answers_in_tables(task, tmp_path, caplog):
    model_of(task).save_pretrained(tmp_path / "model")
    (tmp_path / "corpus").mkdir()
    pq.write_table(demo_corpus(sizes={"test": 2}, transcripts="en")["test"], tmp_path / "corpus" / "test.parquet")
    with caplog.at_level(logging.WARNING):
        labels, lines = predict_dialogues(tmp_path / "corpus", tmp_path / "model", answers=True)
        lines = list(lines)
    unparsed = sum("unparsed" in line for line in lines)
    assert f"{unparsed} of {len(lines)} answers are neither a label nor a score" in caplog.text
    lines[0] |= read_answer(model_of(task), ["joy"] if task == "classes" else ["+2", "-1"][: len(labels)])
    for ending in (".jsonl", ".csv", ".tsv", ".parquet"):
        write_predictions(lines, labels, tmp_path / f"found{ending}")
        turns = sum(read_predictions(tmp_path / f"found{ending}").values(), [])
        assert [turn["turn"] for turn in turns] == [line["turn"] for line in lines]
        assert turns[0]["answer"] == (
            lines[0]["answer"]
            if ending == ".jsonl"
            else {"classes": "joy", "score": "+2", "scores": "valence +2; arousal -1"}[task]
        )
        assert turns[1]["scores"].keys() == lines[1]["scores"].keys()
    assert json.loads((tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()[1])["unparsed"]
    head, first, second = turn_table(lines[:2])[:400].splitlines()[1:4]
    assert "answer" in head and turns[0]["answer"] in first and "?" in second
