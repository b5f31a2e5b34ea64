"""Print the lowest allowed version of every dependency as constraints for pip, which `make test-lowest` installs."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def lowest_versions(pyproject: Path) -> list[str]:
    """`name==version` for each requirement with a lower bound, but for those that are pinned, as torch in `dev`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    given = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for part in given for text in part]
    pinned = {one.name for one in requirements for bound in one.specifier if bound.operator == "=="}
    floors = {
        one.name: bound.version
        for one in requirements
        for bound in one.specifier
        if bound.operator == ">=" and one.name not in pinned
    }
    return [f"{name}=={version}" for name, version in sorted(floors.items())]


if __name__ == "__main__":
    print(*lowest_versions(Path(sys.argv[1])), sep="\n")
