"""MisterETrainer with datasets of one's own."""

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from transformers import TrainingArguments

from mister_e_hf import (
    DialogueCollator,
    DialogueTrainer,
    DialogueTrainingArguments,
    DialogueVectors,
    MisterEConfig,
    MisterETrainer,
)
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.demo import LABELS, SPEECH_DIM, TEXT_DIM, demo_corpus
from mister_e_hf.models.baselines.bc_lstm import BcLstmModel
from mister_e_hf.models.baselines.configuration import BcLstmConfig
from mister_e_hf.training.dialogue_trainer import MisterETrainingArguments
from mister_e_hf.training.utterance_trainer import UtteranceTrainingArguments
from mister_e_hf.vectors.dialogue_datasets import (
    _BLOCK_ROWS,
    check_dialogues,
    dataset_statistics,
    dialogue_lengths,
    mean_and_deviation,
)
from mister_e_hf.vectors.dialogue_vectors import regroup
from support.dialogue_training import SIZES, tiny_corpus, tiny_model


class Own(Dataset):
    """Nothing but a length and items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def items(data) -> list[dict]:
    return [data[index] for index in range(len(data))]


FORMS = {
    "vectors": lambda data: data,
    "list": items,
    "own": lambda data: Own(items(data)),
    "subset": lambda data: Subset(data, range(len(data))),
    "subset of a subset": lambda data: Subset(Subset(data, range(len(data))), range(len(data))),
    "concatenation": lambda data: ConcatDataset([Subset(data, range(3)), Subset(data, range(3, len(data)))]),
    "dataset": lambda data: datasets.Dataset.from_list(
        [{name: value.tolist() for name, value in item.items()} for item in items(data)]
    ),
}


def arguments(folder, **changes):
    settings = {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "report_to": "none"}
    return MisterETrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**settings, **changes})


def trained(folder, form) -> MisterETrainer:
    corpus = tiny_corpus()
    trainer = MisterETrainer(
        tiny_model(), arguments(folder), train_dataset=form(corpus["train"]), eval_dataset=form(corpus["validation"])
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("vectors"), FORMS["vectors"])


@pytest.mark.parametrize("name", [name for name in FORMS if name != "vectors"])
def test_every_form_of_dataset_trains_to_bit_equal_weights(tmp_path, expected, name):
    trainer = trained(tmp_path, FORMS[name])
    assert expected.model.speech_input.mean.abs().sum() > 0
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[key]), key
    scores = [entry for entry in trainer.state.log_history if "eval_weighted_f1" in entry]
    assert [entry["eval_weighted_f1"] for entry in scores] == [
        entry["eval_weighted_f1"] for entry in expected.state.log_history if "eval_weighted_f1" in entry
    ]


def scores_of(data) -> DialogueVectors:
    """The same dialogues with two scores per turn in place of a class, some of them missing."""
    scored = regroup([data], range(len(data)), data.name)
    scored.targets, scored.label2id = {"valence": "v", "arousal": "a"}, {"valence": 0, "arousal": 1}
    text = data.vectors["text"].rows(0, data.num_turns).numpy()
    scored.labels = np.where(text[:, 2:4] < 1.5, 3 + text[:, :2], np.nan).astype(np.float32)
    return scored


def trained_on_scores(folder, form) -> DialogueTrainer:
    corpus = {split: scores_of(data) for split, data in tiny_corpus().items()}
    torch.manual_seed(0)
    config = BcLstmConfig(
        speech_embedding_dim=SPEECH_DIM,
        text_embedding_dim=TEXT_DIM,
        hidden_size=8,
        problem_type="regression",
        id2label={0: "valence", 1: "arousal"},
    )
    settings = DialogueTrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, num_train_epochs=2, per_device_train_batch_size=4
    )
    trainer = DialogueTrainer(
        BcLstmModel(config), settings, train_dataset=form(corpus["train"]), eval_dataset=form(corpus["validation"])
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", [name for name in FORMS if name != "vectors"])
def test_every_form_of_dataset_trains_a_regression_to_bit_equal_weights(tmp_path, name):
    expected, trainer = (trained_on_scores(tmp_path / each, FORMS[each]) for each in ("vectors", name))
    labels = scores_of(tiny_corpus()["train"]).labels
    assert 0 < np.isnan(labels).sum() < labels.size / 2
    np.testing.assert_allclose(expected.model.target_scale.mean, np.nanmean(labels, 0), rtol=1e-5)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[key]), key
    errors = [
        [entry["eval_mae"] for entry in each.state.log_history if "eval_mae" in entry] for each in (expected, trainer)
    ]
    assert errors[0] == errors[1]
    assert len(errors[0]) == 2


def test_statistics_ignore_absent_turns_and_block_size():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * _BLOCK_ROWS + 7, 2, generator=generator)
    mask = torch.rand(len(rows), generator=generator) < 0.5
    parts = [slice(0, 3), slice(3, 2 * _BLOCK_ROWS + 5), slice(2 * _BLOCK_ROWS + 5, None)]
    data = [{"text_embeddings": rows[part], "text_mask": mask[part]} for part in parts]
    mean, deviation = dataset_statistics(data, "text")
    kept = rows[mask].double()
    assert torch.allclose(mean, kept.mean(0)) and torch.allclose(deviation, kept.std(0, correction=0))
    cut = [(block, kept) for block, kept in zip(rows.split(_BLOCK_ROWS), mask.split(_BLOCK_ROWS), strict=True)]
    again = mean_and_deviation(lambda: cut)
    assert torch.equal(mean, again[0]) and torch.equal(deviation, again[1])
    assert dataset_statistics(data, "speech") is None


@pytest.mark.parametrize("name", FORMS)
def test_lengths(name):
    data = tiny_corpus()["train"]
    assert np.array_equal(dialogue_lengths(FORMS[name](data)), data.lengths)


def without_labels():
    return {split: DialogueVectors(table, name=split) for split, table in demo_corpus(1, sizes=SIZES).items()}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(items(tiny_corpus()["train"]))


WRONG = {
    "no labels": (
        lambda: without_labels()["train"],
        "train_dataset: no labels, its items have the fields speech_embed",
    ),
    "no dialogues": (list, "train_dataset has no dialogues"),
    "a stream": (Stream, "train_dataset must be a map-style dataset.*got Stream"),
    "items of tuples": (lambda: [(1, 2)], "an item must be a dictionary of fields.*got tuple"),
    "no speech": (
        lambda: [
            {**item, "speech_mask": torch.zeros_like(item["speech_mask"])} for item in items(tiny_corpus()["train"])
        ],
        "no turn has speech",
    ),
    "another width": (
        lambda: [
            {**item, "text_embeddings": item["text_embeddings"][:, 1:]} for item in items(tiny_corpus()["train"])
        ],
        r"'text_embeddings' have width \d+, but the model expects text_embedding_dim = \d+",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_unusable_dataset_raises(tmp_path, make, message):
    settings = arguments(tmp_path, max_steps=1)
    validation = tiny_corpus()["validation"]
    with pytest.raises(InputError, match=message):
        MisterETrainer(tiny_model(), settings, train_dataset=make(), eval_dataset=validation).train()


def test_validation_without_labels_raises(tmp_path):
    data = without_labels()["validation"]
    with pytest.raises(InputError, match="eval_dataset: no labels"):
        MisterETrainer(
            tiny_model(), arguments(tmp_path), train_dataset=tiny_corpus()["train"], eval_dataset=data
        ).train()


def test_arguments_of_another_class_raise(tmp_path):
    for cls in (TrainingArguments, UtteranceTrainingArguments):
        with pytest.raises(InputError, match=f"needs MisterETrainingArguments, got {cls.__name__}"):
            MisterETrainer(tiny_model(), cls(str(tmp_path), use_cpu=True))


def test_prediction_needs_no_training_dataset(tmp_path):
    settings = arguments(tmp_path)
    trainer = MisterETrainer(tiny_model(), settings)
    assert settings.load_best_model_at_end and settings.eval_strategy == "epoch"  # as they were
    labelled = trainer.predict(tiny_corpus()["test"])
    unlabelled = trainer.predict(without_labels()["test"])
    assert np.array_equal(labelled.predictions[0], unlabelled.predictions[0])
    assert labelled.predictions[0].shape[-1] == len(LABELS) and "test_weighted_f1" in labelled.metrics
    with pytest.raises(InputError, match="no eval_dataset: give one, or set eval_strategy='no'"):
        MisterETrainer(tiny_model(), settings, train_dataset=tiny_corpus()["train"])


def item(**fields) -> dict:
    found = {
        "speech_embeddings": torch.zeros(2, 3),
        "text_embeddings": torch.zeros(2, 4),
        "labels": [0, -100],
    } | fields
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "must be a dictionary of fields, such as labels, got NoneType"),
        (
            item(labels=["joy", "sad"]),
            "'labels' must be class indices, -100 at turns without a label, one entry per turn",
        ),
        (item(labels=[None, 0]), "'labels' must be class indices"),
        (item(labels=[0.5, 1.0]), "'labels' must be class indices, .* got numbers with decimals"),
        (item(labels=1), "'labels' must be class indices, .* got 1"),
    ],
)
def test_items_that_are_not_dialogues_raise(wrong, message):
    with pytest.raises(InputError, match=f"dialogue 1 of the dataset.*{message}"):
        dialogue_lengths([item(), wrong])
    with pytest.raises(InputError, match=f"dialogue 1 of the batch.*{message}"):
        DialogueCollator()([item(), wrong])


def test_dialogue_of_another_width_raises():
    with pytest.raises(InputError, match=r"dialogue 1 of the dataset: 'text_embeddings' must be .* got \(2, 5\)"):
        dataset_statistics([item(), item(text_embeddings=torch.zeros(2, 5))], "text")


@pytest.mark.parametrize("name", ["speech_embedding", "Speech_Embeddings", "speech_features"])
def test_misspelt_field_raises(name):
    width = item()["speech_embeddings"].shape[1]
    config = MisterEConfig(speech_embedding_dim=width, text_embedding_dim=item()["text_embeddings"].shape[1])
    dataset = [item(speech_embeddings=None) | {name: torch.zeros(2, 3)}]
    with pytest.raises(InputError, match=f"field '{name}' of its items is not read; rename it to 'speech_embeddings'"):
        check_dialogues(dataset, "train_dataset", config)
    check_dialogues([item(speaker=["a", "b"], sentiment=[0, 1])], "train_dataset", config)
