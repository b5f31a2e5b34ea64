import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader

from mister_e_hf import DialogueCollator, LikeLengthSampler

# Turns of each training dialogue of two corpora
LENGTHS = json.loads((Path(__file__).parents[2] / "scripts" / "benchmarks" / "dialogue_lengths.json").read_text())


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


def test_only_what_is_given_is_put_into_the_batch():
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
    "one-hot labels": ([first | {"labels": np.eye(3)}], "'labels'"),
}


@pytest.mark.parametrize(("batch", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_dialogue_is_named(batch, message):
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


# Batches of like length


def batches(sampler: LikeLengthSampler, size: int | None = None) -> list[list[int]]:
    return list(BatchSampler(sampler, size or sampler.batch_size, drop_last=False))


def padding_share(lengths, batches: list[list[int]]) -> float:
    lengths = np.asarray(lengths)
    room = sum(lengths[batch].max() * len(batch) for batch in batches)
    return 1 - sum(lengths[batch].sum() for batch in batches) / room


def random_lengths(count: int) -> list[int]:
    return np.random.default_rng(0).integers(1, 90, size=count).tolist()


@pytest.mark.parametrize(("count", "size"), [(100, 8), (96, 8), (5, 8), (1, 1), (17, 4)])
def test_every_dialogue_once_and_the_short_batch_last(count, size):
    sampler = LikeLengthSampler(random_lengths(count), size, seed=3)
    assert len(sampler) == count
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(count))
        sizes = [len(batch) for batch in batches(sampler)]
        assert sizes == [size] * (count // size) + [count % size] * (count % size > 0)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = LikeLengthSampler(random_lengths(100), 8, seed)
        for earlier in range(epoch):  # what was drawn before must not matter
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        return tuple(sampler)

    fresh = LikeLengthSampler(random_lengths(100), 8, 1)
    fresh.set_epoch(2)
    assert tuple(fresh) == order(1, 2)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_batches_differ_in_content_and_order_from_epoch_to_epoch():
    lengths = LENGTHS["meld"]
    sampler = LikeLengthSampler(lengths, 8)
    contents, means = [], []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        contents.append({frozenset(batch) for batch in batches(sampler)})
        means.append([np.mean(np.asarray(lengths)[batch]) for batch in batches(sampler)])
    assert len(contents[0] & contents[1]) < 0.1 * len(contents[0])
    # neither from short to long nor in the order of the other epoch
    assert abs(np.corrcoef(means[0][:-1], range(len(means[0]) - 1))[0, 1]) < 0.3
    assert abs(np.corrcoef(*means)[0, 1]) < 0.3


@pytest.mark.parametrize("name", ["meld", "iemocap"])
def test_padding_is_below_5_per_cent(name):
    sampler = LikeLengthSampler(LENGTHS[name], batch_size=8)
    shares = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        shares.append(padding_share(LENGTHS[name], batches(sampler)))
    assert np.mean(shares) < 0.05
    shuffled = np.random.default_rng(0).permutation(len(LENGTHS[name]))
    assert padding_share(LENGTHS[name], np.array_split(shuffled, len(shuffled) // 8)) > 0.25


@pytest.mark.parametrize("name", ["meld", "iemocap"])
def test_two_processes_get_batches_of_like_length_and_all_dialogues(name):
    lengths = np.asarray(LENGTHS[name])

    def processes(step_size: int, epoch: int) -> list[list[list[int]]]:
        """The batches of 8 of each process where the sampler counts on `step_size` dialogues a step."""
        sampler = LikeLengthSampler(lengths, step_size)
        sampler.set_epoch(epoch)
        batched = BatchSampler(sampler, 8, drop_last=False)
        return [list(BatchSamplerShard(batched, 2, index, split_batches=False)) for index in range(2)]

    def waiting(step_size: int) -> float:
        """Mean share of a step, which takes as long as its longest dialogue, that one process waits for the other."""
        longest = [
            sorted(lengths[batch].max() for batch in step)
            for epoch in range(10)
            for step in zip(*processes(step_size, epoch), strict=True)
        ]
        return float(np.mean([1 - shorter / longer for shorter, longer in longest]))

    for epoch in range(3):
        both = processes(16, epoch)
        assert len(both[0]) == len(both[1]) == -(-len(lengths) // 16)
        assert {index for batches in both for batch in batches for index in batch} == set(range(len(lengths)))
        steps = list(zip(*both, strict=True))[: len(lengths) // 16]
        together = [index for step in steps for batch in step for index in batch]
        assert len(set(together)) == len(together)  # but for the last, short step nothing is done twice
    assert waiting(16) < 0.1
    assert waiting(16) < 0.5 * waiting(8)


def test_the_epoch_reaches_the_sampler_through_accelerate():
    sampler = LikeLengthSampler(random_lengths(20), 4)
    loader = prepare_data_loader(DataLoader(range(20), batch_size=4, sampler=sampler), num_processes=1)
    orders = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        orders.append(torch.cat([batch.flatten() for batch in loader]).tolist())
    assert orders[0] != orders[1]
    sampler.set_epoch(1)
    assert orders[1] == list(sampler)
