"""Keys and values of the beginnings of prompts, kept on disk, for a language model that is not trained.

With the pseudo tokens behind the text, a prompt's text is read once, and every later epoch reads only what follows it.

Letters: U tokens of a beginning, D width of a head.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...base.errors import InputError, reading
from ...base.whole_files import UNFINISHED, write_atomically
from .label_likelihood import Past

_FACTS = "store.json"


class PrefixStore:
    r"""
    A folder with a file for each beginning, named by a hash of its token ids. Each file is written whole, so several
    processes may share the folder, and an interrupted one may be used again.

    Args:
        folder: created if it does not exist.
        language_model: whose keys and values they are.
        dtype: of what is stored, and so of what is read from the first time on; by default float16, which takes half
            of the space of float32, and bfloat16 of a language model in bfloat16.

    Raises:
        InputError: if the folder holds those of another model, or of another dtype.
    """

    def __init__(self, folder: str | os.PathLike, language_model: PreTrainedModel, dtype: torch.dtype | None = None):
        self.folder, self._computed = Path(folder), language_model.dtype
        self.dtype = dtype or (torch.bfloat16 if self._computed == torch.bfloat16 else torch.float16)
        facts = {"language_model": _fingerprint(language_model), "dtype": str(self.dtype).removeprefix("torch.")}
        path = self.folder / _FACTS
        if self.folder.is_file():
            raise InputError(f"'{self.folder}' is a file, expected a folder for the prompts that were read")
        self.folder.mkdir(parents=True, exist_ok=True)
        # listed first: another process may write its facts, and then prompts, at this moment
        is_empty = all(place.name.startswith(UNFINISHED) for place in self.folder.iterdir())
        if path.is_file():
            with reading(path, "a record of kept prompts"):
                found = json.loads(path.read_text(encoding="utf-8"))
            if found != facts:
                raise InputError(
                    f"'{self.folder}' holds the prompts of another language model ({found}), expected {facts}; give "
                    "another folder, or remove this one"
                )
            return
        if not is_empty:
            raise InputError(f"'{self.folder}' is not empty, and has no {_FACTS}; give an empty folder")
        write_atomically(path, lambda place: place.write_text(json.dumps(facts) + "\n", encoding="utf-8"))

    def __contains__(self, token_ids: Sequence[int]) -> bool:
        return self._path(token_ids).is_file()

    def read(self, rows: Sequence[Sequence[int]], device: torch.device) -> Past:
        r"""
        What `write` kept for the tokens of these rows.

        Raises:
            OSError: naming the file that is damaged.
        """
        kept = [self._read(ids) for ids in rows]
        layers, _, heads, _, width = kept[0].shape
        longest = max(map(len, rows))
        whole = torch.zeros(layers, 2, len(rows), heads, longest, width, dtype=self._computed, device=device)
        for row, own in enumerate(kept):
            whole[:, :, row, :, : own.shape[3]] = own
        return Past([(keys, values) for keys, values in whole], torch.tensor([*map(len, rows)], device=device))

    def _read(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[layers, 2, heads, U, D]"""
        path = self._path(token_ids)
        try:
            kept = load_file(path)["layers"]
        except (SafetensorError, KeyError) as error:
            raise _damaged(path, str(error)) from error
        if kept.dim() != 5 or kept.shape[3] != len(token_ids):
            raise _damaged(path, f"the shape {list(kept.shape)} for {len(token_ids)} tokens")
        return kept

    def write(self, token_ids: Sequence[int], past: Past, row: int):
        """Keep one row of a past."""
        length = len(token_ids)
        layers = [
            torch.stack([keys[row, :, :length], values[row, :, :length]]).to("cpu", self.dtype)
            for keys, values in past.layers
        ]
        path = self._path(token_ids)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda place: save_file({"layers": torch.stack(layers)}, place))

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*/*.safetensors"))

    def _path(self, token_ids: Sequence[int]) -> Path:
        name = hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()
        return self.folder / name[:2] / f"{name[:32]}.safetensors"


def _damaged(path: Path, what: str) -> OSError:
    return OSError(f"'{path}' is damaged ({what}); remove it, and it is computed again")


@torch.no_grad()
def _fingerprint(language_model: PreTrainedModel) -> str:
    """A hash of every tensor's beginning and sum, and of what is computed with them."""
    digest = hashlib.sha256(language_model.config.model_type.encode())
    for name, tensor in language_model.state_dict().items():
        values = tensor.flatten()
        some = values[:256].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(tensor.shape)} {values.double().sum().item():.12e}".encode() + some)
    return digest.hexdigest()[:32]
