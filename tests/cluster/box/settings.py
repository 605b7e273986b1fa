"""What a box looks like, and where its files are."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
USER = "alice"
# No distribution gives this id to anybody: Debian leaves 60578-61183 alone.
USER_ID = 61000
LOGIN = "login"
CONTROLLER = "ctl"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORK = "10.77.0"
CLUSTER_NAME = "llm-box"
# The same path in every box: a tmpfs over /run holds what must have a fixed name.
FIXED = "/run/llm-box"
DEFAULT_PARTITION, URGENT_PARTITION = "research", "research-gpu"


@dataclass(frozen=True)
class Box:
    """Settings of one box.

    state: its folder. nodes: number of compute nodes. cpus, gpus: what Slurm is told of each
    node, whether it is there or not. images, apptainer: what the user needs to run images, ""
    for none. cgroups: "v1", or "" where Slurm finds a job's processes by their parents alone.
    cgroup_folders: the box's own, one a controller. root: another system's folder to run everything
    in, "" for the host's. rootless: in a user namespace, where an ordinary
    user is root. slurm: further lines for slurm.conf.
    """

    state: str
    nodes: int = 4
    cpus: int = 64
    gpus: int = 2
    images: str = ""
    apptainer: str = ""
    cgroups: str = ""
    cgroup_folders: list[str] = field(default_factory=list)
    root: str = ""
    rootless: bool = field(default_factory=lambda: os.geteuid() != 0)
    slurm: dict[str, str] = field(default_factory=dict)

    @property
    def compute_nodes(self) -> list[str]:
        """Names of the nodes that run jobs."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def all_nodes(self) -> list[str]:
        """Names of all nodes: the one for users, then those that run jobs."""
        return [LOGIN, *self.compute_nodes]

    def address(self, node: str) -> str:
        """IPv4 address of a node."""
        last = 1 if node == CONTROLLER else 2 if node == LOGIN else 100 + int(node[1:])
        return f"{NETWORK}.{last}"

    def path(self, *parts: str) -> str:
        """Return a path in the state folder."""
        return os.path.join(self.state, *parts)

    @property
    def home(self) -> str:
        """Home folder of the user, the same path inside and outside."""
        return self.path("home", USER)

    @property
    def shared(self) -> str:
        """A folder that all nodes see and everybody may write to."""
        return self.path("shared")

    @property
    def control(self) -> str:
        """Socket through which the supervisor takes commands."""
        return self.path("control")

    @property
    def cgroup_name(self) -> str:
        """Name of the box's control groups."""
        return "llm-box-" + self.state.strip("/").replace("/", "-")

    def save(self) -> None:
        """Write the settings to the state folder."""
        temporary = self.path(".settings.json")
        Path(temporary).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path("settings.json"))

    def visible_paths(self) -> list[str]:
        """Folders of the host that the user has to reach, whatever is closed above them."""
        wanted = [str(CHECKOUT), self.state, self.images, self.apptainer]
        return [os.path.realpath(path) for path in wanted if path]


def load(state: str) -> Box:
    """Return the settings of the box in this state folder. Raises FileNotFoundError.

    What another version of this program wrote and this one does not know is left out.
    """
    values = json.loads(Path(state, "settings.json").read_text(encoding="utf-8"))
    known = {entry.name for entry in fields(Box)}
    return Box(**{name: value for name, value in values.items() if name in known})
