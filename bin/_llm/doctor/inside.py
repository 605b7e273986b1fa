"""Run in the image by llm-doctor: tells what a program sees there, one line of JSON a topic.

    llm-run python bin/_llm/doctor/inside.py '{"marks": {}}'

Any image's Python from 3.7 on can run it; torch is looked at where there is one. Each line begins
with MARK, because libraries print to standard output too. `topic` of a line without more says what
comes next, so that a hang has a name.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MARK = "llm-doctor: "
OFTEN_HIDDEN = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "trl",
    "tokenizers",
    "numpy",
)
FLOPS_SIZE = 4096
FLOPS_ROUNDS = 20


def say(topic: str, **values: object) -> None:
    """Tell llm-doctor something."""
    print(MARK + json.dumps(dict(values, topic=topic)), flush=True)


def tell_basics(question: dict[str, Any]) -> None:
    """Environment, Python's path, user, labels, and the files that llm-doctor has left."""
    import site

    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        user = ""
    try:
        with open("/.singularity.d/labels.json", encoding="utf-8") as file:
            labels = json.load(file)
    except (OSError, ValueError):
        labels = {}
    say(
        "basics",
        env={
            name: os.environ.get(name, "")
            for name in question.get("names", ())
            if name in os.environ
        },
        cwd=os.getcwd(),
        home=os.path.expanduser("~"),
        user=user,
        hidden=hidden_modules(),
        path=[folder for folder in sys.path if folder],
        user_base=site.getuserbase(),
        labels={str(name): str(value) for name, value in labels.items()},
        marks={
            name: look_at(path, reply) for name, (path, reply) in question.get("marks", {}).items()
        },
    )


def hidden_modules() -> list[str]:
    """Modules that a script in the working directory could not import, for a file of that name."""
    known = set(getattr(sys, "stdlib_module_names", ())) | set(OFTEN_HIDDEN)
    try:
        return sorted(name for name in os.listdir() if name[-3:] == ".py" and name[:-3] in known)
    except OSError:
        return []


def look_at(path: str, reply: str) -> dict[str, Any]:
    """What is in the file `path`, and whether a file `reply` can be written beside it."""
    try:
        if os.path.isdir(path):
            status = os.stat(path)
            return {"seen": str(status.st_ino), "replied": False}
        with open(path, encoding="utf-8") as file:
            seen = file.read()
    except OSError as error:
        return {"seen": "", "error": error.strerror or str(error), "replied": False}
    try:
        with open(reply, "w", encoding="utf-8") as file:
            file.write(seen)
    except OSError as error:
        return {"seen": seen, "error": error.strerror or str(error), "replied": False}
    return {"seen": seen, "replied": True}


def tell_models(names: list[str]) -> None:
    """Whether each model can be loaded without a network, by the recipes' own rules."""
    if not names:
        return
    say("checking the model " + names[0])
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        find_model = importlib.import_module("llm_recipes.model_folder").find_model
    except ImportError as error:
        say("models", missing=str(error), models=[])
        return
    found = []
    for name in names:
        say("checking the model " + name)
        try:
            model = find_model(name)
            files = [str(file) for file in model.weights]
            found.append(
                {
                    "name": name,
                    "path": str(model.path),
                    "weights": files,
                    "bytes": model.bytes,
                    "faults": [],
                }
            )
        except Exception as error:
            faults = [
                {
                    "what": str(getattr(fault, "what", fault)),
                    "why": str(getattr(fault, "why", "")),
                    "fix": str(getattr(fault, "fix", "")),
                }
                for fault in getattr(error, "exceptions", [error])
            ]
            found.append({"name": name, "faults": faults})
    say("models", models=found)


def tell_torch() -> Any:
    """Whether torch starts, computes, and sees GPUs; returns it, or None."""
    say("importing torch")
    start = time.perf_counter()
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        say("torch", missing=missing, error="" if missing else str(error))
        return None
    seconds = time.perf_counter() - start
    say("computing with torch on the CPU")
    right = bool(torch.equal(torch.ones(8, 8) @ torch.ones(8, 8), torch.full((8, 8), 8.0)))
    say("asking CUDA for GPUs")
    count, fault = torch.cuda.device_count(), ""
    try:
        if torch.version.cuda:  # says why it finds none
            torch.cuda.init()
    except (RuntimeError, AssertionError) as problem:
        count, fault = 0, str(problem).split("\n")[0]
    say(
        "torch",
        version=torch.__version__,
        import_s=seconds,
        right=right,
        threads=torch.get_num_threads(),
        cuda=torch.version.cuda,
        count=count,
        error=fault,
        architectures=torch.cuda.get_arch_list() if count else [],
    )
    return torch


def tell_gpus(torch: Any) -> None:
    """Compute on every GPU and compare with the CPU."""
    for number in range(torch.cuda.device_count()):
        say(f"computing on GPU {number}")
        found: dict[str, Any] = {"number": number}
        try:
            found.update(try_gpu(torch, number))
        except Exception as error:
            found["error"] = f"{type(error).__name__}: " + str(error).strip().split("\n")[0]
        say("gpu", **found)


def try_gpu(torch: Any, number: int) -> dict[str, Any]:
    """Allocate, multiply, compare; then measure the speed of a large product."""
    facts = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    found = {
        "name": facts.name,
        "capability": [facts.major, facts.minor],
        "free_bytes": free,
        "total_bytes": total,
    }
    left = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    expected = left.double() @ left.double()
    device = torch.device("cuda", number)
    got = (left.to(device).double() @ left.to(device).double()).cpu()
    found["largest_error"] = float((got - expected).abs().max())
    dtype = torch.bfloat16 if facts.major >= 8 else torch.float16
    large = torch.ones(FLOPS_SIZE, FLOPS_SIZE, device=device, dtype=dtype)
    for _ in range(3):
        large @ large
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(FLOPS_ROUNDS):
        large @ large
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    found["tflops"] = 2 * FLOPS_SIZE**3 * FLOPS_ROUNDS / seconds / 1e12
    found["dtype"] = str(dtype).replace("torch.", "")
    return found


def tell_collective(program: list[str], ranks: int, seconds: int) -> None:
    """All-reduce among some ranks on this node, and what NCCL says meanwhile.

    program: the arguments of Python that make one rank, before those of programs.COLLECTIVE.
    """
    import socket

    say(f"an all-reduce of {ranks} ranks by NCCL")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    env = dict(os.environ, NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="INIT,NET,P2P,SHM,ENV")
    env.pop("NCCL_DEBUG_FILE", None)
    started = [
        subprocess.Popen(
            [
                sys.executable,
                *program,
                "nccl",
                url,
                str(ranks),
                str(rank),
                str(rank),
                str(seconds),
            ],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    text = started[0].communicate()[0].decode(errors="replace")
    statuses = [process.wait() for process in started]
    said = [line for line in text.splitlines() if "NCCL" in line or line.startswith(MARK)]
    last = (text.strip().splitlines() or [""])[-1]
    say(
        "collective",
        ranks=ranks,
        status=next((status for status in statuses if status), 0),  # one of a signal is negative
        lines=said[:400],
        last=last,
    )


def main() -> None:
    """Answer the question that the first argument holds."""
    question = json.loads(sys.argv[1])
    tell_basics(question)
    tell_models(question.get("models", ()))
    torch = tell_torch() if question.get("torch", True) else None
    if torch is not None and torch.cuda.device_count():
        tell_gpus(torch)
        tell_collective(question["collective"], min(2, torch.cuda.device_count()), 60)
    say("end")


if __name__ == "__main__":
    main()
