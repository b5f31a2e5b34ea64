"""Base of the corpora of clips of videos with a score each; a dialogue is a video, cut where splits cut it."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..base.errors import InputError
from ..base.plain_text import some_of
from ..media.text_files import WESTERN
from .builder import CorpusBuilder
from .counts import Dialogues
from .mmsa_layout import PICTURES, Clip, clip_files, pickle_clips, pickle_modalities, table_clips
from .schema import SPLITS
from .sources import walk

logger = logging.getLogger(__name__)


class PlacedTurn(NamedTuple):
    """A turn of a video, what it is sorted by, and its vectors by modality."""

    split: str
    video: str
    order: Any
    utterance: dict[str, Any]
    vectors: dict[str, Any]


class ClipCorpus(CorpusBuilder):
    r"""
    Reads the layouts of thuiar/MMSA: a table of clips with the files `VIDEO/CLIP.mp4` (or `.wav`) below, or a pickle
    of processed features.

    Attributes:
        tables: names that the table may have.
        most: the largest score; the smallest is its negative.
        old_encoding: of a table that is not Unicode.
        part_scores: fields for the scores of the text, the sound and the picture alone; none for a corpus without.
    """

    tables: ClassVar[tuple[str, ...]]
    most: ClassVar[float]
    old_encoding: ClassVar[str] = WESTERN
    part_scores: ClassVar[tuple[str, ...]] = ()

    def emotion(self, score: float) -> str:
        """The class of a score."""
        raise NotImplementedError

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        table, pickle = self.layout(folder)
        if table is None:
            return [] if pickle is None else [pickle]
        return [table, *{path for files in clip_files(folder).values() for path in files.values()}]

    def vector_modalities(self, folder: Path) -> tuple[str, ...]:
        _, pickle = self.layout(folder)
        return () if pickle is None else pickle_modalities(pickle)

    def layout(self, folder: Path) -> tuple[Path | None, Path | None]:
        r"""
        The table of clips, or the pickle: the pickle if it is given itself, or the folder holds no clips.

        Raises:
            FileNotFoundError: if there is neither.
            InputError: if there are several pickles to choose from.
        """
        if folder.is_file():
            if folder.suffix.lower() not in (".pkl", ".pickle"):
                raise FileNotFoundError(f"'{folder}' is not {self.title}: expected its folder, or a .pkl of features")
            return None, folder
        below = [path for path in walk(folder) if not path.name.startswith(".")]
        tables = [path for path in below if path.name.lower() in self.tables]
        tables.sort(key=lambda path: (len(path.parts), self.tables.index(path.name.lower()), path))
        pickles = [path for path in below if path.suffix.lower() in (".pkl", ".pickle")]
        if tables and (not pickles or clip_files(folder)):
            return tables[0], None
        if len(pickles) > 1:
            raise InputError(
                f"'{folder}' holds no clips, and several pickles: {some_of([str(path) for path in pickles])}. Pass "
                "the path of one of them as data_dir"
            )
        if pickles:
            return None, pickles[0]
        raise FileNotFoundError(
            f"'{folder}' is not {self.title}: it has no {' or '.join(self.tables)} and no .pkl of features"
        )

    def read(self, folder: Path) -> Dialogues:
        table, pickle = self.layout(folder)
        if pickle is not None:
            clips, files = pickle_clips(pickle, self.most, self.title), {}
            for clip in clips:  # a split may lack a modality that others have
                clip.vectors = {modality: clip.vectors.get(modality) for modality in self._vector_modalities}
        else:
            assert table is not None
            clips, files = table_clips(table, self.most, self.old_encoding), clip_files(folder)
            if not files:
                logger.warning("%s: no clips in '%s'; its turns have text only", self.title, folder)
        self._check_once(clips)
        like = next(path for found in files.values() for path in found.values()) if files else None
        without_text = [f"{clip.video} {clip.clip}".strip() for clip in clips if clip.text is None]
        if without_text:
            logger.warning(
                "%s: %d turns have no transcript: %s",
                *(self.title, len(without_text), some_of(without_text)),
            )
        return dialogues_of(
            self.title,
            (
                PlacedTurn(
                    clip.split, clip.video, in_order(clip.clip), self._utterance(clip, files, like), clip.vectors
                )
                for clip in clips
            ),
        )

    def _check_once(self, clips: list[Clip]):
        seen: set[tuple[str, str]] = set()
        for clip in clips:
            if (clip.video, clip.clip) in seen:
                raise InputError(f"{clip.where}: clip {clip.clip} of video {clip.video} appears twice")
            seen.add((clip.video, clip.clip))

    def _utterance(self, clip: Clip, files: dict, like: Path | None) -> dict[str, Any]:
        media = files.get((clip.video, clip.clip), {})
        if not media and like is not None:  # the builder says that it is missing
            kind = "video" if like.suffix.lower() in PICTURES else "audio"
            media = {kind: like.parent.parent / clip.video / f"{clip.clip}{like.suffix}"}
        return {
            "utterance_id": f"{clip.video}_{clip.clip}" if clip.clip else clip.video,
            "text": clip.text,
            **media,
            "speaker": clip.video,
            "emotion": None if clip.score is None else self.emotion(clip.score),
            "sentiment": clip.score,
            **dict(zip(self.part_scores, clip.parts, strict=False)),
        }


def dialogues_of(title: str, turns: Iterable[PlacedTurn]) -> Dialogues:
    r"""
    A dialogue for each video, its turns in order. A video whose turns are in several splits becomes one dialogue for
    each of them, `VIDEO (train)` and so on, so that no context crosses splits; they are counted in a warning.
    """
    videos: dict[str, dict[str, list[PlacedTurn]]] = defaultdict(lambda: defaultdict(list))
    for turn in turns:
        videos[turn.video][turn.split].append(turn)
    cut = [video for video, parts in videos.items() if len(parts) > 1]
    if cut:
        logger.warning(
            "%s: %d of %d dialogues have turns in several splits and are cut into one for each: %s",
            *(title, len(cut), len(videos), some_of(cut)),
        )
    dialogues: Dialogues = {split: [] for split in SPLITS}
    for video, parts in videos.items():
        for split, found in parts.items():
            found.sort(key=lambda turn: turn.order)
            name = f"{video} ({split})" if len(parts) > 1 else video
            modalities = dict.fromkeys(modality for turn in found for modality in turn.vectors)
            dialogues[split].append(
                {"dialogue_id": name, "utterances": [turn.utterance for turn in found]}
                | {modality: [turn.vectors.get(modality) for turn in found] for modality in modalities}
            )
    return dialogues


def in_order(clip: str) -> tuple[list[str | int], str]:
    """What sorts clips by the numbers in their names: 2 before 10."""
    parts = re.split(r"(\d+)", clip)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], clip
