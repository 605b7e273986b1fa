"""What the image tells transformers of its models: exactly what their sources say, or nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from python_with_path import run_python

FILE = Path(__file__).resolve().parents[3] / "containers/llm/llm_import_structure.py"
# A stand-in for transformers with the names that matter: its models are the folder's files.
IMPORT_UTILS = '''
import os
def create_import_structure_from_path(module_path):
    print("read the sources of", os.path.basename(str(module_path)))
    return {"llama": {frozenset({"torch"}): {"modeling_llama": {"LlamaModel"}}, "inner": {}}}
'''
PROGRAM = '''
import os, sys
from transformers.utils import import_utils as u
models = os.path.join(os.path.dirname(u.__file__), "..", "models")
models = os.path.abspath(models)
whole = u.create_import_structure_from_path(models)
assert whole["llama"][frozenset({"torch"})] == {"modeling_llama": {"LlamaModel"}}, whole
assert u.create_import_structure_from_path(models + "/__init__.py") == whole
assert u.create_import_structure_from_path(models + "/llama/__init__.py") == whole["llama"]
u.create_import_structure_from_path(models + "/another")
'''


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    spec = importlib.util.spec_from_file_location("llm_import_structure", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def site(folder: Path, with_hook: bool) -> Path:
    """A packages folder with the stand-in, and with the hook as the image has it or without."""
    (folder / "transformers/utils").mkdir(parents=True)
    (folder / "transformers/__init__.py").touch()
    (folder / "transformers/utils/__init__.py").touch()
    (folder / "transformers/utils/import_utils.py").write_text(IMPORT_UTILS)
    if with_hook:
        (folder / "llm_import_structure.py").write_text(FILE.read_text())
    return folder


def test_nothing_else_is_imported_at_each_start(tmp_path: Path) -> None:
    folder = site(tmp_path, with_hook=True)
    program = ("import sys, os; before = {*sys.modules}; import llm_import_structure;"
               "print(sorted({*sys.modules} - before))")
    assert run_python("-S", "-c", program, path=[folder]) == (
        "['__future__', 'llm_import_structure']\n")


def test_structure_survives_and_its_order_does_not_matter(module: ModuleType) -> None:
    first = {frozenset({"b", "a"}): {"two": {"Y", "X"}, "one": {"Z"}}, frozenset(): {"free": {"F"}},
             "inner": {frozenset({"torch"}): {"deep": set()}, "empty": {}}}
    second = {"inner": {"empty": {}, frozenset({"torch"}): {"deep": set()}},
              frozenset(): {"free": {"F"}},
              frozenset({"a", "b"}): {"one": {"Z"}, "two": {"X", "Y"}}}
    assert json.dumps(module.to_json(first)) == json.dumps(module.to_json(second))
    assert module.from_json(json.loads(json.dumps(module.to_json(first)))) == first


def test_noted_once_and_not_read_again(tmp_path: Path) -> None:
    folder = site(tmp_path / "dist packages", with_hook=True)
    assert "read the sources of models" in run_python("-m", "llm_import_structure", path=[folder])
    out = run_python("-c", "import llm_import_structure" + PROGRAM, path=[folder])
    assert out.splitlines() == ["read the sources of another"]


def test_without_the_file_or_for_another_copy_sources_are_read(tmp_path: Path) -> None:
    image = site(tmp_path / "image", with_hook=True)
    program = ("import llm_import_structure; from transformers.utils.import_utils import "
               "create_import_structure_from_path as f; f('models')")
    out = run_python("-c", program, path=[image])
    assert out == "read the sources of models\n"
    run_python("-m", "llm_import_structure", path=[image])
    own = site(tmp_path / "a user's own", with_hook=False)
    models = str(image / "transformers/models")
    program = ("import llm_import_structure; from transformers.utils import import_utils as u;"
               f"f = u.create_import_structure_from_path; f({models!r})")
    out = run_python("-c", program, path=[own, image])
    assert out == "read the sources of models\n"
