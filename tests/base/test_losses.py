import math

import pytest
import torch
import torch.nn.functional as F

from mister_e_hf.base.losses import (
    consistency_loss,
    contrastive_loss,
    focal_loss,
    focal_terms,
    regression_loss,
    regression_terms,
)

LOW_PRECISION = [torch.bfloat16, torch.float16]


def tensor(*shape: int, seed: int = 0, scale: float = 1.0, requires_grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_(requires_grad)


def log_softmax(scores: list[float]) -> list[float]:
    total = math.log(sum(math.exp(score) for score in scores))
    return [score - total for score in scores]


def focal_by_hand(logits, labels, gamma, class_weights=None, num_items=None) -> float:
    total, count = 0.0, 0
    for scores, label in zip(logits.reshape(-1, logits.shape[-1]).tolist(), labels.flatten().tolist(), strict=True):
        if label == -100:
            continue
        count += 1
        log_p = log_softmax(scores)[label]
        weight = 1.0 if class_weights is None else class_weights[label]
        total += weight * (1 - math.exp(log_p)) ** gamma * -log_p
    return total / (count if num_items is None else num_items)


def contrastive_by_hand(states, labels, temperature=1.0, divisor=None) -> float:
    vectors = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in states.tolist()]
    total = 0.0
    for i, (anchor, label) in enumerate(zip(vectors, labels.tolist(), strict=True)):
        similarity = [sum(a * b for a, b in zip(anchor, other, strict=True)) / temperature for other in vectors]
        others = [j for j in range(len(vectors)) if j != i]
        positives = [j for j in others if labels[j] == label]
        if positives:
            denominator = sum(math.exp(similarity[j]) for j in others)
            total -= sum(math.log(math.exp(similarity[p]) / denominator) for p in positives) / len(positives)
    return total / (len(vectors) if divisor is None else divisor)


def consistency_by_hand(expert_logits, expert_mask, labels, num_items=None) -> float:
    total, count = 0.0, 0
    for experts, present, label in zip(expert_logits.tolist(), expert_mask.tolist(), labels.tolist(), strict=True):
        if label == -100:
            continue
        count += 1
        log_p = [log_softmax(scores) for scores, here in zip(experts, present, strict=True) if here]
        pairs = [(a, b) for i, a in enumerate(log_p) for b in log_p[i + 1 :]]
        divergences = [
            sum(math.exp(p) * (p - q) for p, q in zip(a, b, strict=True))
            + sum(math.exp(q) * (q - p) for p, q in zip(a, b, strict=True))
            for a, b in pairs
        ]
        total += sum(divergences) / len(pairs) if pairs else 0.0
    return total / (count if num_items is None else num_items)


LABELS = torch.tensor([[0, 2, -100, 1], [1, -100, 2, 2]])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("num_items", [None, 11])
def test_focal_loss_equals_its_closed_form(gamma, class_weights, num_items):
    logits = tensor(2, 4, 3)
    weights = None if class_weights is None else torch.tensor(class_weights)
    loss = focal_loss(logits, LABELS, gamma, weights, num_items)
    assert loss.item() == pytest.approx(focal_by_hand(logits, LABELS, gamma, class_weights, num_items), abs=1e-12)


def test_focal_loss_with_gamma_0_is_cross_entropy():
    logits = tensor(2, 4, 3)
    expected = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), ignore_index=-100)
    torch.testing.assert_close(focal_loss(logits, LABELS, gamma=0.0), expected)


def test_class_weights_scale_turns_but_not_the_divisor():
    logits = tensor(2, 4, 3)
    weights = torch.tensor([0.0, 2.0, 0.0])
    ones = focal_loss(logits, LABELS.masked_fill(LABELS != 1, -100), num_items=6)
    torch.testing.assert_close(focal_loss(logits, LABELS, class_weights=weights), 2 * ones)


@pytest.mark.parametrize("num_items", [7, torch.tensor(7), torch.tensor(7.0)], ids=["int", "tensor", "float tensor"])
def test_num_items_is_the_divisor_of_every_loss(num_items):
    logits, experts, states = tensor(8, 3), tensor(8, 3, 3), tensor(8, 4)
    labels, mask = LABELS.flatten(), torch.ones(8, 3, dtype=torch.bool)
    scored = labels != -100
    torch.testing.assert_close(focal_loss(logits, labels, num_items=num_items) * 7, focal_loss(logits, labels) * 6)
    whole, divided = (
        focal_terms(logits, experts, mask, labels),
        focal_terms(logits, experts, mask, labels, 3.0, None, num_items),
    )
    torch.testing.assert_close(torch.stack(divided) * 7, torch.stack(whole) * 6)
    torch.testing.assert_close(
        consistency_loss(experts, mask, labels, num_items) * 7, consistency_loss(experts, mask, labels) * 6
    )
    contrastive = contrastive_loss(states[scored], labels[scored], num_items=num_items)
    torch.testing.assert_close(contrastive * 14, contrastive_loss(states[scored], labels[scored]) * 6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_focal_loss_gradient(gamma):
    logits = tensor(2, 4, 3, requires_grad=True)
    weights = torch.tensor([0.5, 1.0, 3.0])
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, LABELS, gamma, weights, 5), logits)


