"""`module load llm` is all that a user needs: an installation without the checkout, in jobs.

make test-cluster ARGS="-k test_installed"
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from llm_run import REPOSITORY, Desk

from box.cluster import Cluster

sys.path.insert(0, str(REPOSITORY / "tests" / "modules"))

from systems import ensure_systems

from _llm.errors import LLMError


@pytest.fixture(scope="module")
def load(cluster: Cluster) -> str:
    """Lines for bash that load the module of an installation in a folder that all nodes see."""
    try:
        systems = ensure_systems()
    except LLMError as error:
        pytest.skip(str(error))
    prefix = Path(cluster.shared) / "apps" / "llm"
    subprocess.run(
        ["sh", str(REPOSITORY / "bin/_llm/tool.sh"), "install", "--prefix", str(prefix)],
        check=True, capture_output=True,
    )  # fmt: skip
    init = systems / "usr/share/modules/init/bash"
    if cluster.run(["test", "-r", str(init)]).returncode:
        pytest.skip(f"other users cannot read {systems}")
    return f". {init}\nmodule use {prefix}/modulefiles\nmodule load llm\n"


def test_sbatch_by_name(desk: Desk, load: str) -> None:
    script = "sbatch --wait --nodes=2 --output=job.out llm-run --image base sh -c 'echo $LLM_HOME'"
    done = desk.run(load + script)
    assert done.returncode == 0, done.stderr
    homes = set(desk.read("job.out").split())
    assert len(homes) == 1 and "/shared/apps/llm/" in homes.pop()


def test_recipes_and_submission(desk: Desk, load: str) -> None:
    code = "import llm_recipes; print(llm_recipes.__file__)"
    done = desk.run(f"{load}llm-run --submit --wait --image base -- python3 -c '{code}'")
    assert done.returncode == 0, done.stderr
    (log,) = (desk.folder / "logs").glob("*.r0.log")
    assert "/shared/apps/llm/" in log.read_text() and str(REPOSITORY) not in log.read_text()


@pytest.mark.parametrize(
    ("line", "nodes"),
    [
        ("salloc --gpus=1 llm-run hostname", ["n1"]),
        ("salloc --nodes=2 --gpus=2 llm-run hostname", ["n1", "n2"]),
        ("srun --nodes=2 llm-run hostname", ["n1", "n2"]),
        ("sbatch --gpus=1 --wait --output=job.out llm-run hostname", ["n1"]),
        ("sbatch --nodes=2 --gpus=2 --wait --output=job.out llm-run hostname", ["n1", "n2"]),
    ],
)
def test_lines_as_users_type_them(desk: Desk, load: str, line: str, nodes: list[str]) -> None:
    done = desk.run(f"{load}export LLM_IMAGE=base\n{line}\n[ ! -e job.out ] || cat job.out")
    found = [word for word in done.stdout.split() if word in desk.cluster.nodes]
    assert sorted(found) == nodes, done.stderr


def test_a_package_for_oneself(desk: Desk, load: str) -> None:
    """`salloc --gpus=1 llm-run pip install --user PACKAGE`, the package being a folder."""
    desk.run(["mkdir", "-p", "mine/our_package"], check=True)
    desk.write("mine/our_package/__init__.py", "print('ours')\n")
    desk.write("mine/pyproject.toml", "[project]\nname = 'our-package'\nversion = '1'\n")
    command = "salloc --gpus=1 llm-run --image llm-cpu"
    words = "pip install --user --no-build-isolation --no-index --quiet ./mine"
    done = desk.run(f"{load}{command} {words} && {command} python -c 'import our_package'")
    assert done.returncode == 0 and done.stdout.endswith("ours\n"), done.stderr
