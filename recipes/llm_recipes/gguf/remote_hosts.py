"""The hosts that lend their memory, as the computing process sees them: connected, given layers,
asked whether they really have them.

    from llm_recipes.gguf.remote_hosts import connected_hosts, place_on_hosts, verify_hosts

hosts.py says when to call what.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.gguf.channel import Channel, PeerLost
from llm_recipes.host_memory import free_host_bytes

if TYPE_CHECKING:
    from llm_recipes.gguf.engine import Device
    from llm_recipes.gguf.file import GgufFile
    from llm_recipes.gguf.model import ContextSettings, GgufModel, Placement

# What the leader tells its child.
ENDPOINTS, CONTROL = "LLM_RPC_ENDPOINTS", "LLM_HOSTS_CONTROL"
HERE = "this host"
REMOTE = "RPC"  # how the names of other hosts' devices begin
ANSWER_S = 90.0  # of the leader, who may wait for hosts
ARRIVED_S, LOOK_S = 20.0, 0.2
HELD_SHARE = 0.9  # of the bytes that llama.cpp says a host got
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class RemoteHost:
    """A host that lends its memory, as the computing process sees it.

    offers: llama.cpp's names of its devices there. free_bytes: of each, as the server saw them when
    it started; a CPU's is all memory of the node. memory_bytes: of the host, as far as the job was
    granted it. resident_bytes: of its server before it got anything. devices: its devices here,
    RPC0 and so on; none, if they are not connected.
    """

    name: str
    endpoint: str
    offers: tuple[str, ...]
    free_bytes: tuple[int, ...]
    threads: int
    memory_bytes: int
    resident_bytes: int
    devices: tuple[Device, ...] = ()

    @property
    def has_gpus(self) -> bool:
        """Whether it computes on GPUs; only a host without any offers its CPU."""
        return self.offers != ("CPU",)

    @property
    def rooms(self) -> tuple[int, ...]:
        """Bytes that each of its devices has for us."""
        return self.free_bytes if self.has_gpus else (self.memory_bytes,)


@dataclass(frozen=True)
class Held:
    """What a host holds.

    said: bytes of weights by llama.cpp's log. measured: by which its memory has grown; None: it
    can't be measured from here.
    """

    host: RemoteHost
    layers: tuple[int, ...]
    said: int
    measured: int | None


def rpc_option() -> str:
    """The value of `--rpc` for llama.cpp's programs; empty without hosts."""
    return os.environ.get(ENDPOINTS, "")


@functools.cache
def known_hosts() -> tuple[RemoteHost, ...]:
    """The hosts that lend their memory to this process, not connected; empty without `--hosts`."""
    if CONTROL not in os.environ:
        return ()
    hosts = []
    for facts in _ask("hosts"):
        offers, free = tuple(facts.pop("offers")), tuple(facts.pop("free_bytes"))
        hosts.append(RemoteHost(offers=offers, free_bytes=free, **facts))
    return tuple(hosts)


@functools.cache
def connected_hosts() -> tuple[RemoteHost, ...]:
    """The hosts that lend their memory, with their devices as devices of this process.

    Raises:
        LLMError: If this llama.cpp has no RPC.
    """
    from llm_recipes.gguf.engine import connect_rpc

    return tuple(replace(host, devices=tuple(connect_rpc(host.endpoint))) for host in known_hosts())


def device_names(hosts: Sequence[RemoteHost]) -> list[list[str]]:
    """What llama.cpp calls each host's devices, which it counts as they are connected."""
    numbers = itertools.count()
    return [[f"{REMOTE}{next(numbers)}" for _ in host.offers] for host in hosts]


