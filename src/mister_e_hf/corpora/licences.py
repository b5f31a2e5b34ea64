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
        test_turns: number of labelled turns of the test split, by set of labels.
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
        test_turns={frozenset(LABELS["cmu_mosi"]): 686},
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
    words = re.split(r"[\s,(]", (name or "").casefold())
    return next((each for each in PUBLISHED.values() if each.title.casefold() == words[0]), None)


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
