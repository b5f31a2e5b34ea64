"""Try a language model when an EGMF model is made: its logits must be those of plain text, however it is read."""

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ...base.errors import InputError, short
from .label_likelihood import LikelihoodTree, answer_log_likelihoods, embedding_table, read_prefix, rows_of
from .language_model import TESTED
from .language_model_fingerprint import is_meta

logger = logging.get_logger(__name__)

# How far log-likelihoods may differ: the effect of rounding, with room for deep models.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2}
_TOLERANCE_OF_HALF = 1.0
_LONG = 2048


@torch.no_grad()
def try_language_model(language_model: PreTrainedModel, longest: int):
    r"""
    Compare, for a model type that is not tested, the log-likelihoods of three answers to two prompts, read together as
    embeddings and from a kept prefix, with those of each plain sequence of token ids; and so of a long prompt
    beside a short one, which shows a layer that does not see all of it.

    Args:
        language_model: in any mode.
        longest: how many tokens a prompt and its answer may have.

    Raises:
        InputError: if it cannot be run, or they differ, with the numbers.
    """
    config = language_model.config
    if config.model_type in TESTED or is_meta(language_model):
        return
    training = language_model.training
    language_model.eval()
    try:
        difference = _difference(language_model, min(longest, _LONG))
    except Exception as error:  # a model may raise anything for input that it was not made for
        raise _refusal(config, f"running it fails ({type(error).__name__}: {short(error)})") from error
    finally:
        language_model.train(training)
    tolerance = _TOLERANCE.get(language_model.dtype, _TOLERANCE_OF_HALF)
    if not difference <= tolerance:
        raise _refusal(
            config,
            f"a log-likelihood from embeddings differs by {difference:.1e} from that of the same token ids (rounding "
            f"changes it by {tolerance:.0e} at most)",
        )
    logger.warning(
        f"{config.model_type} is not among the language models that are tested ({', '.join(TESTED)}); from embeddings "
        f"it gave the log-likelihoods of the same token ids (to {difference:.1e})"
    )


def _difference(language_model: PreTrainedModel, longest: int) -> float:
    table = embedding_table(language_model)
    size, device = table.num_embeddings, table.weight.device
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(size, (length,), generator=generator).tolist() for length in (9, 6)]
    first, second, third = torch.randint(size, (3,), generator=generator).tolist()
    answers = [[first], [second % size, first], [second % size, third]]
    answers = [list(each) for each in dict.fromkeys(map(tuple, answers))]
    tree = LikelihoodTree(answers)
    expected = torch.tensor([[_plain(language_model, prompt, ids, device) for ids in answers] for prompt in prompts])
    whole = answer_log_likelihoods(language_model, rows_of(language_model, prompts, None, [0, 0]), tree)
    past = read_prefix(language_model, rows_of(language_model, [prompt[:3] for prompt in prompts], None, [0, 0]))
    rest = rows_of(language_model, [prompt[3:] for prompt in prompts], None, [0, 0])
    kept = answer_log_likelihoods(language_model, rest, tree, past)
    long = torch.randint(size, (max(1, longest - 2),), generator=generator).tolist()
    far = answer_log_likelihoods(language_model, rows_of(language_model, [long, prompts[1]], None, [0, 0]), tree)
    last = torch.stack([torch.tensor(_plain(language_model, long, answers[-1], device)), expected[1, -1]])
    pairs = ((whole, expected), (kept, expected), (far[:, -1], last))
    return torch.stack([(found.cpu().double() - right).abs().max() for found, right in pairs]).max().item()


def _plain(language_model: PreTrainedModel, prompt: list[int], answer: list[int], device: torch.device) -> float:
    """The log-likelihood of one answer after one prompt, from token ids alone."""
    logits = language_model(input_ids=torch.tensor([prompt + answer], device=device)).logits[0]
    scores = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return scores[range(len(answer)), answer].sum().item()


def _refusal(config, reason: str) -> InputError:
    return InputError(f"A {config.model_type} language model cannot be used: {reason}. Tested are {', '.join(TESTED)}")
