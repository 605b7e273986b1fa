"""`make install` and `make uninstall`: side by side, in one step, nothing of anybody is lost."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from _llm.commit import has_changes, read_commit
from _llm.errors import make_command
from _llm.run import VERSION

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("bin", "recipes", "sites", "completions", "modules")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without git and without an Apptainer of its own."""
    folder = tmp_path_factory.mktemp("source") / "a checkout's copy; ü"
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True,
                        ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    return folder


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "it's a prefix; ü"


def run(target: str, source: Path, *arguments: str, umask: int = 0o022,
        ) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(source / "bin/_llm/tool.sh"), target, *arguments], capture_output=True,
        text=True, check=False, umask=umask,
        env={**os.environ, "LLM_SITE": "nowhere"})


def install(source: Path, prefix: Path, *arguments: str, umask: int = 0o022) -> str:
    done = run("install", source, "--prefix", str(prefix), *arguments, umask=umask)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def uninstall(source: Path, prefix: Path, *arguments: str) -> str:
    done = run("uninstall", source, "--prefix", str(prefix), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def other_version(source: Path, folder: Path, version: str) -> Path:
    """A checkout of another version."""
    shutil.copytree(source, folder, symlinks=True)
    file = folder / "bin/_llm/run.py"
    file.write_text(file.read_text().replace(f'"{VERSION}"', f'"{version}"'))
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_an_installation_runs_and_says_what_it_is(source: Path, prefix: Path) -> None:
    out = install(source, prefix)
    assert sorted(path.name for path in prefix.iterdir()) == [
        ".versions", VERSION, "images", "modulefiles", "sites"]
    home = prefix / VERSION
    version = subprocess.run([str(home / "bin/llm-run"), "--version"], capture_output=True,
                             text=True, check=True)
    assert f"llm-run {VERSION}" in version.stdout
    assert f"{home} is ready" in out
    assert f"module use {shlex.quote(f'{prefix}/modulefiles')};" in out
    assert list((home / "bin/_llm/__pycache__").glob("rank.*.pyc"))
    assert not [path for path in everything(home) if "_cache/" in path or path.endswith("~")]
    sites = subprocess.run([str(home / "bin/llm-run"), "--site", "default", "--show-config"],
                           capture_output=True, text=True, check=True, cwd="/")
    assert "site = default" in sites.stdout


def test_everybody_can_read_and_nobody_else_write(source: Path, prefix: Path) -> None:
    install(source, prefix, umask=0o077)
    for path in [prefix, *prefix.rglob("*")]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & 0o044 == 0o044 and not mode & 0o022, (path, oct(mode))
            assert not path.is_dir() or mode & 0o011 == 0o011, path
    assert os.access(prefix / VERSION / "bin/llm-run", os.X_OK)


def test_the_same_version_again_replaces_it_in_one_step(source: Path, prefix: Path) -> None:
    install(source, prefix)
    link = prefix / VERSION
    first = link.resolve()
    seen = set()
    again = subprocess.Popen(["sh", str(source / "bin/_llm/tool.sh"), "install", "--prefix",
                              str(prefix)], stdout=subprocess.DEVNULL)
    while not seen or again.poll() is None:
        seen.add((link / "bin/llm-run").is_file() and (link / "recipes").is_dir())
        time.sleep(0.001)
    assert again.wait() == 0 and seen == {True}
    assert link.resolve() != first
    # A program that started before goes on with what it started with.
    assert (first / "recipes/llm_recipes").is_dir()


def test_replaced_builds_go_when_no_program_can_use_them_any_more(
    source: Path, prefix: Path,
) -> None:
    install(source, prefix)
    first = (prefix / VERSION).resolve()
    old = time.time() - 100 * 24 * 3600
    os.utime(first, (old, old))  # installed long ago, but in use until now
    install(source, prefix)
    assert first.exists()
    os.utime(first, (old, old))
    part = prefix / ".versions" / f".part-{os.uname().nodename}-999999999-{VERSION}-abcdefgh"
    part.mkdir()
    install(source, prefix)
    assert not first.exists() and not part.exists()
    assert len(list((prefix / ".versions").iterdir())) == 2


def test_what_an_administrator_added_or_changed_is_kept(source: Path, prefix: Path) -> None:
    install(source, prefix)
    home = prefix / VERSION
    shipped = (home / "sites/default.ini").read_text()
    (prefix / "sites/ours.ini").write_text("[gpus]\nmodel = V100\n")
    (home / "recipes/own.py").write_text("print()")
    for kept, edit in (("default.ini.old", "first"), ("default.ini.old2", "second")):
        (home / "sites/default.ini").write_text(f"# {edit}")
        assert f"sites/default.ini differed from ours; it is now {kept}" in install(source, prefix)
    assert "differed" not in install(source, prefix)
    assert (home / "sites/default.ini").read_text() == shipped
    assert (home / "sites/default.ini.old").read_text() == "# first"
    assert (home / "sites/default.ini.old2").read_text() == "# second"
    assert (home / "recipes/own.py").read_text() == "print()"
    shown = subprocess.run([str(home / "bin/llm-run"), "--site", "ours", "--show-config"],
                           capture_output=True, text=True, check=True)
    assert "gpus.model = V100" in shown.stdout


def test_a_changed_modulefile_is_kept_aside(source: Path, prefix: Path) -> None:
    install(source, prefix)
    file = prefix / "modulefiles/llm" / VERSION
    ours = file.read_text()
    file.write_text(ours + "# mine\n")
    assert f"{file} differed from ours; it is now .{VERSION}.old" in install(source, prefix)
    assert file.read_text() == ours
    assert file.with_name(f".{VERSION}.old").read_text() == ours + "# mine\n"


def test_an_installation_that_was_cut_short_is_completed(source: Path, prefix: Path) -> None:
    install(source, prefix)
    shutil.rmtree((prefix / VERSION).resolve())
    assert not (prefix / VERSION).exists()
    shutil.rmtree(prefix / "modulefiles")
    install(source, prefix)
    assert (prefix / VERSION / "bin/_llm/main.py").exists()
    assert (prefix / "modulefiles/llm" / VERSION).exists()


@pytest.mark.parametrize("place", [VERSION, f"modulefiles/llm/{VERSION}",
                                   f"modulefiles/llm/{VERSION}-cpu.lua"])
def test_what_belongs_to_somebody_else_is_left_alone(
    source: Path, prefix: Path, place: str,
) -> None:
    (prefix / place).parent.mkdir(parents=True)
    (prefix / place).write_text("precious")
    before = everything(prefix)
    done = run("install", source, "--prefix", str(prefix))
    assert done.returncode == 2
    what, why, fix = done.stderr.splitlines()
    assert f"{prefix}/{place} is there already and not from make install" in what
    assert why.startswith("  why: ") and fix.startswith("  fix: ")
    assert everything(prefix) == before and (prefix / place).read_text() == "precious"


def test_all_mistakes_are_said_at_once_and_nothing_is_written(
    source: Path, tmp_path: Path, prefix: Path,
) -> None:
    done = run("install", source, "--prefix", str(prefix), "--site", "defualt",
               "--default", "7.7.7")
    assert done.returncode == 2 and not prefix.exists()
    assert "DEFAULT=7.7.7 is not installed" in done.stderr
    assert "no site profile 'defualt'" in done.stderr and "did you mean default?" in done.stderr
    done = run("install", source, "--prefix", str(tmp_path / "a:b"), "--modulepath", "/x:/y")
    assert done.stderr.count("is not one folder") == 2 and not list(tmp_path.iterdir())
    for wrong in ("", "/", str(source), str(source / "bin/llm")):
        done = run("install", source, "--prefix", wrong)
        assert done.returncode == 2, wrong
        assert "no folder of its own" in done.stderr or "this checkout" in done.stderr
    (tmp_path / "full/bin").mkdir(parents=True)
    done = run("install", source, "--prefix", str(tmp_path / "full"))
    assert done.returncode == 2 and [p.name for p in (tmp_path / "full").iterdir()] == ["bin"]
    assert f"make install PREFIX='{tmp_path}/full/llm'" in done.stderr
    (tmp_path / "file").write_text("")
    done = run("install", source, "--prefix", str(tmp_path / "file/prefix"))
    assert done.returncode == 2 and "choose another PREFIX" in done.stderr
    (prefix / "sites").mkdir(parents=True)
    (prefix / "sites/here.ini").write_text("[modules]\nnames = a\nnaems = b\n[gpu]\n")
    done = run("install", source, "--prefix", str(prefix), "--site", "here")
    assert done.returncode == 2 and "2 faults" in done.stderr and "'names'" in done.stderr


def test_two_versions_share_images_and_have_one_default(
    source: Path, prefix: Path, tmp_path: Path,
) -> None:
    newer = other_version(source, tmp_path / "newer", "0.20.0")
    default = prefix / "modulefiles/llm/.version"
    install(source, prefix)
    assert f'"{VERSION}"' in default.read_text()
    install(newer, prefix)
    assert '"0.20.0"' in default.read_text()
    (prefix / "images/x.sif").write_text("image")
    for version in (VERSION, "0.20.0"):
        assert (prefix / version / "images/x.sif").read_text() == "image"
    # An older one doesn't take the default away, unless that is wanted; then it stays.
    assert "module load llm means 0.20.0" in install(source, prefix)
    assert '"0.20.0"' in default.read_text()
    install(source, prefix, "--default", VERSION)
    assert f'"{VERSION}"' in default.read_text()
    newest = other_version(source, tmp_path / "newest", "0.100.0")
    assert f"still means {VERSION}; DEFAULT=0.100.0" in install(newest, prefix)
    assert f'"{VERSION}"' in default.read_text()
    uninstall(source, prefix)
    assert '"0.100.0"' in default.read_text()
    assert (prefix / "0.20.0/images/x.sif").exists() and not (prefix / VERSION).exists()


def test_a_default_that_somebody_wrote_stays(source: Path, prefix: Path) -> None:
    install(source, prefix)
    file = prefix / "modulefiles/llm/.version"
    file.write_text(file.read_text() + "# mine\n")
    assert "has a default that make install did not write" in install(source, prefix)
    assert file.read_text().endswith("# mine\n")
    assert f"{file} stays" in uninstall(source, prefix)


def test_uninstall_removes_all_that_was_installed(source: Path, tmp_path: Path) -> None:
    apps = tmp_path / "apps"
    (apps / "modulefiles/other").mkdir(parents=True)
    before = everything(tmp_path)
    for site in ("", "default"):  # the modulefiles of the second differ
        install(source, apps / "llm", "--modulepath", str(apps / "modulefiles"), "--site", site)
    install(source, apps / "llm", "--modulepath", str(tmp_path / "second"))
    # Root's Python writes bytecode of other versions beside ours.
    library = apps / "llm" / VERSION / "bin/_llm/__pycache__"
    (library / "rank.cpython-399.pyc").write_text("")
    assert " stays" not in uninstall(source, apps / "llm")
    assert everything(tmp_path) == {*before, "second"}
    done = run("uninstall", source, "--prefix", str(apps / "llm"))
    assert done.returncode == 2 and f"version {VERSION} is not installed" in done.stderr
    assert "versions there: none" in done.stderr


def test_uninstall_leaves_what_is_not_ours(source: Path, prefix: Path) -> None:
    install(source, prefix)
    home = (prefix / VERSION).resolve()
    (home / "recipes/own.py").write_text("own")
    (home / "sites/default.ini").write_text("changed")
    module = prefix / f"modulefiles/llm/{VERSION}-cpu"
    module.write_text(module.read_text() + "changed")
    (prefix / "sites/ours.ini").write_text("")
    (prefix / "images/x.sif").write_text("")
    out = uninstall(source, prefix)
    stays = {home / "recipes/own.py", home / "sites/default.ini", module}
    assert set(re.findall(r"uninstall: (.*) stays", out)) == {str(path) for path in stays}
    left = {path for path in prefix.rglob("*") if path.is_file()}
    assert left == {*stays, prefix / "sites/ours.ini", prefix / "images/x.sif"}


def test_uninstall_after_a_move(source: Path, tmp_path: Path) -> None:
    install(source, tmp_path / "a/llm", "--modulepath", str(tmp_path / "a/modulefiles"))
    (tmp_path / "a").rename(tmp_path / "b")
    shown = subprocess.run([str(tmp_path / "b/llm" / VERSION / "bin/llm-run"), "--version"],
                           capture_output=True, text=True, check=True)
    assert VERSION in shown.stdout
    uninstall(source, tmp_path / "b/llm", "--modulepath", str(tmp_path / "b/modulefiles"))
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()]


