"""The command `mister-e corpus`."""

import argparse
import logging
import os
from typing import Any

from ..media.text_files import text_of_name
from .output import parse_pairs, print_result


def add_corpus_command(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser):
    """Add `corpus` and the corpora that it reads."""
    common = argparse.ArgumentParser(add_help=False, parents=[shared])
    common.add_argument(
        "--out",
        help="folder to write the corpus to: a Parquet table per split, with a row per dialogue; a release of "
        "features becomes a table of vectors",
    )
    common.add_argument(
        "--embed_audio",
        action="store_true",
        help="store the audio and video themselves in the tables of --out, not their paths",
    )
    common.add_argument(
        "--push_to_hub", metavar="ORG/NAME", help="dataset repository to push the corpus to, with its audio and video"
    )
    common.add_argument("--private", action="store_true", default=None, help="make the repository private")
    common.add_argument(
        "--bad_audio",
        choices=["error", "missing"],
        help="what to do with unreadable audio: stop, or keep the turn without it (MELD's default)",
    )
    common.add_argument(
        "--bad_video",
        choices=["error", "missing"],
        help="what to do with unreadable video, in the same way (MELD's default: missing)",
    )
    common.add_argument(
        "--max_seconds", type=float, help="duration of the longest turn that is accepted, in seconds (default: 600)"
    )
    common.add_argument("--cache_dir", help="cache folder of the datasets library")
    common.add_argument("--num_proc", type=int, help="number of processes that read audio")

    corpus = commands.add_parser("corpus", help="read, summarise, write or push a corpus").add_subparsers(
        title="corpora", required=True, metavar="CORPUS"
    )
    iemocap = corpus.add_parser("iemocap", parents=[common], help="read IEMOCAP (IEMOCAP_full_release)")
    iemocap.add_argument("--data_dir", help="folder with Session1 to Session5")
    iemocap.add_argument("--config", choices=["6way", "4way"], help="label set (default: 6way)")
    iemocap.add_argument(
        "--validation", choices=["session 1", "conv-emotion"], help="validation dialogues (default: session 1)"
    )
    iemocap.add_argument(
        "--labels",
        choices=["community", "official"],
        help="label convention: official leaves out 53 utterances without a majority label (default: community)",
    )
    iemocap.add_argument(
        "--other_labels",
        choices=["drop", "context"],
        help="treatment of utterances with other labels: drop them, or keep them as context (default: drop)",
    )
    meld = corpus.add_parser("meld", parents=[common], help="read MELD (MELD.Raw, WAV clips, or its CSV files alone)")
    meld.add_argument("--data_dir", help="folder of MELD (default: download the release, 10 GB)")
    mosi = corpus.add_parser("mosi", parents=[common], help="read CMU-MOSI (the segmented release, or label.csv)")
    mosi.add_argument("--data_dir", help="folder of CMU-MOSI")
    mosei = corpus.add_parser(
        "mosei",
        parents=[common],
        help="read CMU-MOSEI (label.csv with clips, a pickle of features, or the raw release)",
    )
    mosei.add_argument("--data_dir", help="folder of CMU-MOSEI, or a pickle of features (aligned_50.pkl)")
    sims = corpus.add_parser(
        "sims", parents=[common], help="read CH-SIMS v2 (meta.csv with clips, or a pickle of features)"
    )
    sims.add_argument("--data_dir", help="folder of CH-SIMS v2, or a pickle of features (ch-simsv2s.pkl)")
    cherma = corpus.add_parser(
        "cherma", parents=[common], help="read CHERMA (its lists with released features, or MSE-Adapter's pickles)"
    )
    cherma.add_argument("--data_dir", help="folder of CHERMA")
    cherma.add_argument(
        "--group_pattern",
        type=text_of_name,
        metavar="REGEX",
        help="regular expression with the groups dialogue and order for the names of utterances, e.g. "
        r"'(?P<dialogue>.+)_(?P<order>\d+)' (default: each utterance is a dialogue)",
    )
    folder = corpus.add_parser("folder", parents=[common], help="read your own recordings and tables")
    folder.add_argument(
        "--data_dir",
        required=True,
        help="folder, table (CSV, TSV, JSONL, Parquet) or subtitle file (SRT, WebVTT)",
    )
    folder.add_argument("--name", type=text_of_name, help="name of the corpus (default: the name of its folder)")
    folder.add_argument(
        "--license",
        type=text_of_name,
        help="licence under which the corpus may be shared, e.g. cc-by-4.0 (default: none)",
    )
    folder.add_argument(
        "--columns",
        nargs="+",
        type=text_of_name,
        metavar="FIELD=NAME",
        help="columns of the table by field, e.g. dialogue_id=call emotion=mood",
    )
    folder.add_argument(
        "--labels",
        nargs="+",
        type=text_of_name,
        metavar="LABEL",
        help="class names in order (default: the names in the corpus, sorted)",
    )
    folder.add_argument(
        "--scores",
        nargs="+",
        type=text_of_name,
        metavar="COLUMN",
        help="further columns that hold a number per turn, to keep as scores that a model can predict, e.g. valence "
        "activation (sentiment is kept without being named)",
    )
    folder.add_argument(
        "--split_shares",
        nargs=3,
        type=float,
        metavar="SHARE",
        help="shares of train, validation and test (default: 0.8 0.1 0.1)",
    )
    folder.add_argument("--seed", type=int, help="seed of the split, if the corpus has none (default: 0)")
    builders = {"Iemocap": iemocap, "Meld": meld, "CmuMosi": mosi, "DialogueFolder": folder}
    builders |= {"CmuMosei": mosei, "ChSimsV2": sims, "Cherma": cherma}
    for builder, parser in builders.items():
        parser.set_defaults(run=_corpus, builder=builder)


