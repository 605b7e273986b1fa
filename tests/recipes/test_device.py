"""What a device can do, what memory is left, and what an error says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llm_recipes.device import (  # noqa: E402
    data_sheet,
    is_out_of_memory,
    measure_peak,
)
from llm_recipes.errors import LLMError  # noqa: E402
from llm_recipes.host_memory import cgroup_free_bytes  # noqa: E402

V1_UNLIMITED = 9223372036854771712


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA A10", "A10"),
        ("Tesla T4", "T4"),
        ("Tesla V100-PCIE-32GB", "V100-PCIE"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_data_sheets(name: str, words: str) -> None:
    peak = data_sheet(name)
    assert peak is not None
    assert peak.source == f"data sheet of {words}"


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A4000",
        "NVIDIA RTX A1000",
        "NVIDIA A10G",
        "NVIDIA T400 4GB",
        "NVIDIA GB200",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_other_gpus_are_unknown(name: str) -> None:
    assert data_sheet(name) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_no_memory_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(LLMError, match="memory ran out while the device was measured") as caught:
        measure_peak(torch.device("cpu"), torch.float32)
    assert caught.value.why == "CUDA out of memory. Tried to allocate 2.00 GiB."


def system(folder: Path, groups: str, **files: object) -> Path:
    """A tree with /proc/self/cgroup and files of /sys/fs/cgroup; `__` is a slash in names."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = {"max": "memory.max", "used": "memory.current", "stat": "memory.stat"}
        v1 = {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes"}
        path.with_name((file | v1)[path.name]).write_text(f"{content}\n")
    return folder


def test_the_page_cache_is_no_used_memory(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        "0::/job/step\n",
        job__step__max=1000,
        job__step__used=900,
        job__step__stat="anon 200\ninactive_file 600\nactive_file 100",
    )
    assert cgroup_free_bytes(root) == 700


def test_the_tightest_level_counts(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        "0::/job/step\n",
        job__step__max="max",
        job__step__used=100,
        job__max=1000,
        job__used=700,
        max=2000,
        used=1900,
    )
    assert cgroup_free_bytes(root) == 100


def test_cgroup_v1(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        "12:cpu,cpuacct:/slurm\n5:memory:/slurm/job\n1:name=systemd:/x\n",
        memory__slurm__job__limit=1000,
        memory__slurm__job__usage=800,
        memory__slurm__job__stat="inactive_file 1\ntotal_inactive_file 300",
        memory__slurm__limit=V1_UNLIMITED,
        memory__slurm__usage=5000,
    )
    assert cgroup_free_bytes(root) == 500


def test_a_group_that_the_container_does_not_show(tmp_path: Path) -> None:
    # v1 without a namespace: the path is the host's, the files are the container's own.
    root = system(tmp_path, "5:memory:/docker/1a2b\n", memory__limit=1000, memory__usage=400)
    assert cgroup_free_bytes(root) == 600


@pytest.mark.parametrize("groups", ["", "0::/\n", "0::/../other\n", "5:memory:/\n"])
def test_no_limit(groups: str, tmp_path: Path) -> None:
    assert cgroup_free_bytes(system(tmp_path, groups)) is None


def test_more_is_used_than_granted(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/job\n", job__max=1000, job__used=1200)
    assert cgroup_free_bytes(root) == 0


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert cgroup_free_bytes(tmp_path) is None
