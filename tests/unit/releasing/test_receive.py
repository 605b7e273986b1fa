"""`make import`: everything is checked before anything is installed, and it can be done again."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made import HOSTILE, SBOM, make, make_images, replace, rewrite, write_sif

from _llm.locking import only_one
from _llm.releasing import check, files, receive, source

REPOSITORY = Path(__file__).resolve().parents[3]
BASE, LLM = "images/base-0123456789ab", "images/llm-cpu-ba9876543210"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release; the images it was made of are gone."""
    found, _ = make(tmp_path)
    shutil.rmtree(tmp_path / "images")
    return found


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where images are installed; not there yet."""
    for name in [name for name in os.environ if name.startswith("LLM_")]:
        monkeypatch.delenv(name)
    chosen = tmp_path / HOSTILE / "images"
    monkeypatch.setenv("LLM_IMAGE_DIR", str(chosen))
    monkeypatch.setenv("LLM_SITE", "default")
    monkeypatch.setattr(receive, "end_like_ctrl_c", lambda: None)
    return chosen


def take(folder: Path, *options: str) -> int:
    return receive.main(["--from", str(folder), *options])


def faults_of(folder: Path) -> str:
    return "\n".join(check.check_release(folder, "", []).faults)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def command(folder: Path, *options: str) -> list[str]:
    return ["sh", str(REPOSITORY / "bin/_llm/tool.sh"), "import", "--from", str(folder), *options]


INSTALLED = [".import.lock", ".imported-1.2.0.json", "base-0123456789ab.sif", "base.sif",
             "llm-cpu-ba9876543210.sif", "llm-cpu.sif"]


def test_images_are_installed(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    assert take(folder) == 0
    said = capsys.readouterr().out
    assert listing(images) == INSTALLED
    assert os.readlink(images / "llm-cpu.sif") == "llm-cpu-ba9876543210.sif"
    installed = images / "llm-cpu-ba9876543210.sif"
    assert installed.read_bytes() == (folder / f"{LLM}.sif").read_bytes()
    assert installed.stat().st_mode & 0o777 == 0o755
    assert installed.stat().st_ino != (folder / f"{LLM}.sif").stat().st_ino
    assert "only checksums were checked" in said and "proves nothing" in said


def test_the_second_time_does_nothing_and_reads_no_image(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert take(folder) == 0
    before = [(path.name, path.lstat().st_mtime_ns) for path in images.iterdir()]
    with monkeypatch.context() as patched:
        patched.setattr(files, "sha256_of", None)
        assert take(folder) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert [(path.name, path.lstat().st_mtime_ns) for path in images.iterdir()] == before


@pytest.mark.parametrize("change", [
    lambda images, folder: (images / "llm-cpu.sif").unlink(),
    lambda images, folder: (images / "llm-cpu-ba9876543210.sif").unlink(),
    lambda images, folder: (images / ".imported-1.2.0.json").write_text("[" * 100_000),
    lambda images, folder: (images / ".imported-1.2.0.json").write_text('{"manifest": 1}'),
    lambda images, folder: os.utime(images / "base-0123456789ab.sif", (1, 1)),
])
def test_what_is_missing_is_installed_again(
    folder: Path, images: Path, change: Callable[[Path, Path], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert take(folder) == 0
    change(images, folder)
    capsys.readouterr()
    assert take(folder) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert listing(images) == INSTALLED


def test_a_release_under_another_s_name_and_an_older_one(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    assert take(folder) == 0
    assert "note: its folder" not in capsys.readouterr().out
    [record] = images.glob(".imported-*")
    record.write_text(record.read_text().replace("2026-01-01", "2026-02-01"))
    (images / ".imported-0.json").write_text("[]")
    renamed = folder.rename(folder.with_name("llm-recipes-1.3.0"))
    assert take(renamed, "--check") == 0
    said = capsys.readouterr().out
    assert "llm-recipes-1.2.0 is whole" in said and "another name, llm-recipes-1.3.0" in said
    assert "note: 1.2.0 of 2026-02-01, which is newer, was imported here before" in said


def test_check_installs_nothing(folder: Path, images: Path) -> None:
    assert take(folder, "--check") == 0
    assert not images.exists()


def test_hard_links_where_they_are_asked_for(folder: Path, images: Path) -> None:
    assert take(folder, "--link") == 0
    installed = images / "llm-cpu-ba9876543210.sif"
    assert installed.read_bytes() == (folder / f"{LLM}.sif").read_bytes()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, bytes(data))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "image": (lambda f: flip(f / f"{BASE}.sif"), f"{BASE}.sif: its SHA-256 is another one"),
    "lock": (lambda f: flip(f / "containers/base/apt.lock"),
             "containers/base/apt.lock: its SHA-256 is another one"),
    "sbom": (lambda f: flip(f / f"{BASE}.sbom.cdx.json"),
             f"{BASE}.sbom.cdx.json: its SHA-256 is another one"),
    "source": (lambda f: flip(f / "llm-recipes-1.2.0.tar"), "its SHA-256 is another one"),
    "missing": (lambda f: (f / f"{LLM}.sif").unlink(), f"{LLM}.sif: it is missing"),
    "cut off": (lambda f: replace(f / f"{LLM}.sif", b"x"), f"{LLM}.sif: it has 1 bytes of"),
    "empty": (lambda f: replace(f / f"{LLM}.sif", b""), f"{LLM}.sif: it has 0 bytes of"),
    "more": (lambda f: (f / "images/evil.sif").write_text("x"),
             "images/evil.sif: it is not in the manifest"),
    "odd name": (lambda f: (f / "a\n\x1b[2Jb").write_text("x"), "a\\n\\x1b[2Jb: it is not in"),
    "link": (lambda f: ((f / f"{LLM}.sif").rename(f.parent / "x"),
                        (f / f"{LLM}.sif").symlink_to(f.parent / "x")),
             f"{LLM}.sif: it is a link"),
    "folder link": (lambda f: ((f / "images").rename(f.parent / "x"),
                               (f / "images").symlink_to(f.parent / "x")), "images: it is a link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe: it is neither a file nor a folder"),
    "pipe for a file": (lambda f: ((f / "SHA256SUMS").unlink(), os.mkfifo(f / "SHA256SUMS")),
                        "SHA256SUMS: it is neither a file nor a folder"),
    "sums": (lambda f: flip(f / "SHA256SUMS"), "SHA256SUMS: it says something else"),
    "no sums": (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS: No such file"),
    "manifest": (lambda f: replace(f / "manifest.json", (f / "manifest.json").read_bytes().replace(
        b"2026", b"2027")), "SHA256SUMS: it says something else"),
    "manifest cut off": (lambda f: replace(f / "manifest.json",
                                           (f / "manifest.json").read_bytes()[:-99]), "no JSON"),
    "manifest empty": (lambda f: replace(f / "manifest.json", b""), "no JSON"),
    "manifest a link": (lambda f: ((f / "manifest.json").unlink(),
                                   (f / "manifest.json").symlink_to("/etc/passwd")),
                        "manifest.json: Too many levels of symbolic links"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered(
    folder: Path, images: Path, name: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert faults_of(folder) == ""
    TAMPERED[name][0](folder)
    assert take(folder) == receive.DAMAGED == 1
    said = capsys.readouterr().err
    assert TAMPERED[name][1] in said and "nothing was installed" in said and "\x1b" not in said
    assert not images.exists()


def test_all_faults_at_once(folder: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("image", "lock", "missing", "more"):
        TAMPERED[name][0](folder)
    assert take(folder) == 1
    said = capsys.readouterr().err
    assert "4 faults" in said and all(TAMPERED[name][1] in said
                                      for name in ("image", "lock", "missing", "more"))


def changed_file(folder: Path, name: str) -> None:
    """Let the manifest agree with a file that was changed."""
    content = json.loads((folder / "manifest.json").read_text())
    digest, size = files.sha256_of(folder / name)
    content["files"][name] = {"sha256": digest, "size": size}
    for image in content["images"]:
        if image["file"] == name:
            image.update(sha256=digest, size=size)
    rewrite(folder, **content)


def test_what_may_not_be_read_is_no_fault_of_the_release(
    folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_folder = os.scandir

    def scandir(place: str) -> object:
        if str(place).endswith("containers"):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return open_folder(place)

    def read_small(place: Path, most: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(place))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(PermissionError):
            take(folder, "--check")
    with monkeypatch.context() as patch:
        patch.setattr(check.files, "read_small", read_small)
        with pytest.raises(PermissionError):
            take(folder, "--check")


def test_images_whose_checksum_was_adapted(folder: Path) -> None:
    path = folder / f"{LLM}.sif"
    path.unlink()
    write_sif(path, b"hsqs evil")
    changed_file(folder, f"{LLM}.sif")
    assert "it holds sha256:" in faults_of(folder)
    replace(path, b"#!/bin/sh\n")
    changed_file(folder, f"{LLM}.sif")
    assert "it is no whole image" in faults_of(folder)


def test_an_sbom_that_is_not_the_image_s(folder: Path) -> None:
    replace(folder / f"{LLM}.sbom.cdx.json", SBOM + b" ")
    changed_file(folder, f"{LLM}.sbom.cdx.json")
    assert f"its SBOM is not {LLM}.sbom.cdx.json" in faults_of(folder)


def test_an_image_signed_by_somebody_keeps_its_payload(folder: Path) -> None:
    path = folder / f"{LLM}.sif"
    path.unlink()
    write_sif(path, b"hsqs" + b"llm" * 5000, note=b"a signature")
    changed_file(folder, f"{LLM}.sif")
    assert faults_of(folder) == ""


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("members", [
    [member("../evil")], [member("/etc/evil")], [member("other/x")], [member("top")],
    [member("top/../../evil")], [member("top//x")],
    [member("top/x", tarfile.SYMTYPE, "/etc")], [member("top/x", tarfile.SYMTYPE, "../..")],
    [member("top/x", tarfile.SYMTYPE, "y"), member("top/x/z")],
    [member("top/x", tarfile.SYMTYPE, "y"), member("top/x")],
    [member("top/x", tarfile.LNKTYPE, "top/y")], [member("top/x", tarfile.CHRTYPE)],
    [member("top/x", tarfile.FIFOTYPE)], [member("top/x"), member("top/x")],
    [member("top/x/y"), member("top/x")], [member("top/x"), member("top/x/y")],
    [member("top/x\ny")], [member("top/" + "x" * 300)], [member("top/x", tarfile.SYMTYPE, "")],
    # Inside for who reads it alone, and outside behind the other link.
    [member("top/a/b/c", tarfile.SYMTYPE, "../.."),
     member("top/a/b/d", tarfile.SYMTYPE, "c/../x")],
])
def test_source_archives_that_lead_elsewhere(
    tmp_path: Path, members: list[tarfile.TarInfo],
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for info in members:
            tar.addfile(info)
    assert source.tar_faults(tmp_path / "x.tar", "top")


def test_links_inside_a_source_archive_are_good(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(member("top/a/b/c", tarfile.SYMTYPE, "../../d"))
        tar.addfile(member("top/e", tarfile.SYMTYPE, "a/b"))
    assert source.tar_faults(tmp_path / "x.tar", "top") == []


def test_a_source_archive_with_a_file_of_holes(tmp_path: Path) -> None:
    # A GNU sparse file: a name, type S, no map, and a size of 4 GiB.
    info = member("top/x", tarfile.GNUTYPE_SPARSE)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(1 << 32, 12, tarfile.GNU_FORMAT)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
    [fault] = source.tar_faults(tmp_path / "x.tar", "top")
    assert "its members have 4294967296" in fault


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 1000)
    assert "no whole tar file" in source.tar_faults(tmp_path / "x.tar", "top")[0]


@pytest.mark.parametrize(("given", "said"), [
    ("", "which release?"), ("/no/such/folder", "is no folder"), ("file", "is no folder"),
    ("out", "llm-recipes-1.2.0"), ("empty", "is no release"),
    ("out/llm-recipes-1.2.0/manifest.json", "it is a file of a release"),
])
def test_no_release(
    folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str,
    said: str,
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(check.LLMError) as raised:
        receive.main(["--from", given])
    assert said in str(raised.value)


@pytest.mark.parametrize("place", [".", "llm-recipes-1.2.0"])
def test_a_source_that_was_unpacked_into_the_release(
    folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch, place: str,
) -> None:
    """`tar -xf` beside the release makes a folder of the very name that the release has."""
    monkeypatch.setattr(receive, "HOME", (folder / place).resolve())
    with pytest.raises(check.LLMError, match="unpacked into the release itself") as raised:
        take(folder, "--check")
    assert "tar -xf llm-recipes-1.2.0.tar -C" in raised.value.fix


def test_an_image_that_is_there_is_kept(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    images.mkdir(parents=True)
    made = make_images(images)
    before = [one.path.stat().st_ino for one in made]
    assert take(folder) == 0
    assert [one.path.stat().st_ino for one in made] == before
    assert capsys.readouterr().out.count("(was there)") == 2


@pytest.mark.parametrize(("name", "said"), [
    ("llm-cpu-ba9876543210.sif", "is not the release's image"), ("llm-cpu.sif", "and no link"),
])
def test_what_is_in_the_way_stays(
    folder: Path, images: Path, name: str, said: str, capsys: pytest.CaptureFixture[str],
) -> None:
    images.mkdir(parents=True)
    write_sif(images / name, b"hsqs of somebody else")
    before = (images / name).read_bytes()
    assert take(folder) == 2
    assert said in capsys.readouterr().err
    assert (images / name).read_bytes() == before
    assert "base.sif" not in listing(images)


def test_a_link_to_another_build_moves(folder: Path, images: Path) -> None:
    images.mkdir(parents=True)
    write_sif(images / "llm-cpu-000000000000.sif", b"hsqs old")
    (images / "llm-cpu.sif").symlink_to("llm-cpu-000000000000.sif")
    assert take(folder) == 0
    assert os.readlink(images / "llm-cpu.sif") == "llm-cpu-ba9876543210.sif"
    assert (images / "llm-cpu-000000000000.sif").exists()


def test_a_file_that_changes_while_it_is_copied(
    folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = receive.install_image

    def change(file: Path, *others: object) -> None:
        flip(file)
        first(file, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(receive, "install_image", change)
    with pytest.raises(check.LLMError, match="changed while it was copied"):
        take(folder)
    assert listing(images) == [".import.lock"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_an_interruption_leaves_nothing_half_and_is_resumed(
    folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None,
) -> None:
    """After the first image: by Ctrl-C, or as kill -9 leaves it."""
    first, done = os.replace, []

    def stop(old: str, new: str) -> None:
        if done:
            raise error or SystemExit
        done.append(new)
        first(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(receive.os, "replace", stop)
        with pytest.raises(error or SystemExit):
            take(folder)
    assert listing(images) == [".import.lock", "base-0123456789ab.sif"]
    if error is None:
        (images / ".import-llm-cpu-ba9876543210.sif-1.part").write_text("half")
    before = (images / "base-0123456789ab.sif").stat().st_ino
    assert take(folder) == 0
    assert listing(images) == INSTALLED
    assert (images / "base-0123456789ab.sif").stat().st_ino == before


def test_a_full_disk(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit of the size of files gives the error that a full disk gives."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(check.LLMError, match="there is no room left in"):
            take(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(images) == [".import.lock"]
    assert take(folder) == 0
    assert listing(images) == INSTALLED


def test_two_at_once(folder: Path, images: Path) -> None:
    images.mkdir(parents=True)
    with only_one(images / ".import.lock", "import", "import"):
        two = [subprocess.Popen(command(folder), stdout=subprocess.PIPE, text=True)
               for _ in range(2)]
        for process in two:
            assert process.stdout
            line = process.stdout.readline()
            while line and "is under way" not in line:
                line = process.stdout.readline()
            assert line
    said = [process.communicate(timeout=60)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0]
    assert sorted(text.count("(installed)") for text in said) == [0, 2]
    assert listing(images) == INSTALLED


def test_ctrl_c_while_it_waits(folder: Path, images: Path) -> None:
    images.mkdir(parents=True)
    with only_one(images / ".import.lock", "import", "import"):
        process = subprocess.Popen(command(folder), stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.PIPE)
        assert process.stdout
        while "is under way" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and "Traceback" not in errors


def test_from_a_disk_that_can_only_be_read_and_without_a_network(
    folder: Path, images: Path,
) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    mount = ('mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && '
             '! touch "$1" 2>/dev/null && shift && exec "$@"')
    done = subprocess.run([*alone, "sh", "-c", mount, "sh", str(folder), str(folder / "x"),
                           *command(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert listing(images) == INSTALLED


def test_into_a_folder_that_can_only_be_read(folder: Path, images: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    images.mkdir(parents=True)
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    done = subprocess.run([*alone, "sh", "-c", mount, "sh", str(images), *command(folder)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr and listing(images) == []


def test_onto_a_disk_that_is_too_small(folder: Path, images: Path) -> None:
    """A file system in memory, in a namespace of its own; its room is looked at before."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    images.mkdir(parents=True)
    mount = 'mount -t tmpfs -o size=16k none "$1" && ls -A "$1" && shift && "$@"; s=$?; ' \
            'ls -A "$LLM_IMAGE_DIR"; exit $s'
    done = subprocess.run([*alone, "sh", "-c", mount, "sh", str(images), *command(folder)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "are needed" in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == ".import.lock"


def test_a_prefix_gets_images_and_the_source(
    folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("LLM_IMAGE_DIR")
    prefix = tmp_path / "it's a prefix"
    assert take(folder, "--prefix", str(prefix), "--site", "here") == 0
    assert listing(prefix / "images") == INSTALLED
    said = capfd.readouterr().out
    assert f"installed: install --prefix {prefix} --site here" in said
    assert json.loads((folder / "manifest.json").read_text())["commit"] in said


def test_images_for_other_processors_are_said(folder: Path, images: Path) -> None:
    result = check.check_release(folder, "", [])
    assert result.manifest
    here = receive.MACHINES.get(os.uname().machine)
    notes = [line for line in receive.describe(folder, result, []) if "is for" in line]
    assert len(notes) == (0 if here == "amd64" else 2)


def test_nothing_is_left_in_temporary_folders(
    folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "tmp"
    work.mkdir()
    monkeypatch.setattr(receive.tempfile, "tempdir", str(work))
    assert take(folder, "--prefix", str(tmp_path / "p")) == 0
    assert listing(work) == []
