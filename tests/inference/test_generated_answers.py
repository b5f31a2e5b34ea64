"""Answers that the language model of EGMF writes, in the pipeline and in tables of predictions."""

import pytest
import torch
from transformers import pipeline

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import TASK
from mister_e_hf.corpora.demo import LABELS, SPEECH_DIM, TEXT_DIM, demo_corpus
from mister_e_hf.inference.generated_answers import read_answer
from mister_e_hf.models.baselines.bc_lstm import BcLstmModel
from mister_e_hf.models.baselines.configuration import BcLstmConfig
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel
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
