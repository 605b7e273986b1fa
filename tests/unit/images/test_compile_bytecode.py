"""Bytecode of an image: the same whatever was compiled beside it, where, and on how many CPUs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "containers/compile_bytecode.py"
SOURCE = "\n".join(
    f"def f{n}(self, *, name_{n}=None):\n    return 'a string', {n} in ({n}, None), 'word_{n}'"
    for n in range(20))


def fill(tree: Path, folders: int) -> None:
    for number in range(folders):
        folder = tree / f"usr/lib/python3/it's; {number}"
        folder.mkdir(parents=True)
        (folder / "one.py").write_text(SOURCE)
        (folder / "two.py").write_text(f"x = {{'a', 'b', None, {number}}}\n")


def run(*words: str | Path, cpus: int = 0) -> subprocess.CompletedProcess[str]:
    def one_cpu() -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    return subprocess.run(
        [sys.executable, "-S", "-s", "-B", str(SCRIPT), *map(str, words)], capture_output=True,
        text=True, check=False, env={"PYTHONHASHSEED": "0"},
        preexec_fn=one_cpu if cpus == 1 else None)


def bytecode(tree: Path) -> dict[str, bytes]:
    return {str(file.relative_to(tree)): file.read_bytes() for file in tree.rglob("*.pyc")}


def test_the_same_in_another_place_beside_other_files_and_on_one_cpu(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "another place"
    fill(one, 3)
    fill(other, 3)
    (other / "usr/lib/python3/a folder before").mkdir()
    (other / "usr/lib/python3/a folder before/more.py").write_text(SOURCE * 2)
    assert run("--below", one, one / "usr").returncode == 0
    assert run("--below", other, other / "usr/lib/python3", cpus=1).returncode == 0
    found, again = bytecode(one), bytecode(other)
    assert len(found) == 6 and {name: again[name] for name in found} == found
    for data in found.values():
        assert data[4] == 1  # checked by nothing
        assert b"/usr/lib/python3/it's" in data and os.fsencode(tmp_path) not in data


def test_old_bytecode_goes_and_what_is_no_python_stays(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    folder = tmp_path / "usr/lib/python3/it's; 0"
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/gone.cpython-311.pyc").write_bytes(b"of a module that is no more")
    (folder / "template.py").write_text("class {{ name }}:\n")
    (folder / "latin.py").write_bytes(b"x = '\xff'\n")
    (folder / "null.py").write_bytes(b"x = 1\0\n")
    (folder / "link.py").symlink_to("one.py")
    (folder / "folder.py").mkdir()
    done = run("--below", tmp_path, tmp_path / "usr")
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(name.rsplit("/", 1)[1].split(".")[0] for name in bytecode(tmp_path))
    assert names == ["one", "two"]


def test_a_full_disk_ends_it_with_a_failure(tmp_path: Path) -> None:
    fill(tmp_path, 3)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    done = subprocess.run([sys.executable, "-S", "-s", "-B", str(SCRIPT), "--below", str(tmp_path),
                           str(tmp_path / "usr")], capture_output=True, text=True, check=False,
                          preexec_fn=small_files, env={"PYTHONHASHSEED": "0"})
    assert done.returncode != 0 and "File too large" in done.stderr
