import pytest
import torch

from mister_e_hf.encoders.alignment import align


def rotation(width: int, reflected: bool = False) -> torch.Tensor:
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    return turn @ torch.diag(torch.tensor([-1.0 if reflected else 1.0] + [1.0] * (width - 1), dtype=torch.float64))


@pytest.mark.parametrize("reflected", [False, True])
def test_a_rotation_and_a_shift_are_undone(reflected):
    torch.manual_seed(0)
    target, turn, shift = torch.randn(50, 7, dtype=torch.float64), rotation(7, reflected), torch.randn(7)
    given = target @ turn + shift
    torch.testing.assert_close(align(given, target)(given), target.float(), atol=1e-6, rtol=0)
    # and of utterances that it was not fitted on
    others = torch.randn(9, 7, dtype=torch.float64)
    torch.testing.assert_close(align(given, target)(others @ turn + shift), others.float(), atol=1e-6, rtol=0)


def test_distances_stay():
    torch.manual_seed(0)
    given, target = torch.randn(2, 40, 5)
    aligned = align(given, target)(given)
    torch.testing.assert_close(torch.pdist(aligned), torch.pdist(given), atol=1e-4, rtol=1e-4)


def test_no_other_rotation_comes_closer():
    torch.manual_seed(0)
    given, target = torch.randn(2, 40, 5, dtype=torch.float64)

    def distance(vectors: torch.Tensor) -> float:
        return float(((vectors - target) ** 2).sum())

    best = distance(align(given, target)(given))
    centred = given - given.mean(0)
    assert all(best <= distance(centred @ rotation(5) + target.mean(0)) for _ in range(200))
    assert best < distance(given)


def test_fewer_utterances_than_dimensions_are_enough_to_be_finite():
    torch.manual_seed(0)
    given, target = torch.randn(2, 3, 8)
    assert align(given, target)(given).isfinite().all()
