import numpy as np
import pytest
import torch

from mister_e_hf import DialogueCollator


def dialogue(length: int, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    generator = np.random.default_rng([seed, length])
    return {
        "speech_embeddings": generator.normal(size=(length, 5)).astype(dtype),
        "text_embeddings": generator.normal(size=(length, 4)).astype(dtype),
        "speech_mask": generator.random(length) < 0.7,
        "text_mask": generator.random(length) < 0.7,
        "labels": generator.integers(3, size=length),
    }


def dialogues(*lengths: int, **options) -> list[dict]:
    return [dialogue(length, seed, **options) for seed, length in enumerate(lengths)]


FORMS = {
    "arrays": lambda value: value,
    "tensors": torch.from_numpy,
    "lists": lambda value: value.tolist(),
    "list_of_arrays": lambda value: list(value) if value.ndim == 2 else value.tolist(),
}


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy.ndarrays")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_shapes_dtypes_masks_and_padding(form, dtype):
    given = dialogues(2, 5, 1, dtype=dtype)
    batch = DialogueCollator()([{name: form(value) for name, value in row.items()} for row in given])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "speech_embeddings": (3, 5, 5),
        "text_embeddings": (3, 5, 4),
        "speech_mask": (3, 5),
        "text_mask": (3, 5),
        "labels": (3, 5),
        "attention_mask": (3, 5),
    }
    assert batch["attention_mask"].tolist() == [[turn < length for turn in range(5)] for length in (2, 5, 1)]
    padding = {"speech_embeddings": 0.0, "text_embeddings": 0.0, "speech_mask": 0, "text_mask": 0, "labels": -100}
    for name, value in padding.items():
        dtypes = {"embeddings": torch.float32, "mask": torch.bool, "labels": torch.long}
        assert batch[name].dtype == dtypes[name.rpartition("_")[2]]
        assert (batch[name][~batch["attention_mask"]] == value).all()
        for row, turns in zip(given, batch[name], strict=True):
            expected = row[name].astype(np.float32) if name.endswith("embeddings") else row[name]
            np.testing.assert_array_equal(turns[: len(expected)].numpy(), expected)


def test_other_fields_are_ignored():
    batch = DialogueCollator()(
        [{"text_embeddings": row["text_embeddings"], "dialogue_id": "x", "texts": ["a"]} for row in dialogues(3, 2)]
    )
    assert set(batch) == {"text_embeddings", "attention_mask"}


def test_one_dialogue():
    batch = DialogueCollator()(dialogues(4))
    assert batch["attention_mask"].all() and batch["labels"].shape == (1, 4)


def without(row: dict, name: str) -> dict:
    return {key: value for key, value in row.items() if key != name}


def shortened(row: dict, name: str) -> dict:
    return row | {name: row[name][:-1]}


first, second = dialogues(3, 2)
WRONG = {
    "no turns": ([first, {name: value[:0] for name, value in second.items()}], "dialogue 1 .* one entry per turn"),
    "labels too short": ([first, shortened(second, "labels")], "dialogue 1 .*'labels': 1"),
    "mask too short": ([shortened(first, "text_mask"), second], "dialogue 0 .*'text_mask': 2"),
    "one without text": ([first, without(second, "text_embeddings")], "dialogue 1 of the batch has the fields"),
    "one without labels": ([without(first, "labels"), second], "dialogue 1 of the batch has the fields .*'labels'"),
    "no embeddings": ([{"labels": [1, 2]}], "dialogue 0 of the batch has no embeddings, only .'labels'."),
    "other width": (
        [first, second | {"text_embeddings": second["text_embeddings"][:, :3]}],
        "'text_embeddings' .* one width, got .*3.*4",
    ),
    "flat": ([{"text_embeddings": [1.0, 2.0]}], "'text_embeddings'"),
    "one-hot labels": ([first | {"labels": np.eye(3, dtype=int)}], "'labels'"),
}


@pytest.mark.parametrize(("batch", "message"), WRONG.values(), ids=WRONG)
def test_invalid_dialogue_raises(batch, message):
    with pytest.raises(ValueError, match=message):
        DialogueCollator()(batch)


def test_batch_through_the_model_equals_each_dialogue_alone(tiny_model):
    model = tiny_model()
    given = dialogues(3, 7, 1, 4)

    def run(rows: list[dict]):
        batch = DialogueCollator()(rows)
        wide = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
        with torch.no_grad():
            return model(**wide)

    together = run(given)
    for index, row in enumerate(given):
        alone, turns = run([row]), len(row["labels"])
        for name in ("logits", "expert_logits", "gate_weights"):
            torch.testing.assert_close(together[name][index, :turns], alone[name][0], rtol=0, atol=1e-10)
            assert (together[name][index, turns:] == 0).all()


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_batch_without_a_modality_through_the_model(tiny_model, modality):
    given = [
        {name: value for name, value in row.items() if name.startswith(modality) or name == "labels"}
        for row in dialogues(3, 5)
    ]
    output = tiny_model(torch.float32)(**DialogueCollator()(given))
    assert output.loss.isfinite() and output.logits.shape == (2, 5, 3)


def test_transcripts_are_returned_to_a_model_that_reads_them():
    rows = [row | {"transcripts": [f"turn {turn}" for turn in range(len(row["labels"]))]} for row in dialogues(2, 3)]
    assert "transcripts" not in DialogueCollator()(rows)
    rows[0]["transcripts"][1] = None
    rows[0]["text_mask"][:] = True
    rows[1]["text_mask"][:] = [True, False, True]
    batch = DialogueCollator(transcripts=True)(rows)
    assert batch["transcripts"] == [["turn 0", None, None], ["turn 0", None, "turn 2"]]
    assert repr(DialogueCollator(transcripts=True)).endswith("'labels', 'transcripts'])")
    for wrong, message in (
        (without(rows[1], "transcripts"), "dialogue 1 of the batch has no 'transcripts'"),
        (rows[1] | {"transcripts": ["one"]}, "a string or None for each of 3 turns"),
        (rows[1] | {"transcripts": [1, 2, 3]}, "a string or None for each of 3 turns"),
        (rows[1] | {"transcripts": "abc"}, "a string or None for each of 3 turns"),
    ):
        with pytest.raises(ValueError, match=message):
            DialogueCollator(transcripts=True)([rows[0], wrong])
