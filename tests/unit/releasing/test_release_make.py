"""`make release`: the same bytes twice, complete or not at all, and what it refuses."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from made import HOSTILE, git, make, make_checkout, make_images, make_plan, write_sif

from _llm.errors import LLMError
from _llm.releasing import files, keys, plan, release, source
from _llm.signing import sign as sign_module
from _llm.signing.keys import load_keys


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / HOSTILE).mkdir()
    folder, manifest = make(tmp_path / HOSTILE)
    assert folder.name == "llm-recipes-1.2.0" and set(tree(folder)) == {
        "manifest.json", "SHA256SUMS", "llm-recipes-1.2.0.tar",
        "containers/base/apt.lock", "containers/base/image.def",
        "images/base-0123456789ab.sif", "images/base-0123456789ab.sbom.cdx.json",
        "images/llm-cpu-ba9876543210.sif", "images/llm-cpu-ba9876543210.sbom.cdx.json"}
    assert manifest.day == "2026-01-01" and not manifest.dirty and len(manifest.commit) == 40
    assert list(manifest.locks) == ["containers/base/apt.lock"]
    assert [image.label for image in manifest.images] == ["base", "llm-cpu"]
    assert {image.architecture for image in manifest.images} == {"amd64"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    done = subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=folder,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == done.stderr == ""


def test_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = make(tmp_path / "a")
    old = os.umask(0o077)
    try:
        second, _ = make(tmp_path / "another folder")
    finally:
        os.umask(old)
    assert tree(first) == tree(second)
    modes = [{str(p.relative_to(f)): (p.stat().st_mode, int(p.stat().st_mtime) if p.suffix == ".tar"
              else 0) for p in f.rglob("*")} for f in (first, second)]
    assert modes[0] == modes[1]


def test_everybody_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(files.os, "link", refuse)
    old = os.umask(0o077)
    try:
        folder, _ = make(tmp_path)
    finally:
        os.umask(old)
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_the_source_is_that_of_the_commit(tmp_path: Path) -> None:
    folder, manifest = make(tmp_path)
    with tarfile.open(folder / manifest.source) as tar:
        names = tar.getnames()
        assert {member.mtime for member in tar} == {1767268800}
        assert {(member.uid, member.gname) for member in tar} == {(0, "")}
    assert names[0] == "llm-recipes-1.2.0/.commit" and names[1:] == sorted(names[1:])
    out = tmp_path / "unpacked"
    assert source.tar_faults(folder / manifest.source, "llm-recipes-1.2.0") == []
    source.unpack(folder / manifest.source, out)
    top = out / "llm-recipes-1.2.0"
    assert (top / ".commit").read_text() == manifest.commit + "\n"
    assert os.readlink(top / "bin/llm-run") == "_llm/tool.sh"
    assert (top / "recipes/ü recipe.py").read_text() == "x = 1\n"
    assert os.access(top / "bin/_llm/tool.sh", os.X_OK)
    assert not os.access(top / "containers/base/apt.lock", os.X_OK)


def test_a_changed_tree_is_known_by_every_kind_of_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_checkout(tmp_path / "c")
    monkeypatch.setattr(plan, "HOME", home)  # whose tags are looked at
    assert source.read_source(home, 0).changes == ()
    assert plan.tree_faults(source.read_source(home, 0), "1.2.0", False) == []
    (home / "new.py").write_text("")
    (home / "bin/_llm/tool.sh").write_text("changed")
    (home / "containers/base/image.def").unlink()
    found = source.read_source(home, 0)
    [fault] = plan.tree_faults(found, "1.2.0", False)
    assert "not committed" in fault.what and "new.py" in fault.why
    assert plan.tree_faults(found, "1.2.0", True) == []
    assert set(found.changes) == {"new.py", "bin/_llm/tool.sh", "containers/base/image.def"}
    assert "new.py" in found.files and "containers/base/image.def" not in found.files
    (home / "build").mkdir()
    (home / "build/big").write_text("ignored by git")
    (home / "llm-recipes-1.0.0/images").mkdir(parents=True)
    (home / "llm-recipes-1.0.0/images/x.sif").write_text("a release that was made here")
    again = source.read_source(home, 0)
    assert again == found


def test_a_private_key_in_the_checkout_is_never_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_checkout(tmp_path / "c")
    monkeypatch.setattr(plan, "HOME", home)
    keys_of_tests = Path(__file__).parents[1] / "signing/keys"
    shutil.copy(keys_of_tests / "ed25519.pem", home / "it's mine.pem")
    shutil.copy(keys_of_tests / "once.secret.asc", home / "ann.asc")
    (home / "bin/about.py").write_text('if b"-----BEGIN PRIVATE KEY-----" in data:\n')
    found = source.read_source(home, 0)
    [secret, fault] = plan.tree_faults(found, "1.2.0", False)
    assert "private key" in secret.what and secret.why == "ann.asc, it's mine.pem"
    assert f"'{home}/it'\"'\"'s mine.pem'" in secret.fix
    assert "bin/about.py" in fault.why and ".pem" not in fault.why + fault.fix
    assert [each.what for each in plan.tree_faults(found, "1.2.0", True)] == [secret.what]
    git(home, "add", ".")
    git(home, "commit", "-qm", "a key, too")
    found = source.read_source(home, 0)
    assert plan.tree_faults(found, "1.2.0", False, str(tmp_path / "elsewhere.pem")) == []
    (tmp_path / "link.pem").symlink_to(home / "it's mine.pem")
    for key in (home / "it's mine.pem", tmp_path / "link.pem"):
        [secret] = plan.tree_faults(found, "1.2.0", False, str(key))
        assert secret.why == "it's mine.pem"


def test_an_installation_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "HOME", tmp_path)
    options = argparse.Namespace(version="1.2.0", key="", signer="", public_key="", archive="",
                                 output="", variant="", base="", cuda_architectures="",
                                 allow_dirty=False, without_missing=False)
    done, faults = plan.make_plan(options)
    assert done is None and faults[0].what == f"{tmp_path} is no checkout"


def test_a_dirty_release_says_so(tmp_path: Path) -> None:
    home = make_checkout(tmp_path / "checkout")
    (home / "new.py").write_text("")
    folder, manifest = make(tmp_path)
    assert manifest.dirty
    source.unpack(folder / manifest.source, tmp_path / "u")
    assert (tmp_path / "u/llm-recipes-1.2.0/.commit").read_text().endswith(" changed\n")


def test_a_source_without_git_is_released_as_changed(tmp_path: Path) -> None:
    folder, manifest = make(tmp_path)
    source.unpack(folder / manifest.source, tmp_path / "u")
    home = tmp_path / "u/llm-recipes-1.2.0"
    for made_there in (".tools/x", "build/y", "bin/__pycache__/z.pyc", "images/i", "sites/local/l"):
        (home / made_there).parent.mkdir(parents=True, exist_ok=True)
        (home / made_there).write_text("")
    found = source.read_source(home, 7)
    assert found.commit == manifest.commit and found.changes and found.epoch == 7
    assert found.files == source.read_source(tmp_path / "checkout", 0).files


def test_tags(tmp_path: Path) -> None:
    home = make_checkout(tmp_path / "c")
    head = git(home, "rev-parse", "HEAD")
    assert source.tag_faults(home, "1.2.0", head) == []
    git(home, "tag", "-a", "-m", "x", "v1.2.0")
    assert source.tag_faults(home, "1.2.0", head) == []
    (home / "y").write_text("")
    git(home, "add", "y")
    git(home, "commit", "-qm", "more")
    head = git(home, "rev-parse", "HEAD")
    assert [e.what for e in source.tag_faults(home, "1.2.0", head)] == [
        "the tag v1.2.0 names another commit"]
    assert source.tag_faults(home, "1.2.1", head) == []


def test_git_that_fails_is_a_short_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_checkout(tmp_path / "c")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert source.read_source(home, 0).commit
    shutil.rmtree(home / ".git/objects")
    with pytest.raises(LLMError, match="git can't read"):
        source.read_source(home, 0)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder, _ = make(tmp_path)
    before = tree(folder)
    with pytest.raises(LLMError, match="is there already"):
        make(tmp_path)
    assert tree(folder) == before and len(list(folder.parent.iterdir())) == 1


def test_what_an_interrupted_one_left_does_no_harm(tmp_path: Path) -> None:
    part = tmp_path / "out/.llm-recipes-1.2.0.part"
    (part / "images").mkdir(parents=True)
    (part / "images/base-0123456789ab.sif").write_text("half")
    (part / "a link").symlink_to(tmp_path)
    folder, _ = make(tmp_path)
    assert not part.exists() and "a link" not in tree(folder)


def test_two_at_once(tmp_path: Path) -> None:
    wanted = make_plan(tmp_path)
    wanted.output.mkdir()
    part = wanted.output / f".{wanted.folder.name}.part"
    with release.own_folder(part):
        (part / "mine").write_text("")
        with pytest.raises(LLMError, match="is in use"):
            release.make_release(wanted)
        assert (part / "mine").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException,
) -> None:
    def stop(*_: object) -> None:
        raise error

    wanted = make_plan(tmp_path)
    monkeypatch.setattr(release.sif, "payload_digest", stop)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else LLMError
    with pytest.raises(expected) as raised, files.explain_full(wanted.output, "elsewhere"):
        release.make_release(wanted)
    assert list(wanted.output.iterdir()) == []
    assert "interrupt" in repr(raised.value).lower() or "no room left" in str(raised.value)


def test_the_user_s_images_stay_as_they_are(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    before = [(one.path.read_bytes(), one.path.stat().st_mode) for one in images]
    folder, _ = make(tmp_path)
    assert [(one.path.read_bytes(), one.path.stat().st_mode) for one in images] == before
    linked = folder / "images" / images[0].path.name
    assert linked.read_bytes() == before[0][0]


def test_images_without_sbom_are_all_named(tmp_path: Path) -> None:
    images = make_images(tmp_path)
    assert plan.without_sbom(images) == []
    write_sif(images[0].path, b"hsqs", sbom=None)
    images[1].path.write_bytes(images[1].path.read_bytes()[:-9])
    found = plan.without_sbom(images)
    assert "has no SBOM" in found[0].what and "make image IMAGE=base" in found[0].fix
    assert "is damaged" in found[1].what and "VARIANT=cpu" in found[1].fix


def test_archive(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    (archive / "sha256/ab").mkdir(parents=True)
    (archive / "sha256/ab/file").write_text("x")
    (archive / ".lock").write_text("")
    for name in (".incoming", "damaged"):
        (archive / name).mkdir()
        (archive / name / "half").write_text("")
    _, manifest = make(tmp_path, archive=archive)
    assert manifest.archive == "archive" and "archive/sha256/ab/file" in manifest.files
    assert len([name for name in manifest.files if name.startswith("archive/")]) == 1
    (archive / ("0" * 64)).mkdir()
    (archive / ("0" * 64) / "x.whl").write_text("not what its folder says")
    with pytest.raises(LLMError, match="is damaged"):
        make(tmp_path, archive=archive, version="1.2.1")
    (archive / "out").symlink_to("/etc/passwd")
    with pytest.raises(LLMError, match="can't be released"):
        plan.archive_files(archive)


def test_room_is_looked_at_before(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="are needed"):
        files.check_room(tmp_path / "not/there", 1 << 60, "elsewhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_the_public_key_of_a_private_one(tmp_path: Path) -> None:
    key = tmp_path / "k ey.pem"
    shutil.copy(Path(__file__).parents[1] / "signing/keys/ed25519.pem", key)
    name, data = keys.public_key("", str(key), "")
    assert name == "release.pem" and data.startswith(b"-----BEGIN PUBLIC KEY-----")
    key.write_text("no key")
    with pytest.raises(LLMError, match="is no private key"):
        keys.public_key("", str(key), "")


def test_a_keyring(tmp_path: Path) -> None:
    body = b"\x04\x00\x00\x00\x01\x01" + b"key material"
    first = b"\x99" + len(body).to_bytes(2, "big") + body + b"\xb4\x03Ann"
    second = b"\xc6" + bytes([len(body)]) + body[:-1] + b"!"
    found = list(keys.split_keyring(first + second))
    assert len(found) == 2 and found[0][0] != found[1][0]
    assert b"Ann" in found[0][1] and b"Ann" not in found[1][1]
    path = tmp_path / "key.asc"
    path.write_bytes(keys.armored(found[0][1]))
    [key] = load_keys([str(path)])
    assert (key.fingerprint, key.name) == (found[0][0], "Ann")
    assert list(keys.split_keyring(b"")) == []


@pytest.mark.parametrize("data", [b"text", b"\x98", b"\xc6\xff\x00\x00\x00\x09short",
                                  b"\x99\x00\x09short", b"\xb4\x03Ann"])
def test_a_keyring_that_is_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        list(keys.split_keyring(data))


def test_all_faults_of_the_options_at_once(tmp_path: Path) -> None:
    nothing = {"version": "1.2.0", "key": "", "signer": "", "public_key": "", "archive": ""}
    assert plan.option_faults(argparse.Namespace(**nothing), tmp_path) == []
    wrong = {**nothing, "version": "1.2", "key": str(tmp_path / "no"), "signer": "Ann",
             "archive": str(tmp_path / "none")}
    assert [error.what for error in plan.option_faults(argparse.Namespace(**wrong), tmp_path)] == [
        "VERSION='1.2' is no semantic version", "KEY and SIGNER are both given",
        f"KEY={tmp_path}/no is no file", f"ARCHIVE={tmp_path}/none is no folder"]
    (tmp_path / "llm-recipes-1.2.0").symlink_to("nowhere")
    wrong = {**nothing, "public_key": __file__}
    assert [error.what for error in plan.option_faults(argparse.Namespace(**wrong), tmp_path)] == [
        f"{tmp_path}/llm-recipes-1.2.0 is there already", "--public-key does not sign anything"]
    (tmp_path / "file").write_text("no key")
    wrong = {**nothing, "key": str(tmp_path / "file")}
    found = plan.option_faults(argparse.Namespace(**wrong), tmp_path / "file/out")
    assert [error.what for error in found] == [
        f"{tmp_path}/file is no private key that can be used",
        f"OUTPUT={tmp_path}/file/out is no folder"]
    wrong = {**nothing, "key": str(tmp_path)}
    [error] = plan.option_faults(argparse.Namespace(**wrong), tmp_path / "new/folder")
    assert "it is a folder" in error.why


def test_a_signature_that_nobody_could_check(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[1] / "signing/keys"
    [public] = load_keys([str(folder / "ed25519.pub")])

    def sign(apptainer: str, key: str) -> sign_module.Signer:
        return sign_module.Signer(key, public.fingerprint, ())

    def fault_of(**options: str) -> str:
        found = plan.signing_faults(
            argparse.Namespace(**{"key": "", "signer": "", "public_key": "", **options}), "")
        return found[0].what if found else ""

    def refuse(apptainer: str, wanted: str) -> sign_module.Signer:
        raise LLMError("which PGP key is to sign?")

    monkeypatch.setattr(plan, "pem_signer", sign)
    monkeypatch.setattr(plan, "choose_signer", refuse)
    assert fault_of() == "" and fault_of(key="k.pem") == ""
    assert fault_of(key="k.pem", public_key=str(folder / "ed25519.pub")) == ""
    other = str(folder / "ec.pub")
    assert fault_of(key="k.pem", public_key=other) == f"--public-key {other} is not that of k.pem"
    assert fault_of(key="k.pem", public_key=str(folder / "ec.pem")) == "a public key cannot be used"
    assert fault_of(signer="nobody") == "which PGP key is to sign?"


def test_make_passes_what_was_typed_and_no_more() -> None:
    def shown(*words: str) -> str:
        home = Path(__file__).resolve().parents[3]
        return subprocess.run(["make", "-n", *words], cwd=home, capture_output=True, text=True,
                              check=True, env={**os.environ, "VERSION": "3", "KEY": "x"}).stdout

    said = shown("release", "OUTPUT=/it's here", "VERSION=1.2.0")
    assert "--version '1.2.0'" in said and "--key ''" in said
    assert "--output '/it'\\''s here'" in said
    said = shown("import", "FROM=/it's; a disk")
    assert "--from '/it'\\''s; a disk'" in said and "--prefix ''" in said and "setup" not in said
