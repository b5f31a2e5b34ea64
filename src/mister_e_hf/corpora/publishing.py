"""The card of a corpus folder, and its push to the Hub."""

import html
import re
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    DatasetCardData,
    HfApi,
    get_token,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..base.errors import InputError
from ..base.plain_text import for_markdown, for_terminal
from .licences import PUBLISHED
from .provenance import Provenance
from .schema import SPLITS
from .summary import format_summary, summarize

_TABLE = re.compile(rf"({'|'.join(SPLITS)})(-\d+-of-\d+)?\.parquet")
_LOAD = 'load_dataset("FOLDER")'  # a folder on disk does not know its repository


def check_pushable(corpus: str | None, repo_id: str, token: str | None = None):
    """
    Raise InputError if the corpus must not be redistributed, the name of the repository is not valid, or a token is
    missing.
    """
    refuse_licensed(corpus)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(str(error)) from None
    if not (token or get_token()):
        raise InputError(f"A token is needed to push to '{repo_id}'. Log in with `hf auth login`, or set HF_TOKEN.")


def refuse_licensed(corpus: str | None):
    """Raise InputError with the reason if the corpus must not be redistributed."""
    if corpus in PUBLISHED:
        raise InputError(f"'{corpus}' is not pushed: {PUBLISHED[corpus].why_not_pushed}.")


def table_files(folder: Path) -> list[Path]:
    """The tables of a corpus folder's splits."""
    found = [path for path in folder.iterdir() if _TABLE.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (SPLITS.index(_split_of(path)), path.name))


def _split_of(table: Path) -> str:
    return re.split("[-.]", table.name)[0]


def corpus_of(table: Path) -> str | None:
    """The reader of the corpus from which a table was made, if the table states it."""
    return Provenance.of_table(table).corpus


def push_corpus(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    r"""
    Push the tables and the card of a corpus folder to a dataset repository of the Hub, in one commit that also removes
    tables of earlier pushes. `load_dataset(repo_id)` then gives the same corpus.


    Args:
        folder: as `write_corpus(..., embed_audio=True)` writes it.
        repo_id: `"ORG/NAME"`; created if it does not exist.
        private: make the repository private, be it new or not; by default a new one is as the organisation's settings
            say.

    Returns:
        the repository's id.

    Raises:
        FileNotFoundError: if the folder holds no tables.
        ValueError: if the corpus must not be redistributed, refers to audio files on this machine, or a token is
            missing.
    """
    folder = Path(folder).expanduser()
    tables = table_files(folder)
    if not tables:
        raise FileNotFoundError(f"'{folder}' holds no train.parquet, validation.parquet or test.parquet")
    for path in tables:
        refuse_licensed(corpus_of(path))
        _check_media_are_inside(path)
    check_pushable(None, repo_id, token)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id, repo_type="dataset").private:  # it existed already
        api.update_repo_settings(repo_id, repo_type="dataset", private=True)
    names = {path.name for path in tables}
    there = api.list_repo_files(repo_id, repo_type="dataset")
    old = [name for name in there if _TABLE.fullmatch(name) and name not in names]
    additions = [CommitOperationAdd(path.name, path) for path in tables]
    if (folder / "README.md").is_file():
        additions.append(CommitOperationAdd("README.md", _hub_card(folder, repo_id, tables).encode()))
    api.create_commit(
        repo_id,
        [*additions, *map(CommitOperationDelete, old)],
        commit_message=commit_message or "Add corpus of dialogues",
        repo_type="dataset",
    )
    return repo_id


def _hub_card(folder: Path, repo_id: str, tables: list[Path]) -> str:
    """
    The card with the name of the repository and the files of each split. A card on disk must not name the files:
    `load_dataset` would confuse the folder with another one of the same name that it read before.
    """
    card = DatasetCard((folder / "README.md").read_text(encoding="utf-8").replace(_LOAD, f'load_dataset("{repo_id}")'))
    files: dict[str, list[str]] = {}
    for path in tables:
        files.setdefault(_split_of(path), []).append(path.name)
    data_files = [{"split": split, "path": names} for split, names in files.items()]
    card.data["configs"] = [{"config_name": "default", "data_files": data_files}]
    return str(card)


def _check_media_are_inside(table: Path):
    with pq.ParquetFile(table) as file:
        names = [name for name in file.schema_arrow.names if name == "utterances"]
        for batch in file.iter_batches(8, columns=names) if names else ():
            for turn in batch.column(0).flatten().to_pylist():
                for content in ("audio", "video"):
                    stored = turn.get(content)
                    if stored is not None and stored["bytes"] is None:
                        raise InputError(
                            f"'{table}' refers to {content} files of this machine (turn {turn['utterance_id']}: "
                            f"{stored['path']}). Write the corpus with embed_audio=True (--embed_audio) before it is "
                            "pushed."
                        )


def corpus_card(corpus: datasets.DatasetDict, provenance: Provenance | None = None) -> str:
    """A dataset card with counts, columns and licence of the corpus."""
    info = next(iter(corpus.values())).info
    provenance = provenance or Provenance.of(info)
    summary = summarize(corpus)
    name = provenance.name or "Dialogues"
    labels = next(iter(corpus.values())).features["utterances"].feature["emotion"].names
    data = DatasetCardData(
        task_categories=["audio-classification", "text-classification"],
        tags=["emotion-recognition-in-conversation", "mister-e"],
        pretty_name=for_terminal(name),
        license=provenance.license if provenance.corpus == "dialogue_folder" else None,
    )
    video = any(
        block.get("turns without video", size) < size for block in summary.values() for size in [block["utterances"]]
    )
    contents = "text, audio, video" if video else "text, audio"
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {for_markdown(name)}",
        info.description,
        "One row is a dialogue; the turns are in `utterances`, each with "
        f"{contents}, speaker and one of the emotions {', '.join(map(for_markdown, labels))}.",
        f"<pre>\n{html.escape(for_terminal(format_summary(summary), lines=True))}\n</pre>",
        "```python\nfrom datasets import load_dataset\n\ncorpus = " + _LOAD + "\n```",
    ]
    if video:
        lines.append(
            "The video of a turn is its picture alone, cut to the turn (H.264 in MP4); its sound is in `audio`. "
            "Tables that were written without their media name the source files instead, with `start` and `end`."
        )
    if provenance.license:
        lines.append(f"Licence: {for_markdown(provenance.license)}")
    if provenance.citation:
        lines.append(provenance.citation)
    lines.append(
        "Speech, words and faces of people are personal data: share only what the speakers consented to. Emotions are "
        "what annotators named, not what people felt."
    )
    return "\n\n".join(line for line in lines if line) + "\n"