def _corpus(arguments: argparse.Namespace):
    import tempfile

    import mister_e_hf

    from ..corpora.publishing import check_pushable, push_corpus
    from ..corpora.shortcomings import shortcomings
    from ..corpora.store import check_replaceable, described, write_corpus
    from ..corpora.summary import format_summary, summarize, vector_widths

    builder_class = getattr(mister_e_hf, arguments.builder)
    if arguments.push_to_hub:
        check_pushable(builder_class.__module__.rpartition(".")[2], arguments.push_to_hub)
    earlier = None
    if arguments.out:
        check_replaceable(arguments.out)
        earlier = described(arguments.out)
    given: dict[str, Any] = {name: value for name, value in vars(arguments).items() if value is not None}
    settings: dict[str, Any] = {
        name: given[name]
        for name in (
            "validation",
            "labels",
            "other_labels",
            "scores",
            "group_pattern",
            "split_shares",
            "seed",
            "bad_audio",
            "bad_video",
            "max_seconds",
            "cache_dir",
        )
        if name in given
    }
    if "columns" in given:
        settings["columns"] = dict(parse_pairs(given["columns"]))
    builder = builder_class(arguments.data_dir, config_name=given.get("config"), **settings)
    builder.download_and_prepare(num_proc=arguments.num_proc)
    corpus = builder.as_dataset()
    summary = summarize(corpus)
    print_result(format_summary(summary), splits=summary)
    names = next(iter(corpus.values())).features["utterances"].feature["emotion"].names
    classes = {split: {name: int(counts.get(name, 0)) for name in names} for split, counts in summary.items()}
    for sentence in shortcomings(classes, {split: int(counts["dialogues"]) for split, counts in summary.items()}):
        logging.getLogger(__name__).warning("%s", sentence)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or (arguments.push_to_hub and os.path.join(temporary, "corpus"))
        if folder:
            embed_audio = arguments.embed_audio or bool(arguments.push_to_hub)
            write_corpus(corpus, folder, embed_audio, given.get("name"), given.get("license"))
        if arguments.out:
            print_result(
                f"in {arguments.out}" + (f", in place of {earlier}, which was there" if earlier else ""),
                folder=arguments.out,
                replaced=earlier,
            )
            if widths := vector_widths(corpus):
                sizes = ", ".join(f"{name} {width}" for name, width in widths.items())
                print_result(
                    f"this is a table of vectors ({sizes}); next: mister-e init {arguments.out}", vectors=widths
                )
        if arguments.push_to_hub:
            repository = push_corpus(folder, arguments.push_to_hub, private=arguments.private)
            print_result(f"pushed to {repository}", repository=repository)
