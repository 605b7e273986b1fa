"""llm-doctor --job: the same checks on every node of a Slurm job, and the network between them.

    salloc --nodes=2 llm-doctor --job

One step of srun starts `llm-doctor --node` on every node (node.py). They say hello with the port on
which they listen, are told of each other, try the network, check themselves, add up numbers
together, and are told to stop. Nothing is needed for it but srun: no shared folder, no free port
that everybody knows.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from _llm import slurm
from _llm.doctor import collective, peers, report
from _llm.doctor.context import Context
from _llm.doctor.conversation import GOODBYE_SECONDS, HELLO_SECONDS, Conversation, talk
from _llm.doctor.finding import FAIL, SKIP, WARN, Finding
from _llm.doctor.options import Options, as_arguments
from _llm.errors import LLMError

# What nodes may take less than the whole, so that what they found still arrives.
MARGIN_SECONDS = 5.0
# srun ends the whole step when it can't start it on one node; then again without that one.
ATTEMPTS = 4
LAUNCH_FAILED = re.compile(r"aunch .*failed on node (\S+?):? (.*)")


def run(options: Options, context: Context, started: float) -> int:
    """Check every node of this job, print, and return the exit status."""
    from _llm.doctor.main import finish

    env = context.env
    if not env.get("SLURM_JOB_ID") or not env.get("SLURM_JOB_NODELIST"):
        raise LLMError(
            "--job is for use inside a Slurm job",
            "SLURM_JOB_ID and SLURM_JOB_NODELIST are not set here",
            "salloc --nodes=2 llm-doctor --job; or without --job for this machine alone",
        )
    srun = slurm.need("srun", env)
    names = slurm.expand_nodes(env["SLURM_JOB_NODELIST"])
    if sys.stderr.isatty():
        where = f"job {env['SLURM_JOB_ID']}: {report.some(names)}"
        print(f"llm-doctor: checking {where}, at most {options.limit:g} s", file=sys.stderr)
    deadline = started + options.limit - GOODBYE_SECONDS
    found: list[Finding] = []
    rest = names
    for _ in range(ATTEMPTS):
        conversation = Conversation(rest)
        command = _command(srun, rest, options, context, deadline)
        said = talk(command, slurm.step_environment(env), conversation, deadline)
        lost = {} if conversation.stopped else _not_launched(said, rest)
        found += [_gone(node, reason) for node, reason in lost.items()]
        rest = [name for name in rest if name not in lost]
        if not lost or not rest or time.monotonic() > deadline - MARGIN_SECONDS:
            break
    found += _silent(conversation, rest, said, time.monotonic() - started)
    found += _in_order(conversation.findings, rest)
    found += _between(conversation, len(names))
    if not options.json:
        _print(found, len(names), env)
    return finish(options, context.settings.site, found, names, started)


def _command(
    srun: str, nodes: Sequence[str], options: Options, context: Context, deadline: float
) -> list[str]:
    """The command that starts llm-doctor on some nodes of this job.

    --overlap: the job's own steps may have all its resources.
    """
    seconds = max(1, int(deadline - time.monotonic()))
    extra = [
        *("--kill-on-bad-exit=0", "--overlap", f"--nodelist={','.join(nodes)}"),
        f"--immediate={min(seconds, int(HELLO_SECONDS))}",
    ]
    program = os.path.join(context.home, "bin", "llm-doctor")
    limit = max(1.0, seconds - MARGIN_SECONDS)
    return [
        *slurm.step_command(srun, len(nodes), 1, extra=extra),
        *(program, "--node", "--limit", f"{limit:g}", *as_arguments(options)),
    ]


def _not_launched(said: Sequence[str], nodes: Sequence[str]) -> dict[str, str]:
    """Node -> reason of those where srun says that it could not start anything."""
    found = (LAUNCH_FAILED.search(line) for line in said)
    return {match.group(1): match.group(2) for match in found if match and match.group(1) in nodes}


def _gone(node: str, reason: str) -> Finding:
    fix = f"scontrol show node {node}; sinfo --list-reasons; or a job without it: --exclude={node}"
    text = f"Slurm can't start anything on {node}: {reason}"
    return Finding("nodes", FAIL, text, fix, data={"nodes": [node]})


def _silent(
    conversation: Conversation, names: Sequence[str], said: Sequence[str], seconds: float
) -> Iterator[Finding]:
    """A finding for every node that did not say hello or did not finish."""
    words = f": {' | '.join(dict.fromkeys(said[:3]))}" if said else ""
    missing = [name for name in names if name not in conversation.hello]
    if missing:
        fix = f"does every node see {os.path.abspath(sys.argv[0])}? sinfo --list-reasons"
        text = f"{report.some(missing)} did not answer within {seconds:.0f} s{words}"
        yield Finding("nodes", FAIL, text, fix, data={"nodes": missing})
    for name in conversation.hello:
        if name not in conversation.finished:
            text = f"it stopped answering before {seconds:.0f} s were over{words}"
            fix = "scontrol show node NAME; or give it more time: --limit"
            yield Finding("nodes", FAIL, text, fix, node=name)


def _in_order(findings: Sequence[Finding], names: Sequence[str]) -> list[Finding]:
    places = {name: place for place, name in enumerate(names)}
    return sorted(findings, key=lambda finding: places.get(finding.node, 0))


def _between(conversation: Conversation, count: int) -> list[Finding]:
    """What the nodes found out together. count: nodes of the job."""
    if count == 1:
        return [Finding("between nodes", SKIP, "a single node has nobody to talk to")]
    seen = conversation.seen
    found = peers.judge({name: seen[name] for name in conversation.names if name in seen})
    gpus = {name: hello["gpus"] for name, hello in conversation.hello.items()}
    if len(set(gpus.values())) > 1:
        listed = ", ".join(f"{name}: {number}" for name, number in sorted(gpus.items()))
        text = f"the nodes of this job have different numbers of GPUs ({listed})"
        found.append(Finding("gpus", WARN, text, "ask for as many on each: --gpus-per-node=N"))
    if conversation.offered is None:
        return found + collective.skipped()
    return found + collective.judge(conversation.offered, conversation.summed)


def _print(found: list[Finding], count: int, env: Mapping[str, str]) -> None:
    color = report.wants_color(env)
    for finding, nodes in report.group(found):
        own = [node for node in nodes if node]
        print(report.lines(finding, count if own else 0, own, color))
