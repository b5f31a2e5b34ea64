"""The files of the package and what they import."""

import ast
import sys
from pathlib import Path

import mister_e_hf

PACKAGE = Path(mister_e_hf.__file__).parent
ROOT = Path(__file__).parents[2]
# The folders of the package. Each imports only itself and those before it.
ROOMS = (
    "base",
    "media",
    "corpora",
    "vectors",
    "hub",
    "evaluation",
    "encoders",
    "models",
    "inference",
    "training",
    "studies",
    "cli",
)
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """What a file imports anywhere in it: packages from outside, and modules of ours by their name in the package."""
    outside, ours = set(), set()
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            below = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == PACKAGE.name else []
            names = [node.module, *below]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([PACKAGE.name, *here[: len(here) - node.level + 1], *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names] + [base]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package != PACKAGE.name:
                outside.add(package)
            elif module := _module_of(rest):
                ours.add(module)
    return outside - set(sys.stdlib_module_names), ours


def _module_of(name: str) -> str | None:
    """The longest beginning of a dotted name that is a module of ours, without the names inside a module."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:end])
    return None


def file_of(module: str) -> Path:
    """The file of a module of ours."""
    path = PACKAGE.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def reached(module: str) -> tuple[set[str], set[str]]:
    """
    What a module imports, directly or through others of ours, except for a push and the list of all models in a
    message, which need the whole package.
    """
    outside, ours, waiting = set(), set(), {module}
    while waiting:
        current = waiting.pop()
        ours.add(current)
        more_outside, more_ours = imports(file_of(current))
        outside |= more_outside
        waiting |= more_ours - ours - {"hub.checkpoint", "models.registry"}
    return outside, ours


def imports_at_the_top(path: Path) -> set[str]:
    """Packages from outside that a file imports whenever it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
        else:  # such as try, with imports in it
            inside = ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ImportFrom) else []
            assert not any(isinstance(part, ast.Import | ast.ImportFrom) for part in inside)
    return names - set(sys.stdlib_module_names)
