"""Peak of the memory that tensors take, counted in bytes."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counted(TorchDispatchMode):
    """Counts the storages of what operators return, until they are freed."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        found = function(*arguments, **kwargs or {})
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: weakref.ref):
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of the tensors that live at once, at most, while this runs, of those that it makes."""
    with _Counted() as counted:
        work()
    return counted.peak
