"""The command line: `mister-e COMMAND ...`. What a command needs is imported when it runs, so that `--help` is quick."""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

from . import __version__


def main(words: Sequence[str] | None = None) -> int:
    """
    Run a command. Errors that the user can mend are one line, or with `--debug` a traceback.

    Returns:
        exit status: 0; 1 where something failed; 2 where the command or its input is wrong; 130 where it was interrupted.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and not hasattr(arguments, "takes_fields"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.words = rest
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        arguments.run(arguments)
        _end_process_group()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            message = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, ValueError | OSError):
                cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
                message = f"{type(error).__name__}: {message}{cause} (--debug shows where)"
            print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | OSError) else 1
    finally:
        sys.unraisablehook = hook
    return 0


def _end_process_group():
    """A process that exits with its group's threads still at work is aborted now and then, with all its work done."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _interrupt_again(lost):
    """Sound files are read and written by callbacks from C, and an interrupt that comes in one of them would be dropped."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(lost)


def _say(text: str):
    """Print, at once. What the output is piped to may have read enough: no reason to leave the work half done."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(prog="mister-e", description="Emotion recognition in conversations.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_corpus(commands, debug)
    _add_use(commands, debug)
    _add_stages(commands, debug)
    _add_evidence(commands, debug)
    return parser


def _add_stages(commands, debug: argparse.ArgumentParser):
    common = argparse.ArgumentParser(add_help=False, parents=[debug])
    common.add_argument(
        "recipe",
        help="YAML file with the sections model, corpus and training, and speech_encoder, text_encoder for stage 1",
    )
    common.add_argument("--output_dir", help="where the run goes (default: runs/NAME-OF-THE-RECIPE)")
    common.set_defaults(takes_fields=True)
    rest = "Every further --field value overrides the recipe's, e.g. --learning_rate 1e-4 --text_encoder.tuning full."
    train = commands.add_parser(
        "train", parents=[common], epilog=rest, help="train a recipe: encoders, vectors, MiSTER-E"
    )
    train.add_argument("--seeds", type=int, nargs="+", default=[0], help="several go to OUTPUT_DIR/seed-N/")
    train.set_defaults(run=_train)
    encoder = commands.add_parser("train-encoder", parents=[common], epilog=rest, help="train one encoder of stage 1")
    encoder.add_argument("--modality", choices=["speech", "text"], required=True)
    encoder.add_argument("--seed", type=int, default=0)
    encoder.set_defaults(run=_train_encoder)
    embed = commands.add_parser("embed", parents=[common], epilog=rest, help="a corpus's vectors by trained encoders")
    embed.add_argument("--out", help="where the vectors go (default: OUTPUT_DIR/vectors)")
    embed.add_argument(
        "--bad_audio",
        choices=["error", "missing"],
        default="error",
        help="sound that cannot be used: stop, or go without it",
    )
    embed.add_argument("--num_workers", type=int, default=0, help="processes that decode sound ahead of the model")
    embed.add_argument("--token_budget", type=int, default=8192, help="largest batch of text, in tokens")
    embed.add_argument("--second_budget", type=float, default=120.0, help="largest batch of sound, in seconds")
    embed.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the computation (default: bfloat16 on a GPU made for it)",
    )
    embed.set_defaults(run=_embed)


def _add_evidence(commands, debug: argparse.ArgumentParser):
    study = argparse.ArgumentParser(add_help=False, parents=[debug])
    study.add_argument("recipe", help="YAML file of a MiSTER-E model")
    study.add_argument("--out", required=True, help="the study's folder")
    study.add_argument("--folds", type=int, default=4, help="of the development data (default: 4)")
    study.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    study.set_defaults(takes_fields=True)
    rest = "Every further --field value overrides the recipe's."
    search = commands.add_parser(
        "search",
        parents=[study],
        epilog=rest,
        help="settings of MiSTER-E and the baselines, as many trials each, on folds of the development data",
    )
    search.add_argument("--trials", type=int, default=8, help="of each system, the recipe's own first (default: 8)")
    search.add_argument("--systems", nargs="+", metavar="NAME", help="which to search (default: all)")
    search.set_defaults(run=_search)
    ablate = commands.add_parser(
        "ablate",
        parents=[study],
        epilog=rest,
        help="a recipe's variants and baselines, on folds of the development data; what is finished is not run again",
    )
    ablate.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 1 2 3 4)")
    ablate.add_argument("--variants", nargs="+", metavar="NAME", help="which to run (default: all)")
    ablate.add_argument(
        "--final", action="store_true", help="freeze the recipes, with the date, and score test, in place of the folds"
    )
    ablate.set_defaults(run=_ablate)
    report = commands.add_parser("report", parents=[debug], help="tables and pictures of ablation studies")
    report.add_argument("studies", nargs="+", metavar="OUT", help="folder of a study; the report is written into it")
    report.add_argument("--results", metavar="RESULTS.md", help="write the tables of all of them to this file, too")
    report.set_defaults(run=_report)


