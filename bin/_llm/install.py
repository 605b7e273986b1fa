"""Install this version beside others, with its modulefiles.

    make install PREFIX=/apps/llm MODULEPATH=/apps/modulefiles

The version is assembled under a temporary name and appears in one step, also where it replaces an
older build of itself: users never see half of one, and jobs that run keep the one they started
with. Nothing is written before everything was checked. What lies where: installation/layout.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from _llm.errors import LLMError, report
from _llm.installation import build, manifest, modulefiles, tools
from _llm.installation.layout import MODULE, Layout, make_folders, version_order
from _llm.run import VERSION
from _llm.settings import VARIANTS, load_settings
from _llm.sites import profile_names

HOME = Path(__file__).resolve().parent.parent.parent


def main(arguments: Sequence[str]) -> int:
    """`install --prefix FOLDER [--modulepath FOLDER] [--site NAME] [--default VERSION]`."""
    parser = argparse.ArgumentParser(prog="make install", description=__doc__.partition("\n")[0])
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--modulepath", default="")
    parser.add_argument("--site", default="")
    parser.add_argument("--default", default="")
    options = parser.parse_args(arguments)
    if "/" in options.site:
        options.site = os.path.abspath(os.path.expanduser(options.site))
    # Whatever the administrator's umask: users have to read it, and only the owner to write it.
    os.umask(0o022)
    layout, faults = find_layout(options.prefix, options.modulepath, VERSION)
    required: list[str] = []
    if not faults:
        faults = [*refuse_foreign(layout), *refuse_default(layout, options.default)]
        try:
            required = required_modules(layout, options.site)
        except LLMError as error:
            faults.append(error)
    if faults:
        return report("install", faults)
    files = modulefiles.render_modulefiles(HOME / "modules", layout, options.site, required)
    for line in install(layout, files, options.default):
        print(f"install: {line}")
    return 0


def find_layout(prefix: str, modulepath: str, version: str) -> tuple[Layout, list[LLMError]]:
    """Return where things go, and what is wrong with that.

    prefix, modulepath: as typed; "" for the second means `modulefiles` below the first.
    """
    home = os.path.expanduser(prefix)
    folder = Path(os.path.abspath(home)) if prefix else Path("/")
    modules = os.path.abspath(os.path.expanduser(modulepath)) if modulepath else ""
    layout = Layout(folder, version, Path(modules) if modules else folder / "modulefiles")
    faults = []
    if not prefix or folder == Path("/"):
        faults.append(LLMError("PREFIX is no folder of its own", f"PREFIX='{prefix}'",
                               "make install PREFIX=/apps/llm"))
    for name, path in (("PREFIX", str(folder)), ("MODULEPATH", modules)):
        if ":" in path or "\n" in path:
            faults.append(LLMError(
                f"{name}={path} is not one folder", "a colon or a line break can't be part of PATH",
                f"choose one folder: make install {name}=/apps/…"))
    real = folder.resolve()
    if real == HOME or any(real.is_relative_to(HOME / name) for name in build.FOLDERS):
        faults.append(LLMError("PREFIX is this checkout; choose another",
                               f"{folder} is {real}", "make install PREFIX=/apps/llm"))
    return layout, faults


def refuse_foreign(layout: Layout) -> list[LLMError]:
    """Return an error for each thing in our places that is not from `make install`."""
    found = [layout.link] if layout.is_foreign() else []
    if layout.modules.exists() and not layout.modules.is_dir():
        found.append(layout.modules)
    names = ["", *(f"-{variant}" for variant in VARIANTS)]
    for name in (layout.version + name + end for name in names for end in ("", ".lua")):
        path = layout.modules / name
        if os.path.lexists(path) and not modulefiles.is_ours(path):
            found.append(path)
    errors = [LLMError(f"{path} is there already and not from make install",
                       "it would have to be replaced, with all that it holds",
                       "move it away, or choose another PREFIX or MODULEPATH") for path in found]
    others = other_things(layout)
    if others and not errors:
        errors.append(LLMError(
            f"{layout.prefix} holds other things and no installation",
            f"versions, images and sites want a folder of their own; there is {others[0]}"
            + (f" and {len(others) - 1} more" if others[1:] else ""),
            f"make install PREFIX='{layout.prefix / MODULE}'"))
    return errors


def other_things(layout: Layout) -> list[str]:
    """Return what is in PREFIX before the first installation and does not belong there."""
    if not layout.prefix.is_dir() or layout.builds.exists():
        return []
    ours = {layout.images, layout.sites, layout.modulepath, layout.prefix / "lost+found"}
    return sorted(path.name for path in layout.prefix.iterdir()
                  if path not in ours and not path.name.startswith("."))


def refuse_default(layout: Layout, wanted: str) -> list[LLMError]:
    """Return an error where `wanted` is no version that `module load llm` could mean."""
    known = sorted({*layout.installed(), layout.version}, key=version_order)
    if not wanted or wanted in known:
        return []
    return [LLMError(f"DEFAULT={wanted} is not installed", f"versions: {', '.join(known)}",
                     f"make install DEFAULT={known[-1]}")]


def required_modules(layout: Layout, site: str) -> list[str]:
    """Return the modules that the site's profile names; raises LLMError for a faulty profile."""
    if not site:
        return []
    own, ours = layout.sites / f"{site}.ini", HOME / "sites/local" / f"{site}.ini"
    if "/" not in site and not own.is_file() and ours.is_file():
        raise LLMError(f"the site profile {site} is only in this checkout's sites/local",
                       "what is there is not installed", f"cp '{ours}' '{layout.sites}/'")
    profile = str(own) if own.is_file() and "/" not in site else site
    env = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    return load_settings(env, str(HOME), profile).items("modules", "names")


