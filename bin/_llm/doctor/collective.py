"""An all-reduce of all nodes of a job, in the image: what every training on several nodes does.

One rank a node, by NCCL where all nodes have GPUs, else by gloo. NCCL says meanwhile by what it
sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from _llm.doctor import start
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, SKIP, Finding
from _llm.doctor.limits import Stage, run_command
from _llm.doctor.programs import COLLECTIVE
from _llm.doctor.report import some

SECONDS = 60.0
KEPT_LINES = 200


def offer(
    order: Sequence[str],
    hello: Mapping[str, Mapping[str, Any]],
    findings: Sequence[Finding],
) -> dict[str, Any] | None:
    """What to tell the nodes for an all-reduce, None where it can't be tried.

    order: the nodes by rank. hello: what each has said. findings: of all of them.
    """
    works = {f.node for f in findings if f.check == "torch" and f.status != FAIL and f.data}
    if len(order) < 2 or not set(order) <= works:
        return None
    gpus = {f.node for f in findings if re.fullmatch(r"gpu \d+", f.check) and f.status == OK}
    return {
        "backend": "nccl" if set(order) <= gpus else "gloo",
        "url": f"tcp://{order[0]}:{hello[order[0]]['rendezvous']}",
        "ranks": {node: rank for rank, node in enumerate(order)},
    }


def take_part(
    context: Context, wanted: Mapping[str, Any], node: str, stage: Stage
) -> dict[str, Any]:
    """Be one rank; return its exit status and what it said. wanted: of `offer`."""
    stage("an all-reduce with the other nodes")
    prepared = start.plan(context)
    env = {**prepared.environment(context.env), "NCCL_DEBUG": "INFO"}
    env.pop("NCCL_DEBUG_FILE", None)
    ranks = wanted["ranks"]
    words = [wanted["backend"], wanted["url"], len(ranks), ranks[node], 0, SECONDS - 10]
    done = run_command(start.python(prepared, COLLECTIVE, *map(str, words)), SECONDS, env)
    lines = (done.stdout + done.stderr).strip().splitlines()
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]
    said = errors or [line for line in lines if " WARN " in line] or lines
    taken = re.search(r"all-reduce of (\d+) bytes took ([\d.]+) s", done.stdout)
    return {
        "status": done.returncode,
        "last": said[-1] if said and done.returncode else "",
        "bytes": int(taken.group(1)) if taken else 0,
        "seconds": float(taken.group(2)) if taken else 0.0,
        "lines": [line for line in lines if "NCCL INFO" in line][:KEPT_LINES],
    }


def judge(wanted: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """One finding for all nodes. answers: of `take_part`, by node."""
    from _llm.doctor.gpu import read_nccl

    ranks, backend = wanted["ranks"], wanted["backend"]
    silent = [node for node in ranks if node not in answers]
    failed: dict[str, list[str]] = {}
    for node, answer in answers.items():
        if answer["status"]:
            failed.setdefault(str(answer["last"]), []).append(node)
    fix = (
        "see the lines above on names, connections, interface; then by hand: "
        "llm-run --torchrun with a small program, NCCL_DEBUG=INFO, TORCH_DISTRIBUTED_DEBUG=DETAIL"
    )
    if silent:
        failed["no answer"] = silent
    if failed:
        reasons = "; ".join(f"{some(nodes)}: {reason}" for reason, nodes in failed.items())
        text = f"an all-reduce over {len(ranks)} nodes by {backend} failed: {reasons}"
        return [Finding("all-reduce", FAIL, text, fix)]
    seconds = max(answer["seconds"] for answer in answers.values())
    size = max(answer["bytes"] for answer in answers.values())
    # What each link carries, whatever the number of ranks:
    # https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    share = 2 * (len(ranks) - 1) / len(ranks)
    rate = share * size / seconds / 1e9
    network, _ = read_nccl([line for answer in answers.values() for line in answer["lines"]])
    by = f"{backend} over {network}" if network else str(backend)
    data = {"backend": backend, "bytes": size, "seconds": seconds, "bus_bytes_per_s": rate * 1e9}
    measured = f"{size >> 20} MiB in {seconds * 1000:.1f} ms, {rate:.2f} GB/s a link"
    text = f"all {len(ranks)} nodes add up numbers by {by}, in the image"
    return [Finding("all-reduce", OK, text, measured=measured, data=data)]


def skipped() -> list[Finding]:
    """Say that it was not tried."""
    text = "not tried: not every node came as far as starting torch in the image"
    return [Finding("all-reduce", SKIP, text)]
