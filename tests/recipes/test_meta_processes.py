"""Devices of several processes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from llm_recipes.meta.processes import device_faults
from llm_recipes.ranks import Ranks


def test_each_of_several_processes_has_its_own_gpu() -> None:
    one, two = Ranks(), Ranks(count=2)
    assert not device_faults("cuda:1", one)
    assert not device_faults("cuda", two) and not device_faults("auto", two)
    (fault,) = device_faults("cuda:1", two)
    assert "--device cuda:1 does not go with several processes" in str(fault)
    assert "CUDA_VISIBLE_DEVICES" in fault.fix
