"""Two installed versions, and shells in which real module systems load them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from systems import ensure_systems

from _llm.errors import LLMError

HOME = Path(__file__).resolve().parents[2]
OLD, NEW = "0.0.9", "9.10.0"
PREFIX = "it's my; ü/llm"
INIT = {"environment-modules": "usr/share/modules/init", "lmod": "usr/share/lmod/lmod/init"}


@dataclass(frozen=True)
class Modules:
    """A module system in a shell.

    system: environment-modules or lmod. shell: bash, zsh or tcsh. root: where both are unpacked.
    paths: the folders of modulefiles.
    """

    system: str
    shell: str
    root: Path
    paths: tuple[Path, ...]
    home: Path

    def run(self, script: str, interactive: bool = False) -> str:
        """Run lines of commands behind `module use`; return everything they print."""
        lines = []
        if self.shell == "zsh":
            lines += [f"module_path=({self.root}/usr/lib/*/zsh/*(/))",
                      f"fpath=({self.root}/usr/share/zsh/functions/**/*(/))"]
        lines += [f"{'source' if self.shell == 'tcsh' else '.'} "
                  f"{self.root / INIT[self.system] / self.shell}"]
        lines += [f"module use {quoted(path)}" for path in self.paths]
        file = self.home / f"script.{self.shell}"
        file.write_text("\n".join([*lines, script, ""]))
        program = str(self.root / "bin" / self.shell) if self.shell != "bash" else "bash"
        flags = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "tcsh": ["-f"]}[self.shell]
        if interactive:
            flags += ["-i", "-c", f". '{file}'"]
        else:
            flags += [str(file)]
        done = subprocess.run(
            [program, *flags], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=60, check=False, cwd=self.home,
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin", "TERM": "dumb", "USER": "me",
                 "LC_ALL": "C.UTF-8", "MODULES_PAGER": "", "LMOD_PAGER": "none"})
        return done.stdout


def quoted(path: Path) -> str:
    """Quote a path for bash, zsh and tcsh alike."""
    return "'" + str(path).replace("'", "'\\''") + "'"


def copy_checkout(folder: Path, version: str) -> Path:
    """Copy what is installed, as another version, without the checkout's Apptainer."""
    for name in ("bin", "recipes", "sites", "completions", "modules"):
        shutil.copytree(HOME / name, folder / name,
                        ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    run = folder / "bin/_llm/run.py"
    text = run.read_text()
    assert 'VERSION = "' in text
    before, _, rest = text.partition('VERSION = "')
    run.write_text(f'{before}VERSION = "{version}{rest[rest.index(chr(34)):]}')
    return folder


def make(target: str, source: Path, *arguments: str) -> str:
    """Run install or uninstall of a checkout; return what it says."""
    done = subprocess.run(["sh", str(source / "bin/_llm/tool.sh"), target, *arguments],
                          capture_output=True, text=True, check=False,
                          env={**os.environ, "LLM_SITE": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def systems() -> Path:
    """Both module systems, zsh and tcsh."""
    try:
        return ensure_systems()
    except LLMError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, PREFIX in a folder with a hostile name; the new one's site names a module."""
    folder = tmp_path_factory.mktemp("site") / "apps"
    sites = folder / PREFIX / "sites"
    sites.mkdir(parents=True)
    (sites / "here.ini").write_text("[modules]\nnames = tool/1.4\n")
    for version, site in ((OLD, ""), (NEW, "here")):
        source = copy_checkout(tmp_path_factory.mktemp("checkout") / version, version)
        make("install", source, "--prefix", str(folder / PREFIX), "--site", site,
             "--modulepath", str(folder / "modulefiles"))
    return folder


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of other people."""
    folder = tmp_path_factory.mktemp("others")
    same_kind = "prepend-path PATH /like/bin\nsetenv LIKE 1\npushenv LIKE_IMAGE 1\n"
    for name in ("tool/1.3", "tool/1.4", "empty/1", "like/1"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("#%Module1.0\n" + (same_kind if name == "like/1" else ""))
    return folder


@pytest.fixture(params=["environment-modules", "lmod"])
def system(request: pytest.FixtureRequest) -> str:
    """The name of a module system."""
    return str(request.param)


@pytest.fixture(params=["bash", "zsh", "tcsh"])
def modules(
    request: pytest.FixtureRequest, system: str, systems: Path, apps: Path, others: Path,
    tmp_path: Path,
) -> Modules:
    """A module system in a shell, with the installed versions on its path."""
    return Modules(system, request.param, systems, (apps / "modulefiles", others), tmp_path)
