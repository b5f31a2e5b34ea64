"""The command line: `mister-e COMMAND ...`. What a command needs is imported when it runs: `--help` is quick."""

import argparse
import contextlib
import difflib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence

from .. import __version__
from ..base.errors import InputError, short
from ..base.installation import check_installation
from ..base.plain_text import for_terminal
from ..base.progress import close_bars
from .corpus import add_corpus
from .output import Failure, in_its_words, printing
from .study import add_evidence
from .train import add_stages
from .use import add_use


def main(words: Sequence[str] | None = None) -> int:
    """
    Run a command. Errors that the user can mend are one line, or with `--debug` a traceback.

    Returns:
        exit status: 0; 1 where something failed; 2 where the command or its input is wrong; 130 where it was
            interrupted or ended by a signal.
    """
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["train-encoder"]:  # its earlier name
        words[0] = "train_encoder"
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    arguments, rest = parser.parse_known_args(words)
    if rest and not hasattr(arguments, "takes_fields"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.words = rest
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack characters of names
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        with _ends_as_interrupted(), printing(arguments.quiet, arguments.json):
            if not hasattr(arguments, "works_in_any_installation"):
                check_installation()
            arguments.run(arguments)
        _end_process_group()
    except KeyboardInterrupt:
        close_bars()
        print("interrupted", file=sys.stderr)
        return 130
    except Failure as failure:
        close_bars()
        print(f"error: {for_terminal(failure)}", file=sys.stderr)
        return failure.status
    except Exception as error:
        close_bars()
        for_the_user = isinstance(error, InputError | OSError)
        if arguments.debug:
            traceback.print_exc()
        else:
            message = in_its_words(short(error, 2000), arguments)
            if not for_the_user:
                cause = f" ({type(error.__cause__).__name__}: {short(error.__cause__)})" if error.__cause__ else ""
                message = f"{type(error).__name__}: {message}{cause} (--debug shows where)"
            print(f"error: {for_terminal(message)}", file=sys.stderr)
        return 2 if for_the_user else 1
    finally:
        sys.unraisablehook = hook
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("--quiet", action="store_true", help="show no progress, only warnings and the result")
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    parser = _Parser(prog="mister-e", description="Emotion recognition in conversations.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_corpus(commands, common)
    add_use(commands, common)
    add_stages(commands, common)
    add_evidence(commands, common)
    return parser


class _Parser(argparse.ArgumentParser):
    """Asks about a command or choice that is nearly known."""

    def _check_value(self, action: argparse.Action, value: str):
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            nearest = difflib.get_close_matches(str(value), map(str, action.choices), n=1)
            if nearest:
                raise argparse.ArgumentError(
                    action, f"invalid choice: {value!r}; did you mean '{nearest[0]}'?"
                ) from error
            raise


@contextlib.contextmanager
def _ends_as_interrupted() -> Iterator[None]:
    """
    What a scheduler or a closed terminal sends ends a command as Ctrl-C does: temporary files and processes of its own
    go with it.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # not where nohup has it ignored
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number, frame):
    signal.signal(number, signal.SIG_IGN)  # what ends is not to be disturbed at it
    raise KeyboardInterrupt


def _ours() -> set[int]:
    """The signals that end a command as Ctrl-C does, while one runs."""
    numbers = {getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}
    return {number for number in numbers if signal.getsignal(number) is _interrupt}


def _before_fork():
    # Python drops a signal that reaches a process between its fork and the next function.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ours())


def _after_fork():
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _end_at_once():
    """A process that was forked, such as one of a pool, ends where it stands when its parent says so."""
    for number in _ours():
        signal.signal(number, signal.SIG_DFL)
    _after_fork()


_forking = threading.local()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_end_at_once)


def _end_process_group():
    """A process that exits with its group's threads still at work is aborted now and then, with all its work done."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _interrupt_again(lost):
    """
    Sound files are read and written by callbacks from C, and an interrupt that comes in one of them would be dropped.
    """
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(lost)
