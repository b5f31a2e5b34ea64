"""The command line: `mister-e COMMAND ...`. What a command needs is imported when it runs, so that `--help` is quick."""

import argparse
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

from .. import __version__
from ..errors import InputError, short
from ..installation import check_installation
from ..progress import close_bars
from .corpus import add_corpus
from .output import printing
from .study import add_evidence
from .train import add_stages
from .use import add_use


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
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack characters of names
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        if not hasattr(arguments, "works_in_any_installation"):
            check_installation()
        with printing(arguments.quiet, arguments.json):
            arguments.run(arguments)
        _end_process_group()
    except KeyboardInterrupt:
        close_bars()
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        close_bars()
        for_the_user = isinstance(error, InputError | OSError)
        if arguments.debug:
            traceback.print_exc()
        else:
            message = short(error, 2000)
            if not for_the_user:
                cause = f" ({type(error.__cause__).__name__}: {short(error.__cause__)})" if error.__cause__ else ""
                message = f"{type(error).__name__}: {message}{cause} (--debug shows where)"
            print(f"error: {message}", file=sys.stderr)
        return 2 if for_the_user else 1
    finally:
        sys.unraisablehook = hook
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("--quiet", action="store_true", help="show no progress, only warnings and the result")
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    parser = argparse.ArgumentParser(prog="mister-e", description="Emotion recognition in conversations.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_corpus(commands, common)
    add_use(commands, common)
    add_stages(commands, common)
    add_evidence(commands, common)
    return parser


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
