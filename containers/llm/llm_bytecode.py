"""Import the image's packages from one file instead of thousands.

`import torch, transformers` loads more than a thousand modules. Python asks the file system five
to ten times for each of them (list the folder, find the source, open and read its bytecode), and in
an image each question goes through a FUSE server. The build copies the bytecode of all modules that
the image's main programs import into one file, in the order in which they are asked for:

    python3 -m llm_bytecode READING_ORDER OUTPUT    # writes llm_bytecode.bin beside this file

OUTPUT is READING_ORDER (reading_order.py) with this file, and this module's own bytecode, in place
of all that the file holds: so the image will be read, and so it is packed.

llm_bytecode.pth loads this module at each start of Python, which puts a finder in front of Python's
own; nothing is imported here that every start would have to wait for. The finder knows submodules
only (`torch.nn`, not `torch`): which folder a package comes from is found out by Python as always,
so that a user's own torch is never mixed with this one. A package that was replaced in the image's
own folder (an overlay) is read as always, too.

The file: eight bytes with the length of the index, the index (marshal), the bytecode (marshal).
"""

from __future__ import annotations

import marshal
import os
import sys

# What importlib.machinery and importlib.util hand on; these two would be loaded from files.
from _frozen_importlib_external import SourceFileLoader, spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

SITE = os.path.dirname(os.path.abspath(__file__))
FILE = os.path.join(SITE, "llm_bytecode.bin")
SUFFIX = f".{sys.implementation.cache_tag}.pyc"
PYC_HEADER = 16  # bytes before the code in a .pyc file (PEP 552)


class Bundle:
    """The file's content.

    codes: the bytecode of all modules. modules: path without .py -> offset in codes, size, whether
    it is a package. records: folder of a package -> the RECORD files of what is in it.
    """

    __slots__ = ("_replaced", "codes", "modules", "records")

    def __init__(
        self,
        codes: memoryview,
        modules: dict[str, tuple[int, int, bool]],
        records: dict[str, list[str]],
    ) -> None:
        self.codes = codes
        self.modules = modules
        self.records = records
        self._replaced: dict[str, bool] = {}

    def code(self, stem: str) -> memoryview:
        """The bytecode of a module, by its path without .py."""
        offset, size, _is_package = self.modules[stem]
        return self.codes[offset:offset + size]

    def was_replaced(self, package: str) -> bool:
        """Whether a package was removed or installed again after the file had been written."""
        if package not in self._replaced:
            try:
                newest = max(os.stat(os.path.join(SITE, record)).st_mtime
                             for record in self.records[package])
                self._replaced[package] = newest > os.stat(FILE).st_mtime
            except OSError:
                self._replaced[package] = True
        return self._replaced[package]


class Loader(SourceFileLoader):
    """Loads one module's code from the bundle; everything else as from its own files."""

    def __init__(self, name: str, path: str, code: memoryview) -> None:
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str) -> Any:
        """The module's code object."""
        return marshal.loads(self.code)


class Finder:
    """Finds the submodules that are in the bundle."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module's spec; None for every module that Python has to look for itself."""
        folder = path[0] if path else ""
        if not isinstance(folder, str) or not folder.startswith(SITE):
            return None
        bundle = read()
        stem = f"{folder}/{name.rpartition('.')[2]}"
        if stem not in bundle.modules or bundle.was_replaced(package_of(stem)):
            return None
        file = source_of(bundle, stem)
        return spec_from_file_location(
            name, file, loader=Loader(name, file, bundle.code(stem)),
            submodule_search_locations=[stem] if bundle.modules[stem][2] else None)


def package_of(path: str) -> str:
    """The folder directly below SITE in which a path lies."""
    return path[len(SITE) + 1:].partition("/")[0]


def source_of(bundle: Bundle, stem: str) -> str:
    """The path of a module's source."""
    return f"{stem}/__init__.py" if bundle.modules[stem][2] else f"{stem}.py"


_bundle: Bundle | None = None


def read() -> Bundle:
    """Open the bundle, once; one without modules if there is none."""
    global _bundle
    if _bundle is None:
        import mmap

        try:
            with open(FILE, "rb") as stream:
                data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            start = 8 + int.from_bytes(data[:8], "little")
            _bundle = Bundle(data[start:], *marshal.loads(data[8:start]))
        except (OSError, ValueError, EOFError, TypeError):
            _bundle = Bundle(memoryview(b""), {}, {})
    return _bundle


def find_records() -> dict[str, list[str]]:
    """The RECORD files that belong to each folder of packages, relative to SITE."""
    found: dict[str, list[str]] = {}
    for info in sorted(name for name in os.listdir(SITE) if name.endswith(".dist-info")):
        record = f"{info}/RECORD"
        with open(os.path.join(SITE, record), encoding="utf-8") as stream:
            for package in {line.partition("/")[0] for line in stream}:
                found.setdefault(package, []).append(record)
    return found


def stem_of(file: str) -> str:
    """The path of a module without .py, by its .pyc file; "" for a file that can't be in here."""
    from importlib.machinery import EXTENSION_SUFFIXES

    folder, _, name = file.rpartition("/__pycache__/")
    if not folder.startswith(f"{SITE}/") or not name.endswith(SUFFIX):
        return ""
    name = name[:-len(SUFFIX)]
    # What Python would prefer to this file: an extension module, a folder of the same name.
    rivals = [f"{folder}/{name}{suffix}" for suffix in EXTENSION_SUFFIXES]
    rivals.append(f"{folder}/{name}/__init__.py")
    stem = folder if name == "__init__" else f"{folder}/{name}"
    return "" if os.path.dirname(stem) == SITE or any(map(os.path.exists, rivals)) else stem


def main() -> None:
    """Write the bundle of the modules whose .pyc files are in a list, and another list for it."""
    known = find_records()
    modules: dict[str, tuple[int, int, bool]] = {}
    codes: list[bytes] = []
    offset = 0
    with open(sys.argv[1], encoding="utf-8") as listing:
        files = [line.rstrip("\n") for line in listing]
    others = []
    for file in files:
        stem = stem_of(file)
        if not stem or package_of(stem) not in known:
            others.append(file)
            continue
        with open(file, "rb") as stream:
            codes.append(stream.read()[PYC_HEADER:])
        modules[stem] = (offset, len(codes[-1]), os.path.basename(file) == f"__init__{SUFFIX}")
        offset += len(codes[-1])
    packages = sorted({package_of(stem) for stem in modules})
    # Version 2 knows no references, which would depend on how this program holds its strings.
    index = marshal.dumps((modules, {package: known[package] for package in packages}), 2)
    with open(FILE, "wb") as stream:
        stream.writelines([len(index).to_bytes(8, "little"), index, *codes])
    with open(sys.argv[2], "w", encoding="utf-8") as listing:
        listing.writelines(f"{file}\n" for file in [__spec__.cached, FILE, *others])


if __name__ == "__main__":
    main()
elif not sys.flags.optimize:
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
