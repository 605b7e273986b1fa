"""The software in an unpacked image, by its own records: Debian, Python packages, llama.cpp.

Nothing of the image is run and no link leads out of it. A file that can't be read or parsed takes
away what it would have said and nothing else.

Formats: dpkg(1) (status, info/*.list), https://packaging.python.org/specifications/ (METADATA,
RECORD), https://github.com/package-url/purl-spec.
"""

from __future__ import annotations

import csv
import os
import re
import stat
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from _llm.images.control import headers, stanzas
from _llm.images.licences import debian_licences, from_debian, from_python
from _llm.images.tree import Tree, bytecode_of

STATUS = "var/lib/dpkg/status"
LOCKS = "opt/llm"
LLAMA_CPP = "opt/llama.cpp"


@dataclass
class Package:
    """One package in an image.

    kind: deb, pypi or generic. place: folder of its metadata for what is vendored in another
    package, else "". source, source_version: Debian's source package. licences: SPDX expressions
    or names. hashes: SHA-256 of the archives that may be installed, by the lock. needs: names of
    packages of the same kind, a list of alternatives each. provides: further names. paths: its
    files, relative to the tree. size: their bytes, a file that several own counted for the first.
    """

    kind: str
    name: str
    version: str
    architecture: str = ""
    distribution: str = ""
    place: str = ""
    source: str = ""
    source_version: str = ""
    supplier: str = ""
    description: str = ""
    licences: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    needs: list[list[str]] = field(default_factory=list)
    provides: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    size: int = 0

    @property
    def purl(self) -> str:
        """The package's URL, which scanners and advisories call it by."""
        name, version = _quote(self.name), _quote(self.version)
        if self.kind == "deb":
            distro = f"&distro={_quote(self.distribution)}" if self.distribution else ""
            return f"pkg:deb/debian/{name}@{version}?arch={_quote(self.architecture)}{distro}"
        if self.kind == "pypi":
            name = _quote(python_name(self.name))
        return f"pkg:{self.kind}/{name}" + (f"@{version}" if version else "")

    @property
    def reference(self) -> str:
        """Its name inside one list: the URL, and where it lies if it is a part of another."""
        return f"{self.purl}#{_quote(self.place)}" if self.place else self.purl


def read_packages(tree: Path) -> list[Package]:
    """Return every package of an image, sorted, with its installed bytes."""
    files = Tree(tree)
    debian = read_debian(files)
    owned = {files.resolve_parent(path) for package in debian for path in package.paths}
    packages = [*debian, *read_python(files, owned), *read_llama_cpp(files)]
    packages.sort(key=lambda p: (p.kind, p.name, p.version, p.architecture, p.place))
    # What is part of another package is measured first, llama.cpp before the Python package whose
    # libraries are its own.
    order = sorted(packages, key=lambda p: (not p.place, p.kind != "generic"))
    measure(files, order)
    return packages


def measure(files: Tree, packages: Iterable[Package]) -> None:
    """Set each package's size: bytes of its regular files, each file counted once in all."""
    seen: set[tuple[int, int]] = set()
    for package in packages:
        package.size = 0
        for path in package.paths:
            for one in (path, *bytecode_of(files, path)):
                try:
                    found = os.lstat(files.path(files.resolve_parent(one)))
                except (OSError, ValueError):
                    continue
                if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    package.size += found.st_size


# ---- Debian

def read_debian(files: Tree) -> list[Package]:
    """Return the Debian packages that are installed."""
    distribution = os_release(files).get("VERSION_CODENAME", "")
    hashes = read_apt_hashes(files)
    found: dict[tuple[str, str], Package] = {}
    for record in stanzas(files.read(STATUS)):
        name, version = record.get("package", ""), record.get("version", "")
        state = record.get("status", "install ok installed").split()
        if not name or not version or state[-1:] not in (["installed"], ["unpacked"]):
            continue
        architecture = record.get("architecture", "")
        source, _, source_version = record.get("source", name).partition(" ")
        digest = hashes.get((name, version, architecture), "")
        listed = (files.read(f"var/lib/dpkg/info/{name}.list")
                  or files.read(f"var/lib/dpkg/info/{name}:{architecture}.list"))
        found[name, architecture] = Package(
            "deb", name, version, architecture, distribution, source=source,
            source_version=source_version.strip(" ()") or version,
            supplier=record.get("maintainer", ""),
            description=record.get("description", "").split("\n")[0],
            licences=licences_of_debian(files, name), hashes=[digest] if digest else [],
            needs=[*alternatives(record.get("pre-depends", "")),
                   *alternatives(record.get("depends", ""))],
            provides=[words[0] for words in alternatives(record.get("provides", ""))],
            paths=[line.lstrip("/") for line in listed.split("\n") if line not in ("", "/.")])
    return list(found.values())


