"""What is done where a job is submitted or started, so that its nodes need not do it.

An image that the site does not allow is refused before the job waits in the queue, and the digest
of one for many nodes is read once and not on each of them.
"""

from __future__ import annotations

import contextlib

from _llm import visible
from _llm.apptainer import find_apptainer
from _llm.errors import LLMError
from _llm.gpus import find_gpus
from _llm.image_digest import cached_digest
from _llm.pins import likely_images
from _llm.signing.require import check_required

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.options import Options
    from _llm.settings import Settings

# What Slurm sets in jobs with GPUs, where the nodes that have them can't be asked.
OF_GPUS = ("SLURM_JOB_GPUS", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK",
           "SLURM_GPUS_ON_NODE")


def look_ahead(
    options: Options,
    settings: Settings,
    env: Mapping[str, str],
    home: str,
    has_gpus: bool,
    several: bool,
) -> list[str]:
    """Return what the user should know of the images that a job may run in.

    has_gpus: whether the job has or asks for some. several: whether it runs on more nodes than one.
    Raises LLMError where the site allows none of the images.
    """
    requires = settings.get("container", "require") != "none"
    if not (requires or several):
        return []
    likely, others = likely_images(options, settings, env, home, has_gpus)
    if not requires:
        # Where that fails, the nodes see for themselves.
        with contextlib.suppress(LLMError):
            cache, local = _folders(settings, env)
            for path in likely:
                cached_digest(path, cache, local)
        return []
    cache, local = _folders(settings, env)
    try:
        apptainer = find_apptainer(env, home, settings.get("container", "apptainer")).path
    except LLMError as error:
        if "signature" in settings.items("container", "require"):
            return [f"the image's signature is checked on the nodes: {error.what} here"]
        apptainer = ""
    refused: list[LLMError] = []
    for number, path in enumerate([*likely, *others]):
        if number == len(likely) > len(refused):
            break  # the others do not matter
        try:
            check_required(settings, path, lambda: apptainer, cache, local)
            if several and path in likely:
                cached_digest(path, cache, local)
        except LLMError as error:
            refused.append(error)
    if refused and len(refused) == len(likely) + len(others):
        raise refused[0]
    return [f"{error.what}: {error.why}" for error in refused]


def _folders(settings: Settings, env: Mapping[str, str]) -> tuple[str, str]:
    """Return the user's cache folder and the one on this node. Raises LLMError."""
    cache = visible.cache_folder(settings, visible.home_folder(env))
    return cache, visible.local_folder(settings)


def job_has_gpus(env: Mapping[str, str], on_its_node: bool) -> bool:
    """Say whether the job that `env` belongs to has GPUs. on_its_node: this is one of its nodes."""
    return any(env.get(name) for name in OF_GPUS) or (on_its_node and find_gpus(env).usable)
