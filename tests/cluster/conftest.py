"""A Slurm cluster of four nodes for all tests of this folder: see docs/cluster-in-a-box.md."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from llm_run import Desk

from box.cgroups import find_version
from box.cluster import Cluster
from box.host import user_folders
from box.requirements import missing
from box.settings import Box

# Another system's folder to take Slurm from: make test-cluster SUITE=trixie
ROOT = os.environ.get("LLM_BOX_ROOT", "")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running box with four nodes. It ends with pytest, even if that is killed."""
    lacking = missing(ROOT)
    if lacking:
        pytest.skip(lacking)
    images, apptainer = user_folders()
    # Not below /tmp, of which each node has its own.
    state = tempfile.mkdtemp(prefix="llm-box-test-", dir="/var/tmp")
    box = Box(state=state, nodes=4, images=images, apptainer=apptainer,
              cgroups=find_version(), root=ROOT)  # fmt: skip
    try:
        running = Cluster.up(box, attached=True)
        yield running
        running.down()
    finally:
        shutil.rmtree(state, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what Slurm's daemons had to say."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and cluster:
        for log in sorted(Path(cluster.box.path("log")).glob("slurm*.log")):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
            report.sections.append((f"end of {log.name}", "\n".join(lines)))
    return report


@pytest.fixture(autouse=True)
def whole_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that uses the cluster: no jobs, all nodes on, connected, fast and idle."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").repair()


@pytest.fixture
def desk(cluster: Cluster, request: pytest.FixtureRequest) -> Desk:
    """A folder of the unprivileged user for one test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return Desk(cluster, name[:60])
