"""Code for the beginning of a test's process, which hides packages as if they were not installed."""

import inspect


def hide(*packages: str) -> set[str]:
    """Hide packages from import and from the look-ups by which transformers finds out what is installed."""
    import sys

    class Hiding:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.partition(".")[0] in packages else self.finder.find_spec(name, path, target)

        def __getattr__(self, name):
            return getattr(self.finder, name)

    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
    for name in packages:
        try:
            __import__(name)
        except ImportError:
            continue
        raise AssertionError(f"{name} is not hidden")
    return set(packages)


# Defines `hide` in a process that cannot import the tests.
HIDE = inspect.getsource(hide)
