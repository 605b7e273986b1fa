"""GPUs that this machine does not have: a driver's files, nvidia-smi's tables, torch's answers.

All of them are made up here after the real ones; tests/gpu has what needs a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _llm.doctor import gpu
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, SKIP, WARN
from _llm.gpus import Gpus
from _llm.settings import load_settings

CUDA13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def node(home: Path, env: dict[str, str], root: Path) -> list[Any]:
    context = Context(load_settings(env, str(home)), env, str(home), "t")
    return gpu.node(context, lambda text: None, str(root))


def make_driver(root: Path, version: str) -> None:
    (root / "dev").mkdir()
    (root / "dev/nvidiactl").touch()
    (root / "proc/driver/nvidia/gpus/0").mkdir(parents=True)
    text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Mar  5 22:23:56 2024\n"
    (root / "proc/driver/nvidia/version").write_text(text, encoding="utf-8")
    information = root / "proc/driver/nvidia/gpus/0/information"
    information.write_text("Model: \t Tesla V100-SXM2-32GB\n", encoding="utf-8")


def test_no_gpu(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    (found,) = node(home, env, tmp_path)
    assert found.status == SKIP and found.text == "no GPU on this node"
    (found,) = node(home, {**env, "LLM_GPUS_PER_NODE": "4"}, tmp_path)
    assert "this site's GPU nodes have them" in found.text


def test_a_gpu_that_slurm_gave_and_nobody_sees(
    home: Path, env: dict[str, str], tmp_path: Path
) -> None:
    (found,) = node(home, {**env, "SLURM_STEP_GPUS": "0,1"}, tmp_path)
    assert found.status == FAIL and "(0,1)" in found.text


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [
        ("580.65.06", OK, "runs CUDA 13 and older"),
        ("535.104.05", OK, "runs CUDA 12 and older"),
        ("470.82.01", FAIL, "too old for every image: CUDA 12 needs 525"),
    ],
)
def test_driver(
    home: Path, env: dict[str, str], tmp_path: Path, version: str, status: str, words: str
) -> None:
    make_driver(tmp_path, version)
    found = node(home, {**env, "PATH": "/nonexistent"}, tmp_path)
    assert [f.check for f in found] == ["gpu", "gpu driver", "gpu health"]
    assert found[0].text == f"1 x Tesla V100-SXM2-32GB, driver {version}"
    assert (found[1].status, found[2].status) == (status, SKIP)
    assert words in found[1].text


def test_hidden(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    make_driver(tmp_path, "580.65.06")
    (found,) = node(home, {**env, "CUDA_VISIBLE_DEVICES": ""}, tmp_path)
    assert found.status == WARN


def test_an_nvidia_smi_that_fails(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    make_driver(tmp_path, "580.65.06")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Unable to determine the device handle' ; exit 9\n")
    program.chmod(0o755)
    found = node(home, {**env, "PATH": f"{tmp_path}:{env['PATH']}"}, tmp_path)
    assert found[-1].status == FAIL and "Unable to determine" in found[-1].text


def test_health() -> None:
    (fine,) = gpu.health("0, NVIDIA H200, 4, 143771, 0, 0, Default\n", "")
    assert fine.status == OK
    table = (
        "0, NVIDIA H200, 4, 143771, 0, 2, Default\n"
        "1, NVIDIA H200, 90000, 143771, 99, 0, Default\n"
        "2, NVIDIA H200, 4, 143771, 0, [N/A], Prohibited\n"
    )
    found = gpu.health(table, "123, python, 90000\n")
    assert [f.status for f in found] == [FAIL, WARN, FAIL]
    assert found[1].measured == "90000 of 143771 MiB used, 99 % busy"


@pytest.mark.parametrize(
    ("capability", "built_for", "cuda", "words"),
    [
        ((9, 0), CUDA13, "13.0", ""),
        ((8, 9), CUDA13, "13.0", ""),  # runs sm_86
        ((12, 1), CUDA13, "13.0", ""),
        ((13, 0), CUDA13, "13.0", ""),  # the driver compiles compute_120
        ((7, 0), CUDA13, "13.0", "CUDA 13 dropped it"),
        ((6, 1), ["sm_70", "sm_80"], "12.6", "the image has no code for sm_61"),
        ((3, 7), ["sm_50", "sm_60"], "12.6", "CUDA 12 dropped it"),
        ((12, 0), ["sm_80", "sm_90"], "12.6", "it came with CUDA 12.8"),
        ((9, 0), ["sm_80", "sm_90a"], "12.6", ""),
    ],
)
def test_architecture(
    capability: tuple[int, int], built_for: list[str], cuda: str, words: str
) -> None:
    fault = gpu.architecture_fault(capability, built_for, cuda)
    assert (words in fault[0] and fault[1]) if words else fault is None


def test_no_advice_to_build_what_cannot_help() -> None:
    for capability, built_for, cuda in (((3, 7), ["sm_50"], "12.6"), ((3, 5), CUDA13, "13.0")):
        fault = gpu.architecture_fault(capability, built_for, cuda)
        assert fault and "cuda12" not in fault[1] and "--no-gpu" in fault[1]


def torch_answers(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    torch = {
        "version": "2.13.0+cu130",
        "import_s": 3.0,
        "right": True,
        "threads": 8,
        "count": 1,
        "cuda": "13.0",
        "hip": None,
        "error": "",
        "architectures": CUDA13,
    }
    one = {
        "number": 0,
        "name": "NVIDIA H200",
        "capability": [9, 0],
        "free_bytes": 140 << 30,
        "total_bytes": 141 << 30,
        "largest_error": 1e-12,
        "tflops": 700.0,
        "dtype": "bfloat16",
    }
    collective = {"ranks": 1, "status": 0, "last": "", "lines": ["n NCCL INFO Using network IB"]}
    answers = {"torch": [torch], "gpu": [one], "collective": [collective]}
    for name, values in changes.items():
        answers[name][0].update(values)
    return answers


HERE = Gpus("nvidia", "580.65.06", ("NVIDIA H200",))


def test_torch_computes() -> None:
    found = gpu.findings(torch_answers(), HERE)
    assert [(f.check, f.status) for f in found] == [("torch", OK), ("gpu 0", OK), ("nccl", OK)]
    assert found[1].measured == "700 TFLOP/s in bfloat16, 140 GiB of 141 GiB free"
    assert found[2].text == "between nodes by IB"


@pytest.mark.parametrize(
    ("changes", "check", "status", "words"),
    [
        ({"torch": {"cuda": None, "version": "2.13.0+cpu"}}, "gpu in image", WARN, "stays idle"),
        ({"torch": {"count": 0, "error": "driver too old"}}, "gpu in image", FAIL, "too old"),
        ({"gpu": {"largest_error": 0.5}}, "gpu 0", FAIL, "computes wrongly"),
        ({"gpu": {"capability": [7, 0]}}, "gpu 0", FAIL, "no code for sm_70"),
        ({"gpu": {"error": "OutOfMemoryError: x"}}, "gpu 0", FAIL, "OutOfMemoryError"),
        ({"collective": {"status": 1, "last": "ncclSystemError"}}, "nccl", FAIL, "ncclSystemError"),
        ({"torch": {"right": False}}, "torch", FAIL, "wrongly"),
        ({"torch": {"import_s": 99.0}}, "torch", WARN, "slow"),
    ],
)
def test_torch_does_not(changes: Any, check: str, status: str, words: str) -> None:
    found = {f.check: f for f in gpu.findings(torch_answers(**changes), HERE)}
    assert found[check].status == status and words in found[check].text
    assert found[check].fix


def test_an_image_without_torch() -> None:
    (found,) = gpu.findings({"torch": [{"missing": True, "error": ""}]}, HERE)
    assert found.status == SKIP
    (found,) = gpu.findings({"torch": [{"missing": False, "error": "libgomp"}]}, HERE)
    assert found.status == FAIL


@pytest.mark.parametrize(
    ("line", "network"),
    [
        ("n1:7:7 [0] NCCL INFO Using network Socket", "Socket"),
        ("n1:7:7 [0] NCCL INFO Assigned NET plugin IB to comm", "IB"),
        ("n1:7:7 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB ib0:10.0.0.1<0>", "IB"),
        ("n1:7:7 [0] NCCL INFO NET/IB : No device found.", ""),
    ],
)
def test_what_nccl_says(line: str, network: str) -> None:
    assert gpu.read_nccl([line]) == (network, [])


def test_ways_between_gpus() -> None:
    lines = [
        "Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM",
        "Channel 01/0 : 1[1] -> 0[0] via P2P/CUMEM",
    ]
    assert gpu.read_nccl(lines) == ("", ["P2P/CUMEM"])
