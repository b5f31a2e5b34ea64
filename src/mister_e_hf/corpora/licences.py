"""The published corpora, one entry each: title, labels, test turns, and what their owners allow. Cards, pushes and the results page read it here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CUSTOM = "custom"  # a corpus of no known name


@dataclass(frozen=True)
class PublishedCorpus:
    r"""
    Args:
        title: its name.
        license: of what is made from it, as the metadata of a model card take it.
        about: the sentence of a card.
        why_not_pushed: why the corpus itself must not be redistributed.
        remaking: who can compute its figures again.
        test_turns: labelled turns of its test split, by set of labels.
    """

    title: str
    license: str
    about: str
    why_not_pushed: str
    remaking: str
    test_turns: Mapping[frozenset[str], int]


PUBLISHED = {
    "iemocap": PublishedCorpus(
        title="IEMOCAP",
        license="other",
        about="IEMOCAP is given out on request, for research alone.",
        why_not_pushed="IEMOCAP's licence is for research and forbids to redistribute it; each user asks its authors for it",
        remaking="IEMOCAP is for research alone and given out by the University of Southern California to those who ask. "
        "Without it none of its figures can be remade.",
        test_turns={
            frozenset(["happy", "sad", "neutral", "angry", "excited", "frustrated"]): 1623,
            frozenset(["happy", "sad", "neutral", "angry"]): 1242,
        },
    ),
    "meld": PublishedCorpus(
        title="MELD",
        license="gpl-3.0",
        about="MELD is under GPL-3.0, and its clips are of a television series.",
        why_not_pushed="MELD's texts and clips are of the television series Friends and are not ours to give on; "
        "its annotations are GPL-3.0",
        remaking="MELD's annotations and transcripts are under GPL-3.0 and free to download; its clips are of a television "
        "series, whose rights are others'. The figures can be remade from the public release.",
        test_turns={frozenset(["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]): 2610},
    ),
    "cmu_mosi": PublishedCorpus(
        title="CMU-MOSI",
        license="other",
        about="CMU-MOSI is given out for research.",
        why_not_pushed="CMU-MOSI's videos, texts and what is made from them belong to the videos' makers and are given out "
        "for research alone",
        remaking="CMU-MOSI comes by way of the CMU Multimodal SDK, on the terms of its authors. Without access to it none of "
        "its figures can be remade.",
        test_turns={frozenset(["negative", "non-negative"]): 686},
    ),
}


@dataclass(frozen=True)
class CorpusOfRun:
    r"""
    A corpus as the card of a run names it.

    Args:
        name: of the corpus.
        test_set: name of what the test scores are of, a part of a published test split with its share.
        is_published: whether those are the labels and the turns of a published test split.
        license: for the metadata; None where none is known.
        about: a sentence on licence and origin; None where nothing is known.
    """

    name: str
    test_set: str
    is_published: bool = False
    license: str | None = None
    about: str | None = None


def published_of_name(name: str | None) -> PublishedCorpus | None:
    """The published corpus whose title a name holds."""
    found = (each for each in PUBLISHED.values() if name and each.title.casefold() in name.casefold())
    return next(found, None)


def corpus_of_run(
    stated: Mapping[str, str | None], name: str | None, labels: Iterable[str], test_turns: int | None
) -> CorpusOfRun:
    r"""
    What a run may call its corpus. The corpus's own tables count; the recipe's name only where they say nothing, and that of a published corpus
    only where labels and test turns are the published ones.

    Args:
        stated: what the tables say: `corpus` (which reader made them), `name`, `license`.
        name: the recipe's `corpus.name`.
        labels: the model's.
        test_turns: labelled turns of the test split; None without test scores.
    """
    published = PUBLISHED.get(stated.get("corpus") or "")
    if published is None and stated.get("name"):
        own, license = stated["name"], stated.get("license")
        return CorpusOfRun(own, own, license=license, about=license and f"Its licence is {license}.")
    known = published or published_of_name(name)
    if known is None:
        return CorpusOfRun(name or CUSTOM, name or CUSTOM)
    expected = known.test_turns.get(frozenset(labels))
    fits = expected is not None and test_turns in (expected, None)
    if published is None:
        return CorpusOfRun(name, name, fits, known.license, known.about) if fits else CorpusOfRun(CUSTOM, CUSTOM)
    called = stated.get("name") or published.title
    if fits:
        return CorpusOfRun(called, published.title, True, published.license, published.about)
    if called == published.title:  # tables of before names were stored
        called = f"{'part of' if expected and test_turns < expected else 'changed'} {published.title}"
    share = f"{test_turns:,} of {expected:,}" if expected and test_turns < expected else f"{test_turns:,} other"
    test_set = f"{published.title}, {share} test turns" if test_turns is not None else called
    return CorpusOfRun(called, test_set, False, published.license, published.about)
