"""The image: which one is chosen here and why, and whether its file is whole."""

from __future__ import annotations

import os
from collections.abc import Mapping

from _llm import options as run_options
from _llm.apptainer import find_apptainer
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, WARN, Finding
from _llm.doctor.limits import Stage
from _llm.doctor.machine import gib
from _llm.doctor.sif import DamagedError, check_whole, checksum
from _llm.errors import LLMError, make_command
from _llm.gpus import find_gpus, variants_for
from _llm.lookup import is_path, split_name
from _llm.rank import choose_image
from _llm.signing.require import check_required
from _llm.values import user_home
from _llm.visible import cache_folder, local_folder


def image(context: Context, stage: Stage) -> list[Finding]:
    """The image that llm-run would choose here, why this variant, and whether the file is whole."""
    stage("looking for the image")
    notices: list[str] = []
    gpus = find_gpus(context.env)
    options = run_options.Options()
    found = choose_image(options, context.settings, gpus, context.home, notices)
    wanted = context.settings.get("container", "image") or "llm"
    why = "the one that was asked for"
    if found.variant and not split_name(wanted)[1] and not is_path(wanted):
        why = f"GPU: {gpus}" if gpus.usable else "no usable GPU here"
        best = variants_for(gpus, None)[0]
        why += "" if best == found.variant else f"; {found.name}-{best} is not built"
    data = {"path": found.path, "name": found.name, "variant": found.variant}
    data["digest"] = found.digest
    text = f"{os.path.basename(found.path)} in {os.path.dirname(found.path)} ({why})"
    results = [Finding("image", OK, text, data=data)]
    results += [Finding("gpu use", WARN, text) for text in notices]
    if os.path.isdir(found.path):
        results.append(Finding("image file", OK, "an unpacked image, a folder"))
        return [*results, *requirement(context, found.path, stage)]
    stage(f"reading {found.path}")
    again = make_command(context.home, "image") + "    (or copy it again)"
    try:
        size = check_whole(found.path)
    except DamagedError as error:
        text = f"{found.path} is cut off or damaged: {error}"
        return [*results, Finding("image file", FAIL, text, f"rm '{found.path}' && {again}")]
    results += [Finding("image file", OK, f"whole, {gib(size)}", data={"bytes": size})]
    if context.hash_image:
        found_sum = checksum(found.path, stage)
        results.append(Finding("image checksum", OK, f"SHA-256 {found_sum}"))
    return [*results, *requirement(context, found.path, stage)]


def requirement(context: Context, path: str, stage: Stage) -> list[Finding]:
    """Say what the site requires of images, and whether this one has it."""
    settings = context.settings
    wanted = settings.items("container", "require")
    if wanted == ["none"]:
        return [Finding("image requirement", OK, "none: any image may be used")]
    stage(f"reading {path}")
    text = f"{' and '.join(wanted)} ({settings.origin('container', 'require')})"

    def apptainer() -> str:
        return find_apptainer(context.env, context.home, settings.get("container", "apptainer")
                              ).path

    try:
        cache = cache_folder(settings, user_home(context.env))
        has = check_required(settings, path, apptainer, cache, local_folder(settings))
    except LLMError as error:
        return [Finding("image requirement", FAIL, f"{error.what}: {error.why}", error.fix)]
    data = {"required": wanted, "found": has}
    return [Finding("image requirement", OK, f"{text}: {'; '.join(has)}", data=data)]


def labels(found: Mapping[str, str], path: str) -> Finding:
    digest = found.get("llm.digest", "")
    named = split_name(os.path.basename(path)[: -len(".sif")])[2] if path.endswith(".sif") else ""
    if digest and named and not digest.startswith(named):
        text = f"the file's name says digest {named}, the image itself {digest[:12]}"
        return Finding("image labels", WARN, text, "somebody renamed it: build or copy it again")
    if not digest:
        return Finding("image labels", OK, "none of this project's: an image from elsewhere")
    variant = f"variant {found['llm.variant']}, " if found.get("llm.variant") else ""
    text = f"{variant}locked {found.get('llm.lock-date')}, digest {digest[:12]}"
    return Finding("image labels", OK, text, data=dict(found))
