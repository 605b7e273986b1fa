"""Start a program by torchrun: once a node, with what Slurm knows of nodes, GPUs and this step.

    llm-run --torchrun train.py                           # one node: as many processes as GPUs
    sbatch --nodes=2 --gpus=4 llm-run --torchrun train.py

The rendezvous stands on the first node of the step. That host is named to all of them, and each is
told whether it is the one: torchrun would find out by comparing names, and guesses wrong where a
node has several.
"""

from __future__ import annotations

import os
import socket

from _llm.errors import LLMError
from _llm.slurm import expand_nodes, gpus_of_nodes, number, show_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.options import Options

# Below the ephemeral ports (from 32768) and above those of the usual services.
FIRST_PORT, PORTS = 20000, 10000
# The first node may have to unpack the image before it opens the rendezvous; torch waits for 60.
RENDEZVOUS_SECONDS = 900
PORT_VARIABLE = "LLM_RENDEZVOUS_PORT"
# SIGUSR2 would kill torchrun's agent and orphan its workers; Slurm or a user may send it to all.
# Of Python's path, '' is taken away: what lies in the working directory is not torch's.
START = "import sys; sys.path.pop(0); from llm_recipes.torchrun import main; sys.exit(main())"
SHELL = ("/bin/sh", "-c", f"trap '' USR2; exec python3 -c '{START}' \"$@\"", "torchrun")


def torchrun_command(options: Options, env: Mapping[str, str], gpus: int) -> list[str]:
    """Return the command that torchrun starts, for this node.

    gpus: of this node. Raises LLMError where the step has several tasks a node.
    """
    in_step = options.launch != "local" and env.get("SLURM_STEP_ID", "").isdigit()
    nodes = number(env, "SLURM_STEP_NUM_NODES", 1) if in_step else 1
    processes = options.processes or gpus or 1
    words = [*SHELL, f"--nproc-per-node={processes}"]
    if options.max_restarts is not None:
        words.append(f"--max-restarts={options.max_restarts}")
    if options.requeue:
        # After a SIGTERM the workers save; Slurm decides how long they have, not torchrun.
        words.append(f"--shutdown-timeout={max(options.stop_before, 30)}")
    if nodes == 1:
        words.append("--standalone")
    else:
        words += _rendezvous(env, nodes)
    return words + _script(options.command)


def _rendezvous(env: Mapping[str, str], nodes: int) -> list[str]:
    tasks = number(env, "SLURM_STEP_NUM_TASKS", nodes)
    if tasks != nodes:
        raise LLMError(
            f"--torchrun wants one task a node, and this step has {tasks} on {nodes} nodes",
            "torchrun starts the processes of a node itself",
            f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 llm-run --torchrun ...",
        )
    host = expand_nodes(env["SLURM_STEP_NODELIST"])[0]
    port = int(env.get(PORT_VARIABLE) or choose_port(env))
    is_host = env.get("SLURM_NODEID") == "0"
    if is_host and not is_free(port):
        raise LLMError(
            f"port {port} of {host} is in use, and the ranks were to meet there",
            "it is derived from job and step; another program of this node has it",
            f"start it again (the next step has another port), or: export {PORT_VARIABLE}=NUMBER",
        )
    _check_name(host)
    name = env.get("SLURMD_NODENAME", "")
    return [
        *(f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={host}:{port}"),
        f"--rdzv-id={env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}",
        f"--rdzv-conf=is_host={int(is_host)},read_timeout={RENDEZVOUS_SECONDS}",
        *([f"--local-addr={name}"] if name else []),
    ]


def _check_name(host: str) -> None:
    """Raise LLMError for a node whose name this one cannot resolve; torch would try for minutes."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise LLMError(
            f"the name of node {host} cannot be resolved here",
            f"{error.strerror or error}; the ranks were to meet there",
            "llm-doctor --job in an allocation shows which names are wrong",
        ) from None


def choose_port(env: Mapping[str, str]) -> int:
    """Return the port where the ranks of this job and step meet.

    Every node has to come to the same one by itself, so it follows from the ids; prime factors keep
    the steps of neighbouring jobs apart.
    """
    job, step = number(env, "SLURM_JOB_ID", 0), number(env, "SLURM_STEP_ID", 0)
    return FIRST_PORT + (job * 61 + step * 7) % PORTS


def free_port(env: Mapping[str, str]) -> int:
    """Return a port for the next step of this job that is free on this node, its first one.

    Several attempts of a job may be under way on different nodes, so it is not simply the first
    free one.
    """
    wanted = choose_port(env)
    for offset in range(0, PORTS, 97):
        port = FIRST_PORT + (wanted - FIRST_PORT + offset) % PORTS
        if is_free(port):
            return port
    return wanted


def is_free(port: int) -> bool:
    """Say whether nothing on this node listens on `port`."""
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            probe = socket.socket(family)
        except OSError:  # a kernel without IPv6
            continue
        with probe:
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
            except OSError:
                return False
            return True
    return True


def _script(command: list[str]) -> list[str]:
    """Return a command as torchrun wants it: a script, `-m` and a module, or any program."""
    program, rest = command[0], command[1:]
    if os.path.basename(program) in ("python", "python3") and rest:
        if not rest[0].startswith("-"):
            return ["--", *rest]
        if rest[0] == "-m" and len(rest) > 1:
            return ["-m", "--", *rest[1:]]
    elif program.endswith(".py"):
        return ["--", *command]
    return ["--no-python", "--", *command]


def check_gpu_counts(job: str, env: Mapping[str, str]) -> None:
    """Raise LLMError when the nodes of a job have different numbers of GPUs.

    torchrun would start as many processes on each as there are GPUs; programs that divide a batch
    or a model by nodes then go wrong in silence.
    """
    counts = gpus_of_nodes(show_job(job, env, details=True).get("details", ""))
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{node}: {count}" for node, count in sorted(counts.items()))
        raise LLMError(
            "the nodes of this job have different numbers of GPUs",
            listed,
            "ask for as many on each: --gpus-per-node=N instead of --gpus=N; "
            "or --nproc-per-node=N",
        )


def thread_variables(options: Options, env: Mapping[str, str], gpus: int) -> dict[str, str]:
    """Return OMP_NUM_THREADS, where the user has not set it: torchrun would take 1."""
    if env.get("OMP_NUM_THREADS"):
        return {}
    cpus = len(os.sched_getaffinity(0))
    return {"OMP_NUM_THREADS": str(max(1, cpus // (options.processes or gpus or 1)))}
