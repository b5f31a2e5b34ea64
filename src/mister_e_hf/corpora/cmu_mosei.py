"""CMU-MOSEI (Zadeh et al. 2018), from MMSA's table or features or the authors' raw release; a dialogue is a video."""

from pathlib import Path
from typing import Any

import datasets

from . import mosei_release
from .clip_corpus import ClipCorpus, dialogues_of
from .counts import Dialogues, published
from .licences import PUBLISHED
from .schema import LABELS


class CmuMosei(ClipCorpus):
    r"""
    CMU-MOSEI's videos, with the standard folds. The emotion is the sign of the sentiment score (-3 to 3), as in
    CMU-MOSI: negative, or non-negative, zero included. The scores of six emotions (0 to 3) are in `happy`, `sad`,
    `anger`, `surprise`, `disgust` and `fear` where the source has them, which is the raw release alone.

    Layouts of `data_dir`:

    - `label.csv` with the columns video_id, clip_id, text, label and mode, and clips as `VIDEO/CLIP.mp4` anywhere
      below (this needs the extra `av`), `.wav` or another format. Ids are read as text. The splits are those of the
      column mode.
    - a pickle of processed features as thuiar/MMSA writes it, `aligned_50.pkl` or `unaligned_50.pkl`; this gives
      vectors ([`~mister_e_hf.corpora.mmsa_layout.pickle_clips`]).
    - the raw release: transcripts `Transcript/Segmented/Combined/VIDEO.txt` with the times of each segment, whole
      recordings `WAV_16000/VIDEO.wav` and `Videos/Full/Combined/VIDEO.mp4`, the annotators' tables `Labels/*.csv`, and
      the folds ([`~mister_e_hf.corpora.mosei_release`]).
    """

    VERSION = datasets.Version("1.0.0")
    title = PUBLISHED["cmu_mosei"].title
    about = PUBLISHED["cmu_mosei"].info()
    origin = (
        "Get it from http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/, or its features through "
        "https://github.com/thuiar/MMSA, and pass the folder as data_dir."
    )
    tables = ("label.csv",)
    most = 3.0
    scores = mosei_release.EMOTIONS

    @property
    def labels(self) -> list[str]:
        return LABELS["cmu_mosei"]

    def emotion(self, score: float) -> str:
        return self.labels[score >= 0]

    def layout(self, folder: Path) -> tuple[Path | None, Path | None]:
        return (None, None) if mosei_release.is_release(folder) else super().layout(folder)

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        if mosei_release.is_release(folder):
            return mosei_release.source_files(folder)
        return super().source_files(folder, settings)

    def read(self, folder: Path) -> Dialogues:
        if mosei_release.is_release(folder):
            return dialogues_of(self.title, mosei_release.turns(folder, self.emotion, self.most))
        return super().read(folder)

    def published_turns(self) -> dict[str, int]:
        release = self.config.data_dir is not None and mosei_release.is_release(Path(self.config.data_dir))
        return published("cmu_mosei")["utterances_in_folds" if release else "utterances"]