def _search(arguments: argparse.Namespace):
    from .recipe import Recipe
    from .search import format_trials, search

    recipe = Recipe.load(arguments.recipe, arguments.words)
    names = ("out", "trials", "systems", "folds", "jobs")
    scored = search(recipe, **{name: getattr(arguments, name) for name in names}, say=_say)
    _say(f"{format_trials(scored)}\nin {arguments.out}")
    failed = [trial for found in scored.values() for trial in found if trial["weighted_f1"] is None]
    if failed:
        raise RuntimeError(f"{len(failed)} trials have runs that failed; the same command tries them again")


def _ablate(arguments: argparse.Namespace):
    from .ablation import ablate
    from .recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.words)
    names = ("out", "seeds", "folds", "variants", "final", "jobs")
    failed = ablate(recipe, **{name: getattr(arguments, name) for name in names}, say=_say)
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed: {', '.join(failed)}; the same command tries them again")
    _say(f"in {arguments.out}; next: mister-e report {arguments.out}")


def _recipe(arguments: argparse.Namespace):
    from pathlib import Path

    from .recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.words)
    return recipe, Path(arguments.output_dir or Path("runs") / Path(arguments.recipe).stem)


def _say_once(text: str):
    """By one process of several."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        _say(text)


def _train(arguments: argparse.Namespace):
    from .experiment import format_results
    from .stages import train

    recipe, folder = _recipe(arguments)
    _say_once(f"{format_results(train(recipe, folder, arguments.seeds))}\nin {folder}")


def _train_encoder(arguments: argparse.Namespace):
    from .encoder_experiment import train_encoder
    from .stages import encoder_folder

    recipe, folder = _recipe(arguments)
    folder = encoder_folder(folder, arguments.modality)
    results = train_encoder(recipe, arguments.modality, folder, arguments.seed)
    scores = [f"{name} {100 * results[name]['weighted_f1']:.2f}" for name in ("validation", "test") if name in results]
    _say_once(f"weighted F1: {', '.join(scores)}\nin {folder}")


def _embed(arguments: argparse.Namespace):
    import torch

    from .stages import embed

    recipe, folder = _recipe(arguments)
    names = ("bad_audio", "num_workers", "token_budget", "second_budget")
    options = {name: getattr(arguments, name) for name in names}
    dtype = arguments.dtype and getattr(torch, arguments.dtype)
    _say_once(f"vectors in {embed(recipe, folder, arguments.out, dtype=dtype, **options)}")


def _add_use(commands, debug: argparse.ArgumentParser):
    checkpoint = argparse.ArgumentParser(add_help=False, parents=[debug])
    checkpoint.add_argument("--revision", help="branch, tag or commit on the Hub")
    predict = commands.add_parser(
        "predict", parents=[checkpoint], help="emotions of a recording's or a table's turns, as JSON lines"
    )
    predict.add_argument(
        "input", help="a recording with --segments, or a table or folder of turns, as for `corpus folder`"
    )
    predict.add_argument("--segments", help="SRT or WebVTT file with the recording's turns")
    predict.add_argument("--model", required=True, help="checkpoint folder, or its id on the Hub")
    predict.add_argument("--transcriber", help="recognition model for turns without words")
    predict.add_argument("--out", help="file of JSON lines (default: standard output)")
    predict.add_argument("--top_k", type=int, help="how many classes to list (default: all)")
    predict.add_argument(
        "--bad_audio", choices=["error", "missing"], default="error", help="sound that cannot be used"
    )
    predict.add_argument("--columns", nargs="+", metavar="FIELD=NAME", help="the table's own names")
    predict.add_argument("--device", help="such as cpu or cuda:0 (default: the first accelerator)")
    predict.set_defaults(run=_predict)
    plot = commands.add_parser("plot", parents=[debug], help="a picture of one dialogue's emotions")
    plot.add_argument("lines", help="JSON lines that `predict` wrote")
    plot.add_argument("--out", help="picture, .png, .svg or .pdf (default: the lines' name with .png)")
    plot.add_argument("--dialogue", help="which one, where there are several (default: the first)")
    plot.set_defaults(run=_plot)
    serve = commands.add_parser("serve", parents=[checkpoint], help="a page in the browser, on this machine")
    serve.add_argument("model", help="checkpoint folder, or its id on the Hub")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    serve.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    serve.add_argument("--transcriber", help="recognition model for turns without words")
    serve.add_argument("--device", help="such as cpu or cuda:0 (default: the first accelerator)")
    serve.set_defaults(run=_serve)
    evaluate = commands.add_parser("evaluate", parents=[checkpoint], help="score a checkpoint on a corpus")
    evaluate.add_argument("model", help="checkpoint folder, or its id on the Hub")
    evaluate.add_argument("--corpus", help="vectors, or sound and words (default: what it was trained on)")
    evaluate.add_argument("--split", default="test", help="which split (default: test)")
    evaluate.add_argument("--vectors", help="keep the vectors that are made in this folder")
    evaluate.add_argument("--out", help="write all scores to this JSON file")
    evaluate.add_argument("--use_cpu", action="store_true", help="even where there is a GPU")
    evaluate.set_defaults(run=_evaluate)
    push = commands.add_parser("push", parents=[debug], help="push a checkpoint folder to the Hub")
    push.add_argument("folder", help="checkpoint folder")
    push.add_argument("repository", metavar="ORG/NAME")
    push.add_argument("--private", action="store_true", default=None, help="make the repository private")
    push.add_argument("--revision", help="push to this branch")
    push.add_argument("--dry-run", action="store_true", help="list what would go, and push nothing")
    push.set_defaults(run=_push)
    convert = commands.add_parser(
        "convert", parents=[debug], help="weights of the authors' code -> a checkpoint folder"
    )
    convert.add_argument("weights", help="their state dictionary, moe_model.pth")
    convert.add_argument("folder", help="where the checkpoint goes")
    convert.add_argument("--labels", nargs="+", required=True, help="class names in the order of their indices")
    convert.set_defaults(run=_convert)
    doctor = commands.add_parser(
        "doctor", parents=[debug], help="check the installation, the device, a checkpoint folder"
    )
    doctor.add_argument("folder", nargs="?", help="checkpoint folder")
    doctor.set_defaults(run=_doctor)


def _predict(arguments: argparse.Namespace):
    from .prediction import predict_dialogues, write_lines

    columns = dict(_pairs(arguments.columns)) if arguments.columns else None
    options = {name: getattr(arguments, name) for name in ("transcriber", "bad_audio", "top_k", "device", "revision")}
    lines = predict_dialogues(arguments.input, arguments.model, arguments.segments, columns, **options)
    if arguments.out:
        _say(f"{write_lines(lines, arguments.out)} turns in {arguments.out}")
    else:
        import json

        for line in lines:
            _say(json.dumps(line, ensure_ascii=False))


def _plot(arguments: argparse.Namespace):
    from .timeline import plot_lines

    path, name, count = plot_lines(arguments.lines, arguments.out, arguments.dialogue)
    _say(f"dialogue '{name}'{f', one of {count}' if count > 1 else ''}, in {path}")


def _serve(arguments: argparse.Namespace):
    from .serve import serve

    options = {name: getattr(arguments, name) for name in ("transcriber", "device", "revision")}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted then, too
    serve(arguments.model, arguments.host, arguments.port, **options)


def _evaluate(arguments: argparse.Namespace):
    from .evaluation import evaluate_checkpoint
    from .experiment import format_results, summarize
    from .run_folder import write_json

    options = {name: getattr(arguments, name) for name in ("corpus", "split", "vectors", "use_cpu", "revision")}
    found = evaluate_checkpoint(arguments.model, **options)
    _say(format_results({"test": summarize([found["scores"]])}).replace("test", arguments.split, 1))
    if found["as_stored"] is not None:
        _say("as stored in results.json" if found["as_stored"] else "NOT as stored in results.json")
    if arguments.out:
        from pathlib import Path

        write_json(Path(arguments.out), found["scores"])
        _say(f"in {arguments.out}")


def _report(arguments: argparse.Namespace):
    from .report import write_report
    from .results_page import write_results

    for folder in arguments.studies:
        _say(str(write_report(folder)))
    if arguments.results:
        _say(str(write_results(arguments.studies, arguments.results)))


def _push(arguments: argparse.Namespace):
    from .hub import checkpoint_files, push_checkpoint

    if arguments.dry_run:
        for name, size in checkpoint_files(arguments.folder).items():
            _say(f"{size:>14,}  {name}")
        return
    repository = push_checkpoint(
        arguments.folder, arguments.repository, private=arguments.private, revision=arguments.revision
    )
    _say(f"pushed to {repository}")


def _convert(arguments: argparse.Namespace):
    from .convert import convert_reference_checkpoint
    from .hub import save_checkpoint

    model = convert_reference_checkpoint(arguments.weights, dict(enumerate(arguments.labels)))
    _say(f"in {save_checkpoint(arguments.folder, model)}")


def _doctor(arguments: argparse.Namespace):
    from .doctor import examine

    findings = list(examine(arguments.folder))
    for good, text in findings:
        _say(f"{'ok ' if good else 'BAD'}  {text}")
    if not all(good for good, _ in findings):
        raise ValueError("something is wrong; see above")


def _pairs(given: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in given]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"--columns expects FIELD=NAME, got {given}")
    return [(field, name) for field, _, name in pairs]


def _add_corpus(commands, debug: argparse.ArgumentParser):
    common = argparse.ArgumentParser(add_help=False, parents=[debug])
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
        help="sound that cannot be used: stop, or go without it (MELD's default)",
    )
    common.add_argument("--max_seconds", type=float, help="longest turn taken, in seconds (default: 600)")
    common.add_argument("--cache_dir", help="where datasets keeps what it reads")
    common.add_argument("--num_proc", type=int, help="processes that read sound")

    corpus = commands.add_parser("corpus", help="read a corpus, tell its counts, write it, push it").add_subparsers(
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
    folder.add_argument(
        "--columns", nargs="+", metavar="FIELD=NAME", help="the table's own names, e.g. dialogue_id=call emotion=mood"
    )
    folder.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="class names in order (default: those found, sorted)"
    )
    folder.add_argument(
        "--split_shares", nargs=3, type=float, metavar="SHARE", help="train, validation, test (default: 0.8 0.1 0.1)"
    )
    folder.add_argument("--seed", type=int, help="of the split, where none is given (default: 0)")
    for name, parser in {"Iemocap": iemocap, "Meld": meld, "CmuMosi": mosi, "DialogueFolder": folder}.items():
        parser.set_defaults(run=_corpus, builder=name)


def _corpus(arguments: argparse.Namespace):
    import tempfile

    import mister_e_hf

    from .corpora.publishing import check_pushable, push_corpus
    from .corpora.store import check_replaceable, write_corpus
    from .corpora.summary import format_summary, summarize

    builder_class = getattr(mister_e_hf, arguments.builder)
    if arguments.push_to_hub:
        check_pushable(builder_class.__module__.rpartition(".")[2], arguments.push_to_hub)
    if arguments.out:
        check_replaceable(arguments.out)
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
        settings["columns"] = dict(_pairs(given["columns"]))
    builder = builder_class(arguments.data_dir, config_name=given.get("config"), **settings)
    builder.download_and_prepare(num_proc=arguments.num_proc)
    corpus = builder.as_dataset()
    _say(format_summary(summarize(corpus)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or (arguments.push_to_hub and os.path.join(temporary, "corpus"))
        if folder:
            write_corpus(corpus, folder, embed_audio=arguments.embed_audio or bool(arguments.push_to_hub))
        if arguments.out:
            _say(f"in {arguments.out}")
        if arguments.push_to_hub:
            _say(f"pushed to {push_corpus(folder, arguments.push_to_hub, private=arguments.private)}")


if __name__ == "__main__":
    sys.exit(main())
