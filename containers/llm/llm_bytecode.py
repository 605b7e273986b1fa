"""Import the image's packages from one file instead of thousands.

`import torch, transformers` loads more than a thousand modules. Python asks the file system five
to ten times for each of them (list the folder, find the source, open and read its bytecode), and in
an image each question goes through a FUSE server. The build copies the bytecode of all modules that
the image's main programs import into one file, in the order in which they are asked for:

    python3 -m llm_bytecode READING_ORDER    # writes llm_bytecode.bin beside this file

and llm_bytecode.pth loads this module at each start of Python, which puts a finder in front of
Python's own. The finder knows submodules only (`torch.nn`, not `torch`): which folder a package
comes from is found out by Python as always, so that a user's own torch is never mixed with this
one. A package that was replaced in the image's own folder (an overlay) is read as always, too.

File: eight bytes with the length of the index, the index (marshal), the bytecode (marshal).
"""

from __future__ import annotations

import marshal
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from typing import Any, NamedTuple

SITE = os.path.dirname(os.path.abspath(__file__))
FILE = os.path.join(SITE, "llm_bytecode.bin")
SUFFIX = f".{sys.implementation.cache_tag}.pyc"
PYC_HEADER = 16  # bytes before the code in a .pyc file (PEP 552)


class Bundle(NamedTuple):
    """The file's content."""

    data: Any  # the whole file, a buffer
    modules: dict[str, tuple[int, int, bool]]  # path without .py: offset, size, is a package
    records: dict[str, list[str]]  # folder of a package: the RECORD files of what is in it
    replaced: dict[str, bool]  # folder of a package: whether it was replaced since the build


_bundle: Bundle | None = None


class Loader(SourceFileLoader):
    """Loads one module's code from the bundle; everything else as from its own files."""

    def get_code(self, fullname: str) -> Any:
        """The module's code object."""
        bundle = read()
        stem, _, last = self.path.rpartition("/")
        found = bundle.modules.get(stem if last == "__init__.py" else self.path[:-len(".py")])
        if found is None or fullname != self.name:
            return super().get_code(fullname)
        offset, size, _is_package = found
        return marshal.loads(memoryview(bundle.data)[offset:offset + size])


class Finder:
    """Finds the submodules that are in the bundle."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module's spec; None for every module that Python has to look for itself."""
        folder = path[0] if path else ""
        if not folder.startswith(SITE):
            return None
        bundle = read()
        stem = f"{folder}/{name.rpartition('.')[2]}"
        found = bundle.modules.get(stem)
        if found is None or was_replaced(bundle, stem[len(SITE) + 1:].partition("/")[0]):
            return None
        from importlib.util import spec_from_file_location

        file = f"{stem}/__init__.py" if found[2] else f"{stem}.py"
        return spec_from_file_location(name, file, loader=Loader(name, file),
                                       submodule_search_locations=[stem] if found[2] else None)


def was_replaced(bundle: Bundle, package: str) -> bool:
    """Whether a package was removed or installed again after the bundle had been written."""
    if package not in bundle.replaced:
        try:
            newest = max(os.stat(os.path.join(SITE, record)).st_mtime
                         for record in bundle.records[package])
            bundle.replaced[package] = newest > os.stat(FILE).st_mtime
        except OSError:
            bundle.replaced[package] = True
    return bundle.replaced[package]


def read() -> Bundle:
    """Open the bundle, once; one without modules if there is none."""
    global _bundle
    if _bundle is None:
        import mmap

        try:
            with open(FILE, "rb") as stream:
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(data[:8], "little")
            _bundle = Bundle(data, *marshal.loads(data[8:8 + size]), {})
        except (OSError, ValueError, EOFError, TypeError):
            _bundle = Bundle(b"", {}, {}, {})
    return _bundle


def records() -> dict[str, list[str]]:
    """The RECORD files that belong to each folder of packages, relative to this folder."""
    found: dict[str, list[str]] = {}
    for info in sorted(name for name in os.listdir(SITE) if name.endswith(".dist-info")):
        record = f"{info}/RECORD"
        with open(os.path.join(SITE, record), encoding="utf-8") as stream:
            for package in {line.partition("/")[0] for line in stream}:
                found.setdefault(package, []).append(record)
    return found


def main() -> None:
    """Write the bundle of the modules whose .pyc files are in a list of files."""
    known = records()
    modules: dict[str, tuple[int, int, bool]] = {}
    codes: list[bytes] = []
    offset = 0
    with open(sys.argv[1], encoding="utf-8") as listing:
        files = [line.rstrip("\n") for line in listing]
    for file in files:
        folder, _, name = file.rpartition("/__pycache__/")
        package = folder[len(SITE) + 1:].partition("/")[0]
        if not folder.startswith(f"{SITE}/") or not name.endswith(SUFFIX) or package not in known:
            continue
        name = name[:-len(SUFFIX)]
        is_package = name == "__init__"
        stem = folder if is_package else f"{folder}/{name}"
        # What Python would prefer to this module: an extension module, a folder of the same name.
        rivals = [stem + suffix for suffix in EXTENSION_SUFFIXES]
        rivals += [] if is_package else [f"{stem}/__init__.py"]
        if os.path.dirname(stem) == SITE or any(map(os.path.exists, rivals)):
            continue
        with open(file, "rb") as stream:
            code = stream.read()[PYC_HEADER:]
        modules[stem] = (offset, len(code), is_package)
        codes.append(code)
        offset += len(code)
    packages = {stem[len(SITE) + 1:].partition("/")[0] for stem in modules}
    kept = {package: known[package] for package in sorted(packages)}

    def index(start: int) -> bytes:
        return marshal.dumps(({stem: (start + offset, size, is_package) for stem,
                               (offset, size, is_package) in modules.items()}, kept), 2)

    # Offsets count from the file's beginning, so that the index must know its own length.
    start = 8 + len(index(1 << 30))
    start += -start % 4096
    head = index(start)
    with open(FILE, "wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.seek(start)
        stream.writelines(codes)


if __name__ == "__main__":
    main()
elif not sys.flags.optimize and not any(finder is Finder for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
