"""What a job keeps for its later starts, and what it does not inherit from another one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from _llm.job_folder import job_folder, keep_images, without_other_job
from _llm.settings import Settings, load_settings

JOB = {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "box"}


@pytest.fixture
def settings(home: Path, env: dict[str, str], images: Path, tmp_path: Path) -> Settings:
    env.update(JOB, LLM_IMAGE_DIR=str(images), LLM_CACHE_DIR=str(tmp_path / "cache"))
    return load_settings(env, str(home))


def test_a_second_start_has_the_images_of_the_first(
    settings: Settings, env: dict[str, str], home: Path, images: Path
) -> None:
    first = keep_images(job_folder(settings, env), settings, env, str(home), dry_run=False)
    assert f"llm-cpu={images}/llm-cpu-0123456789ab.sif" in first["LLM_PINNED_IMAGES"]
    (images / "llm-cpu.sif").unlink()
    env["SLURM_RESTART_COUNT"] = "1"
    again = job_folder(settings, env)
    assert again.restarts == 1
    assert keep_images(again, settings, env, str(home), dry_run=False) == first


def test_nothing_is_made_where_nothing_has_to_be_kept(
    settings: Settings, env: dict[str, str], home: Path, tmp_path: Path
) -> None:
    job = job_folder(settings, env)
    keep_images(job, settings, env, str(home), dry_run=True)
    assert keep_images(job, settings, {**env, "LLM_PINNED_IMAGES": "x=/y"}, str(home), False) == {}
    assert not (tmp_path / "cache").exists()


def test_requests_and_answers(settings: Settings, env: dict[str, str]) -> None:
    job = job_folder(settings, env)
    job.request_stop("the time limit is near", 1234.0)
    variables = job.variables(1234.4)
    told = json.loads(Path(variables["LLM_STOP_FILE"]).read_text())
    assert told == {"reason": "the time limit is near", "deadline": 1234.0}
    assert variables["LLM_DEADLINE"] == "1234" and "LLM_DEADLINE" not in job.variables(None)
    assert not job.is_unfinished()
    Path(variables["LLM_UNFINISHED_FILE"]).touch()
    assert job.is_unfinished()
    job.forget_start()
    assert os.listdir(job.folder) == []


def test_folders_of_jobs_long_past_are_removed_once_a_day(
    settings: Settings, env: dict[str, str], tmp_path: Path
) -> None:
    old = tmp_path / "cache/jobs/box-1"
    old.mkdir(parents=True)
    os.utime(old, (0, time.time() - 100 * 86400))
    job_folder(settings, env).make()
    assert not old.exists()
    old.mkdir()
    os.utime(old, (0, 0))
    job_folder(settings, {**env, "SLURM_JOB_ID": "13"}).make()
    assert old.exists()


def test_variables_of_an_outer_job_stay_outside() -> None:
    env = {"SLURM_JOB_ID": "2", "LLM_JOB": "1", "LLM_STOP_FILE": "/x", "LLM_LOG_DIR": "/y"}
    env["A"] = "b"
    assert without_other_job(env) == {"SLURM_JOB_ID": "2", "A": "b"}
    own = {**env, "LLM_JOB": "2"}
    assert without_other_job(own) == own
    submitted = {"SLURM_JOB_ID": "2", "LLM_LOG_DIR": "/y"}
    assert without_other_job(submitted) == submitted