def test_focal_terms_ignore_absent_experts_and_keep_the_divisor():
    logits, experts = tensor(2, 4, 3), tensor(2, 4, 2, 3, seed=1)
    mask = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(3)) > 0.4
    assert not mask.all()
    terms = focal_terms(logits, experts, mask, LABELS, gamma=2.0)
    assert len(terms) == 3
    assert terms[0].item() == pytest.approx(focal_by_hand(logits, LABELS, 2.0), abs=1e-12)
    for expert in range(2):
        labels = LABELS.masked_fill(~mask[..., expert], -100)
        expected = focal_by_hand(experts[..., expert, :], labels, 2.0, num_items=6)
        assert terms[1 + expert].item() == pytest.approx(expected, abs=1e-12)


def test_focal_terms_gradient():
    mask = torch.tensor([[[True, False], [True, True], [True, True], [False, True]]] * 2)
    inputs = tensor(2, 4, 3, requires_grad=True), tensor(2, 4, 2, 3, seed=1, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: tuple(focal_terms(x, y, mask, LABELS)), inputs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_focal_loss_is_finite_for_certain_and_impossible_classes(gamma, dtype):
    logits = torch.tensor([[1e4, 0, 0], [-1e4, 0, 0], [0, 1e4, 0], [1e4, 1e4, -1e4], [60, 0, 0]], dtype=dtype)
    logits.requires_grad_()
    loss = focal_loss(logits, torch.zeros(5, dtype=torch.long), gamma)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    assert focal_loss(logits[:1], torch.tensor([0]), gamma).item() == 0
    expected = logits[2, 1].item()  # -log p is the distance of the two scores, and 1 - p is one
    assert focal_loss(logits[2:3], torch.tensor([0]), gamma).item() == pytest.approx(expected)


def test_focal_loss_ignores_unscored_turns():
    logits = tensor(2, 4, 3)
    expected = focal_loss(logits, LABELS)
    filled = logits.masked_fill((LABELS == -100)[..., None], torch.nan).requires_grad_()
    loss = focal_loss(filled, LABELS)
    loss.backward()
    assert torch.equal(loss, expected)
    assert filled.grad.isfinite().all() and (filled.grad[LABELS == -100] == 0).all()


STATE_LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2])


@pytest.mark.parametrize("temperature", [1.0, 0.1, 2.5])
@pytest.mark.parametrize("num_items", [None, 5])
def test_contrastive_loss_equals_its_closed_form(temperature, num_items):
    states = tensor(7, 4, scale=3.0)
    loss = contrastive_loss(states, STATE_LABELS, temperature, num_items)
    expected = contrastive_by_hand(states, STATE_LABELS, temperature, num_items and 2 * num_items)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_contrastive_loss_gradient():
    states = tensor(7, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, STATE_LABELS, 0.5, 4), states)
    lonely = torch.tensor([0, 1, 2, 0, 3, 4, 5])
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, lonely), states)


def test_contrastive_loss_normalises_its_states():
    states = tensor(7, 4)
    lengths = torch.linspace(0.01, 100, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        contrastive_loss(states * lengths, STATE_LABELS), contrastive_loss(states, STATE_LABELS)
    )


def test_anchor_without_positives_adds_zero_and_is_counted():
    states = tensor(3, 4)
    labels = torch.tensor([0, 0, 1])
    loss = contrastive_loss(states, labels)
    assert loss.item() == pytest.approx(contrastive_by_hand(states, labels, divisor=3), abs=1e-12)
    z = F.normalize(states, dim=-1)
    pair, first, second = z[0] @ z[1], z[0] @ z[2], z[1] @ z[2]
    by_hand = -(pair - torch.logaddexp(pair, first)) - (pair - torch.logaddexp(pair, second))
    torch.testing.assert_close(loss, by_hand / 3)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], []], ids=["one state", "no two alike", "no state"])
