"""What ends a command from outside: as Ctrl-C, once, and in none of the processes that it forked."""

import os
import signal
import time

import pytest

from mister_e_hf.cli.commands import _ends_as_interrupted

ENDING = [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_interrupts_and_a_second_one_does_not_disturb_the_end(number):
    before, steps = signal.getsignal(number), []
    with pytest.raises(KeyboardInterrupt), _ends_as_interrupted():
        try:
            signal.raise_signal(number)
            steps.append("worked on")
        finally:
            signal.raise_signal(number)
            steps.append("cleaned up")
    assert steps == ["cleaned up"] and signal.getsignal(number) == before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _ends_as_interrupted():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_forked_process_ends_where_it_is(number):
    with _ends_as_interrupted():
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(number)
            finally:
                os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number


def test_a_child_ends_however_early_it_is_stopped():
    """A signal right after a fork, before Python continues, must not be lost: a pool would wait for ever."""
    with _ends_as_interrupted():
        for _ in range(100):
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
