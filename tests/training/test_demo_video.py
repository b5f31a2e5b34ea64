"""The generated corpus of three modalities: what a model of all three reaches, and what one of two cannot."""

import csv
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import pipeline

from mister_e_hf import DialogueTrainer, DialogueTrainingArguments, DialogueVectors, read_corpus
from mister_e_hf.corpora.demo import SPEECH_DIM, TEXT_DIM, VIDEO_LABELS, VISUAL_DIM, demo_corpus
from mister_e_hf.models.baselines.bc_lstm import BcLstmModel
from mister_e_hf.models.baselines.configuration import BcLstmConfig
from support.small_demo import run_small_demo

ALL = ("speech", "text", "visual")
# The emotion that shows in one modality only, and what it looks like without it.
OWN = {"speech": "anger", "text": "joy", "visual": "disgust"}
PLAIN = ("neutral", "sadness")
LABEL2ID = {label: index for index, label in enumerate(VIDEO_LABELS)}


@pytest.fixture(scope="module")
def corpus() -> dict[str, DialogueVectors]:
    return {split: DialogueVectors(table, LABEL2ID, name=split) for split, table in demo_corpus(3, video=True).items()}


def fitted(folder, corpus, modalities: tuple[str, ...]) -> np.ndarray:
    """Probabilities (N, C) of the test turns from a bc-LSTM that reads these modalities."""
    torch.manual_seed(0)
    widths = {"speech_embedding_dim": SPEECH_DIM, "text_embedding_dim": TEXT_DIM, "visual_embedding_dim": VISUAL_DIM}
    config = BcLstmConfig(
        **widths, modalities=modalities, hidden_size=48, dropout=0.1, id2label=dict(enumerate(VIDEO_LABELS))
    )
    arguments = DialogueTrainingArguments(
        str(folder),
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        num_train_epochs=5,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    trainer = DialogueTrainer(BcLstmModel(config), arguments, train_dataset=corpus["train"])
    trainer.train()
    test = corpus["test"]
    logits = trainer.predict(test).predictions.logits
    real = np.arange(logits.shape[1]) < test.lengths[:, None]
    return torch.from_numpy(logits[real]).softmax(-1).numpy()


def shown(seed: int) -> dict[str, list[list[tuple]]]:
    """By split and dialogue, what each turn shows: a pattern per modality, None where it is absent; and its label."""
    corpus, known = demo_corpus(seed, noise=0.0, video=True), defaultdict(dict)
    found = {}
    for split, table in corpus.items():
        found[split] = []
        for row in table.to_pylist():
            turns = []
            for turn, label in enumerate(row["labels"]):
                parts = []
                for name, has in zip(ALL, ("has_audio", "has_text", "has_video"), strict=True):
                    pattern = known[name].setdefault(tuple(row[f"{name}_features"][turn]), len(known[name]))
                    parts.append(pattern if row.get(has, [True] * len(row["labels"]))[turn] else None)
                turns.append((tuple(parts), label))
            found[split].append(turns)
    assert {name: len(patterns) for name, patterns in known.items()} == {"speech": 4, "text": 4, "visual": 3}
    return found


def ceiling(seed: int) -> float:
    """Accuracy on test of the best rule: for each state of a turn, its most frequent label in training."""

    def states(turns):
        last = None
        for parts, label in turns:
            yield (parts, last), label
            if label not in (*PLAIN, "disgust"):
                last = label

    splits, counts = shown(seed), defaultdict(Counter)
    for turns in splits["train"]:
        for state, label in states(turns):
            counts[state][label] += 1
    correct = [
        label == counts[state].most_common(1)[0][0] if counts[state] else False
        for turns in splits["test"]
        for state, label in states(turns)
    ]
    return float(np.mean(correct))


def test_three_modalities_reach_the_ceiling_of_the_generator(tmp_path, corpus):
    best = ceiling(3)
    assert 0.95 < best < 1  # turns that lack a modality can be ambiguous
    accuracy = (fitted(tmp_path, corpus, ALL).argmax(-1) == corpus["test"].labels).mean()
    assert accuracy > best - 0.02


@pytest.mark.parametrize("absent", ALL)
def test_an_emotion_that_shows_in_one_modality_falls_to_chance_without_it(tmp_path, corpus, absent):
    probabilities = fitted(tmp_path, corpus, tuple(name for name in ALL if name != absent))
    labels = np.array(VIDEO_LABELS)[corpus["test"].labels]
    alike = np.isin(labels, [OWN[absent], *PLAIN])
    area = roc_auc_score(labels[alike] == OWN[absent], probabilities[alike, LABEL2ID[OWN[absent]]])
    assert 0.4 < area < 0.62
    others = [name for name in OWN if name != absent]
    for name in others:
        turns = labels == OWN[name]
        assert (probabilities[turns].argmax(-1) == LABEL2ID[OWN[name]]).mean() > 0.9


def test_clips_go_through_every_stage_and_the_checkpoint_reads_clips(tmp_path):
    run = run_small_demo(tmp_path / "run", video=True)
    assert {path.parent.name for path in run.glob("*_encoder/config.json")} == {f"{name}_encoder" for name in ALL}
    table, vectors = run / "demo" / "recordings" / "test", read_corpus(run / "vectors", LABEL2ID)["test"]
    with (table / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dialogue_id"] == "test_000"]
    item = vectors[vectors.dialogue_ids.index("test_000")]
    assert item["visual_mask"].tolist() == [bool(row["video"]) for row in rows]
    turns = [
        {field: table / row[field] for field in ("audio", "video") if row[field]} | {"text": row["text"]}
        for row in rows
    ]
    erc = pipeline("conversation-emotion-recognition", model=str(run))
    answers, without = erc(turns), erc([{"text": turn["text"]} for turn in turns])
    assert [set(answer["scores"]) for answer in answers] == [set(VIDEO_LABELS)] * len(turns)
    assert [answer["scores"] for answer in answers] != [answer["scores"] for answer in without]
