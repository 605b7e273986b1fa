"""The image that a job was submitted with, whatever is built while it waits or starts again.

NAME.sif is a link that `make image` moves to newer builds. Where a job is prepared the links are
resolved, for every variant, because only the node knows which of them it will use; the later roles
get the result in LLM_PINNED_IMAGES, one `NAME=PATH` a line.
"""

from __future__ import annotations

import os

from _llm.lookup import PINS, image_folders, is_path, read_pins
from _llm.settings import VARIANTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.options import Options
    from _llm.settings import Settings


def wanted_image(settings: Settings) -> str:
    """Return the image to ask for on another node: a path without links, or a name."""
    wanted = settings.get("container", "image") or "llm"
    if is_path(wanted):
        return os.path.realpath(os.path.expanduser(wanted))
    return wanted


def pin_images(settings: Settings, env: Mapping[str, str], home: str) -> str:
    """Return the value of LLM_PINNED_IMAGES: what the wanted name means here and now.

    An earlier role's pins are kept. "" where the image is given as a path or is not there.
    """
    if env.get(PINS):
        return env[PINS]
    wanted = wanted_image(settings)
    if is_path(wanted):
        return ""
    pins = []
    for name in [wanted, *(f"{wanted}-{variant}" for variant in VARIANTS)]:
        for folder in image_folders(settings, home):
            path = os.path.join(folder, name + ".sif")
            if os.path.exists(path):
                pins.append(f"{name}={os.path.realpath(path)}")
                break
    return "\n".join(pins)


def likely_images(
    options: Options, settings: Settings, env: Mapping[str, str], home: str, has_gpus: bool
) -> tuple[list[str], list[str]]:
    """Return the images, without links, that the nodes of a job will probably use, and the others.

    has_gpus: whether the job has GPUs, as far as it is known here; only the nodes know which.
    """
    wanted = wanted_image(settings)
    if is_path(wanted):
        return ([wanted] if os.path.exists(wanted) else []), []
    pins = read_pins({PINS: pin_images(settings, env, home)})
    if wanted in pins:
        return [pins[wanted]], []
    uses = options.gpu if options.gpu is not None else has_gpus
    names = [name for name in (f"{wanted}-{variant}" for variant in VARIANTS) if name in pins]
    likely = [pins[name] for name in names if name.endswith("-cpu") != uses]
    others = [pins[name] for name in names if pins[name] not in likely]
    return (likely, others) if likely else (others, [])
