import numpy as np
import pytest

from mister_e_hf.corpora.frame_statistics import FrameStatistics

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(5, 3)).astype(np.float32)


def padded(before: int, after: int) -> np.ndarray:
    return np.pad(REAL, ((before, after), (0, 0)))


EXPECTED = np.concatenate([REAL.mean(axis=0), REAL.std(axis=0)])


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 4), (3, 0), (2, 2)])
@pytest.mark.parametrize("length", [5, None])
def test_mean_and_deviation_of_the_real_frames(before, after, length):
    if length and before and after:
        return  # a length without a place
    found = FrameStatistics().pooled(padded(before, after), length)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-6)


def test_zeros_within_the_length_count():
    frames = np.array([[2.0], [0.0], [0.0], [0.0]])
    np.testing.assert_allclose(FrameStatistics().pooled(frames, 2), [1, 1])
    np.testing.assert_allclose(FrameStatistics().pooled(frames), [2, 0])


def test_a_length_beyond_the_frames_is_cut():
    np.testing.assert_allclose(FrameStatistics().pooled(REAL, 99), EXPECTED, rtol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (2, 2)])
def test_padding_is_not_real_where_the_length_is_beyond_the_frames(before, after):
    statistics = FrameStatistics()
    found = statistics.pooled(padded(before, after), 20)
    np.testing.assert_array_equal(found, FrameStatistics().pooled(padded(0, 0)))
    assert statistics.wrong_lengths == 1


def test_a_length_that_does_not_fit_is_counted(caplog):
    statistics = FrameStatistics()
    np.testing.assert_allclose(statistics.pooled(padded(1, 1), 2), EXPECTED, rtol=1e-6)
    statistics.report("Corpus", "speech")
    assert "lengths of the speech features of 1 turns do not fit" in caplog.text


def test_masked_frames_are_those_at_the_beginning():
    frames = np.concatenate([REAL, np.ones((3, 3))])
    np.testing.assert_allclose(FrameStatistics().pooled(frames, 5, masked=True), EXPECTED, rtol=1e-6)


def test_numbers_beyond_float32_are_left_out_and_counted(caplog):
    statistics = FrameStatistics()
    found = statistics.pooled(np.array([[1.0, 1e300], [3.0, 2.0], [2.0, -1e39]]), 3)
    np.testing.assert_allclose(found, [2, 2, np.std([1, 3, 2]), 0], rtol=1e-6)
    assert statistics.pooled(np.full((2, 2), 1e300), 2) is None
    statistics.report("Corpus", "speech")
    assert "Corpus: 2 numbers in the speech features of 1 turns are not finite" in caplog.text


def test_numbers_that_are_not_finite_are_left_out_and_counted(caplog):
    frames = padded(0, 2)
    frames[0, 0], frames[1, 2], frames[2] = -np.inf, np.nan, np.inf
    statistics = FrameStatistics()
    found = statistics.pooled(frames, 5)
    columns = [column[np.isfinite(column)] for column in frames[:5].T]
    np.testing.assert_allclose(
        found, [np.mean(one) for one in columns] + [np.std(one) for one in columns], rtol=1e-5, atol=1e-6
    )
    statistics.report("Corpus", "speech")
    assert "Corpus: 5 numbers in the speech features of 1 turns are not finite" in caplog.text


def test_a_column_without_a_finite_number_is_zero():
    found = FrameStatistics().pooled(np.array([[-np.inf, 1.0], [-np.inf, 3.0]]))
    np.testing.assert_array_equal(found, [0, 2, 0, 1])


@pytest.mark.parametrize("frames", [np.zeros((4, 3)), np.zeros((0, 3)), np.full((2, 3), np.nan)])
def test_a_turn_without_a_frame_has_no_vector(frames, caplog):
    statistics = FrameStatistics()
    assert statistics.pooled(frames) is None and statistics.pooled(REAL) is not None
    statistics.report("Corpus", "visual")
    assert "Corpus: 1 turns of 2 have no visual features" in caplog.text


def test_nothing_is_said_of_what_is_whole(caplog):
    statistics = FrameStatistics()
    statistics.pooled(REAL)
    statistics.report("Corpus", "speech")
    assert not caplog.records


def test_length_zero_means_no_frame():
    assert FrameStatistics().pooled(np.zeros((3, 2)), 0) is None
    assert FrameStatistics().pooled(np.ones((3, 2)), 0, masked=True) is None
