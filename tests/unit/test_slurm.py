"""What is said to Slurm, and what is read from its answers."""

from __future__ import annotations

import pytest

from _llm.errors import LLMError
from _llm.slurm import (
    expand_nodes,
    gpus_of_nodes,
    has_ended,
    need,
    scontrol_name,
    show_job,
    step_environment,
    submission_environment,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("gpu[1-2]-ib", ["gpu1-ib", "gpu2-ib"]),
        ("", []),
    ],
)
def test_lists_of_nodes(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n[a-b]", "n[]"])
def test_malformed_lists(text: str) -> None:
    with pytest.raises(ValueError, match="no list of nodes"):
        expand_nodes(text)


def test_a_step_does_not_inherit_tasks_or_another_step() -> None:
    env = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "HOME": "/h"}
    env.update(SLURM_STEP_ID="3", SLURM_STEPID="3", SLURM_CPUS_PER_TASK="8", SLURM_PROCID="1")
    env.update(SLURM_TRES_PER_TASK="cpu=8", SLURM_EXPORT_ENV="NONE", SLURM_OVERLAP="1")
    assert step_environment(env) == {
        "SLURM_JOB_ID": "1", "HOME": "/h", "SLURM_OVERLAP": "1", "PATH": "/bin:/usr/bin",
    }  # fmt: skip


def test_a_job_does_not_inherit_the_one_it_is_submitted_from() -> None:
    env = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a"}
    assert submission_environment(env) == {"SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a"}


def test_gpus_of_each_node() -> None:
    text = (
        "JobId=5 NodeList=n[1-3] Nodes=n[1-2] CPU_IDs=0 Mem=0 GRES=gpu:v100:2(IDX:0,2),nic:1(IDX:0)"
        " Nodes=n3 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0) MinCPUsNode=1"
    )
    assert gpus_of_nodes(text) == {"n1": 2, "n2": 2, "n3": 1}
    assert gpus_of_nodes("Nodes=n1 CPU_IDs=0 Mem=0 GRES=") == {"n1": 0}


def test_a_missing_program_says_what_to_do() -> None:
    with pytest.raises(LLMError, match="srun is not on PATH"):
        need("srun", {"PATH": "/nonexistent"})


def scontrol(folder: object, script: str) -> dict[str, str]:
    """A stand-in for scontrol, for what a cluster does not do on demand."""
    from pathlib import Path

    program = Path(str(folder)) / "scontrol"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_an_unknown_job_has_ended(tmp_path: object) -> None:
    env = scontrol(tmp_path, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert show_job("9", env) == {}
    assert has_ended({})
    assert has_ended({"JobState": "CANCELLED"}) and not has_ended({"JobState": "RUNNING"})


def test_no_answer_is_an_error(tmp_path: object) -> None:
    env = scontrol(tmp_path, "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(LLMError, match="Slurm does not answer"):
        show_job("9", env)


def test_times_come_in_the_usual_form(tmp_path: object) -> None:
    env = scontrol(tmp_path, "echo JobId=9 Format=$SLURM_TIME_FORMAT")
    assert show_job("9", {**env, "SLURM_TIME_FORMAT": "relative"})["Format"] == "standard"


def test_values_with_spaces_and_the_task_of_an_array(tmp_path: object) -> None:
    env = scontrol(
        tmp_path,
        "echo 'JobId=8 ArrayJobId=9 JobName=other JobState=COMPLETED'\n"
        "echo 'JobId=9 ArrayJobId=9 JobName=a b c JobState=RUNNING Command=/x y z  NtasksPerN:B=0"
        " StdOut=/a  '",
    )
    fields = show_job("9", env)
    assert (fields["JobName"], fields["JobState"]) == ("a b c", "RUNNING")
    assert (fields["Command"], fields["StdOut"]) == ("/x y z", "/a")


def test_one_task_of_an_array_has_a_name_of_its_own() -> None:
    env = {"SLURM_JOB_ID": "9"}
    assert scontrol_name(env) == "9"
    env.update(SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID="3")
    assert scontrol_name(env) == "9_3"
