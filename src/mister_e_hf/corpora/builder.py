"""Base of all corpus builders: fingerprint of the cache, check against published counts, audio of every turn."""

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import datasets
import multiprocess
import numpy as np

from ..base.errors import InputError
from ..base.modalities import MODALITIES
from ..base.progress import bar, line, without_datasets_bars
from ..corpora import sources
from ..media import audio
from ..media.video import VideoError
from .counts import Dialogues, differences, labelled, name_by_counts
from .provenance import Provenance
from .schema import SPLITS, dialogue_features
from .turn_media import TurnMedia

logger = logging.getLogger(__name__)

# What datasets raises if one of its processes is killed.
_OF_PROCESSES = (ConnectionError, EOFError, multiprocess.ProcessError)
_PROCESS_GONE = r"abruptly died|Connection (refused|reset)|Broken pipe"


@dataclasses.dataclass
class CorpusConfig(datasets.BuilderConfig):
    r"""
    Args:
        bad_audio: what to do with audio that is missing, empty, corrupt, silent, not finite or too long: `"error"`, or
            `"missing"` to keep the turn without audio, with a warning that counts and names such turns.
        max_seconds: longest turn accepted, in seconds.
        bad_video: likewise what to do with video that is missing or cannot be used; one frame of each turn is decoded.
    """

    bad_audio: str = "error"
    max_seconds: float = audio.MAX_SECONDS
    bad_video: str = "error"

    def __post_init__(self):
        super().__post_init__()
        for name in ("bad_audio", "bad_video"):
            if getattr(self, name) not in ("error", "missing"):
                raise InputError(f"{name} must be 'error' or 'missing', got {getattr(self, name)!r}")
        if not self.max_seconds > 0:
            raise InputError(f"max_seconds must be above 0, got {self.max_seconds}")


class DownloadError(ConnectionError):
    """A release could not be downloaded."""


