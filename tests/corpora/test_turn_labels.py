import logging

import pytest

from mister_e_hf.corpora.labels import unify_labels, written


@pytest.fixture
def unify(caplog):
    def unify(*labels: str | None, own: list[str] | None = None) -> list[str | None]:
        rows = [{"emotion": label, "where": f"row {row}"} for row, label in enumerate(labels, start=2)]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            unify_labels(rows, own, "'calls'")
        return [row["emotion"] for row in rows]

    return unify


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("0.0", "0"),
        ("-1.", "-1"),
        ("1.50", "1.50"),
        ("joy\u200b", "joy"),
        ("fro\u0308h", "fröh"),
        ("very\xa0 sad", "very sad"),
    ],
)
def test_written_form_of_labels(label, expected):
    assert written(label) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["Joy", "joy", "JOY", "joy"], "joy"),
        (["Joy", "joy", "Joy"], "Joy"),
        (["Joy", "joy"], "joy"),
        (["very_happy", "very happy", "Very-Happy", "very happy"], "very happy"),
        (["ﬁne", "fine", "fine"], "fine"),
    ],
)
def test_labels_that_differ_in_writing_alone_are_one_class_and_named(unify, caplog, labels, expected):
    assert unify(*labels, None, "anger") == [expected] * len(labels) + [None, "anger"]
    (record,) = caplog.records
    assert "differ in writing alone and are one class" in record.getMessage()
    assert all(f"'{label}'" in record.getMessage() for label in labels) and "anger" not in record.getMessage()


def test_invisible_characters_do_not_make_a_second_class(unify, caplog):
    assert unify("0", "0.0", "joy", "joy\ufeff") == ["0", "0", "joy", "joy"]
    assert not caplog.records


def test_names_that_the_user_gives_count(unify, caplog):
    assert unify("joy", "JOY", own=["Joy", "anger"]) == ["Joy", "Joy"]
    assert "one class, 'Joy'" in caplog.text
    assert unify("joy", "Joy", own=["Joy", "joy"]) == ["joy", "Joy"] and not caplog.records
    assert unify("0", "1.0", own=["0.0", "1.0"]) == ["0.0", "1.0"] and not caplog.records
    assert unify("nan", "-1", own=["nan", "-1"]) == ["nan", "-1"] and not caplog.records


def test_empty_cells_of_data_frames_are_no_label(unify, caplog):
    assert unify("nan", "NaN", "<NA>", "NaT", "null", "joy") == [None] * 5 + ["joy"]
    (record,) = caplog.records
    assert "5 turns with the emotion 'nan', 'NaN'" in record.getMessage()


@pytest.mark.parametrize("label", ["-1", "None", "none", "N/A", "unknown", "False"])
def test_doubtful_class_is_reported(unify, caplog, label):
    assert unify(label, "joy", label) == [label, "joy", label]
    (record,) = caplog.records
    assert f"the emotion '{label}' is a class, with 2 turns" in record.getMessage()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("['joy', 'sad']", "is a list; a turn has one emotion"),
        ('{"joy": 1}', "is a list"),
        ("0.25", "is a number with decimals; scores go to sentiment"),
        ("-1,5", "is a number with decimals"),
    ],
)
def test_lists_and_scores_as_labels_raise(unify, label, message):
    with pytest.raises(ValueError, match=rf"row 3: emotion .*{message}"):
        unify("joy", label)
    assert unify("joy", label, own=["joy", label]) == ["joy", label]  # unless the user says that it is one


@pytest.mark.parametrize(
    ("labels", "pair"),
    [
        (["joy", "joy", "Joy."], "'Joy.' (1) and 'joy' (2)"),
        (["1", "1", "01"], "'01' (1) and '1' (2)"),
        (["gêne", "gêne", "gene"], "'gene' (1) and 'gêne' (2)"),
        (["surprise"] * 20 + ["suprise"], "'suprise' (1) and 'surprise' (20)"),
    ],
)
def test_similar_classes_are_reported_and_kept(unify, caplog, labels, pair):
    assert unify(*labels) == labels
    assert f"the emotions {pair} are classes of their own" in caplog.text


def test_classes_that_only_look_alike_are_not_named(unify, caplog):
    unify(*["happy", "unhappy"] * 10, "-1", "1", "1", "?", "!", "sad", "mad")
    assert "of their own" not in caplog.text


def test_free_text_as_labels_is_reported(unify, caplog):
    unify(*(f"I feel like {number}" for number in range(12)))
    assert "12 classes among 12 turns with an emotion" in caplog.text
