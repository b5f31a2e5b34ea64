"""Fixtures of the tests of stage 1."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.tiny_backbones import write_backbone


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny pretrained model of a kind, written once; no test writes to it."""
    folders: dict[str, Path] = {}

    def written(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_backbone(tmp_path_factory.mktemp("base"), kind)
        return folders[kind]

    return written
