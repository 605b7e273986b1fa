"""Every command in the README, the manual and the folders' READMEs would be understood.

    make test-images ARGS="-k docs"

Nothing is run here but `bash -n`, except the blocks after `<!-- run -->`: those are run in a copy
of the checkout with the CPU image.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from documents import HOME, Block, blocks, commands_in_text, documents, indented_commands
from shell import faults_of

TOP = "%s/**/*.py"
SHELLS = ("bash", "sh")
LANGUAGES = (*SHELLS, "text", "json", "ini", "yaml", "python")
DOCUMENTS = documents()
BLOCKS = [block for name, text in DOCUMENTS.items() for block in blocks(name, text)]
COMMANDS = [block for block in BLOCKS if block.language in SHELLS] + [
    block
    for name, text in DOCUMENTS.items()
    for block in (*commands_in_text(name, text), *indented_commands(name, text))
]
RUN = [block for block in BLOCKS if block.run]


def test_the_documents_are_found() -> None:
    wanted = {"README.md", "CONTRIBUTING.md", "docs/index.md", "docs/troubleshooting.md"}
    wanted |= {f"containers/{f.parent.name}/README.md" for f in HOME.glob("containers/*/image.def")}
    topics = {f.parent.name for f in HOME.glob("recipes/*/*.py")} - {"llm_recipes"}
    wanted |= {f"recipes/{topic}/README.md" for topic in topics}
    assert wanted <= set(DOCUMENTS)


def test_every_block_names_its_language() -> None:
    assert not [f"{b}: '{b.language}'" for b in BLOCKS if b.language not in LANGUAGES]


def test_every_run_mark_belongs_to_a_block() -> None:
    marks = sum(text.count("<!-- run -->\n") for text in DOCUMENTS.values())
    quoted = sum(text.count("`<!-- run -->`\n") for text in DOCUMENTS.values())
    assert len(RUN) == marks - quoted > 0


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_command_would_be_understood(block: Block) -> None:
    faults = faults_of(block.text)
    assert not faults, "\n".join([block.text, *faults])


def test_make_demo_would_be_understood() -> None:
    """The Makefile's own commands, as make would run them, and those of the script they start."""
    done = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=HOME, capture_output=True, text=True, check=True
    )
    assert "sh recipes/demo.sh" in done.stdout
    faults = faults_of(done.stdout)
    assert not faults, "\n".join([done.stdout, *faults])


def test_the_demo_would_be_understood() -> None:
    prompt = "it's 2 + 3 = ?"
    plan = ["sh", "recipes/demo.sh", "--plan", prompt]
    done = subprocess.run(plan, cwd=HOME, capture_output=True, text=True, check=True)
    commands = [line for line in done.stdout.splitlines() if line.startswith("bin/llm-run")]
    faults = faults_of("".join(f"{command}\n" for command in commands))
    assert not faults, "\n".join(faults)
    assert len(commands) == 16
    assert shlex.split(commands[-1])[-3] == prompt
    headings = re.findall(r"^== (\d+)\. ", done.stdout, re.MULTILINE)
    assert headings == [str(n) for n in range(1, 11)]


def commands_in_docstrings() -> list[Block]:
    """The commands that modules show: indented lines of their docstrings."""
    found = []
    for file in sorted(f for top in ("bin", "recipes", "benchmarks") for f in HOME.glob(TOP % top)):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if re.match(r"    (bin/)?(llm-run|make|python3 \S+/\S+|sh) ", line):
                found.append(
                    Block(str(file.relative_to(HOME)), 1, "bash", line.strip() + "\n", False)
                )
    return found


def test_commands_in_docstrings_would_be_understood() -> None:
    commands = commands_in_docstrings()
    faults = [f"{block}: {fault}" for block in commands for fault in faults_of(block.text)]
    assert len(commands) > 10
    assert not faults, "\n".join(faults)


def test_commands_are_found_in_every_form() -> None:
    text = "Type `make x`:\n\n    make y \\\n        z\n    make a\n\n```bash\nmake b\n```\n"
    found = [*commands_in_text("d", text), *indented_commands("d", text), *blocks("d", text)]
    assert [block.text for block in found] == ["make x\n", "make y \\\n    z\nmake a\n", "make b\n"]
    assert [block.line for block in found] == [1, 3, 7]


def test_readme_fits_a_screen() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= 60


def test_every_recipe_is_in_the_readme() -> None:
    recipes = [
        str(file.relative_to(HOME))
        for file in HOME.glob("recipes/*/*.py")
        if "run_recipe(" in file.read_text(encoding="utf-8") and file.parent.name != "llm_recipes"
    ]
    assert recipes
    assert not [recipe for recipe in recipes if recipe not in DOCUMENTS["README.md"]]