class CorpusBuilder(datasets.GeneratorBasedBuilder):
    r"""
    Base class of the `datasets` builders of corpora on disk. Results are cached by a fingerprint of the source files
    and of the code that reads them.


    Args:
        data_dir: the corpus's folder.
        cache_dir: by default that of `datasets`.
        config_name: one of the corpus's configurations.
        settings: fields of the corpus's configuration.

    Raises:
        FileNotFoundError: if the folder does not exist or does not hold this corpus.
        InputError: if a source is malformed; the message names the file and the line, dialogue or field.
        AudioError, VideoError: if audio or video cannot be used and `bad_audio`, `bad_video` is `"error"`.
    """

    BUILDER_CONFIG_CLASS = CorpusConfig
    title: ClassVar[str]
    about: ClassVar[dict[str, str]]  # description, homepage, license, citation
    origin: ClassVar[str] = ""  # where to get a corpus that is not downloaded
    scores: tuple[str, ...] = ()  # further fields of a turn that hold a number, or null
    other_labels: ClassVar[tuple[str, ...]] = ()  # further fields of a turn that hold one of the classes, or null

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        cache_dir: str | None = None,
        config_name: str | None = None,
        **settings,
    ):
        if data_dir is None and self.origin:
            raise FileNotFoundError(f"{self.title} is not downloaded. {self.origin}")
        # Do not resolve links: a file in the Hub's cache is a link to a file without a suffix.
        folder = None if data_dir is None else Path(os.path.abspath(Path(data_dir).expanduser()))
        if folder is not None and not folder.exists():
            raise FileNotFoundError(f"{self.title}: '{folder}' does not exist")
        self._check_settings(settings)
        self._vector_modalities = () if folder is None else self.vector_modalities(folder)
        self._widths: dict[str, tuple[int, str]] = {}  # of each modality, and the dialogue where it was found
        digest = sources.fingerprint(() if folder is None else self.source_files(folder, settings), folder)
        if folder is not None:
            settings["data_dir"] = str(folder)
        super().__init__(cache_dir=cache_dir, config_name=config_name, hash=digest, **settings)

    # Implemented by each corpus

    @property
    def labels(self) -> list[str]:
        raise NotImplementedError

    def source_files(self, folder: Path, settings: dict[str, Any]) -> Iterable[Path]:
        """Files that decide what is read; the cache is reused while none of them changes."""
        raise NotImplementedError

    def read(self, folder: Path) -> Dialogues:
        """
        Read the corpus without audio content: the `audio` of an utterance is a path, or None if the turn has no audio.
        """
        raise NotImplementedError

    def vector_modalities(self, folder: Path) -> tuple[str, ...]:
        """The modalities whose vectors the source gives, if it is a release of features."""
        return ()

    def vectors(self, modality: str, given: list[Any]) -> list[np.ndarray | None]:
        """The vectors of a dialogue's turns, from what `read` gave for each."""
        return given

    def published_counts(self) -> dict[str, dict[str, int]]:
        """Published number of labelled utterances by split and dialogue; empty if nothing is published."""
        return {}

    def published_turns(self) -> dict[str, int]:
        """
        Published number of labelled utterances by split, where those of each dialogue are not published; under "all"
        their sum, where nothing else is.
        """
        return {}

    def corpus_name(self, counts: dict[str, dict[str, int]]) -> str:
        """Name of what was read, given its labelled utterances by split and dialogue."""
        return name_by_counts(self.title, counts, self.published_counts(), self.published_turns())

    def download(self, dl_manager: datasets.DownloadManager) -> Path:
        raise FileNotFoundError(f"{self.title} needs data_dir, the folder of the corpus")

    # Called by datasets

    @classmethod
    def _check_settings(cls, settings: dict[str, Any]):
        known = {field.name for field in dataclasses.fields(cls.BUILDER_CONFIG_CLASS)} - {
            "name",
            "version",
            "data_dir",
            "data_files",
        }
        for name in settings:
            if name not in known:
                raise InputError(f"{cls.__name__} has no setting '{name}'; it has {sorted(known)}")
        # datasets sets the fields of a named configuration one by one, without checks.
        cls.BUILDER_CONFIG_CLASS(**settings)

    def download_and_prepare(self, *args, **settings):
        """As in `datasets`, but errors meant for the user and errors of the disk are raised unwrapped."""
        processes = settings.get("num_proc")
        if processes is not None and not 1 <= processes <= 1024:
            raise InputError(f"num_proc must be a whole number from 1 to 1,024, got {processes}")
        try:
            with without_datasets_bars():  # the bars here name what is read
                super().download_and_prepare(*args, **settings)
        except (datasets.exceptions.DatasetGenerationError, OSError, RuntimeError, *_OF_PROCESSES) as error:
            cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
            # Only the text of an error in another process is returned.
            named = re.findall(r"(Audio|Video|Input)Error: (.+)", str(cause))
            if named:
                kinds = {"Audio": audio.AudioError, "Video": VideoError}
                raise kinds.get(named[-1][0], InputError)(named[-1][1]) from error
            several = (settings.get("num_proc") or 1) > 1 and not isinstance(cause, DownloadError)
            if several and (isinstance(cause, _OF_PROCESSES) or re.search(_PROCESS_GONE, str(cause))):
                raise ChildProcessError(
                    f"{self.title}: a process that reads audio was ended by the system, as when memory runs out. Read "
                    "with fewer processes (num_proc)."
                ) from error
            if isinstance(cause, InputError | OSError):
                # How datasets words an error of the disk.
                own = re.search(r"Cannot find data file.*Original error:\s*(.+)", str(cause), re.DOTALL)
                raise OSError(own[1]) if own else cause from None
            raise

    def as_dataset(self, *args, **settings) -> datasets.DatasetDict | datasets.Dataset:
        """As in `datasets`; the `info` of each split records the corpus it belongs to ([`Provenance`])."""
        corpus = super().as_dataset(*args, **settings)
        splits = corpus if isinstance(corpus, dict) else {str(corpus.split): corpus}
        name = self.corpus_name({split: labelled(data) for split, data in splits.items()})
        for data in splits.values():
            dataclasses.replace(Provenance.of(data.info), corpus=self.name, name=name).put(data.info)
        return corpus

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            **self.about,
            features=dialogue_features(self.labels, self.scores, self.other_labels, self._vector_modalities),
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        folder = Path(self.config.data_dir) if self.config.data_dir else self.download(dl_manager)
        dialogues = {split: found for split, found in self.read(folder).items() if found}
        if not dialogues:
            raise InputError(f"'{folder}' holds no dialogue of {self.title}")
        check_dialogues(dialogues)
        self._media().check_files(
            one for found in dialogues.values() for dialogue in found for one in dialogue["utterances"]
        )
        for message in differences(self.title, dialogues, self.published_counts(), self.published_turns()):
            logger.warning(message)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"dialogues": dialogues[split], "split": split})
            for split in SPLITS
            if split in dialogues
        ]

    def _prepare_split(self, split_generator: datasets.SplitGenerator, *args, num_proc: int | None = None, **settings):
        if num_proc and num_proc > 1:  # which would draw several bars
            count = len(split_generator.gen_kwargs["dialogues"])
            line(f"reading {split_generator.name}: {count:,} dialogues with {num_proc} processes")
        super()._prepare_split(split_generator, *args, num_proc=num_proc, **settings)

    def _media(self) -> TurnMedia:
        return TurnMedia(self.title, self.config.bad_audio, self.config.bad_video, self.config.max_seconds)

    def _generate_examples(self, dialogues: list[dict[str, Any]], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        media = self._media()
        alone = multiprocess.parent_process() is None
        with bar(f"reading {split}", len(dialogues), "dialogues", shown=alone) as progress:
            for dialogue in dialogues:
                turns = [self._turn(utterance, media) for utterance in dialogue["utterances"]]
                row = {"dialogue_id": dialogue["dialogue_id"], "utterances": turns}
                for modality in self._vector_modalities:
                    found = self.vectors(modality, dialogue[modality])
                    self._check_widths(modality, dialogue["dialogue_id"], found)
                    row[MODALITIES[modality].features] = [None if one is None else one.tolist() for one in found]
                    row[MODALITIES[modality].has] = [vector is not None for vector in found]
                yield dialogue["dialogue_id"], row
                progress.update()
        media.report()

    def _check_widths(self, modality: str, dialogue: str, vectors: list[np.ndarray | None]):
        """Raise InputError unless all vectors of a modality have one width; each process sees its own dialogues."""
        for vector in vectors:
            if vector is None:
                continue
            width, first = self._widths.setdefault(modality, (len(vector), dialogue))
            if len(vector) != width:
                raise InputError(
                    f"{self.title}, dialogue '{dialogue}': a vector of {len(vector)} {modality} features, but those "
                    f"of dialogue '{first}' have {width}; all turns of a corpus need one width"
                )

    def _turn(self, utterance: dict[str, Any], media: TurnMedia) -> dict[str, Any]:
        turn: dict[str, Any] = {
            "text": None,
            "start": None,
            "end": None,
            "speaker": None,
            "emotion": None,
            "sentiment": None,
            **dict.fromkeys(self.scores + self.other_labels),
        } | utterance
        for field in ("emotion", *self.other_labels):
            if turn[field] is not None:
                # datasets would keep names if the first turn has no label, which does not fit the numbers of other
                # dialogues.
                turn[field] = self.info.features["utterances"].feature[field].str2int(turn[field])
        return turn | media.fields(turn, utterance)


def check_dialogues(dialogues: Dialogues):
    """Raise InputError unless every dialogue appears in one split, once, and its turns have different ids."""
    seen: dict[str, str] = {}
    for split, found in dialogues.items():
        for dialogue in found:
            name = dialogue["dialogue_id"]
            if name in seen:
                raise InputError(f"Dialogue '{name}' appears twice: in {seen[name]} and in {split}")
            seen[name] = split
            ids = [utterance["utterance_id"] for utterance in dialogue["utterances"]]
            if not ids:
                raise InputError(f"Dialogue '{name}' has no turns")
            if len(set(ids)) != len(ids):
                twice = next(identity for identity in ids if ids.count(identity) > 1)
                raise InputError(f"Dialogue '{name}' has two turns with the utterance_id '{twice}'")
