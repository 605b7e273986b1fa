"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent

# `make test &` in a script starts with Ctrl-C ignored, and every program inherits that; those that
# the tests interrupt need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def image_path(name: str, variant: str) -> Path:
    """Where the image for the present inputs is or would be."""
    done = subprocess.run(
        ["sh", HOME / "bin/_llm/tool.sh", "image", "path", "--image", name, "--variant", variant],
        capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"image path: {done.stderr}")
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def cpu_image() -> Path:
    """The image llm-cpu, built by `make test-images` beforehand."""
    path = image_path("llm", "cpu")
    if not path.exists():
        pytest.fail(f"{path} is not built; make image VARIANT=cpu")
    return path


@pytest.fixture(scope="session")
def base_image() -> Path:
    """The image base."""
    path = image_path("base", "")
    if not path.exists():
        pytest.fail(f"{path} is not built; make image IMAGE=base")
    return path


@pytest.fixture(scope="session")
def llama_recipes_image() -> Path:
    """The image llama-recipes-cpu, built by `make test-images` beforehand."""
    path = image_path("llama-recipes", "cpu")
    if not path.exists():
        pytest.fail(f"{path} is not built; make image IMAGE=llama-recipes VARIANT=cpu")
    return path


@pytest.fixture(scope="session")
def apptainer() -> list[str]:
    """Apptainer's `exec` as a command, with the options that this machine needs."""
    import sys

    sys.path.insert(0, str(HOME / "bin"))
    from _llm.apptainer import exec_flags
    from _llm.setup import find_apptainer

    return [find_apptainer(), "exec", *exec_flags()]