def test_contrastive_loss_without_positives_is_an_exact_zero_with_a_graph(labels):
    states = tensor(len(labels), 4, requires_grad=True)
    loss = contrastive_loss(states, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert states.grad is not None and (states.grad == 0).all()


def test_contrastive_loss_does_not_depend_on_order():
    states, order = tensor(7, 4), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        contrastive_loss(states[order], STATE_LABELS[order]),
        contrastive_loss(states, STATE_LABELS),
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("cut", [0, 1, 3, 7])
def test_anchors_of_two_processes_sum_to_the_whole_in_value_and_gradient(cut):
    whole = tensor(7, 4, requires_grad=True)
    expected = contrastive_loss(whole, STATE_LABELS, 0.5, 6)
    expected.backward()
    states = tensor(7, 4, requires_grad=True)
    parts = [
        contrastive_loss(states[rows], STATE_LABELS[rows], 0.5, 6, states, STATE_LABELS, anchor_offset=rows.start)
        for rows in (slice(0, cut), slice(cut, 7))
    ]
    sum(parts).backward()
    torch.testing.assert_close(sum(parts), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(states.grad, whole.grad, rtol=0, atol=1e-14)


def test_process_without_an_anchor_keeps_the_other_states_in_the_graph():
    states = tensor(3, 4, requires_grad=True)
    loss = contrastive_loss(
        states[:0], STATE_LABELS[:0], num_items=2, candidates=states, candidate_labels=STATE_LABELS[:3]
    )
    loss.backward()
    assert loss.item() == 0 and (states.grad == 0).all()


def test_contrastive_loss_is_finite_for_extreme_states():
    states = torch.tensor([[0.0, 0.0], [1e30, 1.0], [1e-30, 0.0], [-1e30, 0.0], [1e4, -1e4]], requires_grad=True)
    loss = contrastive_loss(states, torch.tensor([0, 0, 1, 1, 1]), temperature=1e-3)
    loss.backward()
    assert loss.isfinite() and states.grad.isfinite().all()


TURN_LABELS = LABELS.flatten()


def expert_mask(seed: int = 0) -> torch.Tensor:
    mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(seed)) > 0.3
    mask[0], mask[1], mask[3] = (
        torch.tensor([True, True, True]),
        torch.tensor([False, False, True]),
        torch.tensor([True, False, True]),
    )
    return mask


@pytest.mark.parametrize(
    "mask", [torch.ones(8, 3, dtype=torch.bool), expert_mask()], ids=["all present", "some absent"]
)
@pytest.mark.parametrize("num_items", [None, 9])
def test_consistency_loss_equals_its_closed_form(mask, num_items):
    logits = tensor(8, 3, 4)
    loss = consistency_loss(logits, mask, TURN_LABELS, num_items)
    assert loss.item() == pytest.approx(consistency_by_hand(logits, mask, TURN_LABELS, num_items), abs=1e-12)


def test_consistency_loss_accepts_any_number_of_leading_dimensions():
    logits, mask = tensor(8, 3, 4), expert_mask()
    shaped = consistency_loss(logits.unflatten(0, (2, 4)), mask.unflatten(0, (2, 4)), LABELS)
    torch.testing.assert_close(shaped, consistency_loss(logits, mask, TURN_LABELS))


@pytest.mark.parametrize(
    "mask", [torch.ones(8, 3, dtype=torch.bool), expert_mask()], ids=["all present", "some absent"]
)
def test_consistency_loss_gradient_flows_through_both_sides(mask):
    logits = tensor(8, 3, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: consistency_loss(x, mask, TURN_LABELS), logits)
    one_sided = consistency_loss(
        torch.stack([logits[:, 0], logits[:, 1].detach()], 1), mask[:, :2], TURN_LABELS
    ) + consistency_loss(torch.stack([logits[:, 0].detach(), logits[:, 1]], 1), mask[:, :2], TURN_LABELS)
    (expected,) = torch.autograd.grad(one_sided, logits)
    (actual,) = torch.autograd.grad(consistency_loss(logits[:, :2], mask[:, :2], TURN_LABELS), logits)
    torch.testing.assert_close(actual, expected)
    assert (actual[0, 0] != 0).all() and (actual[0, 1] != 0).all()


def test_consistency_loss_ignores_the_logits_of_absent_experts():
    logits, mask = tensor(8, 3, 4), expert_mask()
    loud = (logits + 100 * tensor(8, 3, 4, seed=5) * ~mask[..., None]).requires_grad_()
    loss = consistency_loss(loud, mask, TURN_LABELS)
    loss.backward()
    torch.testing.assert_close(loss, consistency_loss(logits, mask, TURN_LABELS))
    assert (loud.grad[~mask] == 0).all()


def test_consistency_loss_of_one_expert_is_an_exact_zero_with_a_graph():
    logits = tensor(8, 1, 4, requires_grad=True)
    loss = consistency_loss(logits, torch.ones(8, 1, dtype=torch.bool), TURN_LABELS)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_consistency_loss_is_finite_for_extreme_logits():
    logits = torch.tensor([[[1e4, 0, 0], [0, 1e4, 0], [-1e4, 1e4, 0]]], requires_grad=True)
    loss = consistency_loss(logits, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]))
    loss.backward()
    assert loss.isfinite() and loss > 1e3 and logits.grad.isfinite().all()