def os_release(files: Tree) -> dict[str, str]:
    """The image's distribution: ID, VERSION_ID and so on, as os-release(5) has them."""
    pairs = (line.partition("=") for line in files.read("etc/os-release").splitlines())
    return {key.strip(): clean(value.strip().strip("\"'")) for key, found, value in pairs if found}


def read_apt_hashes(files: Tree) -> dict[tuple[str, str, str], str]:
    """(name, version, architecture) -> SHA-256 of the package's file, from the image's locks."""
    found: dict[tuple[str, str, str], str] = {}
    for lock in (f"{LOCKS}/base/apt.lock", f"{LOCKS}/apt.lock"):
        for line in files.read(lock).splitlines():
            words = line.split()
            if len(words) >= 4 and re.fullmatch(r"[0-9a-f]{64}", words[3]):
                found[words[0], words[1], words[2]] = words[3]
    return found


def licences_of_debian(files: Tree, name: str) -> list[str]:
    """Return the licences that a package's copyright file names.

    A file in free form is named itself: what it says can't be told from words in it.
    """
    place = f"usr/share/doc/{name}/copyright"
    text = files.read(place)
    names = debian_licences(text) if text else []
    if names is None:
        return [f"see /{files.resolve(place)}"]
    return list(dict.fromkeys(from_debian(licence) or licence for licence in names))


def alternatives(relation: str) -> list[list[str]]:
    """`a (>= 1), b | c:any` -> [[a], [b, c]]."""
    groups = ([re.split(r"[\s(:\[<]", word.strip(), maxsplit=1)[0] for word in group.split("|")]
              for group in relation.replace("\n", " ").split(","))
    return [words for words in ([word for word in group if word] for group in groups) if words]


# ---- Python

def read_python(files: Tree, owned: set[str]) -> list[Package]:
    """Return the Python packages below the dist-packages folders, without Debian's.

    owned: paths that belong to Debian packages. Those inside another package (its `_vendor`) are
    packages too; place says where.
    """
    hashes = read_python_hashes(files)
    found = []
    for lib in ("usr/local/lib", "usr/lib"):
        for python in files.names(lib):
            site = f"{lib}/{python}/dist-packages"
            if not re.fullmatch(r"python3[0-9.]*", python):
                continue
            site = files.resolve(site)
            for folder, folders, names in os.walk(files.folder(site)):
                folders.sort()
                for name in sorted([*folders, *names]):
                    if not name.endswith((".dist-info", ".egg-info")):
                        continue
                    inside = os.path.relpath(os.path.join(folder, name), files.root)
                    package = read_distribution(files, inside, owned, hashes)
                    if package:
                        parent = os.path.dirname(inside)
                        package.place = "" if parent == site else clean(parent)
                        found.append(package)
    return found


def read_distribution(
    files: Tree, place: str, owned: set[str], hashes: dict[tuple[str, str], list[str]],
) -> Package | None:
    """Return the package that a *.dist-info or *.egg-info describes.

    None where it belongs to a Debian package or holds nothing that describes one.
    """
    name = "METADATA" if place.endswith(".dist-info") else "PKG-INFO"
    inside = f"{place}/{name}" if files.folder(place) else place
    if files.resolve_parent(inside) in owned or files.resolve_parent(place) in owned:
        return None
    head = files.read(inside).split("\n\n", 1)[0]
    fields: dict[str, list[str]] = {}
    for key, value in headers(head):
        fields.setdefault(key, []).append(value)

    def first(key: str) -> str:
        return fields.get(key, [""])[0].strip()

    stem, _, rest = os.path.basename(place).rpartition(".")[0].partition("-")
    title, version = clean(first("name") or stem), clean(first("version") or rest.split("-py")[0])
    if not title:
        return None
    # The field is indented as a whole licence text may be.
    text = "\n".join(line.lstrip(" |") for line in first("license").split("\n"))
    needs = [re.split(r"[^A-Za-z0-9._-]", need.strip(), maxsplit=1)[0]
             for need in fields.get("requires-dist", []) if "extra" not in need.partition(";")[2]]
    return Package(
        "pypi", title, version, supplier=clean(first("author") or first("author-email")),
        description=clean(first("summary")),
        licences=from_python(first("license-expression"), text,
                             [c for c in fields.get("classifier", [])
                              if c.strip().startswith("License ::")]),
        hashes=python_hashes(hashes, title, version),
        needs=[[python_name(need)] for need in needs if need],
        paths=distribution_files(files, place))


