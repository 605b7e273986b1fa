"""Debian packages: parsed and unpacked without dpkg, and never outside the folder."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from _llm import debian
from _llm.debian import (
    Archive,
    Package,
    archives_in,
    debian_mirrors,
    fetch,
    host_archives,
    sha256_of,
    unpack,
)
from _llm.errors import LLMError
from _llm.images.repository import control_of, make_repository

CONTROL = "Package: hello\nVersion: 1.0-1\nArchitecture: amd64\nDescription: greets\n more words\n"


def tar_of(members: dict[str, bytes | str]) -> bytes:
    """A compressed tar; a text value makes a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size, info.mode = len(content), 0o4755
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_deb(path: Path, members: dict[str, bytes | str]) -> Path:
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": tar_of({"./control": CONTROL.encode()}),
             "data.tar.xz": tar_of(members)}
    with path.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for name, data in parts.items():
            stream.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
            stream.write(data + b"\n" * (len(data) % 2))
    return path


def test_no_link_of_another_package_leads_outside(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    first = make_deb(tmp_path / "a.deb", {
        "./doc/a": str(outside), "./doc/up": "../../outside", "./doc/same": "real",
        "./secret": str(outside / "secret")})
    unpack(first, root)
    second = make_deb(tmp_path / "b.deb", {
        "./doc/a/file": b"x", "./doc/up/new/file": b"x", "./doc/real/one": b"1",
        "./doc/same/two": b"2"})
    unpack(second, root)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert sorted(path.name for path in (root / "doc/real").iterdir()) == ["one", "two"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, target in (("./x", "./secret"), ("./y", "../outside/secret"),
                             ("./z", "./doc/real/one")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as archive:
        debian._extract(archive, root)
    assert not (root / "x").exists() and not (root / "y").exists()
    assert (root / "z").read_bytes() == b"1"


def test_unpacks_files_and_links_without_special_modes(tmp_path: Path) -> None:
    deb = make_deb(tmp_path / "hello.deb", {"./usr/bin/hello": b"#!/bin/sh\n",
                                            "./usr/bin/hi": "hello", "./usr/share/é ü": b"x"})
    unpack(deb, tmp_path / "root")
    assert (tmp_path / "root/usr/bin/hi").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "root/usr/bin/hello").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "root/usr/share/é ü").read_bytes() == b"x"
    unpack(deb, tmp_path / "root")  # again, over itself


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    deb = make_deb(tmp_path / "evil.deb", {"../outside": b"x", "/evil-absolute": b"x",
                                           "./in": b"x"})
    unpack(deb, tmp_path / "root")
    assert not (tmp_path / "outside").exists() and not Path("/evil-absolute").exists()
    assert (tmp_path / "root/in").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"!<arch>\n"])
