"""`module load llm` in real Environment Modules and real Lmod, in bash, zsh and tcsh."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import NEW, OLD, PREFIX, Modules, copy_checkout, make

# What differs between any two moments of a shell.
VOLATILE = re.compile(r"^(declare -\S+ |typeset -\S+ )?"
                      r"(_|RANDOM|SRANDOM|SECONDS|EPOCH\w+|LINENO|BASH_LINENO|BASH_ARG\w+|\w*TTYIDLE"
                      r"|_ModuleTable\d+_|_mlstatus|status|pipestatus|__lmod_my_status|_lmod_\w*)\b")
STATE = {
    "bash": "declare -p; declare -F; complete -p; alias",
    "zsh": "env; print -l ${(ok)parameters} ${(ok)functions} ${(okv)_comps} $path $fpath "
           "$precmd_functions; alias",
    "tcsh": "env; set; alias",
}


def between(text: str, name: str) -> list[str]:
    """The lines that a script printed behind `=== name`."""
    found = re.search(rf"^=== {name}\n(.*?)^=== ", text, re.M | re.S)
    assert found, text
    return [line for line in found[1].splitlines() if not VOLATILE.match(line)]


def tables(text: str, name: str) -> str:
    """Lmod's own memory, which it keeps in base64."""
    part = text.partition(f"=== {name}\n")[2]
    return "".join(base64.b64decode(piece).decode(errors="replace")
                   for piece in re.findall(r"_ModuleTable\d+_=[\"']?([\w+/=]+)", part))


def variables(text: str, name: str) -> dict[str, str]:
    """What `env` printed behind `=== name`."""
    pairs = [line.partition("=") for line in between(text, name)]
    return {key: value for key, _, value in pairs}


def test_unload_leaves_no_trace(modules: Modules) -> None:
    state = STATE[modules.shell]
    prepare = ("autoload -Uz compinit; compinit -D -u; : $functions $parameters\n"
               if modules.shell == "zsh" else "")
    out = modules.run(
        # What the module systems themselves leave behind, after any module, is not ours.
        f"{prepare}module load like/1; module unload like/1\n"
        f"echo '=== before'; {state}\n"
        f"module load llm/{OLD}\necho '=== loaded'; {state}\n"
        f"module unload llm/{OLD}\necho '=== after'; {state}\necho '=== end'\n",
        interactive=modules.shell != "tcsh")
    loaded, first, last = (between(out, name) for name in ("loaded", "before", "after"))
    assert len(first) > 10
    assert [line for line in loaded if line not in first]
    if modules.shell != "tcsh":
        assert any("_llm_complete" in line for line in loaded)
    assert sorted(last) == sorted(first)
    assert f"llm/{OLD}" not in tables(out, "after")


def test_load_changes_nothing_else(modules: Modules, apps: Path) -> None:
    out = modules.run(f"module load empty\necho '=== before'; env\n"
                      f"module load llm/{OLD}\necho '=== loaded'; env\necho '=== end'\n")
    before, loaded = variables(out, "before"), variables(out, "loaded")
    changed = {name for name in loaded if loaded[name] != before.get(name)}
    own = {name for name in changed
           if not re.match(r"_ModuleTable|_LMFILES_|LOADEDMODULES|__(LMOD|MODULES)_|LMOD_", name)}
    assert own == {"PATH", "LLM_HOME"}
    home = str(apps / PREFIX / OLD)
    assert loaded["LLM_HOME"] == home
    assert loaded["PATH"] == f"{home}/bin:{before['PATH']}"


