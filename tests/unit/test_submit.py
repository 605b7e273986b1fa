"""The batch script of --submit, as far as it can be looked at without a Slurm."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from _llm.options import parse
from _llm.settings import load_settings
from _llm.sif import payload_digest
from _llm.submit import Job, asks_for_gpus, job_title, quoted, render, submit


def rendered(home: Path, env: dict[str, str], profile: str, *words: str) -> Job:
    file = home / "sites" / "ours.ini"
    file.write_text(profile, encoding="utf-8")
    options = parse(["--submit", *words])
    overrides = {"container.image": options.image} if options.image else {}
    settings = load_settings(env, str(home), str(file), overrides)
    return render(options, settings, env, str(home))


def headers(job: Job) -> list[str]:
    return [line[8:] for line in job.script.splitlines() if line.startswith("#SBATCH ")]


PROFILE = """
[slurm]
partition = research
gpu_partition = research-gpu
account = abc123
time = 0-10:00:00
options =
    --mem=32G
    --mail-type=FAIL
"""


def test_the_profile_s_resources(home: Path, env: dict[str, str]) -> None:
    job = rendered(home, env, PROFILE, "--nodes=2", "-c", "8", "--", "python", "a/train.v2.py")
    assert headers(job) == [
        "--job-name=train", quoted(f"--output={Path.cwd()}/logs/%x-%j.log"), "--open-mode=append",
        "--partition=research", "--account=abc123", "--time=0-10:00:00",
        "--mem=32G", "--mail-type=FAIL",
    ]  # fmt: skip
    assert job.arguments == ["--nodes=2", "-c", "8"]


def test_jobs_with_gpus_have_their_own_partition(home: Path, env: dict[str, str]) -> None:
    assert "--partition=research-gpu" in headers(rendered(home, env, PROFILE, "-G1", "--", "x"))
    for words in (["--gpus=1"], ["--gres", "gpu:v100:1"], ["--tres-per-node=gres/gpu:1"]):
        assert asks_for_gpus(words)
    assert not asks_for_gpus(["--gres=nvme:1"])


def test_requeue_and_arrays(home: Path, env: dict[str, str]) -> None:
    job = rendered(home, env, "", "--requeue", "--stop-before=90", "--array=1-3", "--", "x")
    assert "--signal=B:USR2@90" in headers(job) and "--requeue" in headers(job)
    assert quoted(f"--output={Path.cwd()}/logs/%x-%A_%a.log") in headers(job)
    assert "--requeue --stop-before 90 --max-requeues 20 -- x" in job.script


def test_a_warning_that_comes_at_once_does_not_end_a_job(home: Path, env: dict[str, str]) -> None:
    script = rendered(home, env, PROFILE, "--requeue", "--", "x").script
    assert script.index("trap '' USR2\n") < script.index("\nexec ")
    started = script[: script.index("\nexec ")].replace("module load", "true") + "\nkill -USR2 $$"
    assert subprocess.run(["sh", "-c", started], check=False).returncode == 0
    assert "trap" not in rendered(home, env, PROFILE, "--", "x").script


def test_modules_of_the_site_are_loaded_in_a_login_shell(home: Path, env: dict[str, str]) -> None:
    job = rendered(home, env, "[modules]\nnames = apptainer/1.4 cuda\n", "--", "x")
    assert job.script.startswith("#!/bin/bash -l\n")
    assert "\nmodule load apptainer/1.4 cuda || exit 2\n" in job.script


def test_hostile_words_reach_the_program(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    words = ["a b", "it's", "$HOME", "`id`", "x;y", "new\nline", "ü"]
    job = rendered(home, env, "", "--env", "A=1 2", "--", "printf", "%s|", *words)
    line = job.script[job.script.index("\nexec ") + 6 :]
    assert shlex.split(line)[-len(words) :] == words
    script = job.script.replace(f"exec {shlex.quote(str(home / 'bin/llm-run'))}", "printf '%s|'")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("".join(word + "|" for word in words))


def test_the_images_of_the_moment_are_written_down(
    home: Path, env: dict[str, str], images: Path
) -> None:
    env["LLM_IMAGE_DIR"] = str(images)
    job = rendered(home, env, "", "--", "x")
    assert f"llm-cpu={images}/llm-cpu-0123456789ab.sif\n" in job.script
    assert f"llm-cuda12={images}/llm-cuda12-ba9876543210.sif" in job.script
    one = rendered(home, env, "", "--image", f"{images}/llm-cpu.sif", "--", "x")
    assert f"--image {images}/llm-cpu-0123456789ab.sif" in one.script
    assert "LLM_PINNED_IMAGES" not in one.script


def test_the_images_of_another_job_are_no_proof(
    home: Path, env: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """From inside a job whose image is there, a job with one that is not."""
    options = parse(["--submit", "--image", "none", "--dry-run", "--", "x"])
    settings = load_settings(env, str(home), None, {"container.image": "none"})
    inside = {**env, "LLM_PINNED_IMAGES": "llm=/images/llm.sif"}
    assert submit(options, settings, inside, str(home)) == 2
    assert "'none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "title"),
    [
        (["python", "-u", "x/train lora.py"], "python"),
        (["python3", "-m", "json.tool"], "json"),
        (["sh", "-c", "echo a b"], "sh"),
        (["/opt/bin/tool.sh"], "tool"),
        (["übung"], "_bung"),
        (["..."], "job"),
    ],
)
def test_job_names(command: list[str], title: str) -> None:
    assert job_title(command) == title


def test_tasks_are_asked_of_slurm(home: Path, env: dict[str, str]) -> None:
    job = rendered(home, env, "", "--tasks-per-node=2", "--", "x")
    assert "--ntasks-per-node=2" in headers(job) and "--tasks-per-node 2 -- x" in job.script


def test_quotes_of_sbatch_lines() -> None:
    assert quoted("--time=1:00") == "--time=1:00"
    assert quoted("--output=/a b/x#y") == '--output="/a b/x#y"'
    assert quoted('--comment=say "hi" \\ it\'s') == '--comment="say \\"hi\\" \\\\ it\'s"'


def test_an_image_that_the_site_does_not_allow_is_not_submitted(
    home: Path, env: dict[str, str], images: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    env.update(LLM_IMAGE_DIR=str(images), LLM_LOCAL_DIR=str(tmp_path))
    file = home / "sites" / "ours.ini"
    for digest, allowed in (("0" * 64, False), (payload_digest(str(images / "llm-cpu.sif")), True)):
        digest = digest.replace("sha256:", "")
        file.write_text(f"[container]\nrequire = digest\ndigests = sha256:{digest}\n")
        settings = load_settings(env, str(home), str(file))
        options = parse(["--submit", "--dry-run", "--", "x"])
        submit(options, settings, env, str(home))
        assert ("must not be used" not in capsys.readouterr().err) is allowed