def test_no_package(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(LLMError, match="is no Debian package"):
        unpack(tmp_path / "x.deb", tmp_path / "root")


def test_repository_holds_what_apt_reads(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror with space"
    (mirror / "pool").mkdir(parents=True)
    deb = make_deb(mirror / "pool/hello 1.deb", {"./x": b"x"})
    package = Package("hello", "1.0-1", "amd64", sha256_of(deb), deb.stat().st_size,
                      "pool/hello 1.deb", "main")
    make_repository([(package, deb)], tmp_path / "debs")
    index = (tmp_path / "debs/dists/bookworm/main/binary-amd64/Packages").read_text()
    assert index.startswith("Package: hello\n") and index.endswith("\n\n")
    assert f"SHA256: {package.sha256}\n" in index and " more words\n" in index
    assert control_of(deb) == CONTROL
    assert (tmp_path / "debs/pool/hello 1.deb").read_bytes() == deb.read_bytes()


def test_a_package_that_is_gone_names_the_cure(tmp_path: Path) -> None:
    package = Package("hello", "1.0-1", "amd64", "0" * 64, 1, "pool/gone.deb", "main")
    with pytest.raises(LLMError, match=r"Debian package hello 1\.0-1") as raised:
        fetch(package, {"main": f"file://{tmp_path}/"}, tmp_path / "cache")
    assert "make lock" in raised.value.fix and "snapshot" in raised.value.fix


def test_mirrors_come_from_the_environment_then_the_profile_then_apt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archives = (Archive("http://a.invalid/debian/", "bookworm"),
                Archive("http://s.invalid/debian-security/", "bookworm-security"))
    monkeypatch.setattr(debian, "host_archives", lambda: archives)
    debian._own_mirrors.cache_clear()
    assert debian_mirrors({}) == {"main": "http://a.invalid/debian/",
                                  "security": "http://s.invalid/debian-security/"}
    assert debian_mirrors({}, "http://p.invalid/d")["security"] == "http://p.invalid/d/"
    env = {"LLM_DEBIAN_MIRROR": "http://x.invalid http://y.invalid"}
    both = debian_mirrors(env, "http://p.invalid")
    assert both == {"main": "http://x.invalid/", "security": "http://y.invalid/"}
    monkeypatch.setattr(debian, "host_archives", lambda: ())
    debian._own_mirrors.cache_clear()
    with pytest.raises(LLMError, match="no Debian mirror is known") as raised:
        debian_mirrors({})
    assert "LLM_DEBIAN_MIRROR" in raised.value.fix and "BASE" not in raised.value.fix
    debian._own_mirrors.cache_clear()


def print_uris(*archives: str) -> str:
    """What `apt-get update --print-uris` prints for archives given as `URI SUITE COMPONENT`."""
    releases, indexes = "", ""
    for uri, suite, component in map(str.split, archives):
        releases += f"'{uri}/dists/{suite}/InRelease' x_InRelease 0 \n"
        indexes += f"'{uri}/dists/{suite}/{component}/binary-amd64/Packages.xz' x_Packages 0 \n"
        indexes += f"'{uri}/dists/{suite}/{component}/binary-all/Packages.xz' x_Packages 0 \n"
    return releases + indexes


def test_archives_come_in_the_order_of_the_configuration() -> None:
    one = "http://a.invalid/debian"
    assert archives_in(
        print_uris("https://b.invalid:8/debian bookworm main")  # the second host of the sources
        + print_uris(f"{one}-security bookworm-security main", f"{one} bookworm main",
                     f"{one} bookworm contrib", f"{one} bookworm-updates main")
    ) == (
        Archive("http://a.invalid/debian/", "bookworm"),
        Archive("https://b.invalid:8/debian/", "bookworm"),
        Archive("http://a.invalid/debian-security/", "bookworm-security"),
        Archive("http://a.invalid/debian/", "bookworm-updates"),
    )


@pytest.mark.parametrize("listing", [
    "", "E: broken\n", print_uris("http://a.invalid/ubuntu jammy main"),
    print_uris("http://a.invalid/debian bookworm contrib"),
    "'http://a.invalid/debian-flat/./Packages.xz' x_Packages 0 \n",
])
def test_what_is_no_main_archive_of_debian_is_left_out(listing: str) -> None:
    assert archives_in(listing) == ()


def test_suites_and_addresses_of_every_form() -> None:
    uri = "http://me:word@[::1]:3142/x%20y/debian"
    assert archives_in(print_uris(f"{uri} buster/updates main")) == (
        Archive(f"{uri}/", "buster/updates"),)


@pytest.mark.skipif(not os.path.exists("/usr/bin/apt-get"), reason="this host has no APT")
@pytest.mark.parametrize("lists", ["empty", "missing"])
def test_archives_are_known_before_their_lists_were_ever_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lists: str,
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "debian.sources").write_text(
        "Types: deb\nURIs: http://a.invalid/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main contrib\n\n"
        "Types: deb\nURIs: http://s.invalid/debian-security/\nSuites: bookworm-security\n"
        "Components: main\n")
    (sources / "other.list").write_text("deb http://other.invalid/apt x main\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "apt.conf").write_text(
        f'Dir::State::lists "{tmp_path / lists}";\nDir::Etc::sourcelist "/dev/null";\n'
        f'Dir::Etc::sourceparts "{sources}";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    assert host_archives() == (
        Archive("http://a.invalid/debian/", "bookworm"),
        Archive("http://a.invalid/debian/", "bookworm-updates"),
        Archive("http://s.invalid/debian-security/", "bookworm-security"),
    )


def test_package_lists_below_a_folder_with_a_space(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    lists = ["/a checkout/lists/main_Packages", "/a checkout/lists/main_Packages.2"]
    record = ("Package: {0}\nVersion: 1\nArchitecture: amd64\nSHA256: 00\nSize: 1\n"
              "Filename: pool/{0}.deb\n\n")

    def answer(self: debian.PrivateApt, program: str, *arguments: str) -> str:
        if arguments[0] == "indextargets":
            return "\n".join(lists) + "\n"
        if arguments[0] == "cat-file":
            return record.format(f"p{lists.index(arguments[1])}")
        return "'http://a.invalid/debian/pool/p1.deb' p1.deb 1\n"

    monkeypatch.setattr(debian.PrivateApt, "run", answer)
    apt = debian.PrivateApt(tmp_path, [Archive("http://a.invalid/debian/", "bookworm")])
    assert [package.name for package in apt.resolve(["p1"])] == ["p1"]


@pytest.mark.skipif(not os.path.exists("/usr/bin/apt-get"), reason="this host has no APT")
def test_private_apt_does_not_touch_the_system(tmp_path: Path) -> None:
    apt = debian.PrivateApt(tmp_path / "state", [Archive("http://a.invalid/debian/", "bookworm")])
    dump = apt.run("apt-config", "dump")
    assert f'Dir::State::lists "{tmp_path}/state/lists"' in dump
    with pytest.raises(LLMError, match="apt-get update failed"):
        apt.update()
