"""Imports from one file: the same modules as from their own files, or Python's own way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from python_with_path import run_python

FILE = Path(__file__).resolve().parents[3] / "containers/llm/llm_bytecode.py"
MODULES = {
    "kit/__init__.py": "from . import inner",
    "kit/inner/__init__.py": "from .deep import VALUE",
    "kit/inner/deep.py": "VALUE = 'from the image'\n\n\ndef answer():\n    return VALUE",
    "kit/data/plain.txt": "data",
    "kit/both.py": "raise SystemExit('the folder comes before the file')",
    "kit/both/__init__.py": "VALUE = 'folder'",
}
LOADERS = ("import kit.inner.deep as deep, kit, sys;"
           "print(type(deep.__loader__).__module__, type(kit.__loader__).__name__, deep.VALUE)")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A packages folder as the image has it, with a bundle of everything in `kit`."""
    folder = tmp_path / "dist packages"
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "kit-1.0.dist-info").mkdir()
    (folder / "kit-1.0.dist-info/RECORD").write_text("".join(f"{name},,\n" for name in MODULES))
    (folder / "llm_bytecode.py").write_text(FILE.read_text())
    run_python("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(folder),
           path=[folder])
    order = "".join(f"{file}\n" for file in sorted(folder.rglob("*")) if file.is_file())
    (tmp_path / "order.txt").write_text(order)
    run_python("-m", "llm_bytecode", *lists(tmp_path), path=[folder])
    return folder


def lists(folder: Path) -> list[str]:
    """The reading order without the bundle, and the one with it."""
    return [str(folder / "order.txt"), str(folder / "packed.txt")]


def with_hook(program: str, site: Path, *words: str, first: list[Path] | None = None) -> str:
    """Run a program as in the image, where the hook is loaded before it."""
    program = f"import llm_bytecode\n{program}"
    return run_python(*words, "-c", program, path=[*(first or []), site]).strip()


def test_nothing_else_is_imported_at_each_start(site: Path) -> None:
    program = ("import sys, os; before = {*sys.modules}; import llm_bytecode;"
               "print(sorted({*sys.modules} - before))")
    assert run_python("-S", "-c", program, path=[site]) == "['__future__', 'llm_bytecode']\n"


def test_the_reading_order_names_the_bundle_in_place_of_its_modules(
    site: Path, tmp_path: Path
) -> None:
    files = (tmp_path / "packed.txt").read_text().splitlines()
    assert files[1] == str(site / "llm_bytecode.bin") and "llm_bytecode." in files[0]
    kept = {str(Path(file).relative_to(site)) for file in files}
    assert {"kit/inner/deep.py", "kit/data/plain.txt"} < kept
    assert not [file for file in kept if file.startswith("kit/inner/__pycache__")]
    assert [file for file in kept if file.startswith("kit/__pycache__/__init__.")]


def test_submodules_come_from_the_bundle_and_packages_are_found_by_python(site: Path) -> None:
    assert with_hook(LOADERS, site) == "llm_bytecode SourceFileLoader from the image"


def test_modules_are_what_python_makes_of_them(site: Path) -> None:
    program = ("import kit.inner.deep as d, kit, importlib, inspect, pkgutil, pickle; m = d;"
               "print(m.__name__, m.__file__, m.__cached__, m.__package__, m.__spec__.origin,"
               " d.answer.__code__.co_filename, inspect.getsource(d.answer),"
               " kit.inner.__path__, kit.inner.__package__, kit.inner.__spec__.parent,"
               " pkgutil.get_data('kit.inner', 'deep.py'), pickle.dumps(d.answer),"
               " importlib.reload(d).VALUE, d.__spec__.loader.get_source('kit.inner.deep'),"
               " [x.name for x in pkgutil.walk_packages(kit.__path__, 'kit.')])")
    plain = run_python("-c", program, path=[site]).strip()
    assert with_hook(program, site) == plain
    assert "from the image" in plain


def test_what_python_would_prefer_stays_preferred(site: Path) -> None:
    assert with_hook("import kit.both; print(kit.both.VALUE)", site) == "folder"


def test_extension_modules_come_first(site: Path, tmp_path: Path) -> None:
    import importlib.machinery

    (site / f"kit/inner/deep{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    run_python("-m", "llm_bytecode", *lists(tmp_path), path=[site])
    names = with_hook("print([*llm_bytecode.read().modules])", site)
    assert "kit/inner" in names and "deep" not in names


def test_another_copy_of_the_package_is_loaded_by_python(site: Path, tmp_path: Path) -> None:
    own = tmp_path / "a user's own"
    for name in ("kit/__init__.py", "kit/inner/__init__.py", "kit/inner/deep.py"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("VALUE = 'my own'")
    out = with_hook(LOADERS, site, first=[own])
    assert out == "_frozen_importlib_external SourceFileLoader my own"


def test_a_package_that_was_installed_again_is_loaded_by_python(site: Path) -> None:
    (site / "kit/inner/deep.py").write_text("VALUE = 'patched'")
    for cached in site.rglob("deep.*.pyc"):
        cached.unlink()
    assert with_hook(LOADERS, site).endswith("from the image")
    record = site / "kit-1.0.dist-info/RECORD"
    later = (site / "llm_bytecode.bin").stat().st_mtime + 10
    os.utime(record, (later, later))
    assert with_hook(LOADERS, site).endswith("SourceFileLoader patched")
    record.unlink()
    assert with_hook(LOADERS, site).endswith("SourceFileLoader patched")


def test_a_package_may_have_an_unusual_path(site: Path) -> None:
    program = ("import kit, pathlib, sys; kit.__path__ = [pathlib.Path('x'), *kit.__path__];"
               "del sys.modules['kit.inner']; import kit.inner; print(kit.inner.VALUE)")
    assert with_hook(program, site) == "from the image"


@pytest.mark.parametrize("words", [["-O"], ["-OO"]])
def test_other_bytecode_is_not_taken_from_the_bundle(site: Path, words: list[str]) -> None:
    assert with_hook(LOADERS, site, *words).startswith("_frozen_importlib_external")


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 100])
def test_a_damaged_bundle_is_not_used(site: Path, content: bytes) -> None:
    (site / "llm_bytecode.bin").write_bytes(content)
    assert with_hook(LOADERS, site).startswith("_frozen_importlib_external")


def test_without_a_bundle_python_goes_its_own_way(site: Path) -> None:
    (site / "llm_bytecode.bin").unlink()
    assert with_hook(LOADERS, site).startswith("_frozen_importlib_external")


def test_the_same_bytes_from_the_same_files(site: Path, tmp_path: Path) -> None:
    first = (site / "llm_bytecode.bin").read_bytes()
    run_python("-m", "llm_bytecode", *lists(tmp_path), path=[site])
    assert (site / "llm_bytecode.bin").read_bytes() == first
