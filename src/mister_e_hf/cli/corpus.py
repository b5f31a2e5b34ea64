"""`mister-e corpus`."""

import argparse
import logging
import os

from ..media.text_files import text_of_name
from .output import pairs, say


def add_corpus(commands, shared: argparse.ArgumentParser):
    common = argparse.ArgumentParser(add_help=False, parents=[shared])
    common.add_argument("--out", help="write the corpus to this folder: a Parquet table per split, a row per dialogue")
    common.add_argument(
        "--embed_audio", action="store_true", help="put the sound itself into the tables of --out, not its path"
    )
    common.add_argument(
        "--push_to_hub", metavar="ORG/NAME", help="push the corpus, sound included, to a dataset repository"
    )
    common.add_argument("--private", action="store_true", default=None, help="make that repository private")
    common.add_argument(
        "--bad_audio",
        choices=["error", "missing"],
        help="what to do with unreadable audio: stop, or keep the turn without it (MELD's default)",
    )
    common.add_argument("--max_seconds", type=float, help="longest turn taken, in seconds (default: 600)")
    common.add_argument("--cache_dir", help="where datasets keeps what it reads")
    common.add_argument("--num_proc", type=int, help="number of processes that read audio")

    corpus = commands.add_parser("corpus", help="read, summarise, write or push a corpus").add_subparsers(
        title="corpora", required=True, metavar="CORPUS"
    )
    iemocap = corpus.add_parser("iemocap", parents=[common], help="IEMOCAP_full_release")
    iemocap.add_argument("--data_dir", help="folder with Session1 to Session5")
    iemocap.add_argument("--config", choices=["6way", "4way"], help="label set (default: 6way)")
    iemocap.add_argument(
        "--validation", choices=["session 1", "conv-emotion"], help="dialogues for validation (default: session 1)"
    )
    iemocap.add_argument(
        "--labels",
        choices=["community", "official"],
        help="with or without 53 utterances that lack a majority (default: community)",
    )
    iemocap.add_argument(
        "--other_labels", choices=["drop", "context"], help="utterances of other labels (default: drop)"
    )
    meld = corpus.add_parser("meld", parents=[common], help="MELD.Raw, wav clips, or its CSV files alone")
    meld.add_argument("--data_dir", help="its folder; without it the release is downloaded (10 GB)")
    mosi = corpus.add_parser("mosi", parents=[common], help="CMU-MOSI: segmented release, or label.csv")
    mosi.add_argument("--data_dir", help="its folder")
    folder = corpus.add_parser("folder", parents=[common], help="your own recordings and tables")
    folder.add_argument(
        "--data_dir",
        required=True,
        help="a folder, a table (CSV, TSV, JSONL, Parquet) or a subtitle file (SRT, WebVTT)",
    )
    folder.add_argument("--name", type=text_of_name, help="what to call the corpus (default: the name of its folder)")
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
        help="the table's own names, e.g. dialogue_id=call emotion=mood",
    )
    folder.add_argument(
        "--labels",
        nargs="+",
        type=text_of_name,
        metavar="LABEL",
        help="class names in order (default: those found, sorted)",
    )
    folder.add_argument(
        "--split_shares", nargs=3, type=float, metavar="SHARE", help="train, validation, test (default: 0.8 0.1 0.1)"
    )
    folder.add_argument("--seed", type=int, help="seed of the split, if none is given (default: 0)")
    for name, parser in {"Iemocap": iemocap, "Meld": meld, "CmuMosi": mosi, "DialogueFolder": folder}.items():
        parser.set_defaults(run=_corpus, builder=name)


def _corpus(arguments: argparse.Namespace):
    import tempfile

    import mister_e_hf

    from ..corpora.publishing import check_pushable, push_corpus
    from ..corpora.shortcomings import shortcomings
    from ..corpora.store import check_replaceable, described, write_corpus
    from ..corpora.summary import format_summary, summarize

    builder_class = getattr(mister_e_hf, arguments.builder)
    if arguments.push_to_hub:
        check_pushable(builder_class.__module__.rpartition(".")[2], arguments.push_to_hub)
    earlier = None
    if arguments.out:
        check_replaceable(arguments.out)
        earlier = described(arguments.out)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    settings = {
        name: given[name]
        for name in (
            "validation",
            "labels",
            "other_labels",
            "split_shares",
            "seed",
            "bad_audio",
            "max_seconds",
            "cache_dir",
        )
        if name in given
    }
    if "columns" in given:
        settings["columns"] = dict(pairs(given["columns"]))
    builder = builder_class(arguments.data_dir, config_name=given.get("config"), **settings)
    builder.download_and_prepare(num_proc=arguments.num_proc)
    corpus = builder.as_dataset()
    summary = summarize(corpus)
    say(format_summary(summary), splits=summary)
    names = next(iter(corpus.values())).features["utterances"].feature["emotion"].names
    classes = {split: {name: counts[name] for name in names} for split, counts in summary.items()}
    for sentence in shortcomings(classes, {split: counts["dialogues"] for split, counts in summary.items()}):
        logging.getLogger(__name__).warning("%s", sentence)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or (arguments.push_to_hub and os.path.join(temporary, "corpus"))
        if folder:
            embed_audio = arguments.embed_audio or bool(arguments.push_to_hub)
            write_corpus(corpus, folder, embed_audio, given.get("name"), given.get("license"))
        if arguments.out:
            say(
                f"in {arguments.out}" + (f", in place of {earlier}, which was there" if earlier else ""),
                folder=arguments.out,
                replaced=earlier,
            )
        if arguments.push_to_hub:
            repository = push_corpus(folder, arguments.push_to_hub, private=arguments.private)
            say(f"pushed to {repository}", repository=repository)
