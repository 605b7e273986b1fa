"""What a program in the image sees of the host, from what inside.py has told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from _llm.doctor import image
from _llm.doctor.context import Context
from _llm.doctor.finding import FAIL, OK, WARN, Finding
from _llm.rank import Plan


def findings(
    answers: Mapping[str, list[dict[str, Any]]],
    plan: Plan,
    context: Context,
    marks: Mapping[str, tuple[str, str]],
) -> list[Finding]:
    if "basics" not in answers:
        return []
    basics = answers["basics"][0]
    found = [image.labels(basics["labels"], plan.arguments[-2])]
    found += _isolation(basics, plan, context)
    found += _folders(basics["marks"], marks, context.token)
    wanted = plan.arguments[plan.arguments.index("--pwd") + 1]
    if basics["cwd"] != wanted:
        text = f"programs start in {basics['cwd']}, not in {wanted}"
        found.append(Finding("working folder", FAIL, text, f"llm-run --bind '{wanted}' COMMAND"))
    if basics["hidden"]:
        names = ", ".join(basics["hidden"])
        text = f"the working folder has {names}: scripts there import it in place of the module"
        fix = f"rename {basics['hidden'][0]}, or start scripts from another folder"
        found.append(Finding("hidden modules", WARN, text, fix))
    if not basics["user"]:
        text = f"user {os.getuid()} has no name in the image: some libraries (getpass) stop"
        found.append(Finding("user", WARN, text, "export USER and LOGNAME, or correct /etc/passwd"))
    return found


def _isolation(basics: Mapping[str, Any], plan: Plan, context: Context) -> list[Finding]:
    """Whether packages or variables of the host reach a program in the image."""
    user_base = str(basics["user_base"])
    local = os.path.join(str(basics["home"]), ".local")
    leaks = [path for path in basics["path"] if (path + "/").startswith(local + "/")]
    outside = [name for name in plan.dropped if name in context.env]
    inside_env: Mapping[str, str] = basics["env"]
    through = [
        name
        for name in outside
        if name not in plan.variables and inside_env.get(name) == context.env[name]
    ]
    # The stub has unset it before we could see it: no program of the image may have one.
    if inside_env.get("LD_PRELOAD") and "LD_PRELOAD" not in plan.variables:
        through.append("LD_PRELOAD")
    found = []
    if leaks:
        text = f"packages of {local} reach the program: {', '.join(leaks)}"
        found.append(
            Finding(
                "isolation",
                FAIL,
                text,
                "start programs by llm-run, with its default "
                "isolation; remove PYTHONUSERBASE and PYTHONPATH from --env",
            )
        )
    if through:
        text = f"variables of the host reach the program: {', '.join(through)}"
        fix = "an administrator: look for 'env' hooks of apptainer.conf and its plugins"
        found.append(Finding("isolation", FAIL, text, fix))
    if found:
        return found
    kept = sorted({*outside, *context.env.get("LLM_DOCTOR_KEPT_OUT", "").split()})
    packages = os.path.isdir(os.path.join(context.env.get("HOME", "/"), ".local/lib"))
    text = f"kept out: {', '.join(kept) or 'no variables, none are set'}"
    text += "; packages in ~/.local" if packages else ""
    data = {"kept_out": kept, "user_base": user_base}
    return [Finding("isolation", OK, text, data=data)]


def _folders(
    answers: Mapping[str, Mapping[str, Any]], marks: Mapping[str, tuple[str, str]], token: str
) -> list[Finding]:
    """Whether each folder in the image is the host's, by the files seen and written there."""
    found: list[Finding] = []
    same: list[str] = []
    written: list[str] = []
    for name, answer in answers.items():
        path, reply = marks[name]
        folder = os.path.dirname(path) if reply else path
        expected = token if reply else str(os.stat(path).st_ino)
        fix = f"llm-run --bind '{folder}' COMMAND, or [paths] binds of the site profile"
        if answer["seen"] != expected:
            why = answer.get("error") or "another folder is there"
            text = f"{folder} of the host is not what a program sees there: {why}"
            found.append(Finding(f"bind {name}", FAIL, text, fix))
        elif reply and not (answer["replied"] and os.path.exists(reply)):
            text = f"{folder} can't be written by a program: {answer.get('error', 'no file came')}"
            found.append(Finding(f"bind {name}", FAIL, text, fix))
        else:
            (written if reply else same).append(name)
    parts = [f"reads and writes the host's {', '.join(written)}"] if written else []
    parts += [f"reads the host's {', '.join(same)}"] if same else []
    return [*([Finding("binds", OK, "a program " + "; ".join(parts))] if parts else []), *found]