def place_on_hosts(
    hosts: Sequence[RemoteHost],
    file: GgufFile,
    room: ContextSettings,
    gpu_layers: int | Literal["auto", "all"] = "auto",
    shares: Sequence[float] = (),
) -> Placement:
    """Give each host layers in proportion to its memory, this one's own CPU included.

    Where there are GPUs, all layers go to devices, and this host's CPU gets what they can't hold.

    Args:
        hosts: As known or connected.
        file: The model.
        room: For sequences.
        gpu_layers: So many layers on other hosts and GPUs; the rest stays on this host's CPU.
        shares: Of each device, hosts first, then own GPUs; empty: by memory.

    Raises:
        LLMError: If the hosts can't hold the model, or there are more of them than layers.
    """
    from llm_recipes.gguf.engine import gpu_devices
    from llm_recipes.gguf.model import Placement
    from llm_recipes.gguf.placement import MARGIN_BYTES, layers_of_devices, memory_need

    own_gpus = [device for device in gpu_devices() if not device.name.startswith(REMOTE)]
    names = [name for of_host in device_names(hosts) for name in of_host]
    names += [device.name for device in own_gpus]
    owners = [host.name for host in hosts for _ in host.offers] + [HERE] * len(own_gpus)
    if shares and len(shares) != len(names):
        what = f"--shares has {len(shares)} numbers for {len(names)} devices"
        raise LLMError(what, "they are of: " + ", ".join(owners), "one number for each")
    need = memory_need(file, room)
    free = [size for host in hosts for size in host.rooms] + [gpu.free_bytes for gpu in own_gpus]
    rooms = [max(1, size - need.scratch - MARGIN_BYTES) for size in free]
    here = max(0, free_host_bytes() - need.scratch - need.input)
    sizes = [need.of([layer]) for layer in range(len(need.layers))]
    if gpu_layers == "auto":
        has_gpus = bool(own_gpus) or any(host.has_gpus for host in hosts)
        # GPUs are so much faster that this CPU gets only what they can't hold.
        own = max(0, sum(sizes) - sum(rooms)) if has_gpus else here
        counts = share_layers(sizes, [own, *rooms])[1:]
    else:
        given = len(sizes) if gpu_layers == "all" else min(gpu_layers, len(sizes))
        counts = share_layers(sizes[len(sizes) - given :], [0, *rooms])[1:]
    parts = tuple(shares) or tuple(float(count) for count in counts)
    layers = layers_of_devices(sum(counts), len(sizes), parts)
    stays = list(range(len(sizes) - sum(counts)))
    full = [
        f"{owner} needs {need.of(part) / GB:.2f} GB for its part and has {size / GB:.2f}"
        for owner, part, size in zip([HERE, *owners], [stays, *layers], [here, *rooms], strict=True)
        if need.of(part) > size
    ]
    if full:
        fix = (
            "more nodes, more memory for the job (--mem), a smaller --context,"
            " fewer --parallel, or fewer bits"
        )
        raise LLMError(f"{file.path} does not fit on these hosts", "; ".join(full), fix)
    return Placement(sum(counts), "layer", parts, tuple(names))


