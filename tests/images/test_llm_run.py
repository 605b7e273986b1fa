"""llm-run through the real Apptainer and the real CPU image, as this user and as an ordinary one.

python -m pytest tests/images/test_llm_run.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "bin"))
from _llm.sif import payload_digest  # noqa: E402

LLM_RUN = str(REPOSITORY / "bin" / "llm-run")
FUSE = Path("/dev/fuse")
NOBODY = 65534

# Printed by a program in the image: what it is surrounded by.
REPORT = """
import importlib.util, json, os, sys
def origin(name):
    found = importlib.util.find_spec(name)
    return found and found.origin
seen = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "uid": os.getuid()}
seen.update(torch=origin("torch"), recipes=origin("llm_recipes"), json=origin("json"))
print(json.dumps(seen))
"""


class User:
    """Somebody who starts llm-run: `ordinary`, or whoever runs the tests."""

    def __init__(self, folder: Path, image: Path, ordinary: bool) -> None:
        self.home = folder / "home of ünï; 'x'"
        self.folder = folder
        self.prefix: list[str] = []
        if ordinary:
            ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            self.prefix = ["setpriv", *ids]
        for path in (self.home, folder / "images", folder / "local"):
            path.mkdir()
            self.give(path)
        self.image = folder / "images" / "llm-cpu-0123456789ab.sif"
        try:
            os.link(image, self.image)
        except OSError:
            shutil.copy(image, self.image)
        self.image.chmod(0o755)
        (folder / "images" / "llm-cpu.sif").symlink_to(self.image.name)
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.home),
            "LLM_IMAGE_DIR": str(folder / "images"),
            "LLM_LOCAL_DIR": str(folder / "local"),
            "LLM_SITE": "default",
        }
        if os.environ.get("LLM_APPTAINER"):
            self.env["LLM_APPTAINER"] = os.environ["LLM_APPTAINER"]
        elif apptainer := shutil.which("apptainer") or shutil.which("singularity"):
            self.env["LLM_APPTAINER"] = apptainer

    def give(self, path: Path) -> None:
        """Make `path` this user's own."""
        if self.prefix:
            os.chown(path, NOBODY, NOBODY)

    def folder_named(self, name: str) -> Path:
        """Return a folder of this user with this name."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        self.give(path)
        return path

    def llm_run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Start llm-run with `env` added to the environment, and wait for its end."""
        return subprocess.run(
            [*self.prefix, LLM_RUN, *arguments],
            env={**self.env, **(env or {})},
            cwd=cwd or self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def report(self, env: Mapping[str, str] | None = None) -> dict[str, object]:
        """Return what a Python program in the image says of itself."""
        done = self.llm_run("--launch=local", "python3", "-c", REPORT, env=env)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert isinstance(seen, dict)
        return seen


@pytest.fixture(scope="module", params=["this user", "ordinary user"])
def user(request: pytest.FixtureRequest, cpu_image: Path) -> Iterator[User]:
    """Both users; where root runs the tests, the second has no privileges at all."""
    ordinary = request.param == "ordinary user"
    if ordinary and os.geteuid() != 0:
        pytest.skip("this user is an ordinary one")
    if ordinary:
        skip_if_closed_to_others()
    with tempfile.TemporaryDirectory(prefix="llm-run-") as name:
        Path(name).chmod(0o755)
        somebody = User(Path(name), cpu_image, ordinary)
        if ordinary:  # as on any machine with users
            somebody.prefix = [*with_fuse(Path(name), is_open=True), *somebody.prefix]
        first = somebody.llm_run("true")
        assert first.stderr.endswith("once for its digest\n"), first.stderr
        yield somebody


def skip_if_closed_to_others() -> None:
    """Skip where the checkout, or an Apptainer that it keeps in root's home, is not for others."""
    files = [Path(LLM_RUN)]
    if not (os.environ.get("LLM_APPTAINER") or shutil.which("apptainer")):
        files.append((REPOSITORY / ".tools" / "apptainer").resolve())
    for file in files:
        if not all(path.stat().st_mode & 0o005 for path in file.parents):
            pytest.skip(f"other users cannot read {file}")


def with_fuse(folder: Path, is_open: bool) -> list[str]:
    """Return the beginning of a command for which /dev/fuse is open to everybody, or to nobody.

    In a mount namespace of its own, so that nobody else on this machine notices. Needs root.
    """
    if is_open and FUSE.exists() and FUSE.stat().st_mode & 0o666 == 0o666:
        return []
    device = folder / "fuse"
    if is_open:
        os.mknod(device, stat.S_IFCHR, FUSE.stat().st_rdev)
    else:
        device.touch()
    device.chmod(0o666 if is_open else 0)
    script = 'mount --bind "$0" /dev/fuse && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(device)]


def poison(user: User) -> dict[str, str]:
    """Put everything in this user's way that a cluster has to offer; return the variables."""
    for minor in range(6, 16):
        package = user.home / f".local/lib/python3.{minor}/site-packages/torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('a torch of ~/.local')\n")
    hostile = user.folder_named("hostile")
    (hostile / "json.py").write_text("raise ImportError('a module of PYTHONPATH')\n")
    (hostile / "sitecustomize.py").write_text("raise SystemExit('sitecustomize of PYTHONPATH')\n")
    (hostile / "bash_env").write_text("echo poisoned by BASH_ENV\nexit 9\n")
    for name in ("python3", "python", "python3.14", "python3.11", "apptainer-not"):
        (hostile / name).write_text("#!/bin/sh\necho Python 3.6.8\nexit 1\n")
        (hostile / name).chmod(0o755)
    return {
        "PATH": f"{hostile}:{user.env['PATH']}",
        "PYTHONPATH": str(hostile),
        "PYTHONHOME": str(hostile),
        "PYTHONSTARTUP": str(hostile / "bash_env"),
        "LD_PRELOAD": next(str(p) for p in sorted(Path("/lib").glob("*-linux-gnu/libm.so.6"))),
        "LD_LIBRARY_PATH": str(hostile),
        "BASH_ENV": str(hostile / "bash_env"),
        "ENV": str(hostile / "bash_env"),
        "BASH_FUNC_ls%%": "() { echo poisoned; }",
        "CONDA_PREFIX": "/opt/conda",
        "CONDA_DEFAULT_ENV": "base",
        "VIRTUAL_ENV": "/opt/venv",
        "APPTAINER_BIND": "/no/such/folder",
        "SINGULARITY_BIND": "/no/such/folder",
        "APPTAINERENV_PYTHONPATH": str(hostile),
        "RANK": "7",
        "WORLD_SIZE": "99",
        "LOCAL_RANK": "7",
        "MASTER_ADDR": "stale",
        "TMPDIR": "/no/such/folder",
        "SSL_CERT_FILE": "/no/such/file",
        "LC_ALL": "de_DE.UTF-8",
        "SLURM_JOB_ID": "42",
        "OMP_NUM_THREADS": "1",
    }


