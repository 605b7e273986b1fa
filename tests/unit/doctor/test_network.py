"""Interfaces, RDMA devices and names: from files as a kernel shows them, and of this machine."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from _llm.doctor import network
from _llm.doctor.finding import FAIL, OK, SKIP, WARN
from _llm.settings import load_settings


def make_port(root: Path, state: str = "4: ACTIVE", mode: int | None = 0o666) -> None:
    port = root / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    for name, text in (("state", state), ("link_layer", "InfiniBand"), ("rate", "200 Gb/sec (4X)")):
        (port / name).write_text(text + "\n", encoding="utf-8")
    (root / "dev/infiniband").mkdir(parents=True)
    if mode is not None:
        (root / "dev/infiniband/uverbs0").touch()
        (root / "dev/infiniband/uverbs0").chmod(mode)


def test_no_rdma(tmp_path: Path) -> None:
    assert [f.status for f in network.rdma(str(tmp_path))] == [SKIP]


def test_rdma(tmp_path: Path) -> None:
    make_port(tmp_path)
    found = network.rdma(str(tmp_path))
    assert found[0].status == OK
    assert found[0].text == "mlx5_0:1 InfiniBand 200 Gb/sec (4X)"
    assert found[1].check == "memlock"


def test_a_port_that_is_down(tmp_path: Path) -> None:
    make_port(tmp_path, "1: DOWN")
    (found,) = network.rdma(str(tmp_path))
    assert found.status == WARN and "mlx5_0:1 DOWN" in found.text


def test_no_device_for_users(tmp_path: Path) -> None:
    make_port(tmp_path, mode=None)
    assert [f.status for f in network.rdma(str(tmp_path))][:2] == [OK, FAIL]


def test_locked_memory() -> None:
    assert network.locked_memory(resource.RLIM_INFINITY)[0].status == OK
    (found,) = network.locked_memory(8 << 20)
    assert found.status == FAIL and "8192 KiB" in found.text and "LimitMEMLOCK" in found.fix


def test_interfaces_of_this_machine() -> None:
    there = network.interfaces()
    assert there["lo"]["address"] == "127.0.0.1"


# llm-run gives gloo and NCCL the one interface of this name, or nothing.
@pytest.mark.parametrize(
    ("wanted", "status"), [("lo", OK), ("ib7", FAIL), ("l", FAIL), ("lo,ib7", FAIL), ("", None)]
)
def test_the_sites_interface(
    home: Path, env: dict[str, str], wanted: str, status: str | None
) -> None:
    settings = load_settings({**env, "LLM_NETWORK_INTERFACE": wanted}, str(home))
    found = {f.check: f for f in network.node(settings, 1, lambda text: None)}
    assert (found["interface"].status if "interface" in found else None) == status


def test_an_interface_without_an_address() -> None:
    there = {"ib0": {"address": "", "state": "down", "speed": ""}}
    found = network._interfaces(there, "ib0")
    assert found[1].status == FAIL and "ib0 has no address (down)" in found[1].text


@pytest.mark.parametrize(
    ("addresses", "nodes", "interface", "status"),
    [
        (["10.0.0.1"], 2, "", OK),
        (["127.0.1.1"], 2, "", FAIL),
        (["127.0.1.1"], 2, "ib0", WARN),
        (["127.0.1.1"], 1, "", OK),
        (["127.0.1.1", "10.0.0.1"], 2, "", OK),
        ([], 1, "", WARN),
        ([], 2, "", FAIL),
    ],
)
def test_own_name(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], nodes: int, interface: str, status: str
) -> None:
    def resolve(name: str) -> list[str]:
        if not addresses:
            raise OSError(-2, "Name or service not known")
        return addresses

    monkeypatch.setattr(network, "resolve", resolve)
    assert network.own_name(nodes, interface, lambda text: None)[0].status == status


def test_resolve_is_the_systems() -> None:
    assert network.is_loopback(network.resolve("localhost")[0])
    with pytest.raises(OSError):
        network.resolve("no-such-host.invalid")
