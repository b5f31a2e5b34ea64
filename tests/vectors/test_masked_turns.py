"""What is hidden in pre-training is a function of seed, epoch and dialogue."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler, Subset

from mister_e_hf import DialogueCollator
from mister_e_hf.vectors.masked_turns import EpochSampler, MaskedDialogues, dialogue_ids, draw_masks


def both(turns: int) -> dict[str, np.ndarray]:
    return {name: np.ones(turns, dtype=bool) for name in ("speech", "text")}


def draw(dialogue: str | int = "d", seed: int = 0, epoch: int = 0, turns: int = 60, rate=0.15, span=3):
    return draw_masks(seed, epoch, dialogue, both(turns), rate, span)


def same(first, second) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_draws_are_the_same_for_the_same_seed_epoch_and_dialogue():
    assert same(draw(), draw())
    assert not any(same(draw(), other) for other in (draw(seed=1), draw(epoch=1), draw("e"), draw(0)))
    assert not np.array_equal(draw()["speech"], draw()["text"])


def test_the_draw_of_a_modality_does_not_depend_on_another():
    alone = draw_masks(0, 0, "d", {"text": np.ones(60, dtype=bool)}, 0.15, 3)
    assert np.array_equal(alone["text"], draw()["text"])


@pytest.mark.parametrize(("rate", "span"), [(0.15, 3), (0.3, 3), (0.15, 1), (0.5, 5)])
def test_every_turn_is_hidden_at_the_rate(rate, span):
    masks = np.stack([draw(number, rate=rate, span=span, turns=12)["speech"] for number in range(2000)])
    deviation = np.sqrt(rate * (1 - rate) / len(masks))
    assert np.abs(masks.mean(0) - rate).max() < 4 * deviation
    # dialogues are independent, turns of a span are not
    assert abs(masks.mean() - rate) < 4 * masks.mean(1).std() / np.sqrt(len(masks))


def test_spans_of_several_turns_are_hidden_at_once():
    def neighbours(span: int) -> float:
        masks = np.stack([draw(number, span=span)["speech"] for number in range(400)])
        return (masks[:, 1:] & masks[:, :-1]).sum() / masks.sum()

    assert neighbours(1) < 0.2 < 0.4 < neighbours(3)


def test_what_is_absent_is_never_hidden():
    present = {"speech": np.arange(50) % 2 == 0, "text": np.zeros(50, dtype=bool)}
    for number in range(50):
        masks = draw_masks(0, 0, number, present, 0.5, 3)
        assert not (masks["speech"] & ~present["speech"]).any() and not masks["text"].any()


def test_something_of_each_dialogue_stays_visible():
    drawn = [draw_masks(0, 0, number, both(1), 0.8, 3) for number in range(200)]
    assert not any(masks["speech"][0] and masks["text"][0] for masks in drawn)
    assert any(masks["speech"][0] for masks in drawn) and any(masks["text"][0] for masks in drawn)
    alone = [draw_masks(0, 0, number, {"text": np.ones(1, dtype=bool)}, 0.8, 3) for number in range(200)]
    assert not any(masks["text"].any() for masks in alone)
    assert draw_masks(0, 0, "d", {"text": np.zeros(3, dtype=bool)}, 0.8, 3)["text"].tolist() == [False] * 3


# The dataset


class NoLabels(dict):
    """A dialogue whose labels must not be read."""

    def __getitem__(self, name):
        assert name not in ("labels", "transcripts"), name
        return super().__getitem__(name)


def dialogues(count: int = 6) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        NoLabels(
            speech_embeddings=torch.randn(9, 3, generator=generator),
            speech_mask=torch.rand(9, generator=generator) < 0.8,
            text_embeddings=torch.randn(9, 2, generator=generator),
            labels=None,
            transcripts=None,
        )
        for _ in range(count)
    ]


def test_dialogues_get_their_draw_and_lose_their_labels():
    data = MaskedDialogues(dialogues(), ("speech", "text"), 7, 0.4, 3)
    item = data[3]
    fields = ("embeddings", "mask", "masked")
    assert set(item) == {f"{name}_{field}" for name in ("speech", "text") for field in fields}
    present = {"speech": item["speech_mask"].numpy(), "text": np.ones(9, dtype=bool)}
    for epoch, found in ((0, item), (0, data[0, 3]), (5, data[5, 3])):
        expected = draw_masks(7, epoch, 3, present, 0.4, 3)
        assert all(np.array_equal(found[f"{name}_masked"], expected[name]) for name in expected)
    assert list(MaskedDialogues(dialogues(), ("text",), 7, 0.4, 3)[0]) == [
        "text_embeddings",
        "text_mask",
        "text_masked",
    ]
    assert data.lengths.tolist() == [9] * 6


def test_a_dialogue_keeps_its_draw_in_a_subset():
    data = dialogues()
    whole, part = (MaskedDialogues(each, ("text",), 0, 0.4, 3) for each in (data, Subset(data, [4, 1])))
    assert list(dialogue_ids(Subset(Subset(data, [4, 1, 0]), [1]))) == [1]
    assert torch.equal(whole[4]["text_masked"], part[0]["text_masked"])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_epoch_reaches_the_workers(workers):
    data = MaskedDialogues(dialogues(), ("speech", "text"), 0, 0.4, 3)
    sampler = EpochSampler(SequentialSampler(data))
    loader = DataLoader(
        data, 2, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, collate_fn=DialogueCollator()
    )
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        found = torch.cat([batch["text_masked"] for batch in loader])
        assert torch.equal(found, torch.stack([data[epoch, number]["text_masked"] for number in range(6)]))
    assert len(sampler) == 6
