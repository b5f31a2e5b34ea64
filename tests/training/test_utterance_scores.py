"""Stage 1 trained on scores instead of classes, and on video."""

import math

import datasets
import numpy as np
import pytest
import torch

from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.encoders.utterances import Utterances
from mister_e_hf.training.utterance_trainer import UtteranceTrainer, UtteranceTrainingArguments, logits_of
from support.gradient_steps import assert_close
from support.small_videos import plain, write_clip
from support.tiny_backbones import tiny_encoder, tiny_processor, write_backbone
from support.utterance_training import LINES, gradient, trainer_of

pytestmark = pytest.mark.usefixtures("own_cache")

SCORES = [[1.5, math.nan], [-2.0, 0.5], [math.nan, math.nan], [3.0, -1.0]]
MODEL = {"id2label": {0: "valence", 1: "activation"}, "problem_type": "regression"}


def items(scores) -> list[dict]:
    return [
        {"turn": turn, "label": np.array(score, dtype=np.float32), "index": index}
        for index, (turn, score) in enumerate(zip(LINES, scores, strict=False))
    ]


OPTIONS = {"model": MODEL, "metric_for_best_model": "mae"}


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_gradient_is_that_of_the_loss_per_score(backbones, tmp_path, loss):
    model = MODEL | {"regression_loss": loss}
    trainer = trainer_of(backbones["text"], tmp_path, items(SCORES), model=model, metric_for_best_model="mae")
    trainer._fit_scale()
    predictions = trainer.model(**trainer.processor(LINES[:4])).logits
    errors = (predictions - torch.tensor(SCORES))[~torch.tensor(SCORES).isnan()]
    assert len(errors) == 5
    small = errors.abs() <= 1
    huber = torch.where(small, errors**2 / 2, errors.abs() - 0.5)
    (errors.abs() if loss == "l1" else huber).mean().backward()
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    expected = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in trained.items()}
    options = OPTIONS | {"model": model}
    assert_close(gradient(backbones["text"], tmp_path, items(SCORES), **options), expected)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(backbones, tmp_path):
    whole = gradient(backbones["text"], tmp_path, items(SCORES), **OPTIONS)
    parts = gradient(
        backbones["text"],
        tmp_path,
        items(SCORES),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        **OPTIONS,
    )
    assert any(step.abs().max() > 1e-3 for step in whole.values())
    assert_close(parts, whole)


def test_the_scale_is_that_of_the_training_scores(backbones, tmp_path):
    trainer = trainer_of(backbones["text"], tmp_path, items(SCORES), **OPTIONS)
    trainer.train()
    given = np.array(SCORES)
    np.testing.assert_allclose(trainer.encoder.target_scale.mean, np.nanmean(given, 0), rtol=1e-6)
    np.testing.assert_allclose(trainer.encoder.target_scale.std, np.nanstd(given, 0), rtol=1e-6)


def test_a_target_without_scores_cannot_be_learned(backbones, tmp_path):
    trainer = trainer_of(backbones["text"], tmp_path, items([[1.0, math.nan]] * 4), **OPTIONS)
    with pytest.raises(InputError, match="no turn has a score of 'activation', so it cannot be learned"):
        trainer.train()


def test_the_best_epoch_is_not_chosen_by_scores_of_classes(backbones, tmp_path):
    with pytest.raises(ValueError, match="metric_for_best_model must be one of mae, corr, ccc, loss"):
        trainer_of(backbones["text"], tmp_path, items(SCORES), model=MODEL, metric_for_best_model="weighted_f1")


# Video

COLOURS = {"anger": (220, 20, 20), "joy": (20, 220, 20), "neutral": (20, 20, 220)}
NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> datasets.DatasetDict:
    """Clips whose colour is the emotion and the sentiment, of which every fifth is missing."""
    folder, features = tmp_path_factory.mktemp("videos"), dialogue_features(NAMES)
    corpus = {}
    for split, size in (("train", 18), ("validation", 9)):
        rows = []
        for number in range(size):
            emotion = number % 3
            sentiment = None if number % 5 == 4 else float(emotion - 1)
            path = folder / f"{split}{number}.mp4"
            write_clip(path, [plain(COLOURS[NAMES[emotion]])] * 4, fps=4)
            turn = dict.fromkeys(features["utterances"].feature) | {"utterance_id": "0", "emotion": emotion}
            turn |= {"video": {"path": str(path), "bytes": None}, "sentiment": sentiment}
            rows.append({"dialogue_id": f"{split}{number}", "utterances": [turn]})
        corpus[split] = datasets.Dataset.from_list(rows, features=features)
    return datasets.DatasetDict(corpus)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", "scores"])
def test_an_encoder_of_video_learns_what_the_picture_shows(videos, tmp_path, task):
    folder = write_backbone(tmp_path / "base", "resnet")
    labels: dict = {"label2id": {name: number for number, name in enumerate(NAMES)}}
    settings: dict = {"id2label": dict(enumerate(NAMES))}
    if task == "scores":
        labels = {"targets": ["sentiment"]}
        settings = {"id2label": {0: "sentiment"}, "problem_type": "regression", "regression_loss": "huber"}
    data = {split: Utterances(videos[split], "visual", num_frames=2, **labels) for split in videos}
    encoder = tiny_encoder(folder, "resnet", tuning="full", dropout=0.0, **settings)
    arguments = UtteranceTrainingArguments(
        str(tmp_path / "run"),
        use_cpu=True,
        num_train_epochs=25,
        learning_rate=1e-2,
        per_device_train_batch_size=6,
        report_to="none",
        metric_for_best_model="mae" if task == "scores" else "weighted_f1",
    )
    processor = tiny_processor(folder, "resnet", num_frames=2)
    trainer = UtteranceTrainer(
        encoder, arguments, processor, train_dataset=data["train"], eval_dataset=data["validation"]
    )
    trainer.train()
    metrics = trainer.evaluate()
    if task == "classes":
        assert metrics["eval_accuracy"] == 1
    else:
        assert metrics["eval_mae"] < 0.3 and metrics["eval_corr"] > 0.9
        prediction = trainer.predict(data["validation"])
        found = np.nanmean(np.abs(logits_of(prediction.predictions) - prediction.label_ids))
        assert found == pytest.approx(metrics["eval_mae"], rel=1e-4)
