"""Check the installed libraries: what this package requires of them, and what they require of one another."""

import functools
import importlib.metadata
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import MissingLibraryError

DISTRIBUTION = "mister-e-hf"

_EXTRAS = {
    "av": "video, and audio of MP4 and other containers",
    "pillow": "encoders of video",
    "matplotlib": "mister-e plot",
    "gradio": "mister-e serve",
}


@dataclass(frozen=True)
class Conflict:
    """A library that is missing or installed in a version that another one does not accept."""

    name: str
    installed: str | None
    asked_by: tuple[str, ...]
    command: str

    def __str__(self) -> str:
        state = (
            f"{self.name} {self.installed} does not satisfy"
            if self.installed
            else f"{self.name} is missing, required by"
        )
        return f"{state} {', '.join(self.asked_by)}. To fix it: {self.command}"


def conflicts(asking: Iterable[str] | None = None) -> list[Conflict]:
    r"""
    Requirements that the installed distributions do not satisfy.

    Args:
        asking (`Iterable[str]`, *optional*):
            distributions whose requirements are checked; by default this package and all that it requires.

    Returns:
        a [`Conflict`] per library, with one command that satisfies all that require it. Nothing if this package is not
        installed as a distribution, as when it runs from a source tree on the path.
    """
    from packaging.specifiers import SpecifierSet

    demands: dict[str, dict[str, SpecifierSet]] = defaultdict(dict)
    for asked_by in _with_dependencies() if asking is None else asking:
        for requirement in _requirements(asked_by):
            demands[requirement.name][asked_by] = requirement.specifier
    found = []
    for name, by in demands.items():
        installed = version_of(name)
        unmet = {
            asked_by: specifier
            for asked_by, specifier in by.items()
            if installed is None or not specifier.contains(installed, prereleases=True)
        }
        if unmet:
            together = functools.reduce(SpecifierSet.__and__, by.values())
            asked = tuple(
                f"{asked_by} ({specifier})" if str(specifier) else asked_by for asked_by, specifier in unmet.items()
            )
            found.append(Conflict(name, installed, asked, f"pip install '{name}{together}'"))
    return found


@functools.cache
def check_installation():
    """
    Check the libraries that this package requires.

    Raises:
        MissingLibraryError: if one of them is missing or has a version that this package does not accept.
    """
    if found := conflicts([DISTRIBUTION]):
        more = f" (and {len(found) - 1} more; `mister-e doctor` lists all)" if len(found) > 1 else ""
        raise MissingLibraryError(f"{found[0]}{more}")


def version_of(name: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _with_dependencies() -> Iterator[str]:
    """This package and the installed distributions that it requires, directly or indirectly."""
    waiting, seen = [DISTRIBUTION], set()
    while waiting:
        name = waiting.pop()
        if name not in seen and version_of(name) is not None:
            seen.add(name)
            yield name
            waiting += [requirement.name for requirement in _requirements(name)]


def _requirements(name: str) -> Iterator:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        given = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in given:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # pip could not have read it either
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.name = canonicalize_name(requirement.name)
            yield requirement


def examine_installation() -> Iterator[tuple[bool, str]]:
    """Yield findings on the interpreter and the libraries, each with whether it is good. Imports no library."""
    yield True, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    wrong = {conflict.name: conflict for conflict in conflicts()}
    for name in dict.fromkeys([*(requirement.name for requirement in _requirements(DISTRIBUTION)), *wrong]):
        if name in wrong:
            yield False, str(wrong[name])
        else:
            yield True, f"{name} {version_of(name)}{_transformers_remark(name)}"
    for name, use in _EXTRAS.items():
        version = version_of(name)
        yield True, f"{name} {version} (for {use})" if version else f"without {name}, which is optional (for {use})"


def _transformers_remark(name: str) -> str:
    """
    A remark on a library that some methods of transformers refuse, none of which this package calls.

    The metadata of transformers does not state it, so pip cannot know. peft is an example: `encoders` use it directly.
    """
    from packaging.requirements import Requirement

    try:
        from transformers.dependency_versions_table import deps
    except Exception:  # reported as a finding itself
        return ""
    wanted, installed = deps.get(name), version_of(name)
    if wanted is None or installed is None or Requirement(wanted).specifier.contains(installed, prereleases=True):
        return ""
    return f" (transformers {version_of('transformers')} wants {wanted} in its own methods, which are not used here)"
