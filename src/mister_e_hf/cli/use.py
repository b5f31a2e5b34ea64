"""The commands `mister-e predict`, `plot`, `serve`, `evaluate`, `push`, `convert` and `doctor`."""

import argparse
import codecs
import contextlib
import itertools
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from ..base.chatter import hide_unnamed_bars
from ..base.collection import loading
from ..base.errors import InputError, short
from ..base.modalities import MODALITIES
from ..base.plain_text import count_of
from .output import Failure, add_media_policies, parse_pairs, print_line, print_result


def add_inference_commands(commands: argparse._SubParsersAction, shared: argparse.ArgumentParser):
    """Add the commands that use a trained checkpoint."""
    checkpoint = argparse.ArgumentParser(add_help=False, parents=[shared])
    checkpoint.add_argument("--revision", help="branch, tag or commit on the Hub")
    predict = commands.add_parser(
        "predict",
        parents=[checkpoint],
        help="predict the emotions or scores of the turns of a recording, or of tables",
    )
    predict.add_argument(
        "input",
        help="audio or video file; transcript (.txt) with one turn per line; or table, subtitle file or folder of "
        "turns, as for `corpus folder` (a table need not number its turns); or a corpus folder of vectors or of "
        "dialogues, or one of its Parquet tables",
    )
    predict.add_argument(
        "--segments",
        help="SRT or WebVTT file with the turns of the recording (default: the one of the same name beside it)",
    )
    predict.add_argument("--model", required=True, help="checkpoint folder, or its id on the Hub")
    predict.add_argument("--transcriber", help="speech recognition model for turns without a transcript")
    predict.add_argument(
        "--out",
        help="file to write, .csv, .tsv, .jsonl or .parquet (default: a table on a terminal, else JSON lines)",
    )
    predict.add_argument("--top_k", type=int, help="number of classes to list (default: all)")
    predict.add_argument(
        "--answers", action="store_true", default=None, help="also have the language model of EGMF write its answer"
    )
    add_media_policies(predict)
    predict.add_argument("--columns", nargs="+", metavar="FIELD=NAME", help="columns of the table by field")
    predict.add_argument("--device", help="device to run on, such as cpu or cuda:0 (default: the first accelerator)")
    predict.set_defaults(run=_predict)
    plot = commands.add_parser("plot", parents=[shared], help="plot the emotions or scores of one dialogue")
    plot.add_argument("lines", help="file written by `predict`, or the predictions.parquet of a run")
    plot.add_argument("--out", help="image file, .png, .svg or .pdf (default: the name of that file with .png)")
    plot.add_argument("--dialogue", help="dialogue to plot (default: the first)")
    plot.set_defaults(run=_plot)
    serve = commands.add_parser("serve", parents=[checkpoint], help="start a local web app")
    serve.add_argument("model", help="checkpoint folder, or its id on the Hub")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, only this machine)"
    )
    serve.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    serve.add_argument("--transcriber", help="speech recognition model for turns without a transcript")
    serve.add_argument("--device", help="device to run on, such as cpu or cuda:0 (default: the first accelerator)")
    serve.set_defaults(run=_serve)
    evaluate = commands.add_parser("evaluate", parents=[checkpoint], help="score a checkpoint on a corpus")
    evaluate.add_argument("model", help="checkpoint folder, or its id on the Hub")
    evaluate.add_argument(
        "--corpus",
        help="corpus of dialogues or of vectors: a folder, or its id on the Hub (default: the training corpus)",
    )
    evaluate.add_argument("--split", default="test", help="split to score (default: test)")
    evaluate.add_argument("--vectors", help="folder to keep the computed vectors in (default: a temporary one)")
    evaluate.add_argument("--out", help="JSON file to write all scores to")
    evaluate.add_argument(
        "--answers", action="store_true", help="also score the answers that the language model of EGMF writes"
    )
    evaluate.add_argument("--use_cpu", action="store_true", help="run on the CPU even if a GPU is available")
    evaluate.set_defaults(run=_evaluate)
    push = commands.add_parser("push", parents=[shared], help="push a checkpoint folder to the Hub")
    push.add_argument("folder", help="checkpoint folder")
    push.add_argument("repository", metavar="ORG/NAME", help="repository on the Hub")
    push.add_argument("--private", action="store_true", default=None, help="make the repository private")
    push.add_argument("--revision", help="branch to push to")
    push.add_argument(
        "--base_model",
        nargs="+",
        metavar="NAME=ID",
        help="base model of an encoder, or language_model, that was read from a folder, by its id on the Hub: "
        "text=ORG/NAME",
    )
    push.add_argument(
        "--dry_run",
        action="store_true",
        help="list the files to push and what the card says, and push nothing",
    )
    push.set_defaults(run=_push)
    convert = commands.add_parser(
        "convert", parents=[shared], help="convert weights of the authors' code to a checkpoint folder"
    )
    convert.add_argument("weights", help="state dictionary of the authors' code, moe_model.pth")
    convert.add_argument("folder", help="folder for the checkpoint")
    convert.add_argument("--labels", nargs="+", required=True, help="class names in the order of their indices")
    convert.set_defaults(run=_convert)
    doctor = commands.add_parser(
        "doctor", parents=[shared], help="check the installation, the device and a checkpoint folder"
    )
    doctor.add_argument("folder", nargs="?", help="checkpoint folder")
    doctor.set_defaults(run=_doctor, works_in_any_installation=True)


