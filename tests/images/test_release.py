"""Releases through real Apptainer: signed, changed by somebody, received without a network, run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(HOME / "bin"), str(HOME / "tests/unit/releasing")]

import made  # noqa: E402

from _llm import setup, sif  # noqa: E402
from _llm.apptainer import private_apptainer  # noqa: E402
from _llm.images.catalog import Image  # noqa: E402
from _llm.releasing import check, files, plan, release  # noqa: E402
from _llm.signing.keys import load_keys  # noqa: E402

KEYS = HOME / "tests/unit/signing/keys"
TINY = "images/tiny-0123456789ab"


def tool(program: str, *words: str, home: Path = HOME, alone: bool = False, **env: str,
         ) -> subprocess.CompletedProcess[str]:
    """Run one of our programs, `alone` without a network."""
    command = ["sh", str(home / "bin/_llm/tool.sh"), program, *words]
    if alone:
        # A network namespace of its own, where this machine allows one.
        own = ["unshare", "--user", "--map-root-user", "--net"]
        if subprocess.run([*own, "true"], capture_output=True, check=False).returncode == 0:
            command = [*own, *command]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    return subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**clean, "LLM_SITE": "default", **env})


def new_key(folder: Path, name: str) -> Path:
    """Return a private key; NAME.pub.pem beside it is its public half."""
    kind = {"release": "ed25519", "other": "rsa", "k": "ec"}[name]
    shutil.copy(KEYS / f"{kind}.pub", folder / f"{name}.pub.pem")
    return Path(shutil.copy(KEYS / f"{kind}.pem", folder / f"{name}.pem"))


@pytest.fixture(scope="module")
def program() -> str:
    return str(setup.ensure_apptainer())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, program: str) -> plan.Built:
    """A tiny image, put together by Apptainer; nothing can be run in it."""
    folder = tmp_path_factory.mktemp("tiny")
    parts = {"image.def": ("1", b"Bootstrap: x\n"), "inspect-metadata.json": ("6", b"{}"),
             "sbom.cdx.json": ("9", made.SBOM), "squashfs": ("4", b"hsqs" + b"x" * 5000)}
    path = folder / "tiny-0123456789ab.sif"
    subprocess.run([program, "sif", "new", path], check=True, capture_output=True)
    for name, (kind, data) in parts.items():
        (folder / name).write_bytes(data)
        more = {"9": ["--sbomformat", "cyclonedx-json"],
                "4": ["--parttype", "2", "--partfs", "1", "--partarch", "2"]}.get(kind, [])
        subprocess.run([program, "sif", "add", "--datatype", kind, "--groupid", "1", "--filename",
                        name, *more, path, folder / name], check=True, capture_output=True)
    return plan.Built(Image("tiny", "", folder, ""), path, made.DIGESTS["base"])


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("it's a key; ü"), "release")


@pytest.fixture(scope="module")
def signed(
    tmp_path_factory: pytest.TempPathFactory, built: plan.Built, key: Path, program: str,
) -> Path:
    folder = tmp_path_factory.mktemp("a \"signed\" release")
    return made.make(folder, images=(built,), apptainer=program, key=str(key))[0]


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    """The signed release on another disk, for whoever would change it."""
    return Path(shutil.copytree(signed, tmp_path / "disk" / signed.name))


def public(key: Path) -> str:
    return str(key.with_suffix(".pub.pem"))


def faults_of(folder: Path, program: str, key: Path) -> str:
    return "\n".join(check.check_release(folder, program, load_keys([public(key)])).faults)


def test_a_signed_release(
    signed: Path, built: plan.Built, key: Path, program: str, tmp_path: Path,
) -> None:
    assert faults_of(signed, program, key) == ""
    assert load_keys([public(key)])[0].fingerprint == json.loads(
        (signed / "manifest.json").read_text())["images"][0]["signed_by"]
    assert (signed / "keys/release.pem").read_text() == Path(public(key)).read_text()
    assert sif.payload_digest(str(signed / f"{TINY}.sif")) == sif.payload_digest(str(built.path))
    assert not [item for item in sif.read_objects(str(built.path)) if item.type == sif.SIGNATURE]
    assert "PRIVATE" not in "".join(path.read_text(errors="replace")
                                    for path in signed.rglob("*") if path.is_file())
    for name in ("manifest.sif", f"{TINY}.sif"):
        subprocess.run([program, "verify", "--key", "keys/release.pem", name], cwd=signed,
                       check=True, capture_output=True)
    for number, name in enumerate(("manifest.json", "SHA256SUMS"), 1):
        done = subprocess.run([program, "sif", "dump", str(number), "manifest.sif"], cwd=signed,
                              check=True, capture_output=True)
        assert done.stdout == (signed / name).read_bytes()
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=signed, check=True)
    done = tool("import", "--from", str(signed), "--key", public(key), alone=True,
                LLM_IMAGE_DIR=str(tmp_path / "i"), LLM_APPTAINER=program)
    assert done.returncode == 0, done.stderr
    assert load_keys([public(key)])[0].fingerprint in done.stdout


def test_what_is_not_signed_is_the_same_bytes_again(
    signed: Path, built: plan.Built, key: Path, program: str, tmp_path: Path,
) -> None:
    again, _ = made.make(tmp_path, images=(built,), apptainer=program, key=str(key))
    apart = {"manifest.json", "SHA256SUMS", "manifest.sif", f"{TINY}.sif"}
    for path in signed.rglob("*"):
        name = str(path.relative_to(signed))
        if path.is_file() and name not in apart:
            assert path.read_bytes() == (again / name).read_bytes(), name
    old, new = (json.loads((f / "manifest.json").read_text()) for f in (signed, again))
    for content in (old, new):
        del content["files"][f"{TINY}.sif"], content["images"][0]["sha256"]
    assert old == new


def test_another_key(signed: Path, program: str, tmp_path: Path) -> None:
    other = new_key(tmp_path, "other")
    said = faults_of(signed, program, other)
    assert said.count("signed by somebody else") == 2
    done = tool("import", "--from", str(signed), "--key", public(other), LLM_APPTAINER=program,
                LLM_IMAGE_DIR=str(tmp_path / "i"))
    assert done.returncode == 1 and "2 faults; nothing was installed" in done.stderr
    assert not (tmp_path / "i").exists()


def test_a_key_that_is_none(signed: Path, tmp_path: Path, program: str, key: Path) -> None:
    for wrong in (tmp_path / "not there", key):
        done = tool("import", "--from", str(signed), "--key", str(wrong), LLM_APPTAINER=program,
                    LLM_IMAGE_DIR=str(tmp_path / "i"))
        assert done.returncode == 2 and "a public key cannot be used" in done.stderr


def test_the_site_s_keys(signed: Path, key: Path, program: str, tmp_path: Path) -> None:
    other, site = new_key(tmp_path, "other"), tmp_path / "site.ini"
    own = shutil.copy(public(key), tmp_path / "own.pem")
    env = {"LLM_APPTAINER": program, "LLM_IMAGE_DIR": str(tmp_path / "i"), "LLM_SITE": str(site)}
    site.write_text(f"[container]\nkeys = {public(other)}\n")
    done = tool("import", "--from", str(signed), "--check", **env)
    assert done.returncode == 1 and "signed by somebody else" in done.stderr
    site.write_text(f"[container]\nkeys = {public(other)}\n  {own}\n")
    done = tool("import", "--from", str(signed), "--check", **env)
    assert done.returncode == 0 and "only checksums" not in done.stdout, done.stderr


def test_a_key_that_came_with_the_release_proves_nothing(
    signed: Path, program: str, tmp_path: Path,
) -> None:
    done = tool("import", "--from", str(signed), "--key", str(signed / "keys/release.pem"),
                LLM_APPTAINER=program, LLM_IMAGE_DIR=str(tmp_path / "i"))
    assert done.returncode == 0 and "proves nothing about who made it" in done.stdout


def test_a_release_without_signature_is_refused_where_a_key_is_given(
    built: plan.Built, key: Path, program: str, tmp_path: Path,
) -> None:
    folder, _ = made.make(tmp_path, images=(built,), apptainer=program)
    said = faults_of(folder, program, key)
    assert "the release is not signed" in said and f"{TINY}.sif: " in said


def test_a_manifest_changed_by_one_who_knows_the_checksums(
    copy: Path, program: str, key: Path,
) -> None:
    made.rewrite(copy, day="2027-01-01")
    assert check.check_release(copy, "", []).faults == []
    assert faults_of(copy, program, key).startswith("manifest.sif: manifest.sif signs another")


def adapt(folder: Path, name: str) -> None:
    """Let manifest and checksums agree with a changed image."""
    content = json.loads((folder / "manifest.json").read_text())
    digest, size = files.sha256_of(folder / name)
    content["files"][name] = {"sha256": digest, "size": size}
    content["images"][0].update(sha256=digest, size=size,
                                payload=sif.payload_digest(str(folder / name)))
    made.rewrite(folder, **content)


def test_an_image_changed_by_one_who_knows_the_checksums(
    copy: Path, program: str, key: Path,
) -> None:
    path = copy / f"{TINY}.sif"
    item = next(i for i in sif.read_objects(str(path)) if i.type == sif.PARTITION)
    data = bytearray(path.read_bytes())
    data[item.offset + 100] ^= 1
    path.write_bytes(data)
    adapt(copy, f"{TINY}.sif")
    said = faults_of(copy, program, key)
    assert "signs another manifest" in said and f"{TINY}.sif: the signature of" in said


def test_a_release_that_somebody_else_signed_again(
    copy: Path, program: str, key: Path, tmp_path: Path,
) -> None:
    other = new_key(tmp_path, "other")
    (copy / "manifest.sif").unlink()
    release.keys.make_signed(program, copy, copy / "manifest.sif", str(other), "")
    assert faults_of(copy, program, key).startswith("manifest.sif: the release is signed by some")


@pytest.mark.parametrize("data", [b"", b"no SIF", b"#!/usr/bin/env run-singularity\n"])
def test_a_signed_manifest_that_is_none(
    copy: Path, program: str, key: Path, data: bytes,
) -> None:
    (copy / "manifest.sif").write_bytes(data)
    assert faults_of(copy, program, key).startswith("manifest.sif: manifest.sif is no signed")


def test_an_object_that_nobody_signed(copy: Path, program: str, key: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("more")
    subprocess.run([program, "sif", "add", "--datatype", "7", copy / "manifest.sif",
                    tmp_path / "more"], check=True, capture_output=True)
    assert faults_of(copy, program, key).startswith("manifest.sif: ")


def test_an_image_that_is_there_gets_the_signature(
    signed: Path, built: plan.Built, key: Path, program: str, tmp_path: Path,
) -> None:
    images = tmp_path / "i"
    images.mkdir()
    target = images / built.path.name
    shutil.copy2(built.path, target)
    env = {"LLM_APPTAINER": program, "LLM_IMAGE_DIR": str(images)}
    done = tool("import", "--from", str(signed), **env)
    assert "(was there)" in done.stdout and target.read_bytes() == built.path.read_bytes()
    done = tool("import", "--from", str(signed), "--key", public(key), **env)
    assert "(installed)" in done.stdout
    assert target.read_bytes() == (signed / f"{TINY}.sif").read_bytes()
    done = tool("import", "--from", str(signed), "--key", public(key), **env)
    assert "nothing to do" in done.stdout


def test_a_pgp_key(
    built: plan.Built, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = tmp_path / "keys"
    monkeypatch.setenv("APPTAINER_KEYSDIR", str(ring))
    for name in ("Ann", "Ben"):
        subprocess.run([program, "key", "newpair", "--name", name, "--email", f"{name}@example.org",
                        "--comment", "", "--password", "", "--push=false", "--bit-length", "2048"],
                       check=True, capture_output=True, stdin=subprocess.DEVNULL)
    folder, _ = made.make(tmp_path, images=(built,), apptainer=program, signer="Ben@example.org")
    [own] = load_keys([str(folder / "keys/release.asc")])
    assert "Ben" in own.name
    monkeypatch.setenv("APPTAINER_KEYSDIR", str(tmp_path / "elsewhere"))
    assert check.check_release(folder, program, [own]).faults == []


def test_released_received_and_run(
    base_image: Path, program: str, tmp_path: Path,
) -> None:
    """The whole way, with the checkout as it is: release, copy, unpack, import, start a program."""
    images, key = tmp_path / "images", new_key(tmp_path, "k")
    images.mkdir()
    shutil.copy2(base_image, images)
    env = {"LLM_APPTAINER": program, "LLM_IMAGE_DIR": str(images)}
    words = ["--version", "9.9.9", "--variant", "cpu", "--output", str(tmp_path / "out")]
    done = tool("release", *words, "--allow-dirty", **env)
    assert done.returncode == 2
    assert "make image IMAGE=llm VARIANT=cpu" in done.stderr
    assert "make image IMAGE=llama-recipes VARIANT=cpu" in done.stderr
    words += ["--allow-dirty", "--without-missing", "--key", str(key)]
    done = tool("release", *words, "--dry-run", **env)
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    done = tool("release", *words, **env)
    assert done.returncode == 0, done.stderr
    done = tool("release", *words, **env)
    assert done.returncode == 2 and "is there already" in done.stderr

    disk = tmp_path / "a disk's folder"
    shutil.copytree(tmp_path / "out/llm-recipes-9.9.9", disk / "llm-recipes-9.9.9")
    shutil.rmtree(images)
    with tarfile.open(disk / "llm-recipes-9.9.9/llm-recipes-9.9.9.tar") as tar:
        tar.extractall(tmp_path / "src")
    home = tmp_path / "src/llm-recipes-9.9.9"
    own = private_apptainer(str(HOME))
    if own:  # as after `make setup` there
        (home / ".tools").symlink_to(HOME / ".tools")
    there = tmp_path / "cluster/images"
    env["LLM_IMAGE_DIR"] = str(there)
    done = tool("import", "--from", str(disk / "llm-recipes-9.9.9"), "--key", public(key),
                "--prefix", str(tmp_path / "cluster"), home=home, alone=True, **env)
    assert done.returncode == 0, done.stderr
    assert os.readlink(there / "base.sif") == base_image.name
    [installed] = [path for path in (tmp_path / "cluster").iterdir() if path.is_symlink()]
    if own:  # the installation has one too
        del env["LLM_APPTAINER"]
        assert (installed / ".tools/apptainer").resolve().parent == tmp_path / "cluster/.tools"
    for place in (home, installed):
        run = [place / "bin/llm-run", "--image", "base", "python3", "-c", "print('it runs')"]
        done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path,
                              env={**os.environ, **env, "LLM_CACHE_DIR": str(tmp_path / "cache")})
        assert done.stdout == "it runs\n", done.stderr
