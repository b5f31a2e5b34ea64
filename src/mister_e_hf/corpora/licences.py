"""
Facts about the published corpora, one entry each: title, citation, licence, other splits, size of the test split.
Builders, dataset cards, model cards, pushes and the results page read them here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .schema import LABELS

CUSTOM = "custom"  # name of a corpus that is not known


@dataclass(frozen=True)
class OtherSplit:
    r"""
    Another way in which published work splits a corpus.

    Args:
        description: what differs.
        validation_group: regular expression for the ids of the dialogues of validation.
    """

    description: str
    validation_group: str


@dataclass(frozen=True)
class PublishedCorpus:
    r"""
    Args:
        title: name of the corpus.
        description: one sentence on its content.
        homepage, citation: of its authors.
        terms: the licence in the authors' words, as stored in tables.
        license: identifier of the licence for the metadata of a model card.
        about: sentence on the licence for a model card.
        why_not_pushed: why the corpus itself must not be redistributed.
        remaking: who can reproduce figures made with it.
        test_turns: number of labelled turns of the test split, by set of labels or targets; empty if not published.
        other_splits: other published splits, by name.
    """

    title: str
    description: str
    homepage: str
    citation: str
    terms: str
    license: str
    about: str
    why_not_pushed: str
    remaking: str
    test_turns: Mapping[frozenset[str], int]
    other_splits: Mapping[str, OtherSplit] = field(default_factory=dict)

    def info(self) -> dict[str, str]:
        """What a `datasets.DatasetInfo` says of the corpus."""
        return {
            "description": self.description,
            "homepage": self.homepage,
            "license": self.terms,
            "citation": self.citation,
        }


PUBLISHED = {
    "iemocap": PublishedCorpus(
        title="IEMOCAP",
        description="Dyadic acted dialogues of ten actors in five sessions, improvised and scripted.",
        homepage="https://sail.usc.edu/iemocap/",
        citation="Busso et al.: IEMOCAP: interactive emotional dyadic motion capture database. "
        "Language Resources and Evaluation 42, 2008.",
        terms="research only, no redistribution; ask for it at https://sail.usc.edu/iemocap/iemocap_release.htm",
        license="other",
        about="IEMOCAP is available on request, for research only.",
        why_not_pushed="IEMOCAP's licence is for research and forbids redistribution; ask its authors for it",
        remaking="IEMOCAP is for research only and available on request from the University of Southern California. "
        "Without it none of its figures can be reproduced.",
        test_turns={
            frozenset(LABELS["iemocap-6way"]): 1623,
            frozenset(LABELS["iemocap-4way"]): 1242,
            frozenset({"valence", "activation", "dominance"}): 1623,
        },
        other_splits={
            "authors_split": OtherSplit("validation is session 1, as in the published code", "Ses01"),
        },
    ),
    "meld": PublishedCorpus(
        title="MELD",
        description="Scenes of the television series Friends, several speakers each.",
        homepage="https://affective-meld.github.io",
        citation="Poria et al.: MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations. "
        "ACL 2019.",
        terms="GPL-3.0 (annotations); the texts and clips are of the television series Friends",
        license="gpl-3.0",
        about="MELD is under GPL-3.0, and its clips are from a television series.",
        why_not_pushed="MELD's texts and clips are from the series Friends and we may not redistribute them; "
        "its annotations are under GPL-3.0",
        remaking="MELD's annotations and transcripts are under GPL-3.0 and free to download; its clips are from a "
        "television series, to which others hold the rights. The figures can be reproduced from the public release.",
        test_turns={frozenset(LABELS["meld"]): 2610},
    ),
    "cmu_mosi": PublishedCorpus(
        title="CMU-MOSI",
        description="Opinions on films, in videos of one speaker each, cut into segments with a sentiment score.",
        homepage="http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset/",
        citation="Zadeh et al.: Multimodal Sentiment Intensity Analysis in Videos: Facial Gestures and Verbal "
        "Messages. IEEE Intelligent Systems 31(6), 2016.",
        terms="research only; the videos belong to their makers",
        license="other",
        about="CMU-MOSI is available for research.",
        why_not_pushed="CMU-MOSI's videos, texts and what is derived from them belong to the videos' makers and are "
        "available for research only",
        remaking="CMU-MOSI is available through the CMU Multimodal SDK, on the terms of its authors. Without access "
        "to it none of its figures can be reproduced.",
        test_turns={frozenset(LABELS["cmu_mosi"]): 686, frozenset({"sentiment"}): 686},
    ),
    "cmu_mosei": PublishedCorpus(
        title="CMU-MOSEI",
        description="Opinions in videos of one speaker each, cut into segments with scores of sentiment and emotions.",
        homepage="http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/",
        citation="Zadeh et al.: Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and Interpretable Dynamic "
        "Fusion Graph. ACL 2018.",
        terms="unknown: none is stated with the copies that are read; the videos belong to their makers",
        license="unknown",
        about="The licence of CMU-MOSEI is unknown; its videos belong to their makers.",
        why_not_pushed="no licence of CMU-MOSEI is known that would allow it, and its videos belong to their makers",
        remaking="CMU-MOSEI's labels and features are available through the CMU Multimodal SDK and thuiar/MMSA, on "
        "the terms of their authors. Without access to it none of its figures can be reproduced.",
        test_turns={frozenset(LABELS["cmu_mosei"]): 4659, frozenset({"sentiment"}): 4659},
    ),
    "ch_sims_v2": PublishedCorpus(
        title="CH-SIMS v2",
        description="Clips of Chinese films, series and shows, with sentiment scores of all modalities and of each "
        "alone.",
        homepage="https://github.com/thuiar/ch-sims-v2",
        citation="Liu et al.: Make Acoustic and Visual Cues Matter: CH-SIMS v2.0 Dataset and AV-Mixup Consistent "
        "Module. ICMI 2022.",
        terms="unknown: none is stated in its repository; the clips are of films, series and shows",
        license="unknown",
        about="The licence of CH-SIMS v2 is unknown; its clips are of films, series and shows.",
        why_not_pushed="no licence of CH-SIMS v2 is known that would allow it, and its clips are of films, series and "
        "shows, to which others hold the rights",
        remaking="CH-SIMS v2 is available through its repository, without a stated licence. Without access to it none "
        "of its figures can be reproduced.",
        test_turns={frozenset(LABELS["ch_sims_v2"]): 1034, frozenset({"sentiment"}): 1034},
    ),
    "cherma": PublishedCorpus(
        title="CHERMA",
        description="Features of single utterances in Chinese, with an emotion of all modalities and of each alone.",
        homepage="https://github.com/sunjunaimer/LFMIM",
        citation="Sun et al.: Layer-wise Fusion with Modality Independence Modeling for Multi-modal Emotion "
        "Recognition. ACL 2023.",
        terms="unknown: none is stated in its repository",
        license="unknown",
        about="The licence of CHERMA is unknown.",
        why_not_pushed="no licence of CHERMA is known that would allow it",
        remaking="CHERMA's features are available through its repository, without a stated licence. Without access to "
        "them none of its figures can be reproduced.",
        test_turns={},  # only the sum of the splits is published
    ),
}
TITLES = {name: each.title for name, each in PUBLISHED.items()}


@dataclass(frozen=True)
class CorpusOfRun:
    r"""
    The corpus of a run as its model card names it.

    Args:
        name: name of the corpus.
        test_set: name of the data behind the test scores; for a part of a published test split with its share.
        is_published: whether labels and turns are those of a published test split.
        license: for the metadata; None if unknown.
        about: a sentence on licence and origin; None if nothing is known.
    """

    name: str
    test_set: str
    is_published: bool = False
    license: str | None = None
    about: str | None = None


def published_of_name(name: str | None) -> PublishedCorpus | None:
    """
    The published corpus that a recipe names: by its title alone, or at the beginning (`MELD, fine-tuned text
    vectors`).
    """
    return next(
        (each for each in PUBLISHED.values() if re.match(rf"{re.escape(each.title)}([\s,(]|$)", name or "", re.I)),
        None,
    )


def corpus_of_run(
    stated: Mapping[str, str | None], name: str | None, labels: Iterable[str], test_turns: int | None
) -> CorpusOfRun:
    r"""
    How a run may name its corpus. What the corpus's tables state counts; the recipe's name counts only if they state
    nothing, and that of a published corpus only if labels and test turns are the published ones.

    Args:
        stated: what the tables state: `corpus` (name of the reader), `name`, `license`.
        name: the recipe's `corpus.name`.
        labels: labels of the model.
        test_turns: number of labelled turns of the test split; None without test scores.
    """
    published = PUBLISHED.get(stated.get("corpus") or "")
    own = stated.get("name")
    if published is None and own:
        license = stated.get("license")
        return CorpusOfRun(own, own, license=license, about=license and f"Its licence is {license}.")
    known = published or published_of_name(name)
    if known is None:
        return CorpusOfRun(name or CUSTOM, name or CUSTOM)
    expected = known.test_turns.get(frozenset(labels))
    fits = expected is not None and test_turns in (expected, None)
    if published is not None and not published.test_turns:  # the reader compared what is published
        fits = own == published.title
    if published is None:
        return (
            CorpusOfRun(name, name, fits, known.license, known.about) if name and fits else CorpusOfRun(CUSTOM, CUSTOM)
        )
    called = own or published.title
    if fits:
        return CorpusOfRun(called, published.title, True, published.license, published.about)
    fewer = expected is not None and test_turns is not None and test_turns < expected
    if called == published.title:  # tables written before names were stored
        called = f"{'part of' if fewer else 'changed'} {published.title}"
    test_set = called
    if test_turns is not None:
        share = f"{test_turns:,} of {expected:,}" if fewer else f"{test_turns:,} other"
        test_set = f"{published.title}, {share} test turns"
    return CorpusOfRun(called, test_set, False, published.license, published.about)
