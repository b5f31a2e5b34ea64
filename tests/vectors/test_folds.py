from pathlib import Path

import numpy as np
import pytest
import torch

from mister_e_hf import DialogueVectors, Recipe
from mister_e_hf.vectors.dialogue_vectors import regroup
from mister_e_hf.vectors.folds import development_folds, validation_by_group
from support.session_vectors import LENGTHS, split


def corpus(**options) -> dict[str, DialogueVectors]:
    return {name: split(name, **options) for name in LENGTHS}


def assert_same_dialogue(one: DialogueVectors, number: int, other: DialogueVectors):
    place = other.dialogue_ids.index(one.dialogue_ids[number])
    first, second = one[number], other[place]
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert one.utterance_ids[number] == other.utterance_ids[place]
    assert one.lengths[number] == other.lengths[place]


@pytest.mark.parametrize("modalities", [("speech", "text"), ("text",)])
def test_regrouped_dialogues_keep_all_their_values(modalities):
    data = corpus(scores=True, modalities=modalities)
    new = regroup([data["train"], data["validation"]], [6, 0, 3], "mixed")
    assert new.name == "mixed"
    assert new.dialogue_ids == ["Ses03_validation1", "Ses01_train0", "Ses02_train3"]
    assert len(new) == 3
    assert new.num_turns == 5 + 3 + 2
    for number, home in enumerate(("validation", "train", "train")):
        assert_same_dialogue(new, number, data[home])
    np.testing.assert_array_equal(new.scores[:5], data["validation"].scores[2:])
    for modality in modalities:
        rows = torch.cat([new[number][f"{modality}_embeddings"] for number in range(3)])
        present = torch.cat([new[number][f"{modality}_mask"] for number in range(3)])
        mean, _ = new.statistics(modality)
        torch.testing.assert_close(mean, rows[present].double().mean(0))


@pytest.mark.parametrize(("folds", "pattern"), [(2, None), (3, None), (7, None), (3, r"^Ses\d\d"), (2, r"^Ses\d\d")])
def test_every_development_dialogue_is_held_out_once_and_test_is_not_used(folds, pattern):
    data = corpus()
    parts = development_folds(data, folds, pattern)
    development = {*data["train"].dialogue_ids, *data["validation"].dialogue_ids}
    held_out = [name for part in parts for name in part["validation"].dialogue_ids]
    assert len(parts) == folds
    assert sorted(held_out) == sorted(development)
    for part in parts:
        own, others = (set(part[name].dialogue_ids) for name in ("validation", "train"))
        assert not own & others
        assert own | others == development
        for number in range(len(part["train"])):
            home = "train" if "train" in part["train"].dialogue_ids[number] else "validation"
            assert_same_dialogue(part["train"], number, data[home])
        if pattern:
            assert not {name[:5] for name in own} & {name[:5] for name in others}


def test_as_many_folds_as_groups_hold_out_one_group_each():
    parts = development_folds(corpus(), 3, r"^Ses\d\d")
    assert [{name[:5] for name in part["validation"].dialogue_ids} for part in parts] == [
        {"Ses01"},
        {"Ses02"},
        {"Ses03"},
    ]


def test_folds_have_similar_numbers_of_turns_and_are_reproducible():
    turns = [part["validation"].num_turns for part in development_folds(corpus(), 3)]
    assert max(turns) - min(turns) <= max(LENGTHS["train"])
    first, second = (development_folds(corpus(), 3) for _ in range(2))
    assert [part["validation"].dialogue_ids for part in first] == [part["validation"].dialogue_ids for part in second]


def test_one_fold_is_the_validation_split():
    data = corpus()
    (part,) = development_folds(data, 1, r"^Ses\d\d")
    assert part == {"train": data["train"], "validation": data["validation"]}


def test_validation_can_be_a_group():
    data = corpus()
    new = validation_by_group(data, r"^Ses\d\d", "Ses01")
    assert new["validation"].dialogue_ids == ["Ses01_train0", "Ses01_train1", "Ses01_validation0"]
    assert {name[:5] for name in new["train"].dialogue_ids} == {"Ses02", "Ses03"}
    assert len(new["train"]) + len(new["validation"]) == 7


@pytest.mark.parametrize(
    ("folds", "pattern", "message"),
    [
        (4, r"^Ses\d\d", "3 groups of dialogues cannot be split into 4 folds .*Ses"),
        (0, None, "7 groups of dialogues cannot be split into 0 folds"),
        (2, "Ses01", "does not match the id of dialogue 'Ses02_train2'"),
        (2, "(", "is not a regular expression"),
    ],
)
def test_impossible_folds_raise(folds, pattern, message):
    with pytest.raises(ValueError, match=message):
        development_folds(corpus(), folds, pattern)


def test_unknown_group_raises():
    with pytest.raises(ValueError, match=r"got 'Ses09'; the groups are \['Ses01', 'Ses02', 'Ses03'\]"):
        validation_by_group(corpus(), r"^Ses\d\d", "Ses09")


@pytest.mark.shared
def test_folds_of_real_iemocap_are_its_sessions(shared_dir):
    recipe = Recipe.load(
        Path(__file__).parents[2] / "hub_configs" / "mister-e-iemocap6-small.yaml",
        ["--corpus", str(shared_dir / "data" / "iemocap")],
    )
    splits = recipe.read_corpus()
    parts = development_folds(splits, 4, recipe.corpus.group_pattern)
    for number, part in enumerate(parts, start=1):
        assert {name[:5] for name in part["validation"].dialogue_ids} == {f"Ses0{number}"}
        assert {name[:5] for name in part["train"].dialogue_ids} == {f"Ses0{n}" for n in range(1, 5) if n != number}
    assert sum(part["validation"].num_turns for part in parts) == 5163 + 647
    recipe.set("corpus.validation_group", "Ses01")
    assert {name[:5] for name in recipe.read_corpus()["validation"].dialogue_ids} == {"Ses01"}