def _predict(arguments: argparse.Namespace):
    with loading():
        labels, lines = _prediction(arguments)
    with contextlib.closing(lines):
        if arguments.out:
            from ..inference.prediction_output import write_predictions

            count = write_predictions(lines, labels, arguments.out)
            print_result(f"{count_of(count, 'turn')} in {arguments.out}", turns=count, out=arguments.out)
        else:
            _print_predictions(lines, arguments.json or not sys.stdout.isatty())


def _prediction(arguments: argparse.Namespace) -> tuple[list[str], Generator[dict[str, Any], None, None]]:
    """What [`predict_dialogues`] returns, once the model is loaded; the input is checked before."""
    from ..inference.predict import check_model, check_source, check_transcriber, predict_dialogues
    from ..inference.prediction_output import check_format

    columns = dict(parse_pairs(arguments.columns)) if arguments.columns else None
    if arguments.out:
        from ..base.files import check_output

        check_format(arguments.out)
        check_output(arguments.out, [arguments.input, arguments.segments, arguments.model, arguments.transcriber])
    names = ("transcriber", "bad_audio", "bad_video", "top_k", "device", "answers")
    options = {name: getattr(arguments, name) for name in names}
    options["revision"] = arguments.revision
    check_source(arguments.input, arguments.segments, columns)
    check_model(arguments.model, arguments.revision)
    check_transcriber(arguments.transcriber)
    hide_unnamed_bars()
    return predict_dialogues(arguments.input, arguments.model, arguments.segments, columns, **options)


def _print_predictions(lines: Iterator[dict[str, Any]], as_json: bool):
    from ..inference.prediction_output import json_line, turn_table

    if as_json:
        ascii_only = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
        for line in lines:
            print_line(json_line(line, ascii_only))
        return
    width = shutil.get_terminal_size().columns
    for number, (_, turns) in enumerate(itertools.groupby(lines, key=lambda line: line["dialogue"])):
        print_line(("\n" if number else "") + turn_table(list(turns), width))


def _plot(arguments: argparse.Namespace):
    from ..inference.timeline import plot_lines

    path, name, count = plot_lines(arguments.lines, arguments.out, arguments.dialogue)
    print_result(
        f"dialogue '{name}'{f', one of {count}' if count > 1 else ''}, in {path}", file=str(path), dialogue=name
    )


def _serve(arguments: argparse.Namespace):
    from ..inference.predict import check_device, check_model, check_transcriber

    check_model(arguments.model, arguments.revision)
    check_transcriber(arguments.transcriber)
    if arguments.device is not None:
        check_device(arguments.device)
    hide_unnamed_bars()
    from ..inference.serve import serve

    options = {name: getattr(arguments, name) for name in ("transcriber", "device", "revision")}
    serve(arguments.model, arguments.host, arguments.port, **options)


