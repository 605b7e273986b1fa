"""Find the image that a program runs in: by path, or by name in the folders where images are kept.

    LLM_IMAGE=llm-cpu llm-run --dry-run true

`llm` is an image whose variant the node decides, `llm-cpu` one variant, `llm-cpu-3f9c2a81d0b7` one
build of it. NAME.sif is a link to the newest build and is resolved once, so that a job in the queue
keeps the image it started with.
"""

from __future__ import annotations

import os

from _llm.errors import LLMError, make_command
from _llm.settings import VARIANTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _llm.settings import Settings

# A SIF begins with a launch line and has its magic at byte 32; a bare squashfs begins with "hsqs".
# https://github.com/apptainer/sif/blob/main/pkg/sif/sif.go
SIF_MAGIC_AT = 32
SIF_MAGIC = b"SIF_MAGIC"
SQUASHFS_MAGIC = b"hsqs"
PINS = "LLM_PINNED_IMAGES"


class Image:
    """An image that exists.

    path: without links. name: such as `llm`. variant: cpu, cuda12, cuda13 or "". digest: the hash
    of its inputs in the file name, "" for a file that carries none.
    """

    __slots__ = ("digest", "name", "path", "variant")

    def __init__(self, path: str) -> None:
        self.path = path
        stem = os.path.basename(path)
        stem = stem[:-4] if stem.endswith(".sif") else stem
        self.name, self.variant, self.digest = split_name(stem)


def split_name(stem: str) -> tuple[str, str, str]:
    """Split `llm-cpu-3f9c2a81d0b7` into name, variant and digest; the last two may be ""."""
    name, dash, last = stem.rpartition("-")
    digest = ""
    if dash and len(last) >= 12 and not last.strip("0123456789abcdef"):
        stem, digest = name, last
        name, dash, last = stem.rpartition("-")
    if dash and last in VARIANTS:
        return name, last, digest
    return stem, "", digest


def image_folders(settings: Settings, home: str) -> list[str]:
    """Return the folders in which images are looked for, in order.

    The site's (or the environment's) own, those of the installation, the user's cache.
    """
    own = settings.get("container", "image_dir")
    is_default = settings.origin("container", "image_dir").startswith("default")
    folders = [] if is_default else [own]
    folders += settings.items("container", "image_path")
    folders += [os.path.join(home, "images"), own]
    folders.append(os.path.join(settings.get("paths", "cache"), "images"))
    return list(dict.fromkeys(folders))


def is_path(wanted: str) -> bool:
    """Say whether an image is asked for by its path and not by its name."""
    return "/" in wanted or wanted.endswith(".sif")


def find_image(
    wanted: str,
    folders: Sequence[str],
    variants: Sequence[str],
    home: str,
    pins: Mapping[str, str] | None = None,
) -> Image:
    """Return the image `wanted`: a path, or a name in `folders`, as the first of `variants`.

    home: the checkout, for the command in the error. pins: name -> path, decided when the job was
    submitted; where one of the names is there, no folder is looked at. Raises LLMError where there
    is no such image, and where the file is no image.
    """
    if is_path(wanted):
        path = os.path.expanduser(wanted)
        if not os.path.exists(path):
            _refuse_path(wanted, path, folders, home)
        return _checked(path)
    candidates = [wanted, *(f"{wanted}-{variant}" for variant in variants)]
    for candidate in candidates:
        if pins and candidate in pins:
            if os.path.exists(pins[candidate]):
                return _checked(pins[candidate])
            raise LLMError(
                f"the image {pins[candidate]} is not on this node",
                "the job was submitted with it; it was removed, or its folder is not shared",
                "submit the job again, or put the image into a folder that every node sees",
            )
    for candidate in candidates:
        for folder in folders:
            path = os.path.join(folder, candidate + ".sif")
            if os.path.exists(path):
                return _checked(path)
    raise _unknown(wanted, folders, home)


def read_pins(env: Mapping[str, str]) -> dict[str, str]:
    """Return name -> path from LLM_PINNED_IMAGES, which pins.py makes: `NAME=PATH`, one a line."""
    pairs = (line.partition("=") for line in env.get(PINS, "").split("\n"))
    return {name: path for name, equals, path in pairs if equals}