def test_commit_and_changes_are_written_down(source: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout, symlinks=True)
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    prefix = tmp_path / "prefix"
    assert "not committed" not in install(checkout, prefix)
    home = str(prefix / VERSION)
    assert read_commit(home) == read_commit(str(checkout)) and len(read_commit(home)) == 40
    assert has_changes(home) is None
    (checkout / "recipes/new.py").write_text("")
    assert "changes that are not committed" in install(checkout, prefix)
    assert read_commit(home) == read_commit(str(checkout))
    assert has_changes(home) is True


def test_make_passes_only_what_was_typed(tmp_path: Path) -> None:
    def shown(*words: str) -> str:
        return subprocess.run(
            ["make", "-n", "install", *words], cwd=REPOSITORY, capture_output=True, text=True,
            check=True, env={**os.environ, "MODULEPATH": "/etc/modulefiles:/x", "SITE": "y"}).stdout

    assert "/etc/modulefiles" not in shown() and "--site ''" in shown()
    assert "--prefix '/it'\\''s' --modulepath '/m m'" in shown("PREFIX=/it's", "MODULEPATH=/m m")


def test_one_version() -> None:
    found = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert found and found.group(1) == VERSION


def test_an_installation_does_not_send_users_to_a_makefile_that_it_lacks(tmp_path: Path) -> None:
    assert make_command(str(tmp_path), "image").startswith("make image    (in the checkout")
    (tmp_path / "Makefile").touch()
    assert make_command(str(tmp_path), "image") == f"make -C '{tmp_path}' image"
    clone = tmp_path / "it's a clone"
    clone.mkdir()
    (clone / "Makefile").touch()
    words = shlex.split(make_command(str(clone), "image"))
    assert words == ["make", "-C", str(clone), "image"]
