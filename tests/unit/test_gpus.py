"""Detection from the files that a driver leaves, and the variant that follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.gpus import Gpus, find_gpus, variants_for, visible_gpus

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  "
    "(root@host)  Sun Jul 27 07:02:04 UTC 2025\nGCC version: 12.3.0\n"
)


def make_node(root: Path, version: str, *models: str) -> str:
    (root / "dev").mkdir()
    (root / "dev" / "nvidiactl").touch()
    (root / "proc/driver/nvidia/gpus").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(version, encoding="utf-8")
    for number, model in enumerate(models):
        slot = root / f"proc/driver/nvidia/gpus/0000:{number:02}:00.0"
        slot.mkdir()
        (slot / "information").write_text(f"Model: \t\t {model}\nIRQ: 1\n", encoding="utf-8")
    return str(root)


def test_nvidia(tmp_path: Path) -> None:
    gpus = find_gpus({}, make_node(tmp_path, OPEN, "NVIDIA H200", "NVIDIA H200"))
    assert (gpus.kind, gpus.driver, gpus.models) == ("nvidia", "580.65.06", ("NVIDIA H200",) * 2)
    assert str(gpus) == "NVIDIA H200, driver 580.65.06"
    assert variants_for(gpus, None) == ["cuda13", "cuda12", "cpu"]
    assert variants_for(gpus, False) == ["cpu"]


def test_older_driver(tmp_path: Path) -> None:
    gpus = find_gpus({}, make_node(tmp_path, CLOSED, "NVIDIA A100-SXM4-40GB"))
    assert gpus.driver == "550.54.15"
    assert variants_for(gpus, None) == ["cuda12", "cpu"]


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_gpus_that_the_job_was_not_given(tmp_path: Path, visible: str) -> None:
    gpus = find_gpus({"CUDA_VISIBLE_DEVICES": visible}, make_node(tmp_path, OPEN, "NVIDIA H200"))
    assert gpus.hidden
    assert not gpus.usable
    assert variants_for(gpus, None) == ["cpu"]
    assert variants_for(gpus, True)[0] == "cuda13"


@pytest.mark.parametrize(
    ("model", "is_old"),
    [
        ("Tesla V100-SXM2-32GB", True),
        ("GRID V100D-32Q", True),
        ("NVIDIA TITAN V", True),
        ("Quadro GV100", True),
        ("Quadro P2000", True),
        ("NVIDIA GeForce GTX 1080 Ti", True),
        ("Tesla P4", True),
        ("NVIDIA GeForce RTX 2080 Ti", False),
        ("NVIDIA GeForce GTX 1660 SUPER", False),
        ("NVIDIA TITAN RTX", False),
        ("Tesla T4", False),
        ("NVIDIA L4", False),
        ("NVIDIA A40", False),
        ("NVIDIA GH200 480GB", False),
        ("Quadro RTX 6000", False),
    ],
)
def test_gpus_that_cuda_13_dropped(model: str, is_old: bool) -> None:
    variants = variants_for(Gpus("nvidia", "580.65.06", (model,)), None)
    assert variants == (["cuda12", "cpu"] if is_old else ["cuda13", "cuda12", "cpu"])


def test_a_driver_that_no_variant_works_with() -> None:
    assert variants_for(Gpus("nvidia", "470.82.01", ("Tesla T4",)), None) == ["cpu"]


def test_amd_and_nothing(tmp_path: Path) -> None:
    assert not find_gpus({}, str(tmp_path)).usable
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kfd").touch()
    gpus = find_gpus({}, str(tmp_path))
    assert (gpus.kind, gpus.usable, variants_for(gpus, None)) == ("amd", True, ["cpu"])


def test_nvidia_smi_of_a_login_node_proves_nothing(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.65.06, NVIDIA H200\n", encoding="utf-8")
    program.chmod(0o755)
    assert find_gpus({"PATH": str(tmp_path)}, str(tmp_path)).kind == ""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dxg").touch()  # WSL, where only nvidia-smi knows
    assert find_gpus({"PATH": str(tmp_path)}, str(tmp_path)).models == ("NVIDIA H200",)


@pytest.mark.parametrize(
    ("value", "count"), [("0,1", 2), ("GPU-8f3", 1), ("", 0), ("-1", 0), ("NoDevFiles", 0)]
)
def test_gpus_that_a_job_may_use(value: str, count: int) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == count


def test_gpus_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, str(tmp_path)) == 2