def install(layout: Layout, files: dict[str, str], default: str) -> list[str]:
    """Install; return what the administrator should know. Raises LLMError where nothing can be.

    files: name -> text of the modulefiles. default: the version that `module load llm` shall mean,
    "" for the newest.
    """
    said: list[str] = []
    try:
        make_folders(layout.prefix, layout.builds, layout.images, layout.sites, layout.modules)
    except OSError as error:
        raise LLMError(f"{error.filename} can't be made; choose another PREFIX or use sudo",
                       error.strerror or str(error),
                       "make install PREFIX=/folder/of/yours") from None
    old = layout.current()
    known = manifest.read_manifest(old).get("modulefiles", {}) if old else {}
    written = {str(layout.modules / name): hashlib.sha256(text.encode()).hexdigest()
               for name, text in files.items()}
    part = build.make_build(HOME, layout)
    try:
        own_tools, why = tools.copy_apptainer(HOME, layout)
        if own_tools:
            (part / ".tools").mkdir()
            (part / ".tools/apptainer").symlink_to(f"../../../.tools/{own_tools.name}")
        if why:
            said.append(f"note: {why}")
        # Before what is not ours comes back.
        manifest.write_manifest(part, modulefiles={**known, **written})
        if old:
            said += build.keep_own_files(old, part)
        done = build.put_in_place(part, layout)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    said += modulefiles.write_modulefiles(layout, files, known)
    said += choose_default(layout, default)
    build.remove_old_builds(layout)
    tools.remove_unused(layout)
    return [*said, *report_result(layout, done)]


def choose_default(layout: Layout, wanted: str) -> list[str]:
    """Let `module load llm` mean `wanted`, else the newest, unless somebody chose an older one."""
    current = modulefiles.read_default(layout)
    if current is None:
        return [f"note: {layout.modules} has a default that make install did not write; it stays"]
    others = [version for version in layout.installed() if version != layout.version]
    newest = max([*others, layout.version], key=version_order)
    if not wanted and current and current != layout.version and others and current != others[-1]:
        return [f"note: module load {MODULE} still means {current}; DEFAULT={newest} changes that"]
    choice = wanted or newest
    modulefiles.write_default(layout, choice)
    if choice != layout.version:
        return [f"note: module load {MODULE} means {choice}; DEFAULT={layout.version} changes that"]
    return []


def report_result(layout: Layout, done: Path) -> list[str]:
    """Return what was installed, what is odd about it, and what to do next."""
    said = []
    text = (done / ".commit").read_text(encoding="utf-8").split()
    if text[-1] == "changed":
        said.append("note: the checkout has changes that are not committed; they are installed too")
    if re.search(r"\s", str(layout.modulepath)):
        said.append("note: Lmod can't read default versions below a path with a space; "
                    "MODULEPATH=/path/without/spaces avoids that")
    said += [f"note: users can't reach {folder}: its mode is {mode:o}"
             for folder, mode in closed_folders(layout.prefix, layout.modules)]
    profiles = len(profile_names(str(done)))
    said += [f"{layout.link} is ready (commit {text[0][:12]}, {profiles} site profiles)",
             f"users type: module use {shlex.quote(str(layout.modulepath))}; module load {MODULE}",
             f"images belong in {layout.images}: LLM_IMAGE_DIR={shlex.quote(str(layout.images))} "
             "make image"]
    return said


def closed_folders(*paths: Path) -> list[tuple[Path, int]]:
    """Return the folders on the way to `paths` that others may not enter, with their modes."""
    found = {}
    for path in paths:
        for folder in (path, *path.parents):
            mode = folder.stat().st_mode & 0o7777
            if not mode & 0o001:
                found[folder] = mode
    return sorted(found.items())