def _evaluate(arguments: argparse.Namespace):
    from ..inference.predict import check_model

    check_model(arguments.model, arguments.revision)
    hide_unnamed_bars()
    from ..base.files import check_output, write_json
    from ..base.prompt_counts import prompt_sentence
    from ..evaluation.answer_scores import format_answers
    from ..evaluation.predictions import format_results, summarize
    from ..training.evaluate import evaluate_checkpoint

    names = ("corpus", "split", "vectors", "use_cpu", "revision", "answers")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.out:
        check_output(arguments.out, [arguments.model, arguments.corpus])
    found = evaluate_checkpoint(arguments.model, **options)
    print_result(format_results({arguments.split: summarize([found["scores"]])}, arguments.split), **found)
    if "answers" in found:
        print_result(format_answers(found["answers"]))
    if (said := prompt_sentence(found.get("prompts", {}))) is not None:
        print_result(said)
    if found["as_stored"] is not None:
        print_result(
            "equal to what results.json holds" if found["as_stored"] else "NOT equal to what results.json holds"
        )
    if arguments.out:
        check_output(arguments.out, [found["corpus"]])
        further = {name: found[name] for name in ("answers", "prompts") if name in found}
        write_json(arguments.out, found["scores"] | further)
        print_result(f"in {arguments.out}", file=arguments.out)


def _push(arguments: argparse.Namespace):
    from ..hub.checkpoint import (
        card_claims,
        check_repository,
        checkpoint_files,
        push_checkpoint,
        pushed_contents,
        weights_elsewhere,
    )
    from ..hub.language_models import FIELD
    from ..inference.stored_stages import load_any_model

    base_models = dict(parse_pairs(arguments.base_model or [], "--base_model", "NAME=ID"))
    known = (*MODALITIES, FIELD)
    if unknown := set(base_models) - set(known):
        expected = ", ".join(f"{name}=ID" for name in known)
        raise InputError(f"--base_model expects {expected}, got '{unknown.pop()}'")
    files = checkpoint_files(arguments.folder)
    check_repository(arguments.repository)
    hide_unnamed_bars()
    load_any_model(arguments.folder)  # never push a checkpoint that cannot be loaded
    if arguments.dry_run:
        contents = pushed_contents(arguments.folder, base_models)
        claims = card_claims(contents)
        print_result("\n".join(f"{size:>14,}  {name}" for name, size in files.items()), files=files)
        if elsewhere := weights_elsewhere(contents):
            lines = [
                f"not pushed: the weights of the base model of {name}/; users get those of '{backbone}' from the Hub"
                for name, backbone in elsewhere.items()
            ]
            print_result("\n".join(lines), not_pushed=elsewhere)
        said = [f"  {name.replace('_', ' ')}: {_listed(value) or 'none'}" for name, value in claims.items()]
        print_result(
            "\n".join(["the card says:", *said]) if claims else "the folder has no card (README.md)", card=claims
        )
        return
    hide_unnamed_bars()
    repository = push_checkpoint(
        arguments.folder,
        arguments.repository,
        private=arguments.private,
        revision=arguments.revision,
        base_models=base_models,
    )
    print_result(f"pushed to {repository}", repository=repository)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _convert(arguments: argparse.Namespace):
    from .. import convert_reference_checkpoint
    from ..base.files import check_output_folder
    from ..hub.checkpoint import save_checkpoint

    folder = check_output_folder(arguments.folder, [arguments.weights])
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"'{folder}' is not empty; the checkpoint would be mixed with its content. Choose another folder."
        )
    hide_unnamed_bars()
    model = convert_reference_checkpoint(arguments.weights, dict(enumerate(arguments.labels)))
    folder = save_checkpoint(folder, model)
    print_result(f"in {folder}", folder=str(folder))


def _doctor(arguments: argparse.Namespace):
    from ..base.installation import examine_installation

    findings: list[dict[str, Any]] = []

    def report(found: Iterable[tuple[bool, str]]):
        for good, text in found:
            findings.append({"good": good, "finding": text})
            print_result(f"{'ok ' if good else 'BAD'}  {text}", findings=findings)

    report(examine_installation())
    try:
        from ..inference.doctor import examine
    except ImportError as error:
        report([(False, f"the libraries cannot be imported: {short(error)}")])
    else:
        hide_unnamed_bars()
        report(examine(arguments.folder))
    if bad := [finding for finding in findings if not finding["good"]]:
        raise Failure(f"{count_of(len(bad), 'finding')} of {len(findings)} marked BAD above", status=2)
