"""The start of one program on the node where it runs: everything that depends on that node.

    llm-run --dry-run python train.py      # prints the command line that this module decides on

Nothing here starts a process, except once per image to learn what it contains (facts.py).
"""

from __future__ import annotations

import os

from _llm import environment, visible
from _llm.apptainer import find_apptainer
from _llm.binds import Bind, parse_bind
from _llm.errors import LLMError, make_command
from _llm.facts import image_facts
from _llm.gpus import Gpus, find_gpus, variants_for, visible_gpus
from _llm.image_digest import cached_digest
from _llm.lookup import PINS, Image, find_image, image_folders, is_path, read_pins, split_name
from _llm.settings import VARIANTS
from _llm.unpack import runnable_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from _llm.options import Options
    from _llm.settings import Settings

    T = TypeVar("T")


class ConfigurationError(Exception):
    """Several mistakes of the user, all to be reported."""

    def __init__(self, errors: list[LLMError]) -> None:
        super().__init__(f"{len(errors)} faults")
        self.errors = errors


class Plan:
    """A program's start.

    arguments: of the exec, Apptainer first. dropped: variables of the host that the program does
    not get. variables: those that llm-run sets, by the names that the program sees. notices: what
    the user should know. prefix: APPTAINERENV_ or SINGULARITYENV_.
    """

    __slots__ = ("arguments", "dropped", "notices", "prefix", "variables")

    def __init__(self, arguments: list[str], dropped: list[str], variables: dict[str, str]) -> None:
        self.arguments = arguments
        self.dropped = dropped
        self.variables = variables
        self.notices: list[str] = []
        program = os.path.basename(os.path.realpath(arguments[0]))
        self.prefix = "SINGULARITYENV_" if program.startswith("singularity") else "APPTAINERENV_"

    def added(self) -> dict[str, str]:
        """Return the variables to add to Apptainer's environment.

        With the prefix they win over what an image sets. NO_EVAL: Apptainer would let a shell
        expand `$`, backquotes and backslashes in their values.
        """
        added = {self.prefix + name: value for name, value in self.variables.items()}
        added[self.prefix[:-4] + "_NO_EVAL"] = "1"
        return added

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for Apptainer, made from the host's."""
        dropped = set(self.dropped)
        kept = {name: value for name, value in env.items() if name not in dropped}
        kept.update(self.added())
        return kept


def plan_rank(options: Options, settings: Settings, env: Mapping[str, str], home: str) -> Plan:
    """Decide how the program starts on this node, in this working directory.

    home: the checkout or installation. Raises LLMError, or ConfigurationError with several of them.
    """
    errors: list[LLMError] = []
    notices: list[str] = []
    gpus = find_gpus(env)
    pins = read_pins(env) if env.get(PINS) else None
    image = _collect(errors, lambda: choose_image(options, settings, gpus, home, notices, pins))
    apptainer = _collect(
        errors, lambda: find_apptainer(env, home, settings.get("container", "apptainer"))
    )
    explicit: list[Bind] = []
    for text in options.binds:
        explicit += _collect(errors, lambda text=text: parse_bind(text)) or []  # type: ignore[misc]
    in_namespace = bool(apptainer and "--userns" in apptainer.exec_flags)
    cwd = _collect(errors, lambda: visible.working_directory(env, explicit, in_namespace))
    user = _collect(errors, lambda: visible.home_folder(env))
    cache = _collect(errors, lambda: visible.cache_folder(settings, user or "/"))
    local = _collect(errors, lambda: visible.local_folder(settings))
    # As many processes, and shares of the cores, as GPUs that this job has here.
    count = visible_gpus(env) if options.torchrun else 0
    command = _collect(errors, lambda: program_command(options, env, count))
    if not (image and apptainer and cwd and user and cache and local and command) or errors:
        raise ConfigurationError(errors)

    digest = cached_digest(image.path, cache, local)
    if settings.get("container", "require") != "none":
        from _llm.signing.require import check_required

        program = apptainer.path
        check_required(settings, image.path, lambda: program, cache, local)
    resident = options.requeue and options.role == "rank"
    path = runnable_path(image, apptainer, local, notices, outlives_signals=resident)
    start = [apptainer.path, "-q", "exec", *apptainer.exec_flags]
    variables = environment.record_variables(settings, home, image, digest, gpus.driver)
    variables["LLM_LAUNCH"] = environment.launch_variable(options, settings, env, image)
    variables.update(environment.cache_variables(env, cache, local, user))
    variables.update(environment.locale_variables(env))
    variables.update(_package_variables(image, [*start, path], cache, local))
    variables.update(environment.network_variables(settings, env, notices))
    in_step = options.launch != "local" and env.get("SLURM_STEP_NUM_NODES", "1") != "1"
    if in_step and not options.torchrun:  # whose own ranks meet there
        from _llm.rendezvous import rendezvous_variables

        variables.update(rendezvous_variables(env))
    if env.get("SLURM_JOB_END_TIME", "").isdigit() and not env.get("LLM_DEADLINE"):
        variables["LLM_DEADLINE"] = env["SLURM_JOB_END_TIME"]
    dropped = environment.dropped_names(env, options.torchrun)
    binds = visible.show_folders(settings, env, home, user, cwd, cache, local)
    dropped += visible.show_files(binds, env)
    for bind in explicit:
        binds.add(bind)
    recipes = visible.recipes_path(binds, home)
    own = options.env.get("PYTHONPATH", "")
    variables.update(options.env, PYTHONPATH=f"{own}:{recipes}" if own else recipes)

    gpu_options = gpu_flags(options, gpus, image)
    home_options = ["--no-home"] if user == "/" else ["--home", user]
    arguments = [*start, *gpu_options, *home_options, *binds.arguments(), "--pwd", cwd]
    if resident:
        from _llm.stop_signal import patient_command, recorded_command

        if options.stop_signal:
            command = recorded_command(command, local, env)
        command = patient_command(command)
    if options.torchrun:
        from _llm.torchrun import thread_variables

        for name, value in thread_variables(options, env, count).items():
            variables.setdefault(name, value)
    plan = Plan([*arguments, path, *command], dropped, variables)
    plan.notices = notices
    return plan