def test_versions_variants_default_swap_and_reload(modules: Modules) -> None:
    steps = {
        "default": "module load llm",
        "swap": f"module swap llm llm/{OLD}",
        "reload": "module reload" if modules.system == "environment-modules" else
                  "module update",
        "variant": f"module swap llm llm/{NEW}-cpu",
        "older": f"module unload llm; module load llm/{OLD}-cuda13",
        "gone": "module unload llm",
    }
    show = "env | grep -E '^LLM_|^PATH='"
    out = modules.run("".join(f"{do}\necho '=== {name}'\n{show}\n" for name, do in steps.items())
                      + "echo '=== end'\n")
    seen = {name: variables(out, name) for name in steps}
    for name, version in (("default", NEW), ("swap", OLD), ("reload", OLD), ("variant", NEW),
                          ("older", OLD)):
        assert seen[name]["LLM_HOME"].endswith(f"/llm/{version}"), (name, out)
        assert seen[name]["PATH"].count("/llm/") == 1
        assert (seen[name].get("LLM_SITE") == "here") is (version == NEW), name
    assert "LLM_IMAGE" not in seen["default"]
    assert seen["variant"]["LLM_IMAGE"] == "llm-cpu"
    assert seen["older"]["LLM_IMAGE"] == "llm-cuda13"
    assert seen["gone"] == {"PATH": "/usr/bin:/bin"}


def test_two_at_once_are_refused_or_replaced(modules: Modules) -> None:
    out = modules.run(f"module load llm/{OLD}\nmodule load llm/{NEW}-cpu\n"
                      "echo '=== loaded'; env\necho '=== end'\n")
    loaded = variables(out, "loaded")
    assert loaded["PATH"].count("/llm/") == 1
    if modules.system == "lmod":  # one of each name, by its own rule
        assert "reloaded with a version change" in out and loaded["LLM_IMAGE"] == "llm-cpu"
    else:
        assert "conflict" in out and loaded["LLM_HOME"].endswith(f"/llm/{OLD}")


def test_required_modules_come_and_go(modules: Modules) -> None:
    shown = "module -t list"
    out = modules.run(f"module load llm\necho '=== with'; {shown}\n"
                      f"module unload llm\necho '=== without'; {shown}\n"
                      f"module load tool/1.4; module load llm; module unload llm\n"
                      f"echo '=== own'; {shown}\necho '=== end'\n")
    assert any("tool/1.4" in line for line in between(out, "with")), out
    assert not any("tool" in line for line in between(out, "without")), out
    assert any("tool/1.4" in line for line in between(out, "own")), out


def test_a_users_own_image_comes_back(modules: Modules) -> None:
    own = "setenv LLM_IMAGE mine" if modules.shell == "tcsh" else "export LLM_IMAGE=mine"
    out = modules.run(f"{own}\nmodule load llm/{OLD}-cpu; echo $LLM_IMAGE\n"
                      "module unload llm; echo $LLM_IMAGE\n")
    assert out.split()[-2:] == ["llm-cpu", "mine"]


def test_show_avail_whatis_help(modules: Modules) -> None:
    out = modules.run(f"echo '=== avail'; module -t avail llm\necho '=== show'; module show llm\n"
                      "echo '=== whatis'; module whatis llm\n"
                      f"echo '=== help'; module help llm/{OLD}-cpu\necho '=== end'\n")
    avail = between(out, "avail")
    names = {re.sub(r"\(.*", "", line) for line in avail if line.startswith("llm/")} - {"llm/"}
    assert names == {f"llm/{version}{end}" for version in (OLD, NEW)
                     for end in ("", "-cpu", "-cuda12", "-cuda13")}
    if modules.system == "environment-modules":  # Lmod marks it on a terminal only
        assert f"llm/{NEW}(default)" in avail
    show = "\n".join(between(out, "show"))
    assert f"llm/{NEW}" in show and "LLM_HOME" in show
    assert "conflict" in show or "family" in show
    assert "large language models" in "\n".join(between(out, "whatis"))
    help_text = "\n".join(between(out, "help"))
    assert "llm-run python train.py" in help_text and "image for CPUs" in help_text
    assert "$LLM_HOME/recipes" in help_text


