"""The command line of the box: see `python3 tests/cluster/box --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Carry out one verb. Returns the exit status: 2 for a mistake, else the command's own."""
    if arguments[:1] == ["supervise"]:
        from box import supervisor

        return supervisor.main(arguments[1], int(arguments[3]), "--attached" in arguments)
    options = parser().parse_args(arguments)
    from box.cluster import BoxError

    try:
        return _carry_out(options)
    except BoxError as error:
        print(f"box: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs but `supervise`, which is for `up` alone."""
    from box.cluster import default_state

    top = argparse.ArgumentParser(prog="python3 tests/cluster/box", description=__doc__)
    state = os.environ.get("LLM_BOX_STATE") or default_state()
    text = f"folder of the box's files (LLM_BOX_STATE; now: {state})"
    top.add_argument("--state", default=state, help=text.replace("%", "%%"))
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *names: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        for argument in names:
            added.add_argument(argument.lower(), metavar=argument)
        return added

    up = verb("up", "start a box and wait until its nodes are idle")
    up.add_argument("--nodes", type=int, default=4, help="compute nodes (default: 4)")
    up.add_argument("--cpus", type=int, default=64,
                    help="CPUs that Slurm believes each node has (default: 64)")  # fmt: skip
    up.add_argument("--gpus", type=int, default=2, help="fake GPUs of each node (default: 2)")
    up.add_argument("--root", default="", metavar="FOLDER",
                    help="run everything in another system's folder")  # fmt: skip
    up.add_argument("--cgroups", choices=("auto", "off"), default="auto",
                    help="let Slurm use control groups, where it can (default: auto)")  # fmt: skip
    up.add_argument("--slurm", action="append", default=[], metavar="NAME=VALUE",
                    help="one more line for slurm.conf, such as "
                    "LaunchParameters=use_interactive_step")  # fmt: skip
    down = verb("down", "stop the box; the user's files stay")
    down.add_argument("--delete", action="store_true", help="delete the user's files and the logs")
    shell = verb("shell", "a login shell in a node (default: login)")
    shell.add_argument("node", nargs="?", default="login")
    shell.add_argument("--root", action="store_true", help="as root")
    run = verb("run", "run a command in a node", "NODE")
    run.add_argument("--root", action="store_true", help="as root")
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND [ARGUMENT...]")
    verb("status", "what is up, cut, slow, drained")
    verb("kill-node", "switch a node off, without a goodbye on the network", "NODE")
    verb("start-node", "switch it on again", "NODE")
    verb("cut", "pull a node's network cable", "NODE")
    verb("mend", "plug it in again", "NODE")
    speed = verb("speed", "limit a node's link in both directions", "NODE")
    speed.add_argument("rate", nargs="?", default="", help="such as 100mbit; none: no limit")
    fuse = verb("fuse", "let users use /dev/fuse on a node, or don't", "NODE")
    fuse.add_argument("value", choices=("on", "off"))
    verb("drain", "let no more jobs start on a node", "NODE")
    verb("resume", "let them start again", "NODE")
    preempt = verb("preempt", "send an urgent job to a node, which pushes others out", "NODE")
    preempt.add_argument("--seconds", type=int, default=5, help="how long it runs (default: 5)")
    verb("requeue", "stop a job and put it into the queue again", "JOB")
    grace = verb("grace", "time that preempted jobs get between SIGTERM and the end")
    grace.add_argument("seconds", type=int)
    configure = verb("configure", "change lines of slurm.conf")
    configure.add_argument("lines", nargs="+", metavar="NAME=VALUE")
    return top


def _carry_out(options: argparse.Namespace) -> int:
    from box.cluster import BoxError, Cluster, clean, is_up

    if options.verb == "up":
        return _up(options)
    if options.verb == "down":
        if is_up(options.state):
            Cluster.find(options.state).down()
        clean(options.state, options.delete)
        return 0
    cluster = Cluster.find(options.state)
    if options.verb == "shell":
        inside = ["script", "--quiet", "--return", "--command", "bash -l", "/dev/null"]
        return cluster.start(inside, options.node, not options.root).wait()
    if options.verb == "run":
        command = options.command[1:] if options.command[:1] == ["--"] else options.command
        if not command:
            raise BoxError("run: which command? run NODE -- COMMAND")
        process = cluster.start(command, options.node, not options.root)
        return process.wait()
    if options.verb == "status":
        _print_status(cluster)
    elif options.verb == "requeue":
        cluster.requeue(options.job)
    elif options.verb == "grace":
        cluster.set_grace(options.seconds)
    elif options.verb == "configure":
        cluster.configure(**_lines(options.lines))
    elif options.verb == "speed":
        cluster.set_speed(options.node, options.rate)
    elif options.verb == "fuse":
        cluster.set_fuse(options.node, options.value == "on")
    elif options.verb == "preempt":
        print(cluster.preempt(options.node, options.seconds))
    else:
        getattr(cluster, options.verb.replace("-", "_"))(options.node)
    return 0


def _lines(texts: Sequence[str]) -> dict[str, str]:
    from box.cluster import BoxError

    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise BoxError(f"NAME=VALUE is needed, not {', '.join(wrong)}")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def _up(options: argparse.Namespace) -> int:
    import time

    from box.cgroups import find_version
    from box.cluster import BoxError, Cluster
    from box.host import user_folders
    from box.requirements import missing
    from box.settings import Box

    lacking = missing(options.root)
    if lacking:
        raise BoxError(lacking)
    wrong = [
        f"--{name} must be {least} to {most}, not {getattr(options, name)}"
        for name, least, most in (("nodes", 1, 100), ("cpus", 1, 4096), ("gpus", 0, 64))
        if not least <= getattr(options, name) <= most
    ]
    if wrong:
        raise BoxError("; ".join(wrong))
    began = time.monotonic()
    images, apptainer = user_folders()
    box = Box(
        state=os.path.realpath(options.state),
        nodes=options.nodes,
        cpus=options.cpus,
        gpus=options.gpus,
        images=images,
        apptainer=apptainer,
        cgroups=find_version() if options.cgroups == "auto" else "",
        root=os.path.realpath(options.root) if options.root else "",
        slurm=_lines(options.slurm),
    )
    cluster = Cluster.up(box)
    names = f"{cluster.nodes[0]} to {cluster.nodes[-1]}"
    print(f"{names} are up ({time.monotonic() - began:.1f} s). Next: make cluster-shell")
    print(f"  home folder of alice: {cluster.home}   logs: {box.path('log')}")
    return 0


def _print_status(cluster: object) -> None:
    from box.cluster import Cluster

    assert isinstance(cluster, Cluster)
    for name, node in cluster.status().items():
        state = "off" if not node["up"] else "cut" if node["cut"] else "up"
        speed = f", link {node['speed']}" if node.get("speed") else ""
        fuse = "" if not node["up"] or node["fuse"] else ", no /dev/fuse for users"
        print(f"{name:8}{state}{speed}{fuse}")
    print("processes of a job are found by", "control groups" if cluster.box.cgroups else "parents")
    print(cluster.run(["sinfo"], timeout=30).stdout, end="")