def test_a_poisoned_environment(user: User) -> None:
    poisoned = poison(user)
    seen = user.report(poisoned)
    env = seen["env"]
    assert isinstance(env, dict)
    for name in ("PYTHONHOME", "LD_PRELOAD", "BASH_ENV", "ENV", "CONDA_PREFIX", "VIRTUAL_ENV"):
        assert name not in env
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TMPDIR", "SSL_CERT_FILE"):
        assert name not in env
    assert "hostile" not in env["LD_LIBRARY_PATH"] + env["PATH"] + env["PYTHONPATH"]
    assert (env["SLURM_JOB_ID"], env["OMP_NUM_THREADS"]) == ("42", "1")
    for module in ("torch", "json"):
        origin = str(seen[module])
        assert "/.local/" not in origin
        assert "hostile" not in origin
    assert str(seen["torch"]).endswith("torch/__init__.py")
    assert str(seen["recipes"]).startswith(str(REPOSITORY / "recipes"))
    done = user.llm_run("--launch=local", "bash", "-c", "ls -d / && type ls", env=poisoned)
    assert done.returncode == 0, done.stderr
    assert "poisoned" not in done.stdout
    assert "setlocale" not in done.stderr


@pytest.mark.parametrize("name", ["a b", "it's; $(touch x)`y`", "ünï 日本", 'a:b,c"d\\e', "-x"])
def test_hostile_paths(user: User, name: str) -> None:
    folder = user.folder_named(name)
    (folder / "pro gram.py").write_text(REPORT)
    words = ["$HOME", "a  b", "", "*", "ü'\"", "x\ny"]
    done = user.llm_run("python3", "pro gram.py", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["argv"] == words
    assert seen["cwd"] == str(folder)
    assert seen["env"]["HOME"] == str(user.home)
    done = user.llm_run("--bind", f"{folder}:/mnt/x", "ls", "/mnt/x")
    assert done.stdout == "pro gram.py\n", done.stderr


def test_what_the_program_sees(user: User) -> None:
    seen = user.report({"HF_HOME": str(user.folder_named("hf")), "ODD": '`id` $(id) \\ "'})
    env = seen["env"]
    assert isinstance(env, dict)
    assert seen["uid"] == (NOBODY if user.prefix else os.getuid())
    assert env["HF_HOME"] == str(user.folder / "hf")
    assert env["ODD"] == '`id` $(id) \\ "'
    assert env["TORCH_HOME"] == f"{user.home}/.cache/llm/torch"
    assert env["TRITON_CACHE_DIR"].startswith(str(user.folder / "local"))
    assert (env["LLM_IMAGE_NAME"], env["LLM_IMAGE_VARIANT"]) == ("llm", "cpu")
    assert env["LLM_IMAGE_INPUTS"] == "0123456789ab"
    assert env["LLM_IMAGE_DIGEST"] == payload_digest(str(user.image))
    assert env["LLM_HOME"] == str(REPOSITORY)


def test_values_of_env_reach_the_program_unchanged(user: User) -> None:
    value = "`id` $(id) ${HOME} \\ \" ' a,b=c\nü\\"
    done = user.llm_run("--env", f"A={value}", "--env", "RANK=3", "sh", "-c", 'echo "$A:$RANK"')
    assert done.stdout == f"{value}:3\n", done.stderr


def test_standard_streams_and_exit_status(user: User) -> None:
    done = user.llm_run("sh", "-c", "cat; echo oops >&2; exit 41", stdin="ü\n" * 50_000)
    assert done.returncode == 41
    assert done.stdout == "ü\n" * 50_000
    assert done.stderr == "oops\n"
    # A program that a closed pipe may kill says nothing; one that may not complains.
    done = user.llm_run("sh", "-c", "yes | head -n 1")
    assert (done.stdout, done.stderr) == ("y\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_program(user: User, number: signal.Signals) -> None:
    marker = user.home / f"started-{number.name}"
    # Short sleeps: a signal just before a long one would be noticed at its end only.
    program = f"import time, pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    program += "for _ in range(1000): time.sleep(0.1)"
    with subprocess.Popen(
        [*user.prefix, LLM_RUN, "python3", "-c", program],
        env=user.env,
        cwd=user.home,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        assert process.wait(timeout=30) in (-number, 128 + number)


def make_wheel(folder: Path, name: str, version: str, *requirements: str) -> Path:
    """Write a wheel with one module of that name."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return path


def test_pip_install_user(user: User) -> None:
    pip = ("python3", "-m", "pip", "install", "--user", "--no-index")
    extra = make_wheel(user.folder_named("wheels"), "extra_of_user", "1.0", "torch")
    done = user.llm_run(*pip, str(extra))
    assert done.returncode == 0, done.stderr
    done = user.llm_run("python3", "-c", "import extra_of_user as e; print(e.__file__)")
    assert done.stdout.startswith(f"{user.home}/.cache/llm/python/llm-cpu-python3."), done.stderr
    assert not list(user.home.glob(".local/lib/*/site-packages/extra*"))
    # Neither directly nor as a requirement may torch be replaced.
    old = make_wheel(user.folder / "wheels", "torch", "0.1")
    needs = make_wheel(user.folder / "wheels", "needs_old", "1.0", "torch==0.1")
    for wheel in (old, needs):
        links = ("--find-links", str(user.folder / "wheels"))
        done = user.llm_run(*pip, *links, str(wheel))
        assert done.returncode != 0
        assert "constraint" in done.stderr + done.stdout
    assert "/.cache/" not in str(user.report()["torch"])


REFUSALS = [
    ((), "no command given"),
    (("--imagee", "llm", "true"), "there is no option --imagee; did you mean --image?"),
    (("--image", "llm-cpuu", "true"), "did you mean llm-cpu?"),
    (("--image", "/no/such.sif", "true"), "there is no image '/no/such.sif'"),
    (("--image", "/bin/sh", "true"), "is no image"),
    (("--bind", "/no/such", "true"), "there is no file or folder /no/such on this host"),
    (("--site", "no-such", "true"), "there is no site profile 'no-such'"),
    (("--gpu", "--image", "llm-cpu", "true"), "is for the CPU only"),
    (("--env", "1=2", "true"), "write it as NAME=VALUE"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[m[:30] for _, m in REFUSALS])
def test_refusals(user: User, arguments: tuple[str, ...], message: str) -> None:
    done = user.llm_run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_image(user: User) -> None:
    done = user.llm_run("true", env={"LLM_IMAGE_DIR": "/no/such", "LLM_IMAGE": "never-built"})
    assert done.returncode == 2
    assert "there is no image 'never-built'" in done.stderr


@pytest.mark.parametrize("folder", ["/", "/etc"])
def test_a_working_directory_of_the_image(user: User, folder: str) -> None:
    done = user.llm_run("pwd", cwd=Path(folder))
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be shown in the image" in done.stderr


def test_a_working_directory_that_is_closed(user: User) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can get into a closed folder in the first place")
    path = user.folder_named("closed")
    os.chown(path, 12345, 12345)
    path.chmod(0o700)
    # Entered by root, who then becomes the user: as a batch system does.
    enter = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(path)]
    command = [*enter, *user.prefix, LLM_RUN, "pwd"]
    done = subprocess.run(command, env=user.env, capture_output=True, text=True)
    if done.returncode == 0 and not user.prefix:
        assert done.stdout == f"{path}\n"  # a root who may enter every folder, in the image too
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert "cannot be shown in the image" in done.stderr


def test_without_fuse(base_image: Path) -> None:
    """Several starts at once unpack the image once, and the next ones use that copy."""
    if os.geteuid() != 0 or not FUSE.exists():
        pytest.skip("only root can close /dev/fuse to others")
    skip_if_closed_to_others()
    with tempfile.TemporaryDirectory(prefix="llm-run-") as name:
        Path(name).chmod(0o755)
        user = User(Path(name), base_image, ordinary=True)
        user.prefix = [*with_fuse(Path(name), is_open=False), *user.prefix]
        command = [*user.prefix, LLM_RUN, "id", "-u"]
        starts = [
            subprocess.Popen(
                command, env=user.env, cwd=user.home, stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        assert [start.communicate()[0] for start in starts] == [f"{NOBODY}\n"] * 3
        copies = [p for p in Path(name).glob("local/llm-*/images/*") if p.is_dir()]
        assert len(copies) == 1
        changed = copies[0].stat().st_mtime_ns
        assert user.llm_run("id", "-u").stdout == f"{NOBODY}\n"
        assert copies[0].stat().st_mtime_ns == changed
