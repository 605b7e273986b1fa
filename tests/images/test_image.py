"""The real CPU image: what it says of itself, and that it works as its users meet it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "bin"))

from _llm.images.lock import pins  # noqa: E402
from _llm.images.steps import effective_definition  # noqa: E402

spython = pytest.importorskip("spython.main.parse.parsers")


def run(apptainer: list[str], image: Path, *words: str, **options: object) -> str:
    done = subprocess.run([*apptainer, "--cleanenv", "--no-home", str(image), *words],
                          capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("definition", sorted((HOME / "containers").rglob("*.def")),
                         ids=lambda path: str(path.relative_to(HOME)))
def test_definitions_have_what_users_expect(definition: Path, tmp_path: Path) -> None:
    """Read by Singularity Python, as other tools would; it knows only bases from registries."""
    copy = tmp_path / "image.def"
    text = effective_definition(definition.read_text(), "docker://debian:bookworm-slim")
    # The parser takes a comment with the word "bootstrap" for the header.
    copy.write_text("\n".join(line for line in text.splitlines() if line.strip()[:1] != "#"))
    parser = spython.get_parser("singularity")(str(copy))
    recipe = next(iter(parser.recipe.values()))
    assert recipe.install, "no %post"
    if definition.name == "image.def":
        assert recipe.cmd or recipe.entrypoint, "no %runscript"
        assert recipe.test, "no %test"
        assert any(re.match(r"\w+=", line) for line in recipe.environ), "no %environment"


def test_labels_change_only_with_the_inputs(apptainer: list[str], cpu_image: Path) -> None:
    done = subprocess.run([apptainer[0], "inspect", "--json", "--labels", cpu_image],
                          capture_output=True, text=True, check=True)
    labels = json.loads(done.stdout)["data"]["attributes"]["labels"]
    digest = cpu_image.stem.rsplit("-", 1)[1]
    assert labels["llm.digest"].startswith(digest)
    assert labels["llm.variant"] == "cpu"
    assert labels["org.opencontainers.image.title"] == "llm"
    dates = {lock.read_text().splitlines()[0].removeprefix("# locked: ")
             for lock in (HOME / "containers/llm").glob("*-cpu.lock")}
    assert labels["llm.lock-date"] == max(dates)


def test_smoke_tests_pass_with_those_of_the_parent(apptainer: list[str], cpu_image: Path) -> None:
    command = [apptainer[0], "test", *apptainer[2:], "--cleanenv", "--no-home", str(cpu_image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "base: Python 3.11" in done.stdout
    assert "llm: llama.cpp made token" in done.stdout


def test_runscript_execs_and_shows_help_without_arguments(
    apptainer: list[str], cpu_image: Path,
) -> None:
    command = [apptainer[0], "run", *apptainer[2:], "--no-home", str(cpu_image)]
    done = subprocess.run([*command, "sh", "-c", 'printf "%s|" "$@"; exit 9', "x", "a b", "c'd"],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (9, "a b|c'd|")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "llm-run python recipe.py" in done.stdout


def test_installed_packages_are_the_locked_ones(apptainer: list[str], cpu_image: Path) -> None:
    listing = run(apptainer, cpu_image, "python3", "-I", "-c",
                  "from importlib.metadata import distributions\n"
                  "for d in distributions():\n    print(d.name, d.version)")
    installed = {canonical(name): version for name, version in map(str.split, listing.splitlines())}
    locked = pins(HOME / "containers/llm/requirements-cpu.lock")
    wrong = {name: (version, installed.get(canonical(name))) for name, version in locked.items()
             if installed.get(canonical(name)) != version}
    assert not wrong


def canonical(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_bytecode_is_there_and_not_checked_against_times(
    apptainer: list[str], cpu_image: Path,
) -> None:
    """PEP 552: flags 1 in bytes 4 to 8 mean hash-based and unchecked."""
    code = (
        "import importlib.util as u, pathlib\n"
        "for name in ('torch', 'transformers', 'json', 'llama_cpp', 'deepspeed'):\n"
        "    origin = u.find_spec(name).origin\n"
        "    data = pathlib.Path(u.cache_from_source(origin)).read_bytes()\n"
        "    assert int.from_bytes(data[4:8], 'little') == 1, (name, data[:16])\n")
    run(apptainer, cpu_image, "python3", "-I", "-c", code)


@pytest.mark.parametrize("folder", ["/", "/tmp"])
def test_llama_cpp_finds_its_kernels_from_anywhere(
    apptainer: list[str], cpu_image: Path, folder: str,
) -> None:
    code = ("import llama_cpp\nllama_cpp.llama_backend_init()\n"
            "print(llama_cpp.llama_print_system_info().decode())")
    output = run([*apptainer, "--pwd", folder], cpu_image, "python3", "-I", "-c", code)
    assert "CPU :" in output, output
    output = run([*apptainer, "--pwd", folder], cpu_image, "llama-bench", "--list-devices")
    assert "Available devices" in output or "CPU" in output, output


def test_the_shape_of_amx_tiles_is_stored_before_it_is_loaded(
    apptainer: list[str], cpu_image: Path,
) -> None:
    """Rows and columns of tiles are constants, which the compiler drops if it may."""
    listing = run(apptainer, cpu_image, "objdump", "--disassemble", "--no-show-raw-insn",
                  "/opt/llama.cpp/lib/libggml-cpu-sapphirerapids.so")
    lines = listing.splitlines()
    loads = [n for n, line in enumerate(lines) if "ldtilecfg" in line]
    assert loads
    for load in loads:
        place = int(re.search(r"(0x[0-9a-f]+)\(%rsp\)", lines[load])[1], 16)  # type: ignore[index]
        before = "\n".join(lines[load - 16 : load])
        for offset in (0x10, 0x30):  # column bytes and rows of the configuration
            assert f",{place + offset:#x}(%rsp)" in before, before


def test_nothing_of_the_build_stays(apptainer: list[str], cpu_image: Path) -> None:
    """No mirror, index or CA bundle of the building site, no caches, no logs, no machine id."""
    listing = run(apptainer, cpu_image, "sh", "-c",
                  "ls -A /mnt /var/cache/apt /var/lib/apt/lists /etc/apt/sources.list.d; "
                  "cat /etc/machine-id /etc/apt/sources.list /etc/pip.conf 2>/dev/null; "
                  "find /var/log -type f; true")
    words = [w for w in listing.split() if not w.endswith(":")]
    assert words == [], listing


def test_users_may_install_beside_the_image(
    apptainer: list[str], cpu_image: Path, tmp_path: Path,
) -> None:
    """pip accepts the image's own constraints and doesn't refuse a managed environment."""
    output = run([*apptainer, "--env", f"PYTHONUSERBASE={tmp_path}", "--bind", str(tmp_path)],
                 cpu_image, "pip", "install", "--user", "--no-index", "--dry-run",
                 "--constraint", "/opt/llm/lock.txt", "torch", "numpy")
    assert "already satisfied: torch" in output
