"""`make setup`: which Apptainer it takes, and what an interrupted or moved one leaves behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from _llm import debian, setup
from _llm.debian import Archive, Package
from _llm.errors import LLMError

# Upstream's installer as far as it matters here: it refuses a folder that is there, and its
# programs are scripts that go by the folder they are called from.
INSTALLER = r"""
set -e
[ ! -d "$1/$(uname -m)" ] || { echo "not empty" >&2; exit 2; }
mkdir -p "$1/bin" "$1/$(uname -m)/utils/bin" "$1/$(uname -m)/utils/libexec"
printf '#!/bin/sh\necho apptainer version 1\n' > "$1/bin/apptainer"
cd "$1/$(uname -m)/utils"
printf '#!/bin/bash\nexec "${0%%/*}/../libexec/mksquashfs" "$@"\n' > bin/.wrapper
ln -s .wrapper bin/mksquashfs
printf '#!/bin/sh\necho packs "$@"\n' > libexec/mksquashfs
chmod +x "$1/bin/apptainer" bin/.wrapper libexec/mksquashfs
"""


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str]) -> Path:
    """A checkout with a space in its name, on a host without Apptainer, fakeroot and Debian."""
    monkeypatch.setattr(setup, "HOME", home)
    monkeypatch.setattr(setup, "TOOLS", home / ".tools")
    monkeypatch.setattr(setup, "host_archives", lambda: ())
    monkeypatch.setattr(setup, "install_system_package", lambda: False)
    programs = home / "programs"
    programs.mkdir()
    for name in ("sh", "bash", "uname", "mkdir", "ln", "chmod", "cat"):
        (programs / name).symlink_to(f"/bin/{name}")
    for name in ("LLM_APPTAINER", "LLM_SITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("HOME", env["HOME"])
    return home


def add_program(checkout: Path, name: str, script: str) -> Path:
    path = checkout / "programs" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def name_apptainer(monkeypatch: pytest.MonkeyPatch, checkout: Path, path: str) -> None:
    (checkout / "sites/mine.ini").write_text(f"[container]\napptainer = {path}\n")
    monkeypatch.setenv("LLM_SITE", "mine")


def test_the_apptainer_of_the_site_profile_counts(
    monkeypatch: pytest.MonkeyPatch, checkout: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    add_program(checkout, "apptainer", "")
    named = add_program(checkout, "named", "echo apptainer version 1.2.3")
    name_apptainer(monkeypatch, checkout, str(named))
    assert setup.ensure_apptainer() == str(named)
    monkeypatch.setattr(setup.checks, "run", lambda program: [])
    assert setup.main(["--check"]) == 0
    assert f"{named} 1.2.3 is ready" in capsys.readouterr().out


def test_a_named_apptainer_that_is_not_there_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch, checkout: Path,
) -> None:
    monkeypatch.setattr(setup, "install_upstream", lambda: pytest.fail("installs another one"))
    name_apptainer(monkeypatch, checkout, "/no/such/apptainer")
    with pytest.raises(LLMError, match="'/no/such/apptainer' does not exist"):
        setup.ensure_apptainer()
    monkeypatch.delenv("LLM_SITE")
    monkeypatch.setenv("LLM_APPTAINER", "/neither/this")
    with pytest.raises(LLMError, match="'/neither/this' does not exist"):
        setup.ensure_apptainer()


def test_check_without_an_apptainer_fails(
    monkeypatch: pytest.MonkeyPatch, checkout: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(setup.checks, "run", lambda program: [])
    assert setup.main(["--check"]) == 2
    assert "no Apptainer found" in capsys.readouterr().err


def test_programs_that_upstreams_installer_lacks_are_named(checkout: Path) -> None:
    add_program(checkout, "curl", "exit 22")
    with pytest.raises(LLMError, match="could not be installed") as raised:
        setup.ensure_apptainer()
    assert "needs rpm2cpio and cpio (not on PATH)" in raised.value.why
    for name in ("rpm2cpio", "cpio"):
        add_program(checkout, name, "")
    with pytest.raises(LLMError) as raised:
        setup.ensure_apptainer()
    assert "upstream's release could not be fetched" in raised.value.why


def test_an_interrupted_installation_of_upstream_is_done_again(checkout: Path) -> None:
    for name in setup.UPSTREAM_NEEDS:
        add_program(checkout, name, "")
    (checkout / "installer").write_text(INSTALLER)
    add_program(checkout, "curl", f"cat '{checkout}/installer'")
    (checkout / ".tools/apptainer/upstream" / os.uname().machine / "half").mkdir(parents=True)
    path = setup.ensure_apptainer()
    assert path == str(checkout / ".tools/apptainer/usr/bin/apptainer")
    assert (checkout / ".tools/apptainer/bin/apptainer").exists()
    packer = os.path.join(os.path.dirname(path), "mksquashfs")
    done = subprocess.run([packer, "a b"], capture_output=True, text=True, check=True)
    assert done.stdout == "packs a b\n"


def test_a_missing_fakeroot_is_a_note(
    monkeypatch: pytest.MonkeyPatch, checkout: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(setup, "needs_fakeroot", lambda: True)
    monkeypatch.setattr(setup.checks, "ensure_root_subids", lambda: None)
    setup.ensure_build_tools()
    assert "note: images can't be built here: fakeroot is missing" in capsys.readouterr().err
    assert setup.find_fakeroot() == ""
    with pytest.raises(LLMError, match="fakeroot is missing"):
        setup.ensure_fakeroot()
    add_program(checkout, "fakeroot", "")
    assert setup.find_fakeroot() == setup.ensure_fakeroot() == str(checkout / "programs")
    monkeypatch.setattr(setup, "needs_fakeroot", lambda: False)
    assert setup.find_fakeroot() == setup.ensure_fakeroot() == ""


def test_a_fakeroot_of_a_moved_checkout_is_made_again(
    monkeypatch: pytest.MonkeyPatch, checkout: Path,
) -> None:
    monkeypatch.setattr(setup, "needs_fakeroot", lambda: True)
    folder = checkout / ".tools/debian/usr"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib/x86_64-linux-gnu/libfakeroot").mkdir(parents=True)
    (folder / "bin/fakeroot-sysv").write_text("FAKEROOT_PREFIX=/usr\nPATHS=/usr/lib\nexec x\n")
    assert setup.ensure_fakeroot() == str(folder / "bin")
    moved = checkout.with_name("moved")
    checkout.rename(moved)
    monkeypatch.setattr(setup, "TOOLS", moved / ".tools")
    folder = moved / ".tools/debian/usr"
    assert setup.ensure_fakeroot() == str(folder / "bin")
    text = (folder / "bin/fakeroot").read_text()
    assert text == (f"FAKEROOT_PREFIX='{folder}'\n"
                    f"PATHS='{folder}/lib/x86_64-linux-gnu/libfakeroot'\nexec x\n")


def test_packages_come_from_the_archive_that_has_them(
    monkeypatch: pytest.MonkeyPatch, checkout: Path,
) -> None:
    archives = (Archive("http://a.invalid/debian/", "bookworm"),
                Archive("http://a.invalid/debian-security/", "bookworm-security"),
                Archive("http://a.invalid/debian/", "bookworm-backports"))
    asked: list[dict[str, str]] = []
    package = Package("tool", "1", "amd64", "00", 1, "pool/tool.deb", "security")
    for module in (setup, debian):
        monkeypatch.setattr(module, "host_archives", lambda: archives)
    monkeypatch.setattr(setup.PrivateApt, "update", lambda self: None)
    monkeypatch.setattr(setup.PrivateApt, "resolve", lambda self, names: [package])
    monkeypatch.setattr(setup, "fetch", lambda package, mirrors, cache: asked.append(mirrors))
    monkeypatch.setattr(setup, "unpack", lambda file, folder: None)
    setup.ensure_debian_tool("tool", "usr/bin/tool")
    assert asked == [{"main": "http://a.invalid/debian/",
                      "security": "http://a.invalid/debian-security/"}]


def test_parts_of_dead_processes_are_removed(checkout: Path) -> None:
    dead = subprocess.Popen(["sh", "-c", "exit"])
    dead.wait()
    for number in (str(dead.pid), str(os.getpid()), "odd"):
        (setup.TOOLS / f".apptainer-{number}/usr").mkdir(parents=True)
    setup.remove_stale_parts(setup.TOOLS)
    assert {part.name for part in setup.TOOLS.iterdir()} == {
        f".apptainer-{os.getpid()}", ".apptainer-odd"}


def test_apptainer_is_not_unpacked_below_a_space(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "host_archives", lambda: [Archive("http://a.invalid", "bookworm")])
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "with space"))
    with pytest.raises(LLMError, match="whose path has a space"):
        setup.install_newer_debian()
    shared = tmp_path / "cache/.tools/apptainer"
    shared.mkdir(parents=True)
    (shared / "here").symlink_to(shared)
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "cache"))
    for _ in range(2):  # a copy that another checkout has unpacked is used, again and again
        assert setup.install_newer_debian()
        assert (checkout / ".tools/apptainer").resolve() == shared
    without = tmp_path / "checkout"
    monkeypatch.setattr(setup, "TOOLS", without / ".tools")
    assert setup.folder_for_unpacking() == without / ".tools"
