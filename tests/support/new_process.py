"""
New Python processes that are forked from a server, which has loaded torch and what transformers imports, but neither
transformers nor this package: without it, a new process takes some seven seconds of processor time for these.

All processes of a run of the tests share the server, which ends with the run.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

from filelock import FileLock

from support.run_folder import goes_on, run_folder

# What these import does not read `HF_HOME` and its like, which belong to the forked process.
LOADED = """
torch torch._dynamo torch.distributed.fsdp torch.distributed.tensor torch.onnx torch.utils.data scipy.optimize
scipy.stats sklearn.metrics pandas pyarrow.dataset pyarrow.parquet safetensors.torch tokenizers regex yaml jinja2
aiohttp soundfile soxr
""".split()
NEVER = {"transformers", "huggingface_hub", "datasets", "mister_e_hf", "pytest"}


def run_python(*words, env=None, cwd=None, timeout: float = 280) -> subprocess.CompletedProcess:
    """
    Run `python WORDS`, where the first word is `-c`, `-m` or a script, with nothing in its input.

    Its output is read as UTF-8. What Python itself reads from the environment is PYTHONPATH alone.
    """
    files = [run_folder() / f"{os.getpid()}-{time.monotonic_ns()}.{name}" for name in ("out", "err")]
    request = {
        "words": [*map(str, words)],
        "env": dict(os.environ if env is None else env),
        "cwd": str(cwd or Path.cwd()),
        "files": [*map(str, files)],
        "timeout": timeout,
    }
    with _connect() as server:
        server.sendall(json.dumps(request).encode() + b"\n")
        status = server.makefile().readline()
    output, error = (path.read_text(encoding="utf-8") for path in files)
    assert status, f"ended after {timeout} seconds: {output}{error}"
    return subprocess.CompletedProcess(request["words"], int(status), output, error)


def _connect() -> socket.socket:
    """Connected to the server, which is started first if it does not run."""
    address = run_folder() / "python"
    with FileLock(run_folder() / "python.lock"):
        if not address.exists():
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
            with (run_folder() / "python.log").open("w") as log:
                words = [sys.executable, "-m", "support.new_process"]
                server = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            while not address.exists():
                assert server.poll() is None, (run_folder() / "python.log").read_text(encoding="utf-8")
                time.sleep(0.02)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return connection


def _serve():
    """Fork a process for each connection until the run of the tests ends."""
    for name in LOADED:
        importlib.import_module(name)
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not NEVER & loaded, NEVER & loaded
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd(), os.environ["PYTHONPATH"])]
    for name in ("support", "support.new_process", "support.run_folder"):
        sys.modules.pop(name, None)
    address = run_folder() / "python"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address.with_suffix(".new")))
        server.listen(64)
        server.settimeout(1)
        address.with_suffix(".new").rename(address)
        while goes_on():
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    _answer(connection)
                connection.close()


def _answer(connection: socket.socket):
    """Run what is asked for in a process of its own, and say with which status it ended."""
    connection.setblocking(True)
    request = json.loads(connection.makefile().readline())
    child, end, ended = os.fork(), time.monotonic() + request["timeout"], 0
    if child == 0:
        connection.close()
        _become(**request)
    while not ended and time.monotonic() < end:
        time.sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    else:
        os.kill(child, signal.SIGKILL)
    os._exit(0)


def _become(words: list[str], env: dict[str, str], cwd: str, files: list[str], timeout: float):
    """Make of this process what `python WORDS` is, to its end."""
    status = 1
    try:
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        first, *rest = words
        places = {"-c": "", "-m": cwd}
        sys.path[:0] = [
            places.get(first, str(Path(first).parent)),
            *filter(None, env.get("PYTHONPATH", "").split(":")),
        ]
        if first == "-c":
            code, *rest = rest
            sys.argv = [first, *rest]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), main.__dict__)
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(first, run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
