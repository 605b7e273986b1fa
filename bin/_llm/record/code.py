"""The code that a record names: this checkout, or a copy of another commit of it.

A run whose code was not committed can be had again only where the same files lie now.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile

from _llm.commit import has_changes, read_commit
from _llm.errors import LLMError
from _llm.record.content import file_sha256, files_sha256
from _llm.record.finding import GONE, OK, OTHER, UNKNOWN, Finding
from _llm.record.reading import Record, recipe_file

COMMIT = re.compile("[0-9a-f]{40,64}")
FILES = ".files_sha256"
SAME_HERE = "the recipes here are the same, byte for byte"
OTHERS_HERE = "the recipes here are others: it can't be had"
TAKE_THESE = "--best-effort takes what is here"
NO_COPY = "this is no checkout with git, so it has no other commit"


class Code:
    """Where the recorded code is. home: the checkout or copy. commit: to copy first, or ""."""

    __slots__ = ("commit", "findings", "home", "recipe")

    def __init__(self, home: str) -> None:
        self.home = home
        self.commit = ""
        self.recipe = ""
        self.findings: list[Finding] = []


def find_code(record: Record, home: str, cache: str) -> Code:
    """Return where the code is or will be; nothing is written yet."""
    found = Code(home)
    commit, files = record.text("commit", "code"), record.text("files_sha256", "code")
    commit = commit if COMMIT.fullmatch(commit) else ""
    finding, is_copied = _find(commit, record.part("code").get("dirty"), files, home)
    found.findings.append(finding)
    if is_copied:
        found.commit, found.home = commit, copy_folder(commit, cache)
    found.recipe, finding = _find_recipe(record, found, home)
    found.findings.append(finding)
    return found


def _find(commit: str, was_dirty: object, files: str, home: str) -> tuple[Finding, bool]:
    """Return what is known of the code, and whether it is a commit to copy.

    files: the hash of all recipes, "" in older records. Of what was never committed it alone tells.
    """
    here, is_same = read_commit(home), files != "" and _has_files(home, files)
    if commit and was_dirty is not True:
        if commit == here and (is_same or not files) and not has_changes(home):
            unknown = "; the record does not know of changes" if was_dirty is None else ""
            return Finding("code", OK, f"commit {commit[:12]}, as it is here{unknown}"), False
        copy = _other_commit(commit, here, home, files)
        if copy.state == OK or not is_same:
            return copy, copy.state == OK
        return Finding("code", OK, f"commit {commit[:12]}; {SAME_HERE}"), False
    if commit and files and not is_same:
        # A checkout that was copied has changes by the times of its files, and none in fact.
        copy = _other_commit(commit, here, home, files)
        if copy.state == OK:
            return copy, True
    return _uncommitted(commit, files, is_same), False


def copy_folder(commit: str, cache: str) -> str:
    """Return where the copy of a commit lies or will lie."""
    return os.path.join(cache, "code", commit)


def copy_commit(commit: str, home: str, folder: str) -> None:
    """Make the copy, whole or not at all; one that is there and whole stays.

    Raises LLMError, OSError. Where old files of a cache are removed by themselves, a copy loses
    some; where somebody edits it, it is another code: then it is made anew.
    """
    if is_whole(folder):
        return
    above = os.path.dirname(folder)
    os.makedirs(above, exist_ok=True)
    part = tempfile.mkdtemp(prefix=f".{commit[:12]}.", dir=above)
    try:
        _extract(commit, home, part)
        for name, text in ((".commit", commit), (FILES, files_sha256(part))):
            with open(os.path.join(part, name), "w", encoding="ascii") as file:
                file.write(text + "\n")
        os.chmod(part, 0o755)
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(part, folder)
        except OSError:  # another replay was faster
            if not is_whole(folder):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_whole(folder: str) -> bool:
    """Say whether a copy is there with all its files as git has them."""
    try:
        with open(os.path.join(folder, FILES), encoding="ascii") as file:
            return file.read().strip() == files_sha256(folder)
    except (OSError, ValueError):
        return False


def _extract(commit: str, home: str, folder: str, *names: str) -> None:
    """Write files of a commit, all without names, below an empty folder. Raises LLMError."""
    done = _git(home, "archive", "--format=tar", commit, *names)
    if done.returncode:
        raise LLMError(
            f"commit {commit[:12]} can't be copied out of {home}",
            " ".join(done.stderr.decode(errors="replace").split())[:300], "git fsck",
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="tar")
        else:
            archive.extractall(folder)


def _has_files(home: str, files: str) -> bool:
    """Say whether the recipes in `home` have this hash."""
    try:
        return files_sha256(os.path.join(home, "recipes")) == files
    except OSError:
        return False


def _commit_has_files(commit: str, home: str, files: str) -> bool:
    """Say whether the recipes of a commit have this hash. Raises LLMError."""
    with tempfile.TemporaryDirectory() as folder:
        _extract(commit, home, folder, "recipes")
        return _has_files(folder, files)


def _uncommitted(commit: str, files: str, is_same: bool) -> Finding:
    at = f"commit {commit[:12]} with changes that were never committed" if commit \
        else "code of no known commit"
    if is_same:
        return Finding("code", OK, f"{at}; {SAME_HERE}")
    why = f"; {OTHERS_HERE}" if files else ": the record does not say what they were"
    return Finding("code", GONE, at + why, TAKE_THESE)


def _other_commit(commit: str, here: str, home: str, files: str) -> Finding:
    differs = f"here is {here[:12] or 'no known commit'}"
    differs = f"{commit[:12]} here has changes" if here == commit else differs
    if not os.path.exists(os.path.join(home, ".git")):
        return Finding("code", GONE, f"commit {commit[:12]}; {differs}, and {NO_COPY}",
                       "use llm-record of a checkout, or of an installation of that commit")
    try:
        done = _git(home, "cat-file", "-t", commit)
    except OSError as error:
        return Finding("code", GONE, f"commit {commit[:12]}; {differs}, and git does not start: "
                       f"{error.strerror}", "module load git, or use a node that has it")
    if done.returncode or done.stdout.strip() != b"commit":
        said = " ".join(done.stderr.decode(errors="replace").split())[:200]
        said = said if "dubious" in said or "safe" in said else "git here does not know it"
        is_shallow = _git(home, "rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        return Finding("code", GONE, f"commit {commit[:12]}; {differs}, and {said}",
                       f"git -C '{home}' fetch --{'unshallow' if is_shallow else 'all'}")
    try:
        is_same = not files or _commit_has_files(commit, home, files)
    except LLMError as error:
        return Finding("code", GONE, f"{error.what}: {error.why}", error.fix)
    if not is_same:
        return Finding("code", GONE, f"commit {commit[:12]} with new or staged files that were"
                       f" never committed; {OTHERS_HERE}", TAKE_THESE)
    return Finding("code", OK, f"commit {commit[:12]}, copied out of this checkout ({differs})")


def _find_recipe(record: Record, code: Code, home: str) -> tuple[str, Finding]:
    """Return the recipe's path and whether it is the recorded file."""
    name, digest = recipe_file(record)
    path = os.path.join(code.home, name)  # an absolute one stays
    is_ours = not os.path.isabs(name)
    if is_ours and os.path.relpath(path, code.home).startswith(".."):
        return "", Finding("recipe", GONE, f"{name} lies outside of the checkout")
    if is_ours and code.commit:  # not copied yet: what git has decides
        done = _git(home, "show", f"{code.commit}:{name}")
        if done.returncode:
            return "", Finding("recipe", GONE, f"{name} is not in commit {code.commit[:12]}")
        import hashlib

        now = hashlib.sha256(done.stdout).hexdigest()
    else:
        try:
            now = file_sha256(path)
        except OSError as error:
            return "", Finding("recipe", GONE, f"{path}: {error.strerror}")
    if not digest:
        return path, Finding("recipe", UNKNOWN, f"{name}: the record has no hash of it")
    if now == digest:
        return path, Finding("recipe", OK, f"{name} {digest[:12]}")
    return path, Finding("recipe", OTHER, f"{name} has changed: {digest[:12]}, now {now[:12]}",
                         "bring the file back as it was (git log shows when it changed)")


def _git(home: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", "-C", home, *words], capture_output=True, check=False, env=env,
                          stdin=subprocess.DEVNULL)