def program_command(options: Options, env: Mapping[str, str], count: int) -> list[str]:
    """Return the command to start in the image: the user's own, or torchrun with it.

    count: of the GPUs that a program on this node can use.
    Raises LLMError where torchrun cannot be started this way.
    """
    if not options.torchrun:
        return options.command
    from _llm.torchrun import check_gpu_counts, torchrun_command

    # Where llm-run has made the step, it has looked before.
    several = env.get("SLURM_STEP_NUM_NODES", "1") != "1" and options.role != "rank"
    if several and options.processes is None:
        check_gpu_counts(env["SLURM_JOB_ID"], env)
    return torchrun_command(options, env, count)


def choose_image(
    options: Options,
    settings: Settings,
    gpus: Gpus,
    home: str,
    notices: list[str],
    pins: Mapping[str, str] | None = None,
) -> Image:
    """Return the image to use; a name without a variant means the best variant for these GPUs.

    pins: name -> path of the images that the job was submitted with.
    Appends to `notices` where GPUs will stay idle. Raises LLMError where there is no such image.
    """
    wanted = settings.get("container", "image") or "llm"
    best = variants_for(gpus, options.gpu)
    # An image for GPUs also runs without: the last resort, not the choice.
    order = best + [variant for variant in VARIANTS if variant not in best]
    image = find_image(wanted, image_folders(settings, home), order, home, pins)
    if options.gpu is not False and image.variant:
        _check_gpu_use(image, best, gpus, options, wanted, notices, home)
    return image


def _check_gpu_use(
    image: Image,
    best: list[str],
    gpus: Gpus,
    options: Options,
    wanted: str,
    notices: list[str],
    home: str,
) -> None:
    build = make_command(home, f"image VARIANT={best[0]}")
    idle = f"this node has a GPU ({gpus}), but the program runs on the CPU"
    if image.variant != "cpu":
        if gpus.usable and image.variant not in best:
            notices.append(f"{idle}: {image.name}-{image.variant} does not work with it")
    elif options.gpu:
        raise LLMError(
            f"--gpu: the image {os.path.basename(image.path)} is for the CPU only",
            f"GPU of this node: {gpus}",
            build if best[0] != "cpu" else "choose another image: llm-run --gpu --image NAME ...",
        )
    elif gpus.usable and not split_name(wanted)[1] and not is_path(wanted):
        if best[0] != "cpu":
            notices.append(f"{idle}: only {image.name}-cpu is built. For the GPU: {build}")
        elif gpus.kind == "nvidia":
            notices.append(f"{idle}: no variant of the image works with a driver this old")
        else:
            notices.append(f"{idle}: no variant of the image is for AMD GPUs")


def gpu_flags(options: Options, gpus: Gpus, image: Image) -> list[str]:
    """Return the options of `apptainer exec` that pass the GPUs on."""
    wanted = options.gpu if options.gpu is not None else gpus.usable
    if not wanted or image.variant == "cpu":
        return []
    return ["--rocm"] if gpus.kind == "amd" else ["--nv"]


def _package_variables(
    image: Image, start: list[str], cache: str, local: str
) -> dict[str, str]:
    """Return what makes `pip install --user` fill a folder of this image, Python and torch."""
    facts = image_facts(image, start, cache, local)
    if not facts.python:
        return {"PYTHONNOUSERSITE": "1"}
    key = f"{image.name}-{image.variant}" if image.variant else image.name
    key += f"-python{facts.python}" + (f"-torch{facts.torch}" if facts.torch else "")
    key += f"-{os.uname().machine}"  # compiled packages, in a cache that several clusters share
    base = os.path.join(cache, "python", key)
    return {
        "PYTHONUSERBASE": base,
        "PIP_CONSTRAINT": _without_spaces(facts.constraints),
        # Debian reserves its Python for its own packages; the image's cannot be changed anyway.
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "APPEND_PATH": os.path.join(base, "bin"),
    }


def _without_spaces(path: str) -> str:
    """Return `path` in a form for pip, which splits its variables at spaces but reads URLs."""
    if not any(character.isspace() for character in path):
        return path
    from urllib.parse import quote

    return "file://" + quote(path)


def _collect(errors: list[LLMError], step: Callable[[], T]) -> T | None:
    try:
        return step()
    except LLMError as error:
        errors.append(error)
        return None
