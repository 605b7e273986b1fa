"""Packages are read from an image's own records, whatever those look like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _llm.images.packages import Package, alternatives, python_hashes, read_packages
from _llm.images.tree import Tree, total_size

SITE = "usr/local/lib/python3.11/dist-packages"
HASH = "ab" * 32


def put(tree: Path, inside: str, text: str | bytes) -> None:
    file = tree / inside
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A merged-usr system with a Debian package and a Python one."""
    tree = tmp_path / "a tree; 'quoted' ü"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "bin").symlink_to("usr/bin")
    put(tree, "etc/os-release", 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n')
    put(tree, "var/lib/dpkg/status", """\
Package: hello
Status: install ok installed
Maintainer: A. Person <a@example.org>
Architecture: amd64
Source: hello-src (2.9)
Version: 1:2.10-3+b1
Depends: libc6 (>= 2.14), a | b:any
Description: greets
 at length

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
""")
    put(tree, "var/lib/dpkg/info/hello.list", "/.\n/bin\n/bin/hello\n/usr/bin/hello\n/nowhere\n")
    put(tree, "usr/bin/hello", b"x" * 100)
    put(tree, "opt/llm/apt.lock",
        f"# locked: x\nhello 1:2.10-3+b1 amd64 {HASH} 1 pool/h.deb main\nbroken\n")
    put(tree, "opt/llm/requirements.lock", f"Own_Pkg==1.0 \\\n    --hash=sha256:{HASH} \\\n"
        f"    --hash=sha256:{'cd' * 32}\nother==2 --hash=sha256:{'ef' * 32}\n")
    put(tree, f"{SITE}/own_pkg-1.0.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: Own.Pkg\nVersion: 1.0\nLicense: MIT\n"
        "Requires-Dist: other>=1\nRequires-Dist: never; extra == 'x'\n\nName: in the text\n")
    put(tree, f"{SITE}/own_pkg-1.0.dist-info/RECORD",
        "own_pkg/__init__.py,,\n../../../bin/own,,\n\"own_pkg/a,b.py\",,\n/etc/os-release/../x,,\n")
    put(tree, f"{SITE}/own_pkg/__init__.py", b"1" * 10)
    put(tree, f"{SITE}/own_pkg/__pycache__/__init__.cpython-311.pyc", b"2" * 20)
    put(tree, f"{SITE}/own_pkg/a,b.py", b"3" * 3)
    put(tree, "usr/local/bin/own", b"4" * 4)
    return tree


def named(packages: list[Package]) -> dict[str, Package]:
    return {package.name: package for package in packages}


def test_debian_package(tree: Path) -> None:
    found = named(read_packages(tree))
    assert "gone" not in found
    hello = found["hello"]
    assert hello.purl == "pkg:deb/debian/hello@1:2.10-3%2Bb1?arch=amd64&distro=bookworm"
    assert (hello.source, hello.source_version) == ("hello-src", "2.9")
    assert hello.hashes == [HASH]
    assert hello.needs == [["libc6"], ["a", "b"]]
    assert hello.size == 100, "the same file by two names is counted once"
    assert hello.licences == [], "no copyright file"


def test_python_package(tree: Path) -> None:
    own = named(read_packages(tree))["Own.Pkg"]
    assert own.purl == "pkg:pypi/own-pkg@1.0"
    assert own.licences == ["MIT"]
    assert own.hashes == [HASH, "cd" * 32]
    assert own.needs == [["other"]]
    assert own.size == 10 + 20 + 3 + 4, "with its bytecode"


def test_sizes_and_the_rest_are_the_whole(tree: Path) -> None:
    packages = read_packages(tree)
    os.link(tree / "usr/bin/hello", tree / "usr/bin/hello2")
    every = [p for p in tree.rglob("*") if p.is_file() and not p.is_symlink()]
    others = [p.stat().st_size for p in every if "bin/hello" not in str(p)]
    assert total_size(Tree(tree)) == sum(others) + 100
    assert sum(p.size for p in packages) <= total_size(Tree(tree))


def test_a_python_package_of_debians_is_not_counted_twice(tree: Path) -> None:
    place = "usr/lib/python3/dist-packages/deb_pkg-1.egg-info"
    put(tree, f"{place}/PKG-INFO", "Name: deb-pkg\nVersion: 1\n")
    assert "deb-pkg" in named(read_packages(tree))
    with open(tree / "var/lib/dpkg/info/hello.list", "a") as file:
        file.write(f"/{place}\n/{place}/PKG-INFO\n")
    assert "deb-pkg" not in named(read_packages(tree))


def test_a_vendored_package_is_one_with_a_place(tree: Path) -> None:
    put(tree, f"{SITE}/own_pkg/_vendor/zipp-3.dist-info/METADATA", "Name: zipp\nVersion: 3\n")
    put(tree, f"{SITE}/zipp-3.dist-info/METADATA", "Name: zipp\nVersion: 3\n")
    found = [p for p in read_packages(tree) if p.name == "zipp"]
    assert [p.place for p in found] == ["", f"{SITE}/own_pkg/_vendor"]
    assert len({p.reference for p in found}) == 2


def test_llama_cpp_and_its_libraries_belong_to_it(tree: Path) -> None:
    put(tree, "opt/llama.cpp/lib/libllama.so.0.5.0", b"l" * 50)
    put(tree, "opt/llama.cpp/licenses/llama.cpp.txt", "MIT License\n\nCopyright\n")
    put(tree, "opt/llama.cpp/converter/gguf-py/pyproject.toml", 'version = "0.19.0"\n')
    put(tree, "opt/llama.cpp/converter/gguf-py/LICENSE", "MIT License\n")
    put(tree, "opt/llm/llama.cpp.lock", f"llama-cpp-python==0.3 \\\n  --hash=sha256:{HASH}\n")
    (tree / SITE / "llama_cpp").mkdir()
    (tree / SITE / "llama_cpp/lib").symlink_to("/opt/llama.cpp/lib")
    put(tree, f"{SITE}/llama_cpp_python-0.3.dist-info/METADATA", "Name: llama_cpp_python\n")
    record = "llama_cpp/lib/libllama.so.0.5.0,,\n"
    put(tree, f"{SITE}/llama_cpp_python-0.3.dist-info/RECORD", record)
    found = named(read_packages(tree))
    llama = found["llama.cpp"]
    assert (llama.version, llama.licences, llama.hashes) == ("0.5.0", ["MIT"], [HASH])
    assert llama.size >= 50 and found["llama_cpp_python"].size == 0
    assert (found["gguf"].version, found["gguf"].licences) == ("0.19.0", ["MIT"])


@pytest.mark.parametrize("metadata", [
    b"", b"\xff\xfe\x00", b"Name:\nVersion:\n", b"no colon at all",
    b"Name: a\x00b\nVersion: \x1b[31m\n",
    b"License: " + b"x" * 100_000, b"Name: x\r\nVersion: 2\r\n\r\n", b": : :\n  folded\n",
])
def test_broken_metadata_breaks_nothing(tree: Path, metadata: bytes) -> None:
    put(tree, f"{SITE}/odd-9.dist-info/METADATA", metadata)
    put(tree, f"{SITE}/odd-9.dist-info/RECORD",
        b"\x00\"unclosed,\n../../../../../../../../etc/passwd,,\n")
    found = [p for p in read_packages(tree) if p.kind == "pypi" and p.name != "Own.Pkg"]
    assert len(found) == 1
    assert found[0].name.isprintable() and found[0].version.isprintable()


def test_odd_files_in_the_place_of_others(tree: Path) -> None:
    (tree / "opt/llm/apt.lock").unlink()
    os.mkfifo(tree / "opt/llm/apt.lock")
    (tree / SITE / "empty.dist-info").mkdir()
    (tree / os.fsdecode(SITE.encode() + b"/\xff\n-1.dist-info")).mkdir()
    put(tree, f"{SITE}/file-1.egg-info", "Name: from-file\nVersion: 1\n")
    found = named(read_packages(tree))
    assert found["hello"].hashes == []
    assert "from-file" in found
    assert all(p.name.isprintable() for p in found.values())


def test_no_link_leads_out_of_the_tree(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    put(outside, "copyright", "Format: copyright-format\n\nFiles: *\nLicense: ISC\n")
    doc = tree / "usr/share/doc/hello"
    doc.parent.mkdir(parents=True)
    doc.symlink_to("../../../../outside")
    assert named(read_packages(tree))["hello"].licences == []
    doc.unlink()
    put(tree, "usr/share/doc/other/copyright", "free words")
    doc.symlink_to("/usr/share/doc/other")
    expected = ["see /usr/share/doc/other/copyright"]
    assert named(read_packages(tree))["hello"].licences == expected
    doc.unlink()
    doc.symlink_to("hello")
    assert named(read_packages(tree))["hello"].licences == []


def test_links_to_folders_of_the_host_are_not_entered(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    put(outside, "secret-1.dist-info/METADATA", "Name: secret\nVersion: 1\n")
    (tree / "usr/lib/python3").mkdir(parents=True)
    (tree / "usr/lib/python3/dist-packages").symlink_to(outside)
    (tree / SITE / "link.dist-info").symlink_to(outside / "secret-1.dist-info")
    (tree / "opt/llama.cpp").symlink_to(outside)
    # More links than are followed: the last one leads out.
    for number in range(60):
        (tree / f"usr/lib/link{number}").symlink_to(f"/usr/lib/link{number + 1}")
    (tree / "usr/lib/link60").symlink_to(outside)
    (tree / "usr/lib/python3.9").mkdir()
    (tree / "usr/lib/python3.9/dist-packages").symlink_to("/usr/lib/link0")
    assert [p.name for p in read_packages(tree)] == ["hello", "Own.Pkg", "link"]
    assert Tree(tree).names("usr/lib/link0") == []


def test_odd_lines_in_lists_of_files(tree: Path) -> None:
    (tree / "var/lib/dpkg/info/hello.list").write_bytes(b"/.\n/a\0b/c\n/../../x\n/\xff/\n")
    assert named(read_packages(tree))["hello"].size == 0


def test_an_empty_tree(tmp_path: Path) -> None:
    assert read_packages(tmp_path) == []


def test_relations_and_hashes() -> None:
    assert alternatives("") == []
    assert alternatives("a (>= 1), b | c:any [amd64],, ") == [["a"], ["b", "c"]]
    assert python_hashes({("torch", "2.1"): ["x"]}, "Torch", "2.1+cpu") == ["x"]
    assert python_hashes({("torch", "2.1"): ["x"]}, "Torch", "2.2") == []
