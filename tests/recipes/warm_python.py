"""A Python that has loaded torch and runs programs in forked processes, one after the other.

Loading torch and transformers takes far longer than most recipes of tiny models. Each program still
has a process of its own, with arguments, output and end as if it was started alone.

    with warm_python(folder, environment) as run:
        done = run("recipes/data/digits.py", ["--output", "digits"])
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

LOADED = ("torch", "transformers", "transformers.trainer", "peft")
PROGRAM = f"""
import contextlib, importlib, json, os, runpy, sys
for name in {LOADED!r}:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)  # unloading takes seconds
for number, name in enumerate((os.devnull, job["out"], job["err"])):
    file = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, number)
    os.close(file)
sys.stdin = open(0)
sys.argv = [job["script"], *job["arguments"]]
sys.path[0] = os.path.dirname(job["script"])
runpy.run_path(job["script"], run_name="__main__")
"""

Runner = Callable[[str, Sequence[str]], "subprocess.CompletedProcess[str]"]


@contextlib.contextmanager
def warm_python(place: Path, environment: Mapping[str, str], scratch: Path) -> Iterator[Runner]:
    """What runs a script with arguments in the folder `place`; its messages go to `scratch`."""
    python = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=place,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert python.stdin is not None
    assert python.stdout is not None
    reader = python.stdout
    writer = python.stdin

    def run(script: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        names = {"out": str(scratch / "out"), "err": str(scratch / "err")}
        job = {"script": os.path.abspath(script), "arguments": list(arguments), **names}
        writer.write(json.dumps(job) + "\n")
        writer.flush()
        status = reader.readline()
        assert status, f"it ended while it ran {script}"
        texts = {name: Path(path).read_text(encoding="utf-8") for name, path in names.items()}
        return subprocess.CompletedProcess(
            job["arguments"], int(status), texts["out"], texts["err"]
        )

    try:
        yield run
    finally:
        writer.close()
        reader.close()
        python.wait(timeout=60)