def test_losses_without_a_scored_turn_are_exact_zeros_with_a_graph():
    nothing, mask = torch.full((8,), -100), torch.ones(8, 3, dtype=torch.bool)
    for num_items in (None, 0, torch.tensor(0), 5):
        logits, experts = tensor(8, 3, requires_grad=True), tensor(8, 3, 3, requires_grad=True)
        losses = [
            *focal_terms(logits, experts, mask, nothing, 3.0, torch.ones(3), num_items),
            consistency_loss(experts, mask, nothing, num_items),
        ]
        assert all(loss.item() == 0 and loss.requires_grad for loss in losses)
        sum(losses).backward()
        assert (logits.grad == 0).all() and (experts.grad == 0).all()


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision_inputs_are_computed_in_float32(dtype, autocast):
    logits, experts, states = (
        tensor(*shape, scale=3.0).to(dtype).requires_grad_() for shape in ((8, 3), (8, 3, 3), (7, 4))
    )

    def losses(logits, experts, states):
        others = torch.cat([states, states.flip(0)]), torch.cat([STATE_LABELS, STATE_LABELS.flip(0)])
        return torch.stack(
            [
                focal_loss(logits, TURN_LABELS, class_weights=torch.tensor([0.3, 1.0, 2.0])),
                *focal_terms(logits, experts, expert_mask(), TURN_LABELS),
                consistency_loss(experts, expert_mask(), TURN_LABELS),
                contrastive_loss(states, STATE_LABELS),
                contrastive_loss(states, STATE_LABELS, 1.0, 7, *others),
            ]
        )

    with torch.autocast("cpu", dtype, enabled=autocast):
        low = losses(logits, experts, states)
    low.sum().backward()
    assert low.dtype == torch.float32
    torch.testing.assert_close(
        low, losses(*(x.detach().float() for x in (logits, experts, states))), rtol=1e-6, atol=1e-7
    )
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in (logits, experts, states))


# Scores


SCORES = torch.tensor([[0.5, math.nan], [-1.0, 2.0], [math.nan, math.nan], [3.0, -0.25]], dtype=torch.float64)


def regression_by_hand(predictions, labels, kind, delta=1.0, num_items=None) -> float:
    total, count = 0.0, 0
    for found, label in zip(predictions.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if math.isnan(label):
            continue
        count += 1
        error = abs(found - label)
        if kind == "l1":
            total += error
        else:
            total += error**2 / 2 if error <= delta else delta * (error - delta / 2)
    return total / (count if num_items is None else num_items)


@pytest.mark.parametrize("num_items", [None, 11])
@pytest.mark.parametrize(("kind", "delta"), [("l1", 1.0), ("huber", 1.0), ("huber", 0.3)])
def test_regression_loss_equals_its_closed_form(kind, delta, num_items):
    predictions = tensor(4, 2, scale=2.0)
    found = regression_loss(predictions, SCORES, kind, delta, num_items)
    assert found.item() == pytest.approx(regression_by_hand(predictions, SCORES, kind, delta, num_items), abs=1e-12)
    as_tensor = None if num_items is None else torch.tensor(num_items)
    assert torch.equal(regression_loss(predictions, SCORES, kind, delta, as_tensor), found)


@pytest.mark.parametrize("kind", ["l1", "huber"])
def test_regression_loss_gradient_and_zero_without_a_score(kind):
    predictions = tensor(4, 2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: regression_loss(x, SCORES, kind, 0.3, 5), predictions)
    loss = regression_loss(predictions, torch.full((4, 2), math.nan), kind)
    loss.backward()
    assert loss.item() == 0 and not predictions.grad.any()


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_regression_loss_of_low_precision_is_computed_in_float32(dtype):
    predictions = tensor(4, 2).to(dtype)
    found = regression_loss(predictions, SCORES.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(regression_by_hand(predictions.double(), SCORES, "l1"), rel=1e-6)


def test_regression_terms_ignore_absent_experts_and_keep_the_divisor():
    predictions, experts = tensor(4, 2), tensor(4, 3, 2, seed=1)
    mask = torch.tensor([[True, False, True], [False, True, True], [True, True, True], [True, False, True]])
    terms = regression_terms(predictions, experts, mask, SCORES, "huber", 0.5)
    assert len(terms) == 4
    assert terms[0].item() == pytest.approx(regression_by_hand(predictions, SCORES, "huber", 0.5), abs=1e-12)
    for expert in range(3):
        labels = SCORES.masked_fill(~mask[:, expert, None], math.nan)
        expected = regression_by_hand(experts[:, expert], labels, "huber", 0.5, num_items=5)
        assert terms[1 + expert].item() == pytest.approx(expected, abs=1e-12)
