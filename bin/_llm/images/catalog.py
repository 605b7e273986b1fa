"""Which images there are: the folders of containers/ that hold an image.def, nothing else."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from _llm.errors import LLMError


@dataclass(frozen=True)
class Image:
    """One image in one variant. variant and parent are "" where it has none."""

    name: str
    variant: str
    folder: Path
    parent: str

    @property
    def label(self) -> str:
        """Name of the image's files, as `llm-cpu` or `base`."""
        return f"{self.name}-{self.variant}" if self.variant else self.name


def image_names(containers: Path) -> list[str]:
    """Names of all images."""
    return sorted(path.parent.name for path in containers.glob("*/image.def"))


def variants_of(containers: Path, name: str) -> list[str]:
    """Variants of an image: one for each requirements-VARIANT.in; empty where it has none."""
    files = (containers / name).glob("requirements-*.in")
    return sorted(file.stem.split("-", 1)[1] for file in files)


def load_image(containers: Path, name: str, variant: str = "") -> Image:
    """Return an image. Raises LLMError for a name or a variant that doesn't exist."""
    names = image_names(containers)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise LLMError(f"there is no image '{name}'", "an image is a folder of containers/ with an "
                       "image.def", f"{hint}The images are: {', '.join(names)}")
    variants = variants_of(containers, name)
    if variants and variant not in variants:
        raise LLMError(f"image '{name}' has no variant '{variant}'",
                       "a variant is a requirements-VARIANT.in in its folder",
                       f"make image IMAGE={name} VARIANT={'|'.join(variants)}")
    folder = containers / name
    return Image(name, variant if variants else "", folder, parent_of(folder / "image.def"))


def parent_of(definition: Path) -> str:
    """Name of the parent image: the default of the build argument PARENT, "" without one."""
    found = re.search(r"^\s*PARENT=(\S+)", definition.read_text(), re.MULTILINE)
    return found.group(1) if found else ""


def children_of(containers: Path, name: str) -> list[str]:
    """Names of the images that are built on an image, directly or not."""
    found: list[str] = []
    for child in image_names(containers):
        ancestor = parent_of(containers / child / "image.def")
        while ancestor:
            if ancestor == name:
                found.append(child)
                break
            ancestor = parent_of(containers / ancestor / "image.def")
    return found
