"""Log-likelihoods of answers from one forward pass, against each plain sequence of token ids."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from mister_e_hf.base.errors import InputError
from mister_e_hf.models.egmf.label_likelihood import (
    LikelihoodTree,
    answer_log_likelihoods,
    own_log_likelihoods,
    read_prefix,
    rows_of,
)
from mister_e_hf.models.egmf.language_model import TESTED
from mister_e_hf.models.egmf.token_probabilities import log_probabilities
from support.tiny_language_models import tiny_language_model

PROMPTS = [[5, 9, 200, 31, 7, 8], [17, 3], [44, 45, 46, 47]]
# of one token, with common beginnings, and one that another begins with
ANSWERS = [[20], [21, 1], [21, 30, 1], [21, 30, 31, 1], [22, 22, 22]]


def language_model(kind, dtype=torch.float64):
    model = AutoModelForCausalLM.from_pretrained(tiny_language_model(kind), dtype=torch.float32)
    return model.to(dtype).eval()


def plain(model, prompt, answer):
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    scores = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return scores[range(len(answer)), answer].sum()


def expected(model, prompts=PROMPTS, answers=ANSWERS):
    return torch.stack([torch.stack([plain(model, prompt, answer) for answer in answers]) for prompt in prompts])


def found(model, prompts, tree, past=None):
    return answer_log_likelihoods(model, rows_of(model, prompts, None, [0] * len(prompts)), tree, past)


# Llama, Qwen2 and Gemma 3 compute norms and positions in float32, whatever their dtype.
@pytest.mark.parametrize(("kind", "atol"), [(kind, 1e-10 if kind == "gpt2" else 2e-6) for kind in TESTED])
@torch.no_grad()
def test_one_pass_gives_the_likelihood_of_each_plain_sequence(kind, atol):
    model, tree = language_model(kind), LikelihoodTree(ANSWERS)
    right = expected(model)
    together = found(model, PROMPTS, tree)
    torch.testing.assert_close(together, right, rtol=0, atol=atol)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(found(model, [prompt], tree)[0], right[row], rtol=0, atol=atol)
    own = own_log_likelihoods(model, rows_of(model, PROMPTS, None, [0] * 3), [ANSWERS[at] for at in (3, 0, 2)])
    torch.testing.assert_close(own, right[range(3), [3, 0, 2]], rtol=0, atol=atol)
    # from kept keys and values, of unequal lengths
    beginnings = [prompt[:-1] for prompt in PROMPTS]
    ends = [prompt[-1:] for prompt in PROMPTS]
    past = read_prefix(model, rows_of(model, beginnings, None, [0, 0, 0]))
    torch.testing.assert_close(found(model, ends, tree, past), right, rtol=0, atol=atol)
    own = own_log_likelihoods(model, rows_of(model, ends, None, [0] * 3), [ANSWERS[at] for at in (3, 0, 2)], past)
    torch.testing.assert_close(own, right[range(3), [3, 0, 2]], rtol=0, atol=atol)


@torch.no_grad()
def test_one_token_answers_over_the_whole_vocabulary_sum_to_one():
    model = language_model("llama")
    tree = LikelihoodTree([[token] for token in range(300)])
    torch.testing.assert_close(found(model, PROMPTS, tree).exp().sum(-1), torch.ones(3).double())


@pytest.mark.parametrize("kind", TESTED)
@torch.no_grad()
def test_pseudo_tokens_that_are_embeddings_of_real_tokens_are_those_tokens(kind):
    model, tree = language_model(kind), LikelihoodTree(ANSWERS)
    pseudo = model.get_input_embeddings()(torch.tensor([[60, 61]] * 3))
    places = [6, 0, 2]
    rows = rows_of(model, PROMPTS, pseudo, places)
    with_ids = [ids[:at] + [60, 61] + ids[at:] for ids, at in zip(PROMPTS, places, strict=True)]
    plain_rows = rows_of(model, with_ids, None, [0, 0, 0])
    assert torch.equal(rows.embeddings, plain_rows.embeddings) and torch.equal(rows.lengths, plain_rows.lengths)
    atol = 1e-10 if kind == "gpt2" else 2e-6
    torch.testing.assert_close(answer_log_likelihoods(model, rows, tree), expected(model, with_ids), rtol=0, atol=atol)


def test_padding_is_zero_and_gets_no_gradient():
    model, tree = language_model("gpt2"), LikelihoodTree(ANSWERS)
    rows = rows_of(model, PROMPTS, None, [0, 0, 0])
    padding = torch.arange(6) >= rows.lengths[:, None]
    assert not rows.embeddings[padding].any()
    embeddings = rows.embeddings.detach().requires_grad_()
    rows.embeddings = embeddings
    answer_log_likelihoods(model, rows, tree).sum().backward()
    assert not embeddings.grad[padding].any() and embeddings.grad[~padding].any(-1).all()


@torch.no_grad()
def test_positions_are_those_of_the_plain_sequence():
    """A table of positions, as GPT-2's, shows it where they are not."""
    model, tree = language_model("gpt2"), LikelihoodTree(ANSWERS)
    right = expected(model)
    rows = rows_of(model, PROMPTS, None, [0, 0, 0])
    shifted = read_prefix(model, rows_of(model, [[5], [5], [5]], None, [0, 0, 0]))
    shifted.lengths[:] = 0  # nothing of it is seen
    torch.testing.assert_close(answer_log_likelihoods(model, rows, tree, shifted), right, rtol=0, atol=1e-10)
    table = model.transformer.wpe.weight.data
    table[:12] = table[:12].flip(0)
    assert not torch.allclose(found(model, PROMPTS, tree), right, atol=1e-2)


