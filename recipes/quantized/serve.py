"""Serve a GGUF model by OpenAI's protocol: llama.cpp's server as a job, with a key.

    llm-run python recipes/quantized/serve.py --model model-Q4_K_M.gguf
    llm-run --submit --time 4:00:00 -- python recipes/quantized/serve.py --model model.gguf \\
        --idle-minutes 30

It prints how to reach it: the `ssh -L` line for the user's own machine, and a request by curl. The
key is in a file that only its owner can read. It ends with the job, after SIGTERM or Ctrl-C, and
when nobody has asked for a while; requests that are running are answered before.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.gguf.server_address import Listening
    from llm_recipes.gguf.server_connection import ApiKey, Connection
    from llm_recipes.gguf.server_plan import ServerPlan, Wanted
    from llm_recipes.gguf.server_process import LlamaServer
    from llm_recipes.gguf.server_stop import Stop

PORTS_TRIED = 5  # of those that looked free
END_S = 10.0  # for what comes after the last answer: ending llama-server, writing the record
LOOK_S = 0.2
GB, MINUTE = 1e9, 60.0


@dataclass(frozen=True)
class Plan:
    """A checked command line. settings: the options by name."""

    settings: dict[str, Any]
    server: ServerPlan
    place: Listening
    key: ApiKey
    connection: Path
    record: Path
    alias: str
    wanted: Wanted


def serve(
    model: Path,
    alias: str | None = None,
    listen: str = "auto",
    allow_public: bool = False,
    port: int | Literal["auto"] = "auto",
    api_key: bool = True,
    api_key_file: Path | None = None,
    connection: Path | None = None,
    record: Path | None = None,
    server_log: Path | None = None,
    parallel: int = 4,
    context: int | Literal["auto"] = "auto",
    kv_type: Literal["f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "f16",
    flash_attention: Literal["auto", "on", "off"] = "auto",
    gpu_layers: int | Literal["auto", "all"] = "auto",
    split: Literal["layer", "row", "tensor", "none"] = "layer",
    shares: str | None = None,
    threads: int | Literal["auto"] = "auto",
    prompt_threads: int | Literal["auto"] = "auto",
    ready_timeout: float = 1800.0,
    drain: float = 20.0,
    idle_minutes: float = 0.0,
    hosts: bool = False,
) -> int:
    """Serve a GGUF model by OpenAI's protocol, until the job ends or it is asked to stop.

    Args:
        model: GGUF file; of several shards the first.
        alias: The model's name in requests; null: the file's.
        listen: auto (in a Slurm job the node's private address, else loopback), loopback, private,
            all, or an address of this machine. It is http, not encrypted.
        allow_public: Listen on an address that the internet may reach.
        port: A number, or auto: a free one.
        api_key: Ask for a key; --no-api-key lets everybody in who reaches it.
        api_key_file: Own keys, one a line, readable by you alone; null: a new random one.
        connection: File for address and key, mode 0600, removed at the end; null: below
            ~/.cache/llm/servers.
        record: File for the run record; null: beside the connection.
        server_log: File for all that llama-server says, words of requests among it; null: none.
        parallel: Slots: requests that are answered at the same time.
        context: Tokens of each slot, prompt and answer; auto: as trained, 8192 at most, and what
            memory allows.
        kv_type: Type of the cached keys and values; q8_0 halves their memory.
        flash_attention: Attention that keeps no scores; quantized caches need it.
        gpu_layers: Layers on GPUs; auto: as many as fit.
        split: How several GPUs share: whole layers, or each layer's rows or tensors.
        shares: Proportion of each GPU, such as 3,1; null: by free memory.
        threads: CPU threads for generation; auto: as tuned (tune.py), else what was granted.
        prompt_threads: CPU threads for prompts and several requests at once; auto: the same.
        ready_timeout: Seconds for loading; 0: no limit.
        drain: Seconds for requests that are running when it is asked to stop. Slurm kills 30
            seconds after its SIGTERM, if the site has not changed that.
        idle_minutes: End when nobody has asked for so long; 0: never.
        hosts: Use the memory of all nodes of the job, by RPC; not encrypted.
    """
    settings = dict(locals())
    if hosts:
        from llm_recipes.gguf.hosts import run_on_hosts

        status = run_on_hosts(threads if isinstance(threads, int) else None)
        if status is not None:
            return status
    return run(checked(settings))


def checked(settings: dict[str, Any]) -> Plan:
    """What the command line means here; every fault of it at once."""
    from llm_recipes.gguf import server_address, server_connection
    from llm_recipes.gguf.options import placement_faults
    from llm_recipes.gguf.server_arguments import alias_of
    from llm_recipes.gguf.server_plan import make_plan
    from llm_recipes.record import read_record

    o = settings
    faults = placement_faults(o) + option_faults(o)
    file = (o["connection"] or server_connection.default_file(os.environ)).expanduser()
    record = (o["record"] or file.with_suffix(".run.json")).expanduser()
    kept: list[Any] = []
    for look in (
        lambda: server_address.listening(o["listen"], o["allow_public"]),
        lambda: server_connection.choose_key(o["api_key_file"], not o["api_key"]),
    ):
        faults += faults_of(lambda look=look: kept.append(look()))  # type: ignore[misc]
    faults += faults_of(lambda: server_connection.check_file(file))
    if record.exists() and read_record(record) is None:
        faults.append(LLMError(f"{record} is there and no run record", fix="another --record"))
    raise_all(faults)
    place, key = kept
    if key.value is None and server_address.is_public(place.host):
        fix = "leave --no-api-key out"
        raise LLMError(f"{place.host} is public", "everybody could use it without a key", fix)
    wanted = wanted_of(o)
    server = make_plan(wanted)
    alias = alias_of(o["alias"], server.file.path.stem)
    return Plan(o, server, place, key, file, record, alias, wanted)


def option_faults(o: dict[str, Any]) -> list[LLMError]:
    """Options whose value can't be meant."""
    faults = []
    for name in ("ready_timeout", "drain", "idle_minutes"):
        if not 0 <= o[name] < float("inf"):
            what = f"--{name.replace('_', '-')} {o[name]} is no time"
            faults.append(LLMError(what, fix="a number from 0"))
    if o["port"] != "auto" and not 1 <= o["port"] <= 65535:
        faults.append(LLMError(f"--port {o['port']} is no port", fix="auto, or 1024 to 65535"))
    if o["api_key_file"] and not o["api_key"]:
        what = "--api-key-file has no meaning with --no-api-key"
        faults.append(LLMError(what, fix="leave one of them out"))
    return faults


def wanted_of(o: dict[str, Any]) -> Wanted:
    """What is asked of model, memory and devices."""
    from llm_recipes.gguf.placement import shares_of
    from llm_recipes.gguf.remote_hosts import known_hosts, rpc_option
    from llm_recipes.gguf.server_plan import Wanted

    return Wanted(
        model=o["model"].expanduser(),
        gpu_layers=o["gpu_layers"],
        split=o["split"],
        shares=shares_of(o["shares"]),
        context=o["context"],
        slots=o["parallel"],
        kv_type=o["kv_type"],
        flash_attention=o["flash_attention"],
        threads=o["threads"],
        prompt_threads=o["prompt_threads"],
        rpc=tuple(filter(None, rpc_option().split(","))),
        hosts=known_hosts(),
    )


def run(plan: Plan) -> int:
    """Start the server, wait, end it; whatever ends it, its record is written."""
    from llm_recipes.gguf.server_stop import stop_requests
    from llm_recipes.gguf.threads import counted
    from llm_recipes.record import add_input, start_record

    written = ("connection", "record", "server_log")
    record = start_record("quantized/serve", plan.settings, plan.server.device, written)
    shards = list(plan.server.file.shards)
    add_input(record, "model", shards[0] if len(shards) == 1 else shards)
    record["model"] = describe_model(plan)
    status = "failed"
    with stop_requests(plan.settings["drain"] + END_S) as stop, log_file(plan) as log:
        try:
            say(
                f"loading {plan.server.file.path} ({plan.server.file.bytes / GB:.3g} GB),"
                f" {plan.settings['parallel']} slots; in GB: {plan.server.need};"
                f" {counted(plan.server.threads.generate)} ({plan.server.threads.reason})"
            )
            start = time.monotonic()
            with loaded(plan, stop, log) as (server, port):
                record["metrics"]["load_s"] = round(time.monotonic() - start, 3)
                record["metrics"]["port"] = port
                hold(plan, server, port, stop, record)
            status = "complete"
        finally:
            keep_record(plan.record, record, status)
    return 0


@contextlib.contextmanager
def loaded(plan: Plan, stop: Stop, log: IO[str] | None) -> Iterator[tuple[LlamaServer, int]]:
    """A llama-server that is ready, or that was stopped before; on another port if one is taken."""
    from llm_recipes.gguf.server_address import free_port
    from llm_recipes.gguf.server_process import PortTaken

    wanted = plan.settings["port"]
    limit = plan.settings["ready_timeout"]
    for _ in range(PORTS_TRIED if wanted == "auto" else 1):
        port = free_port(plan.place.bind) if wanted == "auto" else wanted
        with started(plan, port, log) as server:
            try:
                server.wait_until_ready(limit, lambda: bool(stop.reason()), say_loading)
            except PortTaken:
                continue
            verify(plan, server)
            yield server, port
            return
    what = f"port {port} of {plan.place.bind} is taken"
    raise LLMError(what, "another program listens there", "--port auto")


def verify(plan: Plan, server: LlamaServer) -> None:
    """See that other hosts hold the layers that they were given.

    Raises:
        LLMError: If one does not.
    """
    from llm_recipes.gguf.model import buffers
    from llm_recipes.gguf.placement import layers_of_devices
    from llm_recipes.gguf.remote_hosts import verify_layers

    placement = plan.server.placement
    if not plan.wanted.hosts or not server.log.is_listening or placement.devices is None:
        return
    layers = plan.server.file.layers + 1
    given = layers_of_devices(placement.gpu_layers, layers, placement.shares)
    named = zip(placement.devices, given, strict=True)
    # Its log has the buffers' sizes, which are the proof; each layer's device only for debugging.
    devices = {layer: name for name, part in named for layer in part}
    rest = {layer: "CPU" for layer in range(layers) if layer not in devices}
    verify_layers(plan.wanted.hosts, {**rest, **devices}, buffers(server.log.loading))


def started(plan: Plan, port: int, log: IO[str] | None) -> LlamaServer:
    """The process of llama-server, on the CPUs that were granted."""
    from llm_recipes.gguf.server_arguments import arguments, environment
    from llm_recipes.gguf.server_process import LlamaServer
    from llm_recipes.gguf.threads import pinned_to

    options = arguments(plan.server, plan.place, port, plan.alias, plan.key, plan.wanted.rpc)
    env = environment(plan.key, os.environ)
    with pinned_to(plan.server.threads.cpus):
        return LlamaServer(options, env, plan.place.url(port), plan.key.value, log)


def hold(plan: Plan, server: LlamaServer, port: int, stop: Stop, record: dict[str, Any]) -> None:
    """Say how to reach it, wait for a reason to end it, drain it."""
    from llm_recipes.gguf.server_connection import connection_file, instructions
    from llm_recipes.gguf.server_metrics import describe, server_numbers
    from llm_recipes.gguf.server_stop import CTRL_C
    from llm_recipes.stop_signals import declare_unfinished

    start = time.monotonic()
    if stop.reason():
        say(f"stopped while it was loading: {stop.reason()}")
        return
    connection = connection_of(plan, server, port)
    try:
        with connection_file(plan.connection, connection):
            say(
                f"ready after {record['metrics']['load_s']:.1f} s: {connection.slots} slots of"
                f" {connection.context} tokens at {connection.url}"
            )
            say(instructions(connection, plan.connection, sys.stderr.isatty()))
            warn_if_open(plan)
            reason = wait(server, stop, plan.settings["idle_minutes"])
            say(f"ending: {reason}")
            if stop.reason() not in ("", CTRL_C):  # `llm-run --requeue` serves on
                declare_unfinished()
            left = server.drain(plan.settings["drain"], lambda: stop.at_once)
            if left:
                say(f"{left} requests were not answered to their end")
            record["metrics"]["unanswered"] = left
    finally:
        found = {} if stop.at_once else server.metrics() or {}
        numbers = server_numbers(found, server.log.ended, time.monotonic() - start)
        record["metrics"].update(numbers)
    say(describe(numbers))


def wait(server: LlamaServer, stop: Stop, idle_minutes: float) -> str:
    """Wait until something ends the server; returns what."""
    while not stop.reason():
        server.check_alive()
        quiet = time.monotonic() - server.log.active
        if idle_minutes and not server.log.running and quiet > idle_minutes * MINUTE:
            return f"nobody has asked for {idle_minutes:g} minutes"
        time.sleep(LOOK_S)
    return stop.reason()


def connection_of(plan: Plan, server: LlamaServer, port: int) -> Connection:
    """The running server as its user sees it."""
    from llm_recipes.gguf.server_connection import Connection

    return Connection(
        place=plan.place,
        port=port,
        key=plan.key.value,
        alias=plan.alias,
        is_chat=plan.server.is_chat,
        context=server.context_of_slot() or plan.server.context.tokens,
        slots=plan.server.context.sequences,
    )


def warn_if_open(plan: Plan) -> None:
    """Say who may use a server without a key."""
    if plan.key.value is None:
        who = "every user of this machine" if plan.place.is_loopback else "everybody in the cluster"
        say(f"warning: no key is asked for, so {who} can use it and see what others asked")


def describe_model(plan: Plan) -> dict[str, Any]:
    """The run record's part about the model."""
    file = plan.server.file
    return {
        "path": str(file.path),
        "architecture": file.architecture,
        "parameters": file.parameters,
        "dtype": file.file_type,
        "bits_per_weight": file.bits_per_weight,
        "digest": plan.server.digest,
    }


def keep_record(path: Path, record: dict[str, Any], status: str) -> None:
    """Write the run record; not being able to must not hide what ended the server.

    Raises:
        LLMError: If it can't be written, and nothing else went wrong.
    """
    from llm_recipes.record import write_record

    try:
        write_record(path, record, status)
    except LLMError as fault:
        found = LLMError(f"cannot write the run record {path}", fault.why, "another --record")
        if status == "complete":
            raise found from None
        say(str(found))


@contextlib.contextmanager
def log_file(plan: Plan) -> Iterator[IO[str] | None]:
    """The file for llama-server's own log, readable by its owner alone."""
    path: Path | None = plan.settings["server_log"]
    if path is None:
        yield None
        return
    try:
        handle = os.open(path.expanduser(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        what = f"cannot write the log {path}"
        raise LLMError(what, error.strerror or str(error), "another --server-log") from None
    file = open(handle, "a", encoding="utf-8", errors="replace")  # noqa: SIM115
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # a full disk: that was said
            file.close()


def say_loading(seconds: float, resident: int) -> None:
    """A line now and then about loading."""
    say(f"loading for {seconds:.0f} s, {resident / GB:.1f} GB in memory")


if __name__ == "__main__":
    run_recipe(serve)
