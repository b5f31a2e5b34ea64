"""Answers that a language model writes by itself, with tiny random Llama and GPT-2 models."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from mister_e_hf.models.egmf.answer_generation import written_answers, written_tokens
from mister_e_hf.models.egmf.answers import Answers, AnswerTree
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.label_likelihood import LikelihoodTree, answer_log_likelihoods, rows_of
from mister_e_hf.models.egmf.prompts import Prompt
from support.tokenizers_of_kinds import tokenizer_of

LABELS = ["happy", "happy sad", "sad", "non-negative", "negative", "neutral"]


def language_model(kind: str, vocab_size: int, seed: int = 0):
    torch.manual_seed(seed)
    if kind == "llama":
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        config = LlamaConfig(vocab_size=vocab_size, hidden_size=32, initializer_range=0.4, **sizes)
    else:
        config = GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4)
    return AutoModelForCausalLM.from_config(config).double().eval()


def answers_of(kind="byte_level", **changes):
    labels = ["sentiment"] if "problem_type" in changes else LABELS
    return Answers(EgmfConfig(id2label=dict(enumerate(labels)), **changes), tokenizer_of(kind))


def random_prompts(count: int, vocab_size: int, seed: int = 0, answers: int = 1) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)

    def ids(length):
        return torch.randint(5, vocab_size, (length,), generator=generator).tolist()

    return [Prompt(ids(2 + number % 5), tuple(ids(1 + number % 3) for _ in range(answers))) for number in range(count)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_changes_nothing_that_is_written(kind):
    answers, model = answers_of(), language_model(kind, 400)
    prompts, pseudo = random_prompts(7, 400, answers=2), torch.randn(7, 3, 32, dtype=torch.float64)
    together = written_answers(model, answers, prompts, pseudo, 32)
    alone = [written_answers(model, answers, [prompts[row]], pseudo[[row]], 1)[0] for row in range(7)]
    assert together == alone == written_answers(model, answers, prompts, pseudo, 3)
    assert len({text for texts in together for text in texts}) > 3 and all(len(texts) == 2 for texts in together)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_head_reads_contiguous_states_of_the_last_tokens_alone(kind, beams):
    # in bfloat16 a head of 262,144 tokens takes 160 times as long for states that are not contiguous
    answers = answers_of()
    model, seen = language_model(kind, 400), []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: seen.append((given[0].is_contiguous(), given[0].shape[1])))
    rows = rows_of(model, [[1, 2, 3], [4, 5, 6, 7]], None, [0, 0])
    written_tokens(model, answers, rows, beams > 1, beams)
    assert len(seen) > 1 and set(seen) == {(True, 1)}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_written_is_the_most_probable_token_each_time(kind):
    answers, model = answers_of(), language_model(kind, 400)
    prompts = random_prompts(4, 400)
    rows = rows_of(model, [[*prompt.before, *prompt.after[0]] for prompt in prompts], None, [0] * 4)
    written = written_tokens(model, answers, rows, False, 1)
    for prompt, ids in zip(prompts, written, strict=True):
        expected = [*prompt.before, *prompt.after[0]]
        for token in ids:
            assert token == int(model(torch.tensor([expected])).logits[0, -1].argmax())
            expected.append(token)
            if token == answers.end:
                break


def test_settings_of_the_language_model_change_nothing():
    answers, model, prompts = answers_of(), language_model("llama", 400), random_prompts(5, 400)
    plain = written_answers(model, answers, prompts, None, 8)
    model.generation_config.update(
        repetition_penalty=5.0, do_sample=True, temperature=9.0, max_length=3, no_repeat_ngram_size=1, num_beams=2
    )
    assert written_answers(model, answers, prompts, None, 8) == plain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("byte_level", {}),
        ("gemma_like", {}),
        ("of_words", {}),
        ("byte_level", {"answer": "index"}),
        ("gemma_like", {"problem_type": "regression", "score_range": [-1, 1], "score_step": 0.5}),
        ("byte_level", {"problem_type": "regression", "score_range": [-1, 1], "score_step": 0.25}),
    ],
)
def test_a_constrained_search_finds_the_answer_of_the_highest_log_likelihood(kind, changes, seed):
    answers = answers_of(kind, **changes)
    size = len(tokenizer_of(kind))
    model = language_model("llama" if seed else "gpt2", size, seed)
    prompts, pseudo = random_prompts(6, size, seed), torch.randn(6, 2, 32, dtype=torch.float64)
    texts = written_answers(model, answers, prompts, pseudo, 16, constrained=True)
    whole = [[*prompt.before, *prompt.after[0]] for prompt in prompts]
    rows = rows_of(model, whole, pseudo, [len(prompt.before) for prompt in prompts])
    found = answer_log_likelihoods(model, rows, LikelihoodTree(answers.token_ids)).argmax(-1).tolist()
    assert [text for (text,) in texts] == [answers.text(answers.token_ids[index]) for index in found]
    parsed = [answers.parse(text) for (text,) in texts]
    assert parsed == (found if answers.values is None else [answers.values[index] for index in found])


def test_a_greedy_search_among_the_answers_is_that_only_where_each_is_one_token():
    """Why `label` is the highest log-likelihood rather than what a greedy search writes."""
    model, single, several = language_model("llama", 400, 3), [[20], [30], [40]], [[20, 0], [20, 30, 0], [40, 50, 0]]
    agree = {1: 0, 3: 0}
    prompts = random_prompts(60, 400, 3)
    rows = rows_of(model, [[*prompt.before, *prompt.after[0]] for prompt in prompts], None, [0] * 60)
    for ids in (single, several):
        best = answer_log_likelihoods(model, rows, LikelihoodTree(ids)).argmax(-1).tolist()
        for number, prompt in enumerate(prompts):
            written: list[int] = []
            while following := AnswerTree(ids).following(written):
                logits = model(torch.tensor([[*prompt.before, *prompt.after[0], *written]])).logits[0, -1]
                written.append(following[int(logits[following].argmax())])
            agree[max(map(len, ids))] += written == ids[best[number]]
    assert agree[1] == 60 and agree[3] < 60