def test_likelihood_of_the_right_answer_is_the_language_model_s_own_loss():
    model = language_model("gpt2")
    prompt, answer = PROMPTS[0], ANSWERS[3]
    ids = torch.tensor([prompt + answer])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    mean = model(input_ids=ids, labels=labels).loss
    own = -found(model, [prompt], LikelihoodTree(ANSWERS))[0, 3]
    torch.testing.assert_close(own, mean.double() * len(answer), rtol=0, atol=1e-5)  # theirs is in float32


def test_a_tree_reads_common_beginnings_once():
    tree = LikelihoodTree([[1, 2, 3], [1, 2, 4], [1, 5], [6]])
    assert tree.tokens.tolist() == [1, 2] and tree.depths.tolist() == [0, 1, 2]
    assert len(tree.edges) == 6 and tree.longest == 3
    signs, digits = "+-", "0123"
    grid = [[ord(s), ord(d), ord("."), ord(t)] for s in signs for d in digits for t in "0123456789"]
    assert len(LikelihoodTree(grid).tokens) == 2 + 8 + 8


def test_answers_without_tokens_or_with_the_same_are_refused():
    for wrong in ([[1], []], [[1, 2], [3], [1, 2]]):
        with pytest.raises(InputError, match="each answer must have tokens that no other answer has"):
            LikelihoodTree(wrong)


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_log_probabilities_and_their_gradient_are_those_of_a_log_softmax(at_once, monkeypatch):
    monkeypatch.setattr("mister_e_hf.models.egmf.token_probabilities._AT_ONCE", at_once)
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 9, dtype=torch.float64, requires_grad=True)
    places, tokens = torch.tensor([0, 0, 2, 3]), torch.tensor([[1, 2, 2, 8], [0, 3, 3, 1], [5, 4, 0, 0]])
    rows = torch.arange(3)[:, None]
    expected = logits.log_softmax(-1)[rows, places, tokens]
    torch.testing.assert_close(log_probabilities(logits, places, tokens), expected)
    assert torch.autograd.gradcheck(lambda each: log_probabilities(each, places, tokens), logits)
    half = logits.detach().bfloat16()
    found = log_probabilities(half, places, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, half.float().log_softmax(-1)[rows, places, tokens])
