"""CH-SIMS v2 (Liu et al. 2022), from its table and clips or its processed features; a dialogue is a video."""

import datasets

from ..media.text_files import CHINESE
from .clip_corpus import ClipCorpus
from .counts import published
from .licences import PUBLISHED
from .schema import LABELS


class ChSimsV2(ClipCorpus):
    r"""
    CH-SIMS v2's videos in Chinese, with its own splits, which go by clip: a video whose clips are in several is cut.
    `sentiment` is the score of all modalities together (-1 to 1); `sentiment_text`, `sentiment_speech` and
    `sentiment_visual` are the scores of each alone. The emotion is negative, neutral or positive by the edges of the
    field's three-class accuracy, -0.1 and 0.1, each of which belongs to the class below it; the column `annotation`,
    whose values differ between copies, is not read.

    Layouts of `data_dir`:

    - `meta.csv` (or `meta(s).csv`, `label.csv`) with the columns video_id, clip_id, text, label and mode, and label_T,
      label_A and label_V if present; clips as `VIDEO/CLIP.mp4` anywhere below (this needs the extra `av`). Ids are
      read as text: `0001` is not `1`. Clips without a row are left out. Rows without a label, as in the unsupervised
      part (`meta(u).csv`), are turns without a label. A table that is not UTF-8 is read as GB18030.
    - a pickle of processed features as thuiar/MMSA writes it, `ch-simsv2s.pkl`; this gives vectors
      ([`~mister_e_hf.corpora.mmsa_layout.pickle_clips`]).
    """

    VERSION = datasets.Version("1.0.0")
    title = PUBLISHED["ch_sims_v2"].title
    about = PUBLISHED["ch_sims_v2"].info()
    origin = (
        "Get it through https://github.com/thuiar/ch-sims-v2 and pass its folder, or its pickle of features, "
        "as data_dir."
    )
    tables = ("meta.csv", "meta(s).csv", "label.csv", "meta(u).csv")
    most = 1.0
    old_encoding = CHINESE
    part_scores = ("sentiment_text", "sentiment_speech", "sentiment_visual")
    scores = part_scores

    @property
    def labels(self) -> list[str]:
        return LABELS["ch_sims_v2"]

    def emotion(self, score: float) -> str:
        negative, neutral, positive = self.labels
        return negative if score <= -0.1 else neutral if score <= 0.1 else positive

    def published_turns(self) -> dict[str, int]:
        return published("ch_sims_v2")["utterances"]
