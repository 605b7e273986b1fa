"""Slurm, the module system and the site profile: what starts programs at this site."""

from __future__ import annotations

import os
from collections.abc import Mapping

from _llm.apptainer import find_program
from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.doctor.limits import Stage, run_command
from _llm.errors import LLMError
from _llm.settings import Settings
from _llm.suggest import nearest

PROGRAMS = ("sbatch", "srun", "salloc", "sinfo", "scontrol")
ANSWER_SECONDS = 15.0


def site(settings: Settings, env: Mapping[str, str], option: str | None) -> list[Finding]:
    """Which profile applies and why. option: the value of --site."""
    why = "no profile names this host"
    if option:
        why = "by --site"
    elif env.get("LLM_SITE"):
        why = "by LLM_SITE"
    elif settings.site != "default":
        why = "by its [network] hosts"
    text = f"profile {settings.site}, {settings.site_file} ({why})"
    return [Finding("site", OK, text, data={"site": settings.site, "file": settings.site_file})]


def modules(settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """The module system, and whether the modules that the profile names are loaded."""
    wanted = settings.items("modules", "names")
    kind = "Lmod " + env.get("LMOD_VERSION", "") if env.get("LMOD_CMD") else ""
    if not kind and (env.get("MODULES_CMD") or env.get("MODULESHOME")):
        kind = "Environment Modules"
    loaded = [name for name in env.get("LOADEDMODULES", "").split(":") if name]
    missing = [name for name in wanted if not _is_loaded(name, loaded)]
    if missing and kind:
        text = f"the site profile wants modules that are not loaded: {', '.join(missing)}"
        return [Finding("modules", WARN, text, f"module load {' '.join(missing)}")]
    if missing:
        text = f"no module system here, and the site profile wants {', '.join(missing)}"
        fix = "start a login shell (bash -l), or ask the administrator for `module`"
        return [Finding("modules", WARN, text, fix)]
    if not kind:
        return [Finding("modules", SKIP, "no module system in this shell")]
    return [Finding("modules", OK, f"{kind.strip()}; loaded: {', '.join(loaded) or 'none'}")]


def _is_loaded(wanted: str, loaded: list[str]) -> bool:
    return any(name == wanted or name.startswith(wanted + "/") for name in loaded)


def slurm(settings: Settings, env: Mapping[str, str], stage: Stage) -> list[Finding]:
    """Slurm's programs, its controller, and the partitions that the profile names."""
    path = env.get("PATH", "") or os.defpath
    here = [name for name in PROGRAMS if find_program(name, path)]
    if not here:
        return [Finding("slurm", SKIP, "no Slurm on this machine: programs run here")]
    if missing := [name for name in PROGRAMS if name not in here]:
        text = f"Slurm's programs are not complete: no {', '.join(missing)} on PATH"
        return [Finding("slurm", WARN, text, "module load slurm, or ask the administrator")]
    fix = "ask the administrator: is slurmctld running, is munge, do the clocks agree?"
    stage("asking Slurm's controller")
    try:
        done = run_command([find_program("sinfo", path), "-h", "-o", "%R %a %D"], ANSWER_SECONDS)
    except LLMError as error:
        return [Finding("slurm", FAIL, f"the controller does not answer: {error.what}", fix)]
    if done.returncode:
        said = done.stderr.strip().split("\n")[-1]
        if "configuration source" in said:
            text = "Slurm's programs are here, but nothing says which cluster they belong to"
            fix = "export SLURM_CONF=/path/to/slurm.conf, or log in to a node of the cluster"
            return [Finding("slurm", WARN, text, fix)]
        return [Finding("slurm", FAIL, f"the controller does not answer: {said}", fix)]
    rows = [line.split() for line in done.stdout.splitlines()]
    partitions = [row[0] for row in rows if len(row) == 3]
    found = [_controller(find_program("scontrol", path), env)]
    up = [row[0] for row in rows if len(row) == 3 and row[1] == "up"]
    wanted = settings.get("slurm", "partition")
    unknown = [name for name in wanted.split(",") if name and name not in partitions]
    if unknown:
        near = nearest(unknown[0], partitions)
        text = f"the site profile names partition '{unknown[0]}', which Slurm does not have"
        fix = f"did you mean {near}?" if near else f"choose one of {', '.join(partitions)}"
        return [*found, Finding("partitions", FAIL, text, fix)]
    text = f"up: {', '.join(dict.fromkeys(up)) or 'none'}" + (
        f"; default of --submit: {wanted}" if wanted else ""
    )
    if not up or (wanted and not set(wanted.split(",")) & set(up)):
        return [*found, Finding("partitions", WARN, text, "sinfo; ask when they will be up again")]
    return [*found, Finding("partitions", OK, text, data={"partitions": partitions})]


def _controller(scontrol: str, env: Mapping[str, str]) -> Finding:
    done = run_command([scontrol, "ping"], ANSWER_SECONDS)
    said = "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    job = f"; inside job {env['SLURM_JOB_ID']}" if env.get("SLURM_JOB_ID") else ""
    if " DOWN" in said and " UP" in said:
        fix = "ask the administrator: one of the controllers is down"
        return Finding("slurm", WARN, said + job, fix)
    return Finding("slurm", OK, (said or "the controller answers") + job)