def distribution_files(files: Tree, place: str) -> list[str]:
    """Paths of a Python package's files: by RECORD, else installed-files.txt, else its folder."""
    parent = os.path.dirname(place)
    record = files.read(f"{place}/RECORD")
    try:
        rows = [row[0] for row in csv.reader(record.replace("\0", "").splitlines()) if row]
    except csv.Error:
        rows = []
    if rows:
        return [os.path.normpath(os.path.join("/", parent, row)).lstrip("/") for row in rows]
    legacy = files.read(f"{place}/installed-files.txt")
    if legacy:
        return [os.path.normpath(os.path.join("/", place, line)).lstrip("/")
                for line in legacy.splitlines() if line]
    tops = [line.strip() for line in files.read(f"{place}/top_level.txt").splitlines()]
    paths = [path for top in tops if top and "/" not in top and top not in (".", "..")
             for path in files.walk(f"{parent}/{top}")]
    paths += [f"{parent}/{top}.py" for top in tops if top]
    return [*paths, *files.walk(place)] if files.folder(place) else [*paths, place]


def read_python_hashes(files: Tree) -> dict[tuple[str, str], list[str]]:
    """(name, version) -> the SHA-256 of the archives that the image's Python locks allow."""
    found: dict[tuple[str, str], list[str]] = {}
    for lock in ("requirements.lock", "llama-recipes.lock"):
        key = ("", "")
        for line in files.read(f"{LOCKS}/{lock}").splitlines():
            pin = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?===?([^\s;\\]+)", line)
            if pin:
                key = (python_name(pin.group(1)), pin.group(2))
            for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", line):
                found.setdefault(key, []).append(digest)
    return {key: sorted(set(values)) for key, values in found.items()}


def python_hashes(
    hashes: dict[tuple[str, str], list[str]], name: str, version: str,
) -> list[str]:
    """Hashes of a version; a lock may leave out its local part (`2.13.0` for `2.13.0+cpu`)."""
    name = python_name(name)
    return hashes.get((name, version)) or hashes.get((name, version.split("+")[0]), [])


def python_name(name: str) -> str:
    """A Python package's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


# ---- llama.cpp

def read_llama_cpp(files: Tree) -> list[Package]:
    """Return llama.cpp and the gguf package of its source, where the image has them.

    Its version is that of its library's file. What it was compiled from is the source archive of
    llama-cpp-python, whose locked hash lies in the image as llama.cpp.lock.
    """
    paths = list(files.walk(LLAMA_CPP))
    if not paths:
        return []
    gguf = f"{LLAMA_CPP}/converter/gguf-py"
    text = files.read(f"{gguf}/pyproject.toml")
    found = re.search(r'^version\s*=\s*"([^"\n]+)"', text, re.MULTILINE)
    parts = []
    if text:
        licence = re.search(r'^license\s*=\s*(?:\{\s*text\s*=\s*)?"([^"\n]+)"', text, re.MULTILINE)
        mit = first_line(files.read(f"{gguf}/LICENSE"))
        parts = [Package("pypi", "gguf", clean(found.group(1)) if found else "", place=gguf,
                         licences=from_python("", licence.group(1) if licence else mit, []),
                         description="Read and write ML models in GGUF, of llama.cpp's source",
                         paths=[path for path in paths if path.startswith(gguf + "/")])]
    names = (re.fullmatch(r"libllama\.so\.(\d+\.\d+[0-9.]*)", os.path.basename(path))
             for path in paths)
    version = next((name.group(1) for name in names if name), "")
    source = re.search(r"^llama-cpp-python==(\S+)", files.read(f"{LOCKS}/llama.cpp.lock"),
                       re.MULTILINE)
    digests = re.findall(r"--hash=sha256:([0-9a-f]{64})", files.read(f"{LOCKS}/llama.cpp.lock"))
    licence_text = first_line(files.read(f"{LLAMA_CPP}/licenses/llama.cpp.txt"))
    return [Package("generic", "llama.cpp", version, source="llama-cpp-python" if source else "",
                    source_version=source.group(1) if source else "",
                    licences=from_python("", licence_text, []), hashes=sorted(set(digests)),
                    description="LLM inference in C/C++: programs, libraries, GGUF converter",
                    paths=paths), *parts]


# ---- text

def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def clean(text: str) -> str:
    """Text that can be printed and encoded: white space made single, no control characters."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe=":")
