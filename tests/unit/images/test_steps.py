"""Single steps of a build that need no Apptainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.images.llama_cpp import compile_key, cuda_architectures
from _llm.images.steps import (
    Log,
    absolute_base,
    effective_definition,
    publish,
    set_link,
    stop_group,
)

DEFINITION = "Bootstrap: debootstrap\nMirrorURL: {{ MIRROR }}\n\n%post\n    true\n"


def test_another_base_replaces_only_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert effective_definition(DEFINITION, "") == DEFINITION
    text = effective_definition(DEFINITION, "docker://debian:bookworm-slim")
    assert text.startswith("Bootstrap: docker\nFrom: debian:bookworm-slim\n\n%post\n    true\n")
    assert absolute_base("docker://debian:12") == "docker://debian:12" and absolute_base("") == ""
    local = tmp_path / "my base.sif"
    local.write_text("")
    assert f"Bootstrap: localimage\nFrom: {local}\n" in effective_definition(DEFINITION, str(local))
    monkeypatch.chdir(tmp_path)
    assert absolute_base("my base.sif") == str(local)
    assert absolute_base("oci-archive:my base.sif") == f"oci-archive:{local}"
    archive = effective_definition(DEFINITION, "oci-archive:/data/base.tar")
    assert archive.startswith("Bootstrap: oci-archive\nFrom: /data/base.tar\n")


@pytest.mark.parametrize("prefix", ["", "oci:"])
def test_a_folder_or_nothing_is_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "a:b.sif").write_text("")
    assert absolute_base("a:b.sif") == str(tmp_path / "a:b.sif")
    with pytest.raises(LLMError, match="can't begin with it") as raised:
        absolute_base(f"{prefix}sandbox")
    assert "folder" in raised.value.why and "apptainer build" in raised.value.fix
    for base in (f"{prefix}none.sif", "library://debian:12", "debian"):
        with pytest.raises(LLMError, match="can't begin with it") as raised:
            absolute_base(base)
        assert raised.value.why == "there is no such file"


def test_link_follows_the_newest_and_never_breaks(tmp_path: Path) -> None:
    link = tmp_path / "llm-cpu.sif"
    for name in ("llm-cpu-1.sif", "llm-cpu-2.sif", "llm-cpu-2.sif"):
        part = tmp_path / "part"
        part.write_text(name)
        publish(part, tmp_path / name)
        set_link(tmp_path / name, link)
        assert link.read_text() == name and not part.exists()
    set_link(tmp_path / "llm-cpu-1.sif", link)
    assert link.read_text() == "llm-cpu-1.sif"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "llm-cpu-1.sif", "llm-cpu-2.sif", "llm-cpu.sif"]


def test_a_failing_program_shows_the_tail_and_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path / "logs/a.log")
    with pytest.raises(LLMError, match=r"packing failed \(exit status 3\)") as raised:
        log.run(["sh", "-c", "echo early; echo No space left on device >&2; exit 3"],
                os.environ, "packing")
    assert "No space left" in raised.value.why and str(log.path) in raised.value.fix
    assert "LLM_BUILD_DIR" in raised.value.fix


def test_an_interrupted_build_ends_what_it_started(tmp_path: Path) -> None:
    """SIGINT to the builder reaches programs that are in a session of their own."""
    # The program takes no notice of TERM, but for a file. Signals come once it is waited for, and
    # once it was asked to end: files say so, however slow the machine is.
    code = ("import sys, os; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path\nfrom subprocess import Popen\n"
            "from _llm.images.steps import Log\n"
            "from _llm.image import end_like_ctrl_c\nend_like_ctrl_c()\n"
            "wait = Popen.wait\n"
            "Popen.wait = lambda *a, **k: (Path('waited').touch(), wait(*a, **k))[1]\n"
            "script = \"trap '' TERM; sleep 61 & trap 'touch asked' TERM; echo $! > child; \" \\\n"
            "    \"while kill -0 $!; do wait; done\"\n"
            "Log(Path(sys.argv[2])).run(['sh', '-c', script], os.environ, 'x')\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parents[3] / "bin"),
                                str(tmp_path / "log")], cwd=tmp_path, stderr=subprocess.DEVNULL)
    child = tmp_path / "child"
    deadline = time.monotonic() + 60
    while not (child.exists() and child.read_text() and (tmp_path / "waited").exists()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # a terminal's Ctrl-C
    while not (tmp_path / "asked").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    # What `make verify-image` sends on, and an impatient user.
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    assert process.wait(60) != 0
    deadline = time.monotonic() + 20
    while is_running(child.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child.read_text().strip())


def is_running(process: str) -> bool:
    """Whether a process exists and is no zombie that only waits to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_stop_group_of_an_ended_process_is_nothing() -> None:
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    stop_group(process)


def test_architectures() -> None:
    assert cuda_architectures(["9.0", "80", "90-real"], {}) == ["80-real", "90-real"]
    assert cuda_architectures([], {"H200": "9.0", "A100": "8.0"}) == ["80-real", "90-real"]
    with pytest.raises(LLMError, match="'hopper' is no GPU architecture"):
        cuda_architectures(["hopper"], {})
    with pytest.raises(LLMError, match="no GPU architecture"):
        cuda_architectures([], {})


def test_compile_key_depends_on_source_scripts_and_compiler_alone(tmp_path: Path) -> None:
    top, tmp_path = tmp_path, tmp_path / "llm/llama.cpp"
    tmp_path.mkdir(parents=True)
    for name in ("source.lock", "compile.sh", "compile-cpu.sh", "compile-cuda.sh",
                 "cuda13-compiler.lock"):
        (tmp_path / name).write_text(f"# locked: today\n{name}\n")
    lock, tools = top / "llm/apt-cpu.lock", top / "build.lock"
    rows = {name: f"{name} 1 amd64 {'a' * 64} 5 pool/x.deb main" for name in ("gcc-12", "curl")}
    lock.write_text("\n".join(rows.values()) + "\n")
    tools.write_text("cmake==3.1 \\\n    --hash=x\nuv==1\n")
    before = compile_key(tmp_path, "cpu")
    (tmp_path / "compile-cuda.sh").write_text("changed")
    (tmp_path / "source.lock").write_text("# locked: tomorrow\nsource.lock\n")
    lock.write_text(f"# locked: tomorrow\n{rows['gcc-12']}\n{rows['curl'].replace(' 1 ', ' 2 ')}\n")
    tools.write_text("cmake==3.1 \\\n    --hash=y\nuv==2\n")
    assert compile_key(tmp_path, "cpu") == before
    lock.write_text(f"{rows['gcc-12'].replace('a' * 64, 'b' * 64)}\n")
    assert compile_key(tmp_path, "cpu") != before
    lock.write_text(f"{rows['gcc-12']}\n")
    tools.write_text("cmake==3.2\n")
    assert compile_key(tmp_path, "cpu") != before
    tools.write_text("cmake==3.1\n")
    assert compile_key(tmp_path, "cpu") == before
    (tmp_path / "source.lock").write_text("# locked: tomorrow\nnewer\n")
    assert compile_key(tmp_path, "cpu") != before
    newer = compile_key(tmp_path, "cpu")
    (tmp_path / "compile.sh").write_text("changed")
    assert compile_key(tmp_path, "cpu") != newer
    ampere = compile_key(tmp_path, "cuda13", ["80-real"])
    assert ampere != compile_key(tmp_path, "cuda13", ["90-real"])
