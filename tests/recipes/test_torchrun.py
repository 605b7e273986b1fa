"""How torchrun's processes end: a user's mistake is not buried, a crash is said in full."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECIPES, recipe_environment

pytest.importorskip("torch")
# One starts it as llm-run does; the working directory holds what torch must not find.
START = "import sys; sys.path.pop(0); from llm_recipes.torchrun import main; sys.exit(main())"
PROGRAM = """
import os, sys
if os.environ["RANK"] == "0":
    if sys.argv[1] == "mistake":
        print("train.py: --rate 7 is too high", file=sys.stderr)
        sys.exit(2)
    raise RuntimeError("rank zero is lost")
"""


def test_ctrl_c_while_torch_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    ctrl_c = "import os, time; os.kill(os.getpid(), 2); time.sleep(60)"
    (tmp_path / "torch.py").write_text(ctrl_c)
    env = {**recipe_environment(), "PYTHONPATH": f"{tmp_path}:{RECIPES}"}
    words = [sys.executable, "-c", START, "--", "train.py"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [("mistake", 2, "train.py: --rate 7 is too high"), ("crash", 1, "rank zero is lost")],
)
def test_the_end_of_a_process(how: str, status: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong torch')")
    words = ["--standalone", "--nproc-per-node=1", "--", "train.py", how]
    done = subprocess.run(
        [sys.executable, "-c", START, *words],
        cwd=tmp_path,
        env=recipe_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    if how == "mistake":
        assert done.stderr.splitlines() == [said]
    else:
        assert "train.py FAILED" in done.stderr
