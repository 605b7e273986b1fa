"""llm-run as users start it, with a program in Apptainer's place that prints what it was given."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from _llm.sif import payload_digest

REPOSITORY = Path(__file__).resolve().parents[2]
# The checkout's path, and with it that of its environment, may have a space: no shebang can.
PYTHON = os.path.realpath(sys.executable)
# Answers llm-run's question about the image, and prints its start otherwise.
APPTAINER = """#!{python}
import json, os, sys
if "-I" in sys.argv[-1] or any("importlib.metadata" in word for word in sys.argv):
    print("python 3.11\\ntorch 2.13.0+cpu\\nnumpy==2.0\\ntorch==2.13.0+cpu")
else:
    print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ)}}))
    sys.exit(int(os.environ.get("STATUS", 0)))
"""
# Answers every question as Python 3.6 does: PROGRAM -I -c QUESTION
PYTHON_36 = f"""#!/bin/sh
exec '{PYTHON}' -I -c 'import sys; sys.version_info = (3, 6, 8); exec(sys.argv[1])' "$3"
"""


@pytest.fixture
def user(tmp_path: Path, env: dict[str, str], images: Path) -> dict[str, str]:
    """The environment of a user with images and that Apptainer."""
    program = tmp_path / "apptainer"
    program.write_text(APPTAINER.format(python=PYTHON), encoding="utf-8")
    program.chmod(0o755)
    env.update(
        LLM_APPTAINER=str(program),
        LLM_IMAGE_DIR=str(images),
        LLM_LOCAL_DIR=str(tmp_path),
        LLM_SITE="default",
    )
    return env


def llm_run(
    user: dict[str, str], *arguments: str, program: Path = REPOSITORY / "bin" / "llm-run"
) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    return subprocess.run(
        command,
        env=user,
        cwd=user["HOME"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
    )


def started(user: dict[str, str], *arguments: str) -> tuple[list[str], dict[str, str]]:
    done = llm_run(user, *arguments)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    return seen["argv"], seen["env"]


def test_the_start(user: dict[str, str], images: Path) -> None:
    argv, env = started(user, "python", "a b.py", "--image", "x")
    assert argv[argv.index("--pwd") + 1] == user["HOME"]
    assert argv[-4:] == ["python", "a b.py", "--image", "x"]
    assert argv[-5] == str(images / "llm-cpu-0123456789ab.sif")
    assert argv[:2] == ["-q", "exec"]
    assert env["APPTAINER_NO_EVAL"] == "1"
    digest = payload_digest(str(images / "llm-cpu.sif"))
    assert env["APPTAINERENV_LLM_IMAGE_DIGEST"] == digest
    assert env["APPTAINERENV_LLM_IMAGE_INPUTS"] == "0123456789ab"
    assert json.loads(env["APPTAINERENV_LLM_LAUNCH"]) == {
        "image": "llm-cpu", "gpu": None, "torchrun": False, "nproc_per_node": None, "nodes": 1,
        "tasks_per_node": None, "env": {},
    }  # fmt: skip
    assert env["APPTAINERENV_LLM_IMAGE_VARIANT"] == "cpu"
    assert env["APPTAINERENV_PYTHONPATH"] == str(REPOSITORY / "recipes")
    base = env["APPTAINERENV_PYTHONUSERBASE"]
    key = f"llm-cpu-python3.11-torch2.13.0+cpu-{os.uname().machine}"
    assert base == f"{user['HOME']}/.cache/llm/python/{key}"
    pins = Path(env["APPTAINERENV_PIP_CONSTRAINT"]).read_text(encoding="utf-8")
    assert pins == "numpy==2.0\ntorch==2.13.0+cpu\n"


def test_the_image_is_asked_once(user: dict[str, str], tmp_path: Path) -> None:
    started(user, "true")
    program = tmp_path / "apptainer"
    program.write_text(program.read_text().replace("importlib.metadata", "no"), encoding="utf-8")
    argv, env = started(user, "true")
    assert argv[-1] == "true"
    assert env["APPTAINERENV_PYTHONUSERBASE"].endswith(f"-torch2.13.0+cpu-{os.uname().machine}")


def test_an_image_that_does_not_start(user: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    program.write_text("#!/bin/sh\necho 'FATAL: no loop device' >&2; exit 255\n", encoding="utf-8")
    done = llm_run(user, "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert "llm-cpu-0123456789ab.sif does not start" in done.stderr
    assert "FATAL: no loop device" in done.stderr
    assert not list(Path(user["HOME"]).glob(".cache/llm/known-images/*/versions"))


def test_an_image_without_python(user: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    text = program.read_text(encoding="utf-8")
    answer = text[text.index("    print(") : text.index("else:")]
    program.write_text(text.replace(answer, "    pass\n"), encoding="utf-8")
    _, env = started(user, "true")
    assert "APPTAINERENV_PYTHONUSERBASE" not in env
    assert env["APPTAINERENV_PYTHONNOUSERSITE"] == "1"


def test_exit_status_passes_through(user: dict[str, str]) -> None:
    user["STATUS"] = "77"
    assert llm_run(user, "true").returncode == 77


def test_isolation(user: dict[str, str]) -> None:
    user.update({"RANK": "3", "CONDA_PREFIX": "/conda", "BASH_FUNC_module%%": "() { :; }"})
    user.update(SLURM_JOB_ID="7", HF_TOKEN="secret", APPTAINER_BIND="/missing", LANG="de_DE.UTF-8")
    _, env = started(
        user, "--launch=local", "--env", "RANK=1", "--env", "A=$(id)",
        "--env", "PYTHONPATH=/my/code", "true",
    )
    assert env["APPTAINERENV_PYTHONPATH"] == f"/my/code:{REPOSITORY}/recipes"
    for name in ("RANK", "CONDA_PREFIX", "BASH_FUNC_module%%", "APPTAINER_BIND"):
        assert name not in env
    assert env["APPTAINERENV_RANK"] == "1"
    assert env["APPTAINERENV_A"] == "$(id)"
    assert env["APPTAINERENV_LANG"] == "C.UTF-8"
    assert (env["SLURM_JOB_ID"], env["HF_TOKEN"]) == ("7", "secret")


def test_dry_run_can_be_pasted(user: dict[str, str]) -> None:
    user.update({"RANK": "3", "BASH_FUNC_module%%": "() { :; }", "LD_LIBRARY_PATH": "/nowhere"})
    words = ("sh", "-c", "echo 'a  b' \"$HOME\"; exit", "ü;x\n", os.fsdecode(b"\xff"))
    printed = llm_run(user, "--dry-run", "--env", "A=it's $HOME", *words)
    assert printed.returncode == 0, printed.stderr
    done = subprocess.run(
        ["sh", "-c", printed.stdout], env=user, cwd=user["HOME"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    pasted = json.loads(done.stdout)
    argv, env = started(user, "--env", "A=it's $HOME", *words)
    assert pasted["argv"] == argv
    for name in ("_", "PWD", "OLDPWD", "SHLVL"):  # the shell's own
        pasted["env"].pop(name, None)
        env.pop(name, None)
    env.pop("BASH_FUNC_module%%", None)
    assert pasted["env"] == env


def test_secrets_of_the_environment_are_not_printed(user: dict[str, str]) -> None:
    user["HF_TOKEN"] = "hf_secret"
    assert "hf_secret" not in llm_run(user, "--dry-run", "true").stdout
    assert "hf_secret" not in llm_run(user, "--show-config").stdout


def test_show_config(user: dict[str, str]) -> None:
    lines = llm_run(user, "--image", "llm-cpu", "--show-config").stdout.splitlines()
    assert lines[0].startswith("site = default")
    assert "container.image = llm-cpu    (option; set it with LLM_IMAGE)" in lines
    assert any(x.endswith("(environment variable LLM_IMAGE_DIR)") for x in lines)


def test_help_and_version(user: dict[str, str]) -> None:
    for option in ("--help", "-h"):
        done = llm_run(user, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert "examples:" in done.stdout
    assert llm_run(user, "--version").stdout.startswith("llm-run 0.")
    done = llm_run(user)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command given" in done.stderr
    assert "usage:" in done.stderr


def test_all_mistakes_at_once(user: dict[str, str]) -> None:
    user["LLM_APPTAINER"] = "/no/apptainer"
    done = llm_run(user, "--image", "llmm", "--bind", "/no/such", "--bind", "/tmp:/etc", "true")
    assert done.returncode == 2
    assert "there is no image 'llmm'" in done.stderr
    assert "there is no file or folder /no/such on this host" in done.stderr
    assert "/etc is a folder of the image itself" in done.stderr
    assert "/no/apptainer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["plain", "with  space", "it's; $HOME", "ünï:code,x"])
def test_from_any_path_through_any_link(user: dict[str, str], tmp_path: Path, name: str) -> None:
    home = tmp_path / "installations" / name
    home.mkdir(parents=True)
    for folder in ("bin", "sites"):
        shutil.copytree(REPOSITORY / folder, home / folder)
    (home / "recipes").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "relative link").symlink_to(f"../installations/{name}/bin/llm-run")
    (tmp_path / "links" / "llm").symlink_to("relative link")
    for program in (home / "bin" / "llm-run", tmp_path / "links" / "llm"):
        done = llm_run(user, "true", program=program)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)["env"]
        assert seen["APPTAINERENV_LLM_HOME"] == str(home)
        assert Path(seen["APPTAINERENV_PYTHONPATH"]).name in ("recipes", "llm-recipes")


def test_found_on_path(user: dict[str, str]) -> None:
    user["PATH"] = f"{REPOSITORY}/bin:{user['PATH']}"
    line = (f"llm-run --version && bash llm-run --version && cd {shlex.quote(str(REPOSITORY))}/bin "
            "&& sh llm-run -h")
    done = subprocess.run(["sh", "-c", line], env=user, capture_output=True, text=True)
    assert done.stdout.count("llm-run 0.") == 2, done.stderr
    assert "usage:" in done.stdout


def test_pythons_that_do_not_work(user: dict[str, str], tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    for name in ("python3", "python3.13", "python3.12"):
        (fake / name).write_text("#!/bin/sh\necho Python 3.6.8; exit 1\n", encoding="utf-8")
        (fake / name).chmod(0o755)
    user["PATH"] = f"{fake}:{user['PATH']}"
    assert llm_run(user, "true").returncode == 0
    user["LLM_PYTHON"] = str(fake / "python3")
    done = llm_run(user, "true")
    assert done.returncode == 2
    assert "is no Python >= 3.9" in done.stderr


def test_no_python_at_all(user: dict[str, str], tmp_path: Path) -> None:
    """The search on PATH, as on a system whose own Python is too old."""
    home = tmp_path / "old"
    shutil.copytree(REPOSITORY / "bin", home / "bin")
    shutil.copytree(REPOSITORY / "sites", home / "sites")
    script = home / "bin" / "_llm" / "python.sh"
    script.write_text(script.read_text().replace("/usr/bin/python3", "/nowhere/python3"))
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "python3").write_text(PYTHON_36, encoding="utf-8")
    (fake / "python3").chmod(0o755)
    user["PATH"] = str(fake)
    done = llm_run(user, "true", program=home / "bin" / "llm-run")
    assert done.returncode == 2
    assert "no Python >= 3.9 found" in done.stderr
    assert "module load python" in done.stderr
    (fake / "python3.10").symlink_to(sys.executable)
    assert llm_run(user, "--version", program=home / "bin" / "llm-run").returncode == 0


def test_pasted_words_are_the_same_words(user: dict[str, str]) -> None:
    printed = llm_run(user, "--dry-run", "echo", "a b", "").stdout
    assert shlex.split(printed)[-3:] == ["echo", "a b", ""]
