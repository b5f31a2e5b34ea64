"""Processes of a study's runs, several at a time."""

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mister_e_hf.studies.runs import _Running


@pytest.mark.skipif(sys.platform == "win32", reason="its processes are spawned")
def test_runs_that_end_while_others_start_keep_their_exit_codes():
    context, running = multiprocessing.get_context("forkserver"), _Running()

    def ended(code: int) -> int | None:
        process = context.Process(target=sys.exit, args=(code,))
        running.wait_for(process)
        return process.exitcode

    codes = [number % 2 * 3 for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ended, codes)) == codes
