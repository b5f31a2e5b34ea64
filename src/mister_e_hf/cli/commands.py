"""The command line: `mister-e COMMAND ...`.

Each command imports what it needs when it runs, so that `--help` is fast.
"""

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
from .corpus import add_corpus_command
from .output import Failure, printing, with_options
from .study import add_study_commands
from .train import add_training_commands
from .use import add_inference_commands


def main(argv: Sequence[str] | None = None) -> int:
    r"""
    Run a command. An error that the user can correct is printed as one line, or with `--debug` as a traceback.

    Args:
        argv (`Sequence[str]`, *optional*): command and options; by default those of this process.

    Returns:
        exit status: 0 for success, 1 for a failure, 2 if the command or its input is wrong, 130 if it was interrupted
        or ended by a signal.
    """
    words = list(map(_with_underscores, sys.argv[1:] if argv is None else argv))
    if words[:1] == ["train-encoder"]:  # its earlier name
        words[0] = "train_encoder"
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    arguments, rest = parser.parse_known_args(words)
    if rest and not hasattr(arguments, "takes_fields"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides = rest
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack characters of names
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        with _ends_as_interrupted(), printing(arguments.quiet, arguments.json):
            if not hasattr(arguments, "works_in_any_installation"):
                check_installation()
            arguments.run(arguments)
        _end_process_group()
        if _cancel_repeated():  # the library continued, so data may be missing
            raise KeyboardInterrupt
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
        if _cancel_repeated():  # what called the interrupted callback has failed for it
            print("interrupted", file=sys.stderr)
            return 130
        for_the_user = isinstance(error, InputError | OSError)
        if arguments.debug:
            traceback.print_exc()
        else:
            message = with_options(short(error, 2000), arguments)
            if not for_the_user:
                cause = f" ({type(error.__cause__).__name__}: {short(error.__cause__)})" if error.__cause__ else ""
                message = f"{type(error).__name__}: {message}{cause} (--debug shows where)"
            print(f"error: {for_terminal(message)}", file=sys.stderr)
        return 2 if for_the_user else 1
    finally:
        sys.unraisablehook = hook
        _cancel_repeated()
    return 0


def _with_underscores(word: str) -> str:
    """An option spelled with hyphens (`--dry-run`) as it is spelled here (`--dry_run`)."""
    option, equals, value = word.partition("=")
    return f"--{option[2:].replace('-', '_')}{equals}{value}" if option.startswith("--") else word


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("--quiet", action="store_true", help="show only warnings and the result, no progress")
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    parser = _Parser(prog="mister-e", description="Emotion recognition in conversations.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_corpus_command(commands, common)
    add_inference_commands(commands, common)
    add_training_commands(commands, common)
    add_study_commands(commands, common)
    return parser


class _Parser(argparse.ArgumentParser):
    """Suggests the nearest command or choice for one that is not known."""

    def _check_value(self, action: argparse.Action, value: str):
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            nearest = difflib.get_close_matches(str(value), map(str, action.choices or ()), n=1)
            if nearest:
                raise argparse.ArgumentError(
                    action, f"invalid choice: {value!r}; did you mean '{nearest[0]}'?"
                ) from error
            raise


@contextlib.contextmanager
def _ends_as_interrupted() -> Iterator[None]:
    """
    Handle the signals of a scheduler and of a closed terminal as Ctrl-C: temporary files are removed and child
    processes end.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: leave that
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object):
    signal.signal(number, signal.SIG_IGN)  # a second signal must not disturb the clean-up
    raise KeyboardInterrupt


def _handled_signals() -> set[int]:
    """The signals that end a running command as Ctrl-C does."""
    numbers = {getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}
    return {number for number in numbers if signal.getsignal(number) is _interrupt}


def _before_fork():
    # Python loses a signal that arrives between the fork and the handler of the child.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _handled_signals())


def _after_fork():
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _restore_in_child():
    """A forked process, such as a worker of a pool, ends at once when its parent terminates it."""
    for number in _handled_signals():
        signal.signal(number, signal.SIG_DFL)
    _after_fork()


_forking = threading.local()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_restore_in_child)


def _end_process_group():
    """Close the process group: a process that exits while the threads of its group run is sometimes aborted."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _interrupt_again(lost: "sys.UnraisableHookArgs"):
    """Repeat an interrupt that arrived in a callback from C, as when audio is read, where Python drops exceptions."""
    if lost.exc_type is KeyboardInterrupt:
        # not at once: what called the callback may fail for it, and clean up
        _repeated.append(threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]))
        _repeated[-1].start()
    else:
        sys.__unraisablehook__(lost)


def _cancel_repeated() -> bool:
    """Do not repeat interrupts that wait for it; whether any did."""
    waiting = [timer for timer in _repeated if timer.is_alive()]
    for timer in waiting:
        timer.cancel()
    _repeated.clear()
    return bool(waiting)


_repeated: list[threading.Timer] = []
