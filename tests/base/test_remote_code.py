import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from mister_e_hf.base.remote_code import write_code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes the files of a package `house`, by path, and returns its folder; its modules are unloaded afterwards."""

    def make(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / "house" / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path / "house"

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] in ("house", "flat")]:
        del sys.modules[name]


MODEL = """
from ..base.losses import loss  # of another room

class Model:
    def run(self):
        from .layers import layer
        return layer(loss)
"""


def test_copied_code_is_flat_and_differs_only_in_its_imports(package, tmp_path):
    here = package(
        models__model=MODEL,
        models__layers="from .deep.sizes import SIZE\n\ndef layer(f):\n    return f(SIZE)\n",
        models__deep__sizes="SIZE = 3\n",
        base__losses="def loss(size):\n    return -size\n",
        base__unused="",
    )
    from house.models.model import Model

    flat = tmp_path / "flat"
    assert write_code(flat, Model) == ["model.Model"]
    assert {path.name for path in flat.iterdir()} == {"model.py", "layers.py", "sizes.py", "losses.py"}
    assert (flat / "model.py").read_text() == MODEL.replace("..base.losses", ".losses")
    for path in flat.iterdir():
        ours = next(here.rglob(path.name)).read_text()
        for one, other in zip(ours.splitlines(), path.read_text().splitlines(), strict=True):
            assert one == other or one.lstrip().startswith("from .") and other.lstrip().startswith("from .")
        assert all(
            node.level <= 1 for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        )

    from flat.model import Model as Copy

    assert Copy().run() == -3
    again = tmp_path / "again"  # a copy of a copy is the same
    assert write_code(again, Copy) == ["model.Model"]
    for path in flat.glob("*.py"):
        assert (again / path.name).read_text() == path.read_text()


def test_file_is_written_without_being_imported(package, tmp_path):
    here = package(pipeline="from .audio import load\nraise RuntimeError\n", audio="load = 1\n")
    assert write_code(tmp_path / "flat", here / "pipeline.py") == ["pipeline"]
    assert {path.name for path in (tmp_path / "flat").iterdir()} == {"pipeline.py", "audio.py"}


def test_code_that_cannot_be_flat_raises(package, tmp_path):
    files = {
        "two": "from .a.same import x\nfrom .b.same import y\n",
        "folder": "from .a import x\n",
        "module": "from . import two\n",
        "gone": "from ..nowhere import x\n",
    }
    here = package(**files, a__same="x = 1\n", b__same="y = 1\n", a____init__="")
    with pytest.raises(ValueError, match="cannot be in one folder"):
        write_code(tmp_path / "flat", here / "two.py")
    for name in ("folder", "module", "gone"):
        with pytest.raises(ValueError, match=f"{name}.py' imports"):
            write_code(tmp_path / "flat", here / f"{name}.py")
    assert not (tmp_path / "flat").exists()
    assert importlib.util.find_spec("house") is not None
