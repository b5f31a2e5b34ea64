"""Where a corpus comes from: its reader, name, licence and citation, stored in every table made from it."""

import dataclasses
import json
from pathlib import Path
from typing import Self

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..base.errors import InputError, reading
from .licences import TITLES

METADATA_KEY = b"mister_e_corpus"  # in a table's schema, so that the licence is known wherever the table goes

_CARRIED = "mister_e_hf: "  # and the corpus's name are the builder_name of a split that knows it


@dataclasses.dataclass(frozen=True)
class Provenance:
    r"""
    Args:
        corpus: module of the reader, as `"iemocap"` or `"dialogue_folder"`; None if the table does not say.
        name: what to call it: `"MELD"`, `"part of MELD"` if labelled turns of the published corpus are missing,
            `"changed MELD"` if its counts differ otherwise, or the name of an own corpus.
        license, citation, homepage: as its owners give it out; None if that is not known.
    """

    corpus: str | None = None
    name: str | None = None
    license: str | None = None
    citation: str | None = None
    homepage: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it is a published corpus with the published counts."""
        return self.corpus in TITLES and self.name == TITLES[self.corpus]

    @classmethod
    def of(cls, info: datasets.DatasetInfo) -> Self:
        """What the `info` of a split states."""
        builder = info.builder_name or ""
        return cls(
            corpus=info.dataset_name,
            name=builder.removeprefix(_CARRIED)
            if builder.startswith(_CARRIED)
            else TITLES.get(info.dataset_name, info.dataset_name),
            license=info.license or None,
            citation=info.citation or None,
            homepage=info.homepage or None,
        )

    def put(self, info: datasets.DatasetInfo):
        """Store this in the `info` of a split."""
        info.builder_name, info.dataset_name = f"{_CARRIED}{self.name or ''}", self.corpus
        for field in ("license", "citation", "homepage"):
            setattr(info, field, getattr(self, field) or "")

    @classmethod
    def of_table(cls, table: str | Path) -> Self:
        r"""
        What the schema of a Parquet table states.

        Raises:
            InputError: naming the table, if it is not a Parquet file or its metadata is damaged.
        """
        try:
            metadata = pq.read_schema(table).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"'{table}' is not a Parquet file, or is damaged: {error}") from error
        # The second is where datasets stores the types of columns.
        stored, _ = (_object(table, key, metadata.get(key, b"{}")) for key in (METADATA_KEY, b"huggingface"))
        fields = {field.name for field in dataclasses.fields(cls)}
        found = cls(**{name: value for name, value in stored.items() if name in fields})
        if any(not isinstance(value, str | None) for value in dataclasses.astuple(found)):
            raise InputError(f"'{table}': metadata '{METADATA_KEY.decode()}' must hold texts, got {stored}")
        # Tables written before names were stored.
        return found if found.name else dataclasses.replace(found, name=TITLES.get(found.corpus or ""))

    @classmethod
    def of_folder(cls, folder: str | Path) -> Self:
        """What the tables of a folder of dialogues or vectors state; the first that states anything counts."""
        found = (cls.of_table(table) for table in sorted(Path(folder).expanduser().glob("*.parquet")))
        return next((one for one in found if one.corpus), cls())

    def metadata(self) -> dict[bytes, bytes]:
        """As metadata of a table's schema."""
        stored = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {METADATA_KEY: json.dumps({"corpus": self.corpus} | stored).encode()}


def _object(table: str | Path, key: bytes, content: bytes) -> dict:
    with reading(table, f"a table with readable metadata '{key.decode()}'"):
        found = json.loads(content)
        if not isinstance(found, dict):
            raise InputError(f"'{table}': metadata '{key.decode()}' must be a JSON object, got {type(found).__name__}")
        return found
