"""Builds through real Apptainer from an archive alone: without a network, to the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "bin"))

from _llm.images import needs, store  # noqa: E402
from _llm.images.archive import fill  # noqa: E402
from _llm.images.catalog import load_image  # noqa: E402

DEFINITION = """\
Bootstrap: localimage
From: unused

%files
    requirements-cpu.lock /opt/llm/requirements.lock

%post
    set -eu
    sh /mnt/install-python.sh /opt/llm/requirements.lock /dev/null
    if python3 -c 'import socket; socket.create_connection(("{host}", {port}), 2)'; then
        echo "this build has a network" >&2
        exit 1
    fi

%test
    python3 -c 'import little; assert little.ANSWER == 42'

%labels
    llm.lock-date 2026-01-01
"""

# What a build is given besides its archive: no settings of pip, uv or APT, and no network.
ISOLATED = {"PIP_CONFIG_FILE": os.devnull, "APT_CONFIG": os.devnull, "LLM_SITE": "default"}
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"], check=False).returncode != 0,
    reason="only root can make a network namespace in which images can be built")


def isolated(folder: Path, archive: Path) -> dict[str, str]:
    """Environment of a build with caches of its own in a folder."""
    env = {k: v for k, v in os.environ.items()
           if not k.startswith(("PIP_", "UV_", "LLM_")) and not k.lower().endswith("_proxy")}
    (folder / "work").mkdir(parents=True)
    return {**env, **ISOLATED, "LLM_CACHE_DIR": str(folder / "cache"),
            "LLM_IMAGE_DIR": str(folder / "images"), "LLM_BUILD_DIR": str(folder / "work"),
            "LLM_ARCHIVE_DIR": str(archive)}


def tool(
    *arguments: str, env: dict[str, str], cut: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program of the library; cut: without a network."""
    return subprocess.run([*(["unshare", "--net"] if cut else []), "sh",
                           str(HOME / "bin/_llm/tool.sh"), *arguments], env=env, check=False,
                          capture_output=True, text=True, timeout=500)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@needs_root
def test_base_from_an_archive_has_the_same_bytes(tmp_path: Path, base_image: Path) -> None:
    archive = tmp_path / "inputs"
    for more in ([], ["--check"]):
        done = tool("archive", "--image", "base", "--archive", str(archive), *more,
                    env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
    env = isolated(tmp_path / "elsewhere", archive)
    done = tool("image", "build", "--image", "base", env=env, cut=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = Path(done.stdout.splitlines()[-1])
    assert built.name == base_image.name and sha256(built) == sha256(base_image)
    assert not (tmp_path / "elsewhere/cache/build/archive").exists()

    (built.parent / built.name).unlink()
    victim = next(archive.glob("??/*/bash_*.deb"))
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1])
    done = tool("image", "build", "--image", "base", env=env, cut=True)
    assert done.returncode == 2 and f"{victim} is damaged" in done.stdout
    assert "cannot fetch Debian package bash" in done.stderr, done.stderr
    assert not built.exists()


BUILD = """\
import sys
sys.path.insert(0, {bin!r})
from pathlib import Path
from _llm import setup
from _llm.apptainer import exec_flags
from _llm.images import build as b
from _llm.images.catalog import load_image
r = b.Request(containers=Path({containers!r}), images=Path({folder!r}) / "images",
              cache=Path({folder!r}) / "cache", apptainer=setup.ensure_apptainer(),
              flags=exec_flags(), base={base!r}, fakeroot=setup.ensure_fakeroot(),
              archives=({archive!r},))
print(b.build(load_image(r.containers, "tiny", "cpu"), r))
"""


def make_wheel(path: Path) -> None:
    """A package with one module and one number."""
    info = "little-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("little.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: little\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\n"
                       "Root-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"little.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n"
                       f"{info}/RECORD,,\n")


@needs_root
def test_an_image_with_python_packages_twice_without_a_network(
    tmp_path: Path, base_image: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    containers = tmp_path / "it's; a \"checkout\""
    tiny, wheels = containers / "tiny", tmp_path / "wheels"
    tiny.mkdir(parents=True)
    wheels.mkdir()
    for pattern in ("*.sh", "*.py", "build.lock"):
        for file in (HOME / "containers").glob(pattern):
            shutil.copy2(file, containers)
    make_wheel(wheels / "little-1.0-py3-none-any.whl")
    (tiny / "requirements-cpu.in").write_text("little\n")
    (tiny / "apt-cpu.lock").write_text("# locked: 2026-01-01\n")
    (tiny / "requirements-cpu.lock").write_text(
        "# locked: 2026-01-01\nlittle==1.0 \\\n    --hash=sha256:"
        f"{sha256(wheels / 'little-1.0-py3-none-any.whl')}\n")
    (tiny / "image.def").write_text(DEFINITION.format(host="192.0.2.1", port=80))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    archive = tmp_path / "inputs"
    # The build tools come from the network, or from what this user has already.
    own = Path.home() / ".cache/llm/build/archive"
    target = store.Store(archive, (own,) if own.is_dir() else ())
    wanted = needs.needs_of(load_image(containers, "tiny", "cpu"), containers)
    fill(target, [("tiny-cpu", wanted)], "")
    shutil.rmtree(wheels)
    images = []
    for name in ("one", "two è"):
        folder = tmp_path / name
        env = isolated(folder, archive)
        code = BUILD.format(bin=str(HOME / "bin"), containers=str(containers), folder=str(folder),
                            base=str(base_image), archive=str(archive))
        done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], env=env,
                              check=False, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        images.append(Path(done.stdout.splitlines()[-1]))
    assert images[0].name == images[1].name and sha256(images[0]) == sha256(images[1])
