"""Render the modulefiles of a version: Tcl for Environment Modules, Lua for Lmod.

    make install PREFIX=/apps/llm MODULEPATH=/apps/modulefiles

`llm/0.1.0` leaves the choice of the image's variant to the node, `llm/0.1.0-cpu` makes it. Both
systems read both kinds of files in one folder: Lmod prefers the .lua, Environment Modules passes
over it. The templates are in modules/.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from _llm.files import write_text
from _llm.installation import manifest
from _llm.installation.build import free_name
from _llm.installation.layout import MODULE, Layout
from _llm.settings import VARIANTS

MARK = "Written by `make install` of the LLM recipes"
DEFAULT_FILES = (".version", ".modulerc.lua")
WHATIS = "large language models: images, llm-run, recipes"
CHOICES = {
    "": "The image's variant is chosen on the node where the program runs, by its GPU and driver.",
    "cpu": "Programs run in the image for CPUs, on every node.",
    "cuda12": "Programs run in the image for CUDA 12: drivers 525 and newer, GPUs such as V100.",
    "cuda13": "Programs run in the image for CUDA 13: drivers 580 and newer, Turing and newer.",
}
HELP = """\
llm-run starts a program in an image with PyTorch, transformers and llama.cpp:

    llm-run python train.py
    llm-run python $LLM_HOME/recipes/inference/generate.py --help
    llm-run --help
    llm-doctor
    llm-record show RUN.json

{choice}"""


def render_modulefiles(
    templates: Path, layout: Layout, site: str, required: Sequence[str]
) -> dict[str, str]:
    """Return file name -> text of every modulefile of the version.

    templates: the folder modules/ of the checkout. site: the value of LLM_SITE, "" to leave the
    choice to the host's name. required: modules that are loaded with it.
    """
    tcl = (templates / "llm.tcl").read_text(encoding="utf-8")
    lua = (templates / "llm.lua").read_text(encoding="utf-8")
    files = {}
    for variant in ("", *VARIANTS):
        name = layout.version + (f"-{variant}" if variant else "")
        variables = {"LLM_SITE": site} if site else {}
        if variant:
            variables["LLM_IMAGE"] = f"llm-{variant}"
        common = {
            "MODULE": MODULE,
            "NAME": f"{MODULE}/{name}",
            "VERSION_AND_VARIANT": name,
            "WHATIS": WHATIS + (f" ({variant})" if variant else ""),
            "HELP": HELP.format(choice=CHOICES[variant]),
        }
        files[name] = fill(tcl, {**common, **tcl_values(layout, variables, required)})
        gpu = 'add_property("arch", "gpu")\n' if variant.startswith("cuda") else ""
        files[name + ".lua"] = fill(
            lua, {**common, "PROPERTY": gpu, **lua_values(layout, variables, required)})
    return files


def fill(template: str, values: dict[str, str]) -> str:
    """Replace every @NAME@. Raises KeyError for one without a value."""
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], template)


def steps_to(layout: Layout) -> tuple[int, str]:
    """Return how the installation is found from a modulefile: folders up, then the path down."""
    relative = os.path.relpath(layout.link, layout.modules).split("/")
    up = relative.count("..")
    return up, "/" + "/".join(relative[up:])


def tcl_values(
    layout: Layout, variables: dict[str, str], required: Sequence[str]
) -> dict[str, str]:
    """Return what only the Tcl template has."""
    up, down = steps_to(layout)
    here = "$ModulesCurrentModulefile"
    for _ in range(up + 1):
        here = f"[file dirname {here}]"
    words = [word for pair in variables.items() for word in pair]
    return {
        "HOME_FROM_HERE": f"[string trimright {here} /]{tcl_word(down)}",
        "HOME": tcl_word(str(layout.link)),
        "REQUIRED": " ".join(map(tcl_word, required)),
        "VARIABLES": " ".join(map(tcl_word, words)),
    }


def lua_values(
    layout: Layout, variables: dict[str, str], required: Sequence[str]
) -> dict[str, str]:
    """Return what only the Lua template has."""
    up, down = steps_to(layout)
    return {
        "UP": str(up + 1),
        "DOWN": lua_text(down),
        "HOME": lua_text(str(layout.link)),
        "REQUIRED": "".join(f"depends_on({lua_text(name)})\n" for name in required),
        "VARIABLES": "".join(
            f"pushenv({lua_text(name)}, {lua_text(value)})\n" for name, value in variables.items()),
    }


def tcl_word(text: str) -> str:
    """Quote a word for Tcl."""
    return re.sub(r"([^\w/.+,:@%=-])", r"\\\1", text, flags=re.ASCII) or "{}"


def lua_text(text: str) -> str:
    """Quote a text for Lua."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def is_ours(path: Path) -> bool:
    """Say whether `make install` wrote a modulefile, changed since or not."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return MARK in stream.read(1000)
    except OSError:
        return False


def write_modulefiles(layout: Layout, files: dict[str, str], known: dict[str, str]) -> list[str]:
    """Write modulefiles; return a sentence for each changed one that was kept aside.

    known: path -> hash of those that an earlier installation wrote. What the administrator changed
    gets a name that begins with a dot: any other would be a module.
    """
    said = []
    for name, text in files.items():
        path = layout.modules / name
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            hashed = manifest.fingerprint(path)
            if known.get(str(path), hashed) != hashed:
                aside = free_name(path.with_name("." + name))
                path.rename(aside)
                said.append(f"{path} differed from ours; it is now {aside.name}")
        write_text(str(path), text, manifest.READABLE)
    return said


def render_default(version: str) -> dict[str, str]:
    """Return the two files that say which version `module load llm` means."""
    return {
        ".version": f'#%Module1.0\n# {MARK}\nset ModulesVersion "{version}"\n',
        ".modulerc.lua": f'-- {MARK}\nmodule_version("{MODULE}/{version}", "default")\n',
    }


def read_default(layout: Layout) -> str | None:
    """Return the version that `module load llm` means, "" for none, None if not ours to change."""
    path = layout.modules / DEFAULT_FILES[0]
    others = ("default", ".modulerc")
    if any(os.path.lexists(layout.modules / name) for name in others):
        return None
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'set ModulesVersion "([^"]+)"', text)
    return found[1] if found and render_default(found[1])[".version"] == text else None


def write_default(layout: Layout, version: str) -> None:
    """Let `module load llm` mean this version; "" removes the choice."""
    for name, text in render_default(version).items():
        if version:
            write_text(str(layout.modules / name), text, manifest.READABLE)
        else:
            (layout.modules / name).unlink(missing_ok=True)
