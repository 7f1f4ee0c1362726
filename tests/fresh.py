"""Programs in an interpreter of their own: for what a process does once, when it is started or imports oxistep.

Of the time they take nearly all goes into importing torch, and once more as much into what torch imports for the first
optimizer of a process. So in a brief run such a program runs in a fork of a process that has imported all this, and
nothing of oxistep; the whole run starts an interpreter for each. To which program it matters whether torch has been
imported, what the environment was then, or how the interpreter ends, that one starts an interpreter by itself.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import brief

# Seconds until a program that hangs is ended.
PATIENCE = 300

FORKING = f"""
import atexit, json, os, signal, sys, traceback, types, warnings
import torch
torch.optim.SGD([torch.zeros(1)])
for line in sys.stdin:
    with warnings.catch_warnings(action="ignore"):  # NumPy's library has threads, and knows how to fork
        pid = os.fork()
    if not pid:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm({PATIENCE})
request = json.loads(line)
os.environ.clear()
os.environ.update(request["environment"])
os.chdir(request["folder"])
for descriptor, file in enumerate((os.devnull, request["output"], request["errors"])):
    opened = os.open(file, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
    os.dup2(opened, descriptor)
    os.close(opened)
sys.stdin = open(0)
sys.argv = ["-c", *request["arguments"]]
sys.modules["__main__"] = types.ModuleType("__main__")
status = 1
try:
    exec(compile(request["code"], "<string>", "exec"), sys.modules["__main__"].__dict__)
    status = 0
except SystemExit as end:
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    else:
        status = int(end.code or 0)
except BaseException:
    traceback.print_exc()
atexit._run_exitfuncs()
for stream in (sys.stdout, sys.stderr):
    if stream is not None:
        stream.flush()
os._exit(status)  # to take down all of torch would take a second
"""


@cache
def _forking() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end() -> None:
    """Ends what was started for a brief run."""
    if _forking.cache_info().currsize:
        _forking().communicate()
        _forking.cache_clear()


def python(
    code: str, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program as ``python -c`` does."""
    environment = os.environ if env is None else env
    if not brief.ASKED or sys.platform != "linux":  # elsewhere libraries may not survive a fork
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        output.touch()
        errors.touch()
        request = {
            "code": code,
            "arguments": arguments,
            "folder": str(cwd or Path.cwd()),
            "environment": dict(environment),
            "output": str(output),
            "errors": str(errors),
        }
        process = _forking()
        print(json.dumps(request), file=process.stdin, flush=True)
        status = int(process.stdout.readline())
        return subprocess.CompletedProcess([sys.executable, "-c"], status, output.read_text(), errors.read_text())
