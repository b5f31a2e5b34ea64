"""What a language model wrote about a turn, read as a label or a score."""

from collections.abc import Sequence
from typing import Any

from ..base.errors import InputError


def check_writes_answers(model: Any):
    r"""
    Raises:
        InputError: if the model does not generate text.
    """
    if not hasattr(model, "generate_answers"):
        raise InputError(
            f"answers=True is for a model with a language model, such as EGMF; this one, of type "
            f"'{model.config.model_type}', writes none"
        )


def read_answer(model: Any, texts: Sequence[str]) -> dict[str, Any]:
    r"""
    The fields of the pipeline's result for a turn that come from generated text.

    Args:
        model: an [`EgmfModel`].
        texts: what it wrote, for each target (S); a classification has one.

    Returns:
        `answer`: the label; of a regression the score, or with several targets the scores by name. None for what
        could not be read; then the texts are `unparsed`.
    """
    config = model.config
    found = [model.answers.parse(text) for text in texts]
    read: Any = found[0]
    if config.task == "classification":
        read = None if read is None else config.id2label[read]
    elif len(found) > 1:
        read = {config.id2label[target]: score for target, score in enumerate(found)}
    unread = [text for text, value in zip(texts, found, strict=True) if value is None]
    return {"answer": read} | ({"unparsed": unread} if unread else {})
