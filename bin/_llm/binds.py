"""What of the host a program sees in the image, and under which path.

Everything keeps the path that it has on the host, links included, so that a path in a script, a
configuration or a run record means the same thing inside and outside.
"""

from __future__ import annotations

import os

from _llm.errors import LLMError

# Folders that every image brings itself: the host's in their place would take the image's own
# programs away. Of those in SHARED a subfolder may be bound, of those in OWN nothing may.
SHARED = frozenset(("/", "/opt", "/opt/llm", "/usr", "/usr/local", "/var", "/var/lib"))
OWN = frozenset(
    [
        *("/.singularity.d", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin"),
        "/opt/llama.cpp",
        *("/sys", "/usr/bin", "/usr/include", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/sbin"),
        *("/usr/libexec", "/usr/share", "/usr/local/bin", "/usr/local/etc", "/usr/local/include"),
        *("/usr/local/lib", "/usr/local/sbin", "/usr/local/share", "/var/lib/apt", "/var/lib/dpkg"),
    ]
)


class Bind:
    """A file or folder of the host, `source`, that the program sees as `target`."""

    __slots__ = ("read_only", "source", "target")

    def __init__(self, source: str, target: str, read_only: bool = False) -> None:
        self.source = source
        self.target = target
        self.read_only = read_only

    def arguments(self) -> list[str]:
        """Return the options of `apptainer exec` for it.

        --bind cannot express a path with a colon or a comma, so those take --mount, whose fields
        are those of a CSV file (https://apptainer.org/docs/user/main/bind_paths_and_mounts.html).
        """
        if any(character in self.source + self.target for character in ':,"\\\n'):
            fields = ["type=bind", f"source={self.source}", f"destination={self.target}"]
            fields += ["ro"] if self.read_only else []
            return ["--mount", ",".join('"' + field.replace('"', '""') + '"' for field in fields)]
        target = "" if self.source == self.target else self.target
        if self.read_only:
            return ["--bind", f"{self.source}:{self.target}:ro"]
        return ["--bind", f"{self.source}:{target}" if target else self.source]


class Binds:
    """The binds of one start, in the order in which Apptainer mounts them.

    shown: what the program sees without them, because another option of Apptainer binds it.
    """

    __slots__ = ("binds", "shown")

    def __init__(self) -> None:
        self.binds: list[Bind] = []
        self.shown: list[Bind] = []

    def show(self, path: str, read_only: bool = False) -> bool:
        """Bind `path` under its own name, and under the name that its links lead to.

        Returns False when it does not exist.
        """
        if not path or not os.path.exists(path):
            return False
        real = os.path.realpath(path)
        self.add(Bind(real, real, read_only))
        if path != real:
            self.add(Bind(real, path, read_only))
        return True

    def show_file(self, path: str) -> None:
        """Bind the file or folder that `path` leads to, read only, in place of the image's own."""
        self.add(Bind(os.path.realpath(path), path, read_only=True))

    def add(self, bind: Bind) -> None:
        """Append a bind unless an earlier one shows the same thing in the same place already.

        The later one of two binds with one target wins; Apptainer would warn and take the first.
        """
        if not bind.read_only and self.covers(bind.source, bind.target):
            return
        self.binds = [other for other in self.binds if other.target != bind.target]
        self.binds.append(bind)

    def covers(self, source: str, target: str) -> bool:
        """Say whether the program sees `source`, and may write to it, as `target`."""
        for bind in reversed([*self.shown, *self.binds]):
            if not is_inside(target, bind.target):
                continue
            rest = target[len(bind.target.rstrip("/")) :]
            where = bind.source.rstrip("/") + rest
            return not bind.read_only and (where == source or os.path.realpath(where) == source)
        return False

    def arguments(self) -> list[str]:
        """Return the options of `apptainer exec` for all binds."""
        return [argument for bind in self.binds for argument in bind.arguments()]


def is_inside(path: str, folder: str) -> bool:
    """Say whether an absolute `path` is `folder` or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def belongs_to_image(path: str) -> bool:
    """Say whether `path` would hide a part of the image that its programs need."""
    if path in SHARED:
        return True
    parts = path.split("/")
    return any("/".join(parts[: depth + 1]) in OWN for depth in (1, 2, 3))


def parse_bind(text: str) -> list[Bind]:
    """Return the binds that SOURCE[:TARGET[:ro]] means; several may be separated by commas.

    Raises LLMError when a source does not exist or a target is no path of an image.
    """
    # A comma or a colon may belong to a name, so what exists decides.
    items = [item for item in text.split(",") if item]
    parsed = [parse_one(item) for item in items]
    if None in parsed and (whole := parse_one(text)):
        items, parsed = [text], [whole]
    binds = []
    for item, bind in zip(items or [text], parsed or [None]):
        if bind is None:
            source = item.partition(":")[0]
            raise LLMError(
                f"bind {text}: there is no file or folder {source} on this host",
                "a bind shows something of the host in the image, so it has to exist before",
                f"mkdir -p '{source}', or correct the path",
            )
        _refuse_target(text, bind.target)
        binds.append(bind)
    return binds


def parse_one(text: str) -> Bind | None:
    """Return the bind that SOURCE[:TARGET[:ro]] means, None when no such source exists."""
    parts = text.split(":")
    if os.path.exists(os.path.expanduser(text)):
        parts = [text]
    mode = parts.pop() if len(parts) > 1 and parts[-1] in ("ro", "rw") else "rw"
    for count in range(len(parts), 0, -1):
        source = os.path.expanduser(":".join(parts[:count]))
        if source and os.path.exists(source):
            target = ":".join(parts[count:]) or os.path.abspath(source)
            return Bind(os.path.abspath(source), target.rstrip("/") or "/", mode == "ro")
    return None


def _refuse_target(text: str, target: str) -> None:
    if not target.startswith("/"):
        raise LLMError(
            f"bind {text}: '{target}' is no absolute path",
            "the part after the colon is where the image shows the folder",
            f"--bind {text.partition(':')[0]}:/{target}",
        )
    if os.path.normpath(target) in SHARED or os.path.normpath(target) in OWN:
        raise LLMError(
            f"bind {text}: {target} is a folder of the image itself",
            "nothing in the image would start without it",
            f"show it elsewhere: --bind {text.partition(':')[0]}:/mnt",
        )