def share_layers(sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """How many consecutive layers each place gets, about in proportion to its room.

    Args:
        sizes: Bytes of each layer.
        rooms: Bytes that each place has: this host's CPU, which may stay empty, then the devices,
            each of which gets one layer at least.

    Raises:
        LLMError: If there are fewer layers than devices.
    """
    devices = len(rooms) - 1
    if len(sizes) < devices:
        raise LLMError(
            f"there are {len(sizes)} layers for the devices of other hosts, and {devices} devices",
            "each gets one at least, the output counts as one",
            "fewer nodes, or a larger --gpu-layers",
        )
    total, ends = sum(sizes), list(itertools.accumulate(rooms))
    counts = [0] * len(rooms)
    before = 0
    for size in sizes:
        middle = (before + size / 2) / total * ends[-1]
        counts[next(i for i, end in enumerate(ends) if middle < end)] += 1
        before += size
    for index in range(1, len(counts)):
        while counts[index] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[index] += 1
    return counts


def verify_hosts(hosts: Sequence[RemoteHost], model: GgufModel) -> list[Held]:
    """See that each host holds its layers, and say so: by llama.cpp's log, and measured there.

    Raises:
        LLMError: If a host holds nothing, or its memory has not grown by what it was given.
    """
    return verify_layers(hosts, model.layer_devices, model.buffers)


def verify_layers(
    hosts: Sequence[RemoteHost], layer_devices: Mapping[int, str], buffers: Mapping[str, int]
) -> list[Held]:
    """As `verify_hosts`, with what a program's log says of the loaded model.

    Args:
        hosts: As known or connected.
        layer_devices: Name of the device of each layer.
        buffers: Bytes of weights by the buffer's name, `RPC0[ADDRESS:PORT]`.
    """
    named = list(zip(hosts, device_names(hosts), strict=True))
    until = time.monotonic() + ARRIVED_S
    while True:
        grown = _grown(hosts)
        found = [_held(host, names, layer_devices, buffers, grown) for host, names in named]
        # What was sent last may still be on its way: nobody confirms that it has arrived.
        if time.monotonic() > until or not any(_faults(held) for held in found):
            break
        time.sleep(LOOK_S)
    elsewhere = sorted(set(layer_devices) - {layer for held in found for layer in held.layers})
    for held in found:
        _tell(held)
    print(f"hosts: here: {_ranges(elsewhere)}", file=sys.stderr, flush=True)
    raise_all([fault for held in found for fault in _faults(held)])
    return found


def _held(
    host: RemoteHost,
    names: Sequence[str],
    layer_devices: Mapping[int, str],
    buffers: Mapping[str, int],
    grown: Mapping[str, int | None],
) -> Held:
    layers = tuple(sorted(i for i, name in layer_devices.items() if name in names))
    said = sum(size for name, size in buffers.items() if f"[{host.endpoint}]" in name)
    return Held(host, layers, said, grown[host.endpoint])


def _faults(held: Held) -> list[LLMError]:
    host = held.host
    if not held.layers or not held.said:
        what = f"host {host.name} holds no layer of the model"
        fix = "more layers for other hosts (--gpu-layers all), other --shares, or fewer nodes"
        return [LLMError(what, "llama.cpp's log names none", fix)]
    if held.measured is not None and held.measured < HELD_SHARE * held.said:
        what = f"host {host.name} does not hold the layers that it was given"
        why = f"they have {held.said / MB:.1f} MB, its memory grew by {held.measured / MB:.1f} MB"
        fix = "a fault of llama.cpp's RPC or of this recipe; without --hosts it runs here alone"
        return [LLMError(what, why, fix)]
    return []


def _tell(held: Held) -> None:
    host = held.host
    measured = "not measured" if held.measured is None else f"{held.measured / MB:.1f} MB measured"
    print(
        f"hosts: {host.name} ({', '.join(host.offers)}) at {host.endpoint}:"
        f" {_ranges(held.layers)}, {held.said / MB:.1f} MB, {measured}",
        file=sys.stderr,
        flush=True,
    )


def _ranges(layers: Sequence[int]) -> str:
    if not layers:
        return "no layers"
    return f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"


def _grown(hosts: Sequence[RemoteHost]) -> dict[str, int | None]:
    """By how much each host's memory has grown: the server's process, or the memory of its GPUs."""
    from llm_recipes.gguf.engine import devices

    resident = {facts["endpoint"]: facts["resident_bytes"] for facts in _ask("measure")}
    grown: dict[str, int | None] = {}
    for host in hosts:
        if not host.has_gpus:
            grown[host.endpoint] = resident[host.endpoint] - host.resident_bytes
        elif host.devices:
            now = {device.name: device.free_bytes for device in devices()}
            grown[host.endpoint] = sum(d.free_bytes - now[d.name] for d in host.devices)
        else:  # another program has the only connection to them
            grown[host.endpoint] = None
    return grown


def _ask(question: str) -> list[dict[str, Any]]:
    """Ask the leader, which is this process's parent."""
    channel = _control()
    try:
        channel.send({"ask": question})
        answer: list[dict[str, Any]] = channel.receive(ANSWER_S)["hosts"]
    except PeerLost as lost:
        raise LLMError("the leader of the hosts does not answer", str(lost)) from None
    return answer


@functools.cache
def _control() -> Channel:
    return Channel(socket.socket(fileno=int(os.environ[CONTROL])))
