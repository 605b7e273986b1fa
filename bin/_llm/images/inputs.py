"""What an image is made of, by name and hash: its identity, and the end of its file name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from _llm.debian import sha256_of
from _llm.images.catalog import Image

# Files of an image's folder that describe it to people and don't go into it.
NOT_INPUTS = ("README.md", ".in")
DIGEST_LENGTH = 12
# Files of one variant; the group is its name.
VARIANT_FILES = (r"requirements-(\w+)\.lock", r"apt-(\w+)\.lock", r"(\w+)-compiler\.lock")
GPU_FILES = ("compile-cuda.sh",)
# Modules of this folder that can't change what is in an image: they write the locks, or bring files
# whose content is given by its hash. Of the modules elsewhere only debian.py can: it unpacks what
# `base` is made of.
SHAPE_NOTHING = ("archive.py", "debian_files.py", "lock.py", "parallel.py", "registry.py",
                 "store.py")


def hash_code(folder: Path) -> str:
    """One hash over the names and contents of a folder's modules that shape images."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        if file.is_file() and file.name not in SHAPE_NOTHING:
            digest.update(f"{file.relative_to(folder)}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def image_inputs(
    image: Image, parent: str, arguments: Mapping[str, str], tools: Mapping[str, str],
) -> dict[str, str]:
    """Return every input of an image as name -> hash or value.

    parent: the parent's own digest, or the base's source. arguments: build arguments that change
    the result. tools: versions of the programs that build it.
    """
    found: dict[str, str] = {"image": image.label, "parent": parent}
    for file in sorted(image.folder.rglob("*")):
        described = file.name.endswith(NOT_INPUTS) or "__pycache__" in file.parts
        if file.is_file() and not described and belongs_to_variant(file.name, image):
            found[f"file {file.relative_to(image.folder)}"] = sha256_of(file)
    for shared in sorted(image.folder.parent.glob("*")):
        if shared.is_file() and not shared.name.endswith(NOT_INPUTS):
            found[f"shared {shared.name}"] = sha256_of(shared)
    found["build code"] = hash_code(Path(__file__).parent)
    found["build code debian.py"] = sha256_of(Path(__file__).parents[1] / "debian.py")
    found.update({f"argument {key}": value for key, value in sorted(arguments.items())})
    found.update({f"tool {key}": value for key, value in sorted(tools.items())})
    return found


def belongs_to_variant(name: str, image: Image) -> bool:
    """Whether a file of the folder is an input of this variant: others' locks are not, nor is what
    compiles for GPUs an input of a variant without them."""
    for pattern in VARIANT_FILES:
        found = re.fullmatch(pattern, name)
        if found:
            return found.group(1) == image.variant
    return name not in GPU_FILES or image.variant.startswith("cuda")


def digest_of(inputs: Mapping[str, str]) -> str:
    """The image's digest: SHA-256 of its inputs, one `name: value` a line, sorted."""
    text = "".join(f"{key}: {value}\n" for key, value in sorted(inputs.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def lock_date(image: Image) -> str:
    """The day on which the variant's newest lock was made, from the locks' own first lines."""
    dates = []
    for lock in image.folder.glob("*.lock"):
        if not belongs_to_variant(lock.name, image):
            continue
        for line in lock.read_text().splitlines()[:3]:
            if line.startswith("# locked: "):
                dates.append(line.removeprefix("# locked: ").strip())
    return max(dates, default="unknown")
