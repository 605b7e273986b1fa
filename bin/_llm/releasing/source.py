"""The source of this repository for a release: which commit, which files, as one tar file.

The tar has fixed order, times and owners, so the same commit gives the same bytes. It is read from
the working tree, which is compared with the commit first.
"""

from __future__ import annotations

import datetime
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _llm import commit as commits
from _llm.errors import LLMError
from _llm.releasing.manifest import NAME, name_fault

# What programs make in an unpacked source, as .gitignore has it: anywhere, and in one place.
CACHES = frozenset(("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"))
NOT_SOURCE = frozenset((".git", ".tools", "build", "images", "sites/local"))
COMMIT_FILE = ".commit"


@dataclass(frozen=True)
class Source:
    """A tree to release.

    commit: 40 hexadecimal digits, "" where nothing knows it. changes: files that are not as in the
    commit. epoch: seconds since 1970, the time of the commit. files: from the top folder, sorted.
    """

    commit: str
    changes: tuple[str, ...]
    epoch: int
    files: tuple[str, ...]

    @property
    def day(self) -> str:
        """The day of the commit, in UTC."""
        moment = datetime.datetime.fromtimestamp(self.epoch, datetime.timezone.utc)
        return moment.date().isoformat()


def read_source(home: Path, otherwise: int) -> Source:
    """Return the tree in `home`, a checkout or an unpacked source of a release.

    otherwise: the time of a tree without git. Raises LLMError where git can't read the checkout.
    """
    if not (home / ".git").exists():
        files = sorted(_walk(home, ""))
        known = commits.read_commit(str(home))
        # Nothing tells whether an unpacked source was changed.
        return Source(known, ("(a source without git)",), otherwise, tuple(files))
    if not shutil.which("git"):
        raise LLMError("git is missing", "a release is made of a commit",
                       "install git, or make the release elsewhere")
    head, epoch = git(home, "show", "--no-patch", "--format=%H %ct", "HEAD").split()
    # `XY path`, and with a rename one more path: https://git-scm.com/docs/git-status
    status = git(home, "status", "--porcelain=v1", "--no-renames", "-z", "--untracked-files=all")
    changes = [line[3:] for line in status.split("\0") if line and not is_release(line[3:])]
    wanted = ["--cached", *(["--others", "--exclude-standard"] if changes else [])]
    listed = set(git(home, "ls-files", "-z", *wanted).split("\0")) - {""}
    files = [name for name in sorted(listed)
             if not is_release(name) and os.path.lexists(home / name)
             and (not (home / name).is_dir() or (home / name).is_symlink())]
    return Source(head, tuple(changes), int(epoch), tuple(files))


def is_release(name: str) -> bool:
    """Whether a file belongs to a release that was made in this very folder."""
    return name.partition("/")[0].startswith((f"{NAME}-", f".{NAME}-")) and "/" in name


def _walk(folder: Path, above: str) -> Iterable[str]:
    for entry in os.scandir(folder):
        name = f"{above}{entry.name}"
        if entry.name in CACHES or name in NOT_SOURCE or is_release(f"{name}/"):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/")
        elif name != COMMIT_FILE:
            yield name


def tag_faults(home: Path, version: str, head: str) -> list[LLMError]:
    """Return an error for each tag of this version that names another commit."""
    if not (home / ".git").exists():
        return []
    faults = []
    for tag in (version, f"v{version}"):
        found = git(home, "for-each-ref", "--format=%(objectname) %(*objectname)",
                    f"refs/tags/{tag}").split()
        if found and head not in found:
            faults.append(LLMError(
                f"the tag {tag} names another commit", f"{found[-1][:12]}, not {head[:12]}",
                f"git checkout {tag}, or choose another VERSION"))
    return faults


def git(home: Path, *words: str) -> str:
    """Return what git prints. Raises LLMError with its last words where it fails."""
    # GIT_DIR and its like name another repository, as in a hook.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", "-C", str(home), *words], capture_output=True, check=False,
                          env={**env, "GIT_OPTIONAL_LOCKS": "0"})
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise LLMError(f"git can't read {home}", said[0], f"git -C '{home}' status")
    return done.stdout.decode(errors="surrogateescape")


def make_tar(home: Path, source: Source, folder: str, target: Path) -> None:
    """Write the source as a tar file whose names begin with `folder`/. Raises OSError.

    It also holds a file .commit, so that what is installed from it knows its commit.
    """
    word = " changed" if source.changes else ""
    with open(target, "xb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            data = f"{source.commit or 'unknown'}{word}\n".encode()
            tar.addfile(_member(f"{folder}/{COMMIT_FILE}", source.epoch, len(data)),
                        io.BytesIO(data))
            for name in source.files:
                _add(tar, home / name, f"{folder}/{name}", source.epoch)
        stream.flush()
        os.fsync(stream.fileno())
    target.chmod(0o644)
    os.utime(target, (source.epoch, source.epoch))


def _member(name: str, epoch: int, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mtime, member.mode, member.size = epoch, mode, size
    return member


def _add(tar: tarfile.TarFile, path: Path, name: str, epoch: int) -> None:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        member = _member(name, epoch, 0, 0o777)
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(member)
    elif stat.S_ISREG(status.st_mode):
        data = path.read_bytes()
        mode = 0o755 if status.st_mode & 0o100 else 0o644
        tar.addfile(_member(name, epoch, len(data), mode), io.BytesIO(data))


def tar_faults(path: Path, folder: str) -> list[str]:
    """Return what is wrong with a source archive: names and links that lead out of `folder`."""
    faults, size = [], 0
    names: set[str] = set()
    folders: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                above = {member.name[:at] for at, c in enumerate(member.name) if c == "/"}
                fault = _member_fault(member, folder)
                if not fault and (member.name in names | folders or names & above):
                    fault = "a member is there twice, or goes through a file or a link"
                faults += [f"{fault}: {member.name!r:.120}"] if fault else []
                names.add(member.name)
                folders |= above
                size += member.size
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        faults.append(f"it is no whole tar file: {error}")
    if size > path.stat().st_size:  # files with holes
        faults.append(f"it has {path.stat().st_size} bytes, and its members have {size}")
    return faults


def _member_fault(member: tarfile.TarInfo, folder: str) -> str:
    top, _, name = member.name.partition("/")
    if top != folder or name_fault(name):
        return f"a member leads out of {folder}, or has an odd name"
    if member.issym():
        # Upwards first, then down: whatever other links there are, it stays inside.
        words = member.linkname.split("/")
        ups = next((at for at, word in enumerate(words) if word != ".."), len(words))
        odd = ".." in words[ups:] or not member.linkname.isprintable()
        if odd or member.linkname[:1] in ("", "/") or ups > name.count("/"):
            return f"a link leads out of {folder}"
    elif not member.isreg():
        return "a member is neither file nor link"
    return ""


def unpack(path: Path, folder: Path) -> None:
    """Unpack a source archive that `tar_faults` found good."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                target.symlink_to(member.linkname)
            else:
                stream = tar.extractfile(member)
                assert stream is not None
                with open(target, "xb") as file:
                    shutil.copyfileobj(stream, file)
                target.chmod(member.mode & 0o755)
                # Its time tells bytecode that is there from what has to be compiled.
                os.utime(target, (member.mtime, member.mtime))


def copy_text_files(home: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return path -> content of the regular files among `names`."""
    return {name: (home / name).read_bytes() for name in names
            if stat.S_ISREG(os.lstat(home / name).st_mode)}
