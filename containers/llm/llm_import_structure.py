"""Import transformers without reading the source of every model at each start.

`import transformers` finds out which model file defines which class by reading the sources of all
models, some 3,300 files, and does so at each start (create_import_structure_from_path in
transformers/utils/import_utils.py). In an image these files never change. The build does it once:

    python3 -m llm_import_structure     # writes llm_import_structure.json beside this file

and llm_import_structure.pth loads this module at each start of Python, which hands the result to
transformers when that is imported; nothing is imported here that every start would have to wait
for. The image's smoke test compares the result with what transformers finds by itself. Only the
copy of transformers beside this file is meant: for any other, as one that a user installed,
transformers reads the sources as always.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    # transformers' own form: folders and sets of required packages as keys, side by side.
    Structure = dict[Any, Any]

MODULE = "transformers.utils.import_utils"
FUNCTION = "create_import_structure_from_path"


class Finder:
    """Finds one module, lets Python load it as always, and then replaces one function in it."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        """The module's spec with a loader that calls `use`; None for every other module."""
        if name != MODULE:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            use(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def use(module: ModuleType) -> None:
    """Let a loaded import_utils take the structure of this image's models from the file."""
    import json
    import os
    from functools import lru_cache

    here = os.path.dirname(os.path.abspath(__file__))
    models = os.path.join(here, "transformers", "models")
    if os.path.abspath(module.__file__ or "") != os.path.join(here, *MODULE.split(".")) + ".py":
        return
    try:
        with open(os.path.join(here, "llm_import_structure.json"), encoding="utf-8") as stream:
            known = {models: from_json(json.load(stream))}
    except FileNotFoundError:
        return
    for folder, structure in known[models].items():
        if isinstance(folder, str):
            known[os.path.join(models, folder)] = structure
    read_sources = getattr(module, FUNCTION)

    @lru_cache
    def create_import_structure_from_path(module_path: Any) -> Structure:
        folder = str(module_path)
        folder = os.path.dirname(folder) if folder.endswith(".py") else folder
        found: Structure = known[folder] if folder in known else read_sources(module_path)
        return found

    setattr(module, FUNCTION, create_import_structure_from_path)


def to_json(structure: Structure) -> dict[str, Any]:
    """A structure as plain sorted lists and dicts: the same bytes from the same sources."""
    needs = {key: value for key, value in structure.items() if isinstance(key, frozenset)}
    folders = {key: value for key, value in structure.items() if isinstance(key, str)}
    return {
        "needs": [[sorted(key), {module: sorted(names) for module, names in sorted(value.items())}]
                  for key, value in sorted(needs.items(), key=lambda item: sorted(item[0]))],
        "folders": {key: to_json(value) for key, value in sorted(folders.items())},
    }


def from_json(plain: dict[str, Any]) -> Structure:
    """The inverse of to_json."""
    needs = {frozenset(key): {module: set(names) for module, names in value.items()}
             for key, value in plain["needs"]}
    return {**needs, **{key: from_json(value) for key, value in plain["folders"].items()}}


def main() -> None:
    """Write the file for the transformers that is installed beside this module."""
    import json
    from pathlib import Path

    from transformers.utils import import_utils

    models = str(Path(__file__).resolve().parent / "transformers" / "models")
    structure = to_json(getattr(import_utils, FUNCTION)(models))
    text = json.dumps(structure, separators=(",", ":"), sort_keys=True)
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
else:
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
