"""Which image file a task is about: a path, a name as `llm-run` knows it, or IMAGE and VARIANT."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from _llm.errors import LLMError
from _llm.image import make_request, wanted_variants
from _llm.images import build as builder
from _llm.images.catalog import image_names, load_image, variants_of
from _llm.lookup import find_image, image_folders, is_path, split_name
from _llm.settings import VARIANTS, Settings, load_settings

HOME = Path(__file__).resolve().parents[3]
FOLDERS_OF_A_RELEASE = ("images", ".")


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Give a program the options that choose an image."""
    parser.add_argument("file", nargs="?", default="", metavar="FILE", help="an image file, a name "
                        "such as llm-cpu, or a list of software (.cdx.json); empty: by the options")
    parser.add_argument("--image", default="llm", help="name: a folder of containers/")
    parser.add_argument("--variant", default="", help="cpu, cuda13, cuda12; empty: this machine's")


def choose(options: argparse.Namespace, program: str) -> str:
    """Return the path that the options name; says where the image is older than its inputs.

    Raises LLMError where there is no such image.
    """
    if options.file and is_list(options.file):
        return str(options.file)
    return choose_image(options.file or options.image, "" if options.file else options.variant,
                        program)


def is_list(file: str) -> bool:
    """Whether a path names a list of software itself and no image."""
    return file.endswith(".json") and os.path.isfile(file)


def choose_image(wanted: str, variant: str, program: str) -> str:
    """Return the file of an image: `wanted` is a path or a name, variant "" for this machine's."""
    settings = load_settings(os.environ, str(HOME))
    folders = image_folders(settings, str(HOME))
    if is_path(wanted):
        return find_image(wanted, folders, [], str(HOME)).path
    containers = HOME / "containers"
    known = image_names(containers) if containers.is_dir() else []
    if "," in variant or " " in variant.strip():
        raise LLMError(f"'{variant}' is more than one variant", f"{program} looks at one image",
                       "VARIANT=cpu, then the same for the next")
    if variant and wanted in known and variants_of(containers, wanted):
        load_image(containers, wanted, variant)  # refuses what there isn't
        wanted = f"{wanted}-{variant}"
    elif variant and wanted not in known:
        # An installation has no folder containers.
        wanted = f"{wanted}-{variant}"
    found = find_image(wanted, folders, variants_here(containers, wanted, settings), str(HOME)).path
    if split_name(wanted)[2] == "" and is_outdated(found, containers, settings):
        print(f"{program}: note: {found} was built from other inputs than the present ones; "
              "make image builds those", file=sys.stderr)
    return found


def variants_here(containers: Path, wanted: str, settings: Settings) -> Sequence[str]:
    """Variants in the order in which they are looked for: this machine's, then the others."""
    try:
        first = wanted_variants(containers, wanted, "", settings)
    except LLMError:
        first = []
    return list(dict.fromkeys([*filter(None, first), *VARIANTS]))


def is_outdated(path: str, containers: Path, settings: Settings) -> bool:
    """Whether an image of this checkout isn't the one that its inputs would make now.

    False where that can't be told: an image from elsewhere, a variant for GPUs that are not here.
    """
    name, variant, digest = split_name(Path(path).stem)
    if not digest or not containers.is_dir() or name not in image_names(containers):
        return False
    try:
        image = load_image(containers, name, variant)
        request = make_request(settings, "", "", builder.compiles_for_gpus(image))
        return builder.target_of(image, request).name != os.path.basename(path)
    except (LLMError, OSError):
        return False


def images_of_release(folder: str) -> dict[str, str]:
    """Label (`llm-cpu`) -> path of the images in a folder, such as a release's; newest link first.

    Empty where the folder holds none.
    """
    for place in FOLDERS_OF_A_RELEASE:
        found: dict[str, str] = {}
        try:
            names = sorted(os.listdir(os.path.join(folder, place)))
        except OSError:
            continue
        for name in names:
            if not name.endswith(".sif") or name.startswith("."):
                continue
            label, variant, digest = split_name(name[:-4])
            label = f"{label}-{variant}" if variant else label
            path = os.path.normpath(os.path.join(folder, place, name))
            # A link `llm-cpu.sif` says which of several builds counts.
            if label not in found or not digest:
                found[label] = path
        if found:
            return found
    return {}
