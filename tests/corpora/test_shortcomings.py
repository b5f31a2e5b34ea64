"""What a corpus lacks for meaningful scores, said as the run treats validation."""

from mister_e_hf.corpora.shortcomings import shortcomings, target_shortcomings

CLASSES = {"train": {"joy": 9, "anger": 9}, "validation": {"joy": 5, "anger": 0}, "test": {"joy": 5, "anger": 5}}
TARGETS = {split: {"valence": {"turns": 5, "sd": 1.0}} for split in CLASSES}
DIALOGUES = {"train": 20, "validation": 10, "test": 10}


def test_an_epoch_is_spoken_of_only_where_one_is_chosen():
    chosen, kept = (" ".join(shortcomings(CLASSES, DIALOGUES, chooses)) for chooses in (True, False))
    assert "too few to choose an epoch" in chosen and "the choice of an epoch does not see it" in chosen
    assert "epoch" not in kept
    assert "validation has no turn of anger: its scores are without it." in kept
    assert "validation has 5 labelled turns: no temperature is fitted to fewer than 100" in kept


def test_few_scored_turns_matter_only_for_the_choice_of_an_epoch():
    turns = dict.fromkeys(CLASSES, 5)
    (sentence,) = target_shortcomings(TARGETS, turns, DIALOGUES)
    assert sentence == "validation has 5 labelled turns: too few to choose an epoch with confidence."
    assert not list(target_shortcomings(TARGETS, turns, DIALOGUES, chooses_epoch=False))