BROKEN = {
    "make no-such-target": "target no-such-target",
    "make image VARINT=cpu": "variable VARINT",
    "make image VARIANT=cuda14": "variant cuda14",
    "make image IMAGE=lllm": "image lllm",
    "bin/lm-run true": "unknown program bin/lm-run",
    "bin/llm-run --imgae llm-cpu true": "--imgae",
    "salloc --nodes=2 bin/llm-doctor --jbo": "--jbo",
    "bin/llm-run --bind": "--bind needs a value",
    "bin/llm-run": "without a command",
    "bin/llm-run lama-cli --help": "no program lama-cli",
    "bin/llm-run python recipes/inference/generat.py": "no file recipes/inference/generat.py",
    "llm-run --torchrun /opt/llama-recipes/finetunin.py": "no file /opt/llama-recipes/finetunin.py",
    "bin/llm-run python recipes/inference/generate.py --modell x --prompt y": "no option --modell",
    "bin/llm-run python recipes/inference/generate.py --prompt y": "needs --model",
    "llm-run python recipes/finetune/sft.py --config recipes/finetune/presets/x.yaml": "no file",
    "python3 benchmarks/launch.py --paris 3": "no option --paris",
    "sbatch --nodes=2 llm-run --torchrnu python x.py": "--torchrnu",
    "srun -N2 hostnam": "unknown program hostnam",
    "python3 tests/cluster/box cutt n2": "invalid choice: 'cutt'",
    "python3 tests/cluster/box cut n2 --nodes 3": "unrecognized arguments: --nodes 3",
    "sh bin/_llm/tool.sh image path --imag llm": "no option --imag",
    'bin/llm-run python -c "print(1"': "python -c",
    "bin/llm-run sh -c 'evn | sort'": "unknown program evn",
    "llm-run sh -c 'python recipes/finetune/sft.py --modell x'": "no option --modell",
    "cat answers.jsonl | jqq .": "unknown program jqq",
    "printf 'unclosed": "bash does not understand",
    "cd x && make tets": "target tets",
    "LLM_SITE=x make imgae": "target imgae",
    "make check \\\n    tset": "target tset",
    "ls  # fine\nmake tset": "target tset",
    "printf x |\n    make tset": "target tset",
    "make tset > log.txt 2>&1": "target tset",
}


@pytest.mark.parametrize("text", BROKEN, ids=str)
def test_a_broken_command_is_found(text: str) -> None:
    assert BROKEN[text] in "\n".join(faults_of(text + "\n"))


def test_a_typing_error_anywhere_is_found() -> None:
    """Damage each recipe and each of its options in the real documents, one at a time."""
    damaged, unnoticed = 0, []
    for block in COMMANDS:
        text = block.text.replace("\\\n", " ")
        for command in re.finditer(r"(?<!tests/)(?<!llama-)recipes/\S+\.py[^|;&\n]*", text):
            for word in re.finditer(r"recipes/\w+/\w+|(?<= )--[a-z-]+", command.group()):
                end = command.start() + word.end()
                damaged += 1
                if not faults_of(text[:end] + "x" + text[end:]):
                    unnoticed.append(f"{block}: {word.group()}x")
    assert damaged > 50
    assert not unnoticed, "\n".join(unnoticed)


@pytest.fixture(scope="session")
def checkout(
    tmp_path_factory: pytest.TempPathFactory, cpu_image: Path, apptainer: list[str]
) -> tuple[Path, dict[str, str]]:
    """A copy of the checkout with a tiny model of random weights, and an environment for it."""
    folder = tmp_path_factory.mktemp("docs") / "my llm"
    for name in ("bin", "containers", "recipes", "sites"):
        shutil.copytree(HOME / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOME / "Makefile", folder)
    env = {**os.environ, "LLM_IMAGE": str(cpu_image), "LLM_APPTAINER": apptainer[0]}
    env["HF_HUB_OFFLINE"] = "1"
    make = "bin/llm-run python recipes/data/tiny.py --output build/demo/tiny-llama --steps 0"
    subprocess.run(["bash", "-c", make], cwd=folder, env=env, check=True, capture_output=True)
    return folder, env


@pytest.mark.parametrize("block", RUN, ids=str)
def test_command_runs(block: Block, checkout: tuple[Path, dict[str, str]]) -> None:
    folder, env = checkout
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout or block.text.strip().endswith("true")
