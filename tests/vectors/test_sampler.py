import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader

from mister_e_hf import LikeLengthSampler

# Turns of each training dialogue of two corpora
LENGTHS = json.loads((Path(__file__).parents[2] / "scripts" / "benchmarks" / "dialogue_lengths.json").read_text())


def batches(sampler: LikeLengthSampler, size: int | None = None) -> list[list[int]]:
    return list(BatchSampler(sampler, size or sampler.batch_size, drop_last=False))


def padding_share(lengths, batches: list[list[int]]) -> float:
    lengths = np.asarray(lengths)
    room = sum(lengths[batch].max() * len(batch) for batch in batches)
    return 1 - sum(lengths[batch].sum() for batch in batches) / room


def random_lengths(count: int) -> list[int]:
    return np.random.default_rng(0).integers(1, 90, size=count).tolist()


@pytest.mark.parametrize(("count", "size"), [(100, 8), (96, 8), (5, 8), (1, 1), (17, 4)])
def test_yields_every_dialogue_once_and_the_incomplete_batch_last(count, size):
    sampler = LikeLengthSampler(random_lengths(count), size, seed=3)
    assert len(sampler) == count
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(count))
        sizes = [len(batch) for batch in batches(sampler)]
        assert sizes == [size] * (count // size) + [count % size] * (count % size > 0)


def test_order_depends_only_on_seed_and_epoch():
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
def test_two_processes_get_batches_of_similar_length_and_all_dialogues(name):
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
