"""Capsules in closed form: routing, squashing, margin loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from mister_e_hf.base.losses import margin_loss
from mister_e_hf.models.emo_caps.capsules import route_by_attention, route_dynamically, squash

ROUTINGS = {"attention": route_by_attention, "dynamic": route_dynamically}
each = pytest.mark.parametrize("route", ROUTINGS.values(), ids=ROUTINGS)
passes = pytest.mark.parametrize("passes", [1, 2, 3, 7])


def votes_of(children=3, turns=4, parents=5, size=6, seed=0):
    """Votes (K, N, C, e) and activations (K, N)."""
    generator = torch.Generator().manual_seed(seed)
    votes = torch.randn(children, turns, parents, size, generator=generator, dtype=torch.float64)
    return votes, torch.rand(children, turns, generator=generator, dtype=torch.float64)


@each
@passes
def test_a_child_shares_itself_among_the_parents(route, passes):
    votes, activations = votes_of()
    parents, coefficients = route(votes, activations, passes)
    assert parents.shape == (4, 5, 6) and coefficients.shape == (3, 4, 5)
    torch.testing.assert_close(coefficients.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    assert (coefficients >= 0).all()


@each
@passes
def test_an_only_parent_gets_all(route, passes):
    votes, activations = votes_of(parents=1)
    parents, coefficients = route(votes, activations, passes)
    assert torch.equal(coefficients, torch.ones_like(coefficients))
    total = (activations[..., None, None] * votes).sum(0)
    torch.testing.assert_close(parents, F.layer_norm(total, [6]) if route is route_by_attention else total)


@each
@passes
def test_equal_votes_are_shared_evenly(route, passes):
    votes, activations = votes_of()
    _, coefficients = route(votes[:, :, :1].expand_as(votes), activations, passes)
    torch.testing.assert_close(coefficients, torch.full_like(coefficients, 1 / 5))


def test_the_first_pass_is_the_uniform_mean():
    votes, activations = votes_of()
    mean = (activations[..., None, None] * votes).sum(0) / 5
    parents, _ = route_dynamically(votes, activations, 1)
    torch.testing.assert_close(parents, mean)
    # attention: the coefficients of its first pass answer to the parents of the uniform mean
    normed = F.layer_norm(mean, [6])
    _, coefficients = route_by_attention(votes, activations, 1)
    expected = ((votes * normed).sum(-1) / math.sqrt(6)).softmax(-1)
    torch.testing.assert_close(coefficients, expected)


def test_two_passes_of_dynamic_routing_by_hand():
    x, y = 1.3, -0.4

    def sq(t: float) -> float:
        return t * abs(t) / (1 + t * t)

    votes = torch.tensor([x, y], dtype=torch.float64).reshape(1, 1, 2, 1)
    agreed = [x * sq(x / 2), y * sq(y / 2)]
    total = sum(math.exp(each) for each in agreed)
    first, second = (math.exp(each) / total for each in agreed)
    parents, coefficients = route_dynamically(votes, torch.ones(1, 1, dtype=torch.float64), 2)
    expected = torch.tensor([sq(first * x), sq(second * y)], dtype=torch.float64)
    torch.testing.assert_close(squash(parents).flatten(), expected)
    torch.testing.assert_close(coefficients.flatten(), torch.tensor([first, second], dtype=torch.float64))


@each
@passes
def test_permutations_of_classes_and_of_children(route, passes):
    votes, activations = votes_of()
    parents, coefficients = route(votes, activations, passes)
    classes, children = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([2, 0, 1])
    found = route(votes[:, :, classes], activations, passes)
    torch.testing.assert_close(found, (parents[:, classes], coefficients[..., classes]))
    found = route(votes[children], activations[children], passes)
    torch.testing.assert_close(found, (parents, coefficients[children]))


@passes
def test_a_rotation_of_poses_rotates_the_parents(passes):
    votes, activations = votes_of()
    rotation, _ = torch.linalg.qr(votes_of(1, 1, 6, 6, seed=1)[0][0, 0])
    parents, coefficients = route_dynamically(votes, activations, passes)
    found = route_dynamically(votes @ rotation, activations, passes)
    torch.testing.assert_close(found, (parents @ rotation, coefficients))


@each
@passes
def test_a_child_of_activation_zero_is_a_child_removed(route, passes):
    votes, activations = votes_of()
    activations[1] = 0
    parents, coefficients = route(votes, activations, passes)
    kept = [0, 2]
    found = route(votes[kept], activations[kept], passes)
    torch.testing.assert_close(found, (parents, coefficients[kept]), rtol=0, atol=1e-12)
    nothing, _ = route(votes, torch.zeros_like(activations), passes)
    assert torch.equal(nothing, torch.zeros_like(nothing))


@each
@passes
def test_turns_do_not_see_one_another(route, passes):
    votes, activations = votes_of()
    after = votes.clone()
    after[:, 2] += torch.arange(5.0)[:, None]
    (parents, coefficients), found = route(votes, activations, passes), route(after, activations, passes)
    assert (found[0] != parents).flatten(1).any(-1).tolist() == [False, False, True, False]
    others = [0, 1, 3]
    assert torch.equal(found[1][:, others], coefficients[:, others])


@each
@pytest.mark.parametrize("detach", [False, True])
def test_no_gradient_goes_through_detached_coefficients(route, detach):
    votes, activations = votes_of()
    votes.requires_grad_()
    parents, coefficients = route(votes, activations, 3, detach)
    assert coefficients.requires_grad != detach
    if detach and route is route_dynamically:
        (gradient,) = torch.autograd.grad(parents.sum(), votes)
        expected = (coefficients * activations[..., None])[..., None].expand_as(votes)
        torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(parents.detach(), route(votes.detach(), activations, 3)[0])


# Squashing


def test_squash_keeps_the_direction_and_bounds_the_length():
    vectors = torch.randn(7, 4, dtype=torch.float64)
    length, squashed = vectors.norm(dim=-1), squash(vectors)
    torch.testing.assert_close(squashed.norm(dim=-1), length**2 / (1 + length**2))
    torch.testing.assert_close(F.cosine_similarity(squashed, vectors), torch.ones(7, dtype=torch.float64))
    lengths = squash(torch.linspace(0, 50, 200)[:, None] * torch.tensor([0.6, 0.8])).norm(dim=-1)
    assert (lengths.diff() > 0).all() and (lengths < 1).all()


def test_squash_of_zero_is_zero_with_a_gradient_of_zero():
    zero = torch.zeros(2, 4, requires_grad=True)
    squash(zero).sum().backward()
    assert torch.equal(squash(zero), torch.zeros(2, 4)) and torch.equal(zero.grad, torch.zeros(2, 4))


def test_squash_is_finite_for_all_that_a_standardised_input_can_give():
    assert squash(torch.tensor([[1e19, 0.0]])).isfinite().all()


# Margin loss


def test_margin_loss_by_hand():
    labels = torch.tensor([0, 2])
    met = torch.tensor([[0.95, 0.05, 0.1], [0.0, 0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    loss = margin_loss(met, labels)
    loss.backward()
    assert loss == 0 and not met.grad.any()
    worst = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor(0.81 + 0.5 * 2 * 0.81, dtype=torch.float64)
    torch.testing.assert_close(margin_loss(worst, labels), expected)
    torch.testing.assert_close(margin_loss(worst, labels, num_items=4), expected / 2)
    torch.testing.assert_close(margin_loss(worst, torch.tensor([0, -100])), expected)
    weights = torch.tensor([3.0, 1.0, 1.0])
    torch.testing.assert_close(margin_loss(worst, labels, class_weights=weights), 2 * expected)
    lengths = torch.tensor([[0.6, 0.3, 0.05]], dtype=torch.float64)
    by_hand = (0.8 - 0.6) ** 2 + 0.25 * (0.3 - 0.2) ** 2
    assert margin_loss(lengths, torch.tensor([0]), 0.8, 0.2, 0.25).item() == pytest.approx(by_hand)
    assert margin_loss(lengths, torch.tensor([-100])) == 0
