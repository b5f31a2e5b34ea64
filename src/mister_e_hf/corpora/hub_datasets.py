"""Datasets of the Hub."""

import re


def load_from_hub(name: str):
    """
    A dataset of the Hub, all its splits; FileNotFoundError where the name is neither a folder here nor one that can be
    loaded.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"No corpus folder at '{name}'")
    from datasets import load_dataset

    try:
        return load_dataset(name)
    except Exception as error:
        raise FileNotFoundError(
            f"'{name}' is neither a folder here nor a dataset that could be loaded from the Hub: {error}"
        ) from error
