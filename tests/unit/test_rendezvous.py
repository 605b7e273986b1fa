"""Where the tasks of a step on several nodes meet, from what Slurm says of the step."""

from __future__ import annotations

import pytest

from _llm.rendezvous import new_token, rendezvous_variables
from _llm.torchrun import choose_port

STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "n[3-4],gpu1", "SLURM_NODEID": "1",
}  # fmt: skip


def test_every_task_comes_to_the_same_place() -> None:
    expected = {
        "LLM_RENDEZVOUS": f"n3:{choose_port(STEP)}",
        "LLM_STEP_NODES": "n3,n4,gpu1",
    }
    assert rendezvous_variables(STEP) == expected
    assert rendezvous_variables({**STEP, "SLURM_NODEID": "0"}) == expected


def test_a_port_of_the_users_own() -> None:
    found = rendezvous_variables({**STEP, "LLM_RENDEZVOUS_PORT": "23456"})
    assert found["LLM_RENDEZVOUS"] == "n3:23456"


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n3"},
        {"SLURM_STEP_ID": ""},
        {"SLURM_STEP_NODELIST": ""},
        {"SLURM_STEP_NODELIST": "n[3-"},
    ],
)
def test_who_is_alone_meets_nobody(change: dict[str, str]) -> None:
    assert rendezvous_variables({**STEP, **change}) == {}


def test_no_two_steps_share_a_secret() -> None:
    assert new_token() != new_token()
    assert len(new_token()) == 32
