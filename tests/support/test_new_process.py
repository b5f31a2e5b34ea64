"""A forked process is as `python` is."""

import json

import pytest

from support.new_process import run_python

SHOW = """
import json, os, sys
loaded = sorted({"torch", "pytest", "support", "transformers", "datasets", "mister_e_hf"} & set(sys.modules))
print(json.dumps([__name__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("HERE"), loaded]))
"""


def test_words_folder_and_environment_are_those_given(tmp_path):
    call = run_python("-c", SHOW, "a", 1, env={"HERE": "é", "PYTHONPATH": "/x"}, cwd=tmp_path)
    expected = ["__main__", ["-c", "a", "1"], "", str(tmp_path), "é", ["torch"]]
    assert (call.returncode, json.loads(call.stdout), call.stderr) == (0, expected, "")
    (tmp_path / "shown.py").write_text(SHOW)
    for words in (["-m", "shown"], [tmp_path / "shown.py"]):
        name, arguments, place, *_ = json.loads(run_python(*words, "b", cwd=tmp_path).stdout)
        assert (name, arguments, place) == ("__main__", [str(tmp_path / "shown.py"), "b"], str(tmp_path))


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("import atexit; atexit.register(print, 'end')", 0, ""),
    ],
)
def test_status_and_output_are_those_of_python(code, status, error):
    call = run_python("-c", code)
    assert (call.returncode, call.stderr) == (status, error)
    assert call.stdout == ("end\n" if "atexit" in code else "")


def test_an_exception_and_a_process_that_does_not_end():
    call = run_python("-c", "1 / 0")
    assert call.returncode == 1 and call.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    with pytest.raises(AssertionError, match="ended after 0.2 seconds: so far"):
        run_python("-c", "import time; print('so far', flush=True); time.sleep(60)", timeout=0.2)
