"""Loading: every page of the weights is read within its time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llm_recipes import models  # noqa: E402
from llm_recipes.model_folder import find_model  # noqa: E402


def resident_bytes(file: Path) -> int:
    """Bytes of a mapped file whose pages this process has."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = line.endswith(str(file))
        elif first == "Rss:" and inside:
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8"])
def test_mapped_weights_are_read(dtype: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 23))
    data = torch.from_file(str(file), shared=True, size=1 << 23, dtype=torch.uint8)
    model = torch.nn.Module()
    weight = data.view(getattr(torch, dtype)).view(1024, -1)
    model.weight = torch.nn.Parameter(weight, requires_grad=False)
    model.empty = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    assert resident_bytes(file) < 1 << 23
    models.read_mapped_weights(model)
    assert resident_bytes(file) == 1 << 23


def test_reading_is_part_of_loading(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "read_mapped_weights", lambda model: time.sleep(1))
    start = time.perf_counter()
    loaded = models.load_model(
        find_model(str(model_folder)), None, torch.device("cpu"), torch.float32, False
    )
    assert 1 < loaded.load_s < time.perf_counter() - start
