"""
Processes that are forked from the one of the tests, where everything is imported already: imports alone take a new
process some eight seconds of processor time.
"""

import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState

HERE = Path(__file__).parent


def fork(work: Callable[[], object], log: Path) -> int:
    """Do this work in a forked process, which writes its output to `log` and ends with status 0; return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(each, "w", buffering=1, closefd=False) for each in (1, 2))
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run_script(script: Path, *words, log: Path) -> int:
    """Run a script in a forked process as `python SCRIPT WORDS ...` does; return its exit status."""

    def work():
        sys.path.insert(0, str(script.parent))
        sys.argv = [str(script), *map(str, words)]
        runpy.run_path(sys.argv[0], run_name="__main__")

    return os.waitstatus_to_exitcode(os.waitpid(fork(work, log), 0)[1])


def run_processes(count: int, script: str, *words, timeout: float = 200):
    """Run a script of this folder in several processes of one group, as `torchrun --nproc_per_node COUNT` does."""
    folder = Path(words[0])
    logs = [folder / f"process-{rank}.txt" for rank in range(count)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def run(rank: int):
        os.environ |= {name: str(value) for name, value in (group | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()  # of a trainer in the process of the tests
        sys.argv = [str(HERE / script), *map(str, words)]
        runpy.run_path(sys.argv[0], run_name="__main__")

    running = {fork(lambda rank=rank: run(rank), logs[rank]) for rank in range(count)}
    end, failed = time.monotonic() + timeout, False
    while running:
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            failed |= status != 0
            running -= {ended}
        failed |= time.monotonic() > end
        if failed:  # the others would wait for the lost one
            for process in running:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    assert not failed, "\n".join(log.read_text(encoding="utf-8") for log in logs if log.exists())
