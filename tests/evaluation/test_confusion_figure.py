import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from mister_e_hf.evaluation.confusion_figure import confusion_figure  # noqa: E402


def test_cells_show_counts_and_shares_of_the_row():
    confusion = np.array([[8, 2], [0, 5], [1, 1]]).repeat(2, axis=1)[:, :3]
    (axes,) = confusion_figure(confusion, ["joy", "anger", "fear"]).axes
    assert [text.get_text() for text in axes.texts] == [str(number) for number in confusion.flatten()]
    np.testing.assert_allclose(axes.images[0].get_array(), confusion / confusion.sum(1, keepdims=True))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["joy", "anger", "fear"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_class_without_turns_is_an_empty_row():
    (axes,) = confusion_figure(np.array([[3, 0], [0, 0]]), ["joy", "anger"]).axes
    assert np.isfinite(axes.images[0].get_array()).all()