@pytest.mark.parametrize("modules", ["bash", "zsh"], indirect=True)
def test_a_prefix_with_signs_of_every_language(modules: Modules, tmp_path: Path) -> None:
    # Not in tcsh: both systems' own quoting for it has limits.
    prefix, files = tmp_path / """it's "my" $x [y] {z} `a` \\b""" / "llm", tmp_path / "files"
    source = copy_checkout(tmp_path / "checkout", OLD)
    make("install", source, "--prefix", str(prefix), "--modulepath", str(files))
    out = replace(modules, paths=(files,)).run(
        "module load llm; printenv LLM_HOME; llm-run --version; type _llm_complete | head -1\n"
        "module unload llm; printenv LLM_HOME", interactive=True)
    assert f"{prefix}/{OLD}\nllm-run {OLD}\n" in out
    assert "_llm_complete is a " in out and out.count(f"{prefix}") == 1


@pytest.mark.parametrize("modules", ["bash"], indirect=True)
def test_scripts_get_no_completion(modules: Modules) -> None:
    out = modules.run("set -eu\nmodule load llm\ndeclare -F; complete -p\nllm-run --version\n"
                      "module unload llm\n")
    assert "_llm" not in out and f"llm-run {NEW}" in out


@pytest.mark.parametrize("modules", ["bash"], indirect=True)
def test_a_moved_installation_is_found(modules: Modules, apps: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    apps.rename(moved)
    try:
        there = replace(modules, paths=(moved / "modulefiles", modules.paths[1]))
        out = there.run("module load llm; printenv LLM_HOME; llm-run --site here --show-config")
    finally:
        moved.rename(apps)
    assert f"{moved}/{PREFIX}/{NEW}\n" in out
    assert f"site = here    ({moved}/{PREFIX}/.versions/{NEW}-" in out


@pytest.mark.parametrize("modules", ["bash"], indirect=True)
def test_a_modulefile_alone_finds_the_installation_or_says_so(
    modules: Modules, apps: Path, tmp_path: Path,
) -> None:
    copy = tmp_path / "copied" / "deeper"
    (copy / "llm").mkdir(parents=True)
    for file in (apps / "modulefiles/llm").iterdir():
        (copy / "llm" / file.name).write_text(file.read_text())
    there = replace(modules, paths=(copy, modules.paths[1]))
    assert f"{apps}/{PREFIX}/{OLD}\n" in there.run(f"module load llm/{OLD}; printenv LLM_HOME")
    moved = apps.with_name("moved")
    apps.rename(moved)
    try:
        out = there.run(f"module load llm/{OLD}; printenv LLM_HOME; module avail llm")
    finally:
        moved.rename(apps)
    assert "there is no" in out and "make install again" in out
    assert f"{apps}/{PREFIX}/{OLD}\n" not in out and f"llm/{OLD}-cpu" in out


@pytest.mark.parametrize("modules", ["bash"], indirect=True)
@pytest.mark.parametrize("system", ["lmod"], indirect=True)
def test_lmod_reads_the_tcl_files_too(modules: Modules, tmp_path: Path) -> None:
    # Lmod's reader of Tcl takes other letters than ASCII apart.
    prefix, files = tmp_path / "it's my/llm", tmp_path / "files"
    source = copy_checkout(tmp_path / "checkout", OLD)
    make("install", source, "--prefix", str(prefix), "--modulepath", str(files),
         "--site", "default")
    for file in (files / "llm").glob("*.lua"):
        file.unlink()
    there = replace(modules, paths=(files, modules.paths[1]))
    test_unload_leaves_no_trace(there)
    out = there.run("module load llm; printenv LLM_HOME LLM_SITE\n"
                    f"module load llm/{OLD}-cpu; printenv LLM_IMAGE; module help llm")
    assert f"{prefix}/{OLD}\ndefault\n" in out and "llm-cpu\n" in out
    assert "llm-run python train.py" in out