def has_image(name: str, folders: Sequence[str]) -> bool:
    """Say whether an image of exactly this name is in one of the folders."""
    return any(os.path.exists(os.path.join(folder, name + ".sif")) for folder in folders)


def list_names(folders: Sequence[str]) -> list[str]:
    """Return the names of the images in `folders`, without those of single builds."""
    names: set[str] = set()
    for folder in folders:
        try:
            files = os.listdir(folder)
        except OSError:
            continue
        for file in files:
            if file.endswith(".sif") and not file.startswith("."):
                name, variant, digest = split_name(file[:-4])
                if not digest:
                    names.add(f"{name}-{variant}" if variant else name)
                    names.add(name)
    return sorted(names)


def _checked(path: str) -> Image:
    real = os.path.realpath(path)
    if os.path.isdir(real):
        if os.path.isdir(os.path.join(real, ".singularity.d")):
            return Image(real)
        raise LLMError(
            f"'{path}' is a folder and no image",
            "an unpacked image has a folder .singularity.d",
            "give the path of a .sif file",
        )
    try:
        head = b""
        if os.path.isfile(real) or not os.path.exists(real):  # a pipe would be waited for
            with open(real, "rb") as file:
                head = file.read(SIF_MAGIC_AT + len(SIF_MAGIC))
    except OSError as error:
        raise LLMError(
            f"the image {real} cannot be read", error.strerror or str(error), f"ls -l '{real}'"
        ) from None
    if head[SIF_MAGIC_AT:] != SIF_MAGIC and head[:4] != SQUASHFS_MAGIC:
        raise LLMError(
            f"'{real}' is no image",
            "the file does not begin as a SIF does: a download or a copy may have broken off",
            "check the path; if it should be an image, build or copy it again",
        )
    return Image(real)


def _refuse_path(wanted: str, path: str, folders: Sequence[str], home: str) -> None:
    folder = os.path.dirname(path) or "."
    if os.path.islink(path):
        raise LLMError(
            f"the image '{wanted}' is a link to nothing",
            f"{path} -> {os.readlink(path)}",
            make_command(home, "image"),
        )
    name = os.path.basename(wanted)
    if "/" not in wanted and has_image(name[:-4], folders):
        raise LLMError(
            f"there is no file '{wanted}' here",
            "with .sif or a slash it is a path, without both a name",
            f"give its name: {name[:-4]}",
        )
    from _llm.suggest import nearest

    near = nearest(name, _images_in(folder))
    raise LLMError(
        f"there is no image '{wanted}'",
        f"no such file: {os.path.abspath(path)}",
        f"did you mean {os.path.join(folder, near)}?" if near else "check the path",
    )


def _images_in(folder: str) -> list[str]:
    """Return what may be images in a folder, files and unpacked ones."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [name for name in names if name.endswith(".sif")
            or os.path.isdir(os.path.join(folder, name, ".singularity.d"))]


def _unknown(wanted: str, folders: Sequence[str], home: str) -> LLMError:
    from _llm.suggest import nearest

    names = list_names(folders)
    looked = "looked in " + ", ".join(folders)
    name, variant, digest = split_name(wanted)
    if digest:
        # `make image` makes the build of the present inputs, hardly this one.
        label = f"{name}-{variant}" if variant else name
        newest = f"; or take the newest build: {label}" if label in names else ""
        return LLMError(f"the build '{wanted}' is not here", looked,
                        f"copy {wanted}.sif there{newest}")
    has_definition = os.path.isfile(os.path.join(home, "containers", name, "image.def"))
    build = make_command(home, "image" + ("" if name == "llm" else f" IMAGE={name}"))
    build += f" VARIANT={variant}" if variant else ""
    if has_definition:
        others = [other for other in names if split_name(other)[0] == name and other != name]
        there = f"; there is {', '.join(others)}" if others else ""
        what = f"the image '{wanted}' is not built yet"
        return LLMError(what, looked + there, build + "    (or: export LLM_IMAGE_DIR=/where/it/is)")
    if not names:
        return LLMError(f"there is no image '{wanted}', nor any other", looked, build)
    near = nearest(wanted, names)
    listed = "images: " + ", ".join(names)
    fix = f"did you mean {near}?" if near else "take one of these, or the path of a .sif file"
    return LLMError(f"there is no image '{wanted}'", f"{looked}; {listed}", fix)
