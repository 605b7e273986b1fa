"""An image's identity changes with each of its inputs and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.images import inputs
from _llm.images.build import check_inputs, compiles_for_gpus, locks_of
from _llm.images.catalog import children_of, image_names, load_image, variants_of
from _llm.images.inputs import digest_of, image_inputs, lock_date


@pytest.fixture
def containers(tmp_path: Path) -> Path:
    """A base and a child with two variants."""
    root = tmp_path / "containers; 'odd' ü"
    for name in ("base", "llm"):
        (root / name).mkdir(parents=True)
    (root / "install.sh").write_text("echo\n")
    (root / "base/image.def").write_text("Bootstrap: debootstrap\n")
    (root / "base/apt.lock").write_text("# locked: 2026-01-02\n")
    (root / "llm/image.def").write_text("From: {{ PARENT }}\n%arguments\n    PARENT=base\n")
    for variant in ("cpu", "cuda13"):
        (root / f"llm/requirements-{variant}.in").write_text("torch\n")
        (root / f"llm/requirements-{variant}.lock").write_text("# locked: 2026-03-04\ntorch==1\n")
        (root / f"llm/apt-{variant}.lock").write_text("# locked: 2026-03-05\n")
    (root / "llm/requirements-cuda13.lock").write_text("# locked: 2026-09-09\n")
    (root / "llm/llama.cpp").mkdir()
    for name in ("compile.sh", "compile-cuda.sh", "cuda13-compiler.lock", "source.lock"):
        (root / "llm/llama.cpp" / name).write_text("# locked: 2026-03-01\n")
    return root


def digest(containers: Path, variant: str = "cpu", parent: str = "p", **arguments: str) -> str:
    image = load_image(containers, "llm", variant)
    return digest_of(image_inputs(image, parent, arguments, {"apptainer": "1.4.5"}))


def test_catalog_is_the_folder_tree(containers: Path) -> None:
    assert image_names(containers) == ["base", "llm"]
    assert variants_of(containers, "llm") == ["cpu", "cuda13"]
    assert load_image(containers, "base", "cpu").label == "base"
    assert load_image(containers, "llm", "cpu").label == "llm-cpu"
    assert load_image(containers, "llm", "cpu").parent == "base"
    assert children_of(containers, "base") == ["llm"]


def test_unknown_names_suggest_the_nearest(containers: Path) -> None:
    with pytest.raises(LLMError, match="no image 'lmm'") as raised:
        load_image(containers, "lmm")
    assert "did you mean llm?" in raised.value.fix
    with pytest.raises(LLMError, match="no variant 'cuda'") as raised:
        load_image(containers, "llm", "cuda")
    assert "cpu|cuda13" in raised.value.fix


@pytest.mark.parametrize("file", ["llm/image.def", "llm/requirements-cpu.lock", "llm/apt-cpu.lock",
                                  "install.sh", "llm/llama.cpp/compile.sh"])
def test_each_input_changes_the_digest(containers: Path, file: str) -> None:
    before = digest(containers)
    path = containers / file
    path.write_text(path.read_text() + "# changed\n")
    assert digest(containers) != before


@pytest.mark.parametrize("file", ["llm/README.md", "llm/requirements.in",
                                  "llm/requirements-cuda13.lock", "llm/apt-cuda13.lock",
                                  "llm/llama.cpp/compile-cuda.sh",
                                  "llm/llama.cpp/cuda13-compiler.lock"])
def test_what_is_no_input_changes_nothing(containers: Path, file: str) -> None:
    before = digest(containers)
    (containers / file).write_text("changed\n")
    assert digest(containers) == before


def test_parent_arguments_and_variant_are_inputs(containers: Path) -> None:
    before = digest(containers)
    assert digest(containers, parent="q") != before
    assert digest(containers, CUDA_ARCHITECTURES="90") != before
    cuda = digest(containers, variant="cuda13")
    assert cuda != before
    (containers / "llm/llama.cpp/compile-cuda.sh").write_text("changed\n")
    assert digest(containers, variant="cuda13") != cuda
    assert digest(containers) == before


def test_lock_date_is_the_variants_newest_lock(containers: Path) -> None:
    assert lock_date(load_image(containers, "llm", "cpu")) == "2026-03-05"
    assert lock_date(load_image(containers, "llm", "cuda13")) == "2026-09-09"
    (containers / "base/apt.lock").write_text("no header\n")
    assert lock_date(load_image(containers, "base")) == "unknown"


def test_code_that_shapes_images_is_an_input_and_other_code_is_not(tmp_path: Path) -> None:
    folder = Path(inputs.__file__).parent
    assert all((folder / name).is_file() for name in inputs.SHAPE_NOTHING)
    for name in ("staging.py", "python_files.py", *inputs.SHAPE_NOTHING):
        (tmp_path / name).write_text("before\n")
    before = inputs.hash_code(tmp_path)
    for name in inputs.SHAPE_NOTHING:
        (tmp_path / name).write_text("after\n")
    assert inputs.hash_code(tmp_path) == before
    for name in ("staging.py", "python_files.py", "new.py"):
        (tmp_path / name).write_text("after\n")
        changed = inputs.hash_code(tmp_path)
        assert changed != before
        before = changed


def test_inputs_that_change_during_a_build_are_named(containers: Path) -> None:
    image = load_image(containers, "llm", "cpu")
    before = image_inputs(image, "p", {}, {})
    check_inputs(before, image_inputs(image, "p", {}, {}))
    (containers / "install.sh").write_text("changed\n")
    (image.folder / "new.py").write_text("")
    with pytest.raises(LLMError, match="inputs changed while the image was built") as raised:
        check_inputs(before, image_inputs(image, "p", {}, {}))
    assert raised.value.why == "file new.py, shared install.sh"


def test_only_an_image_with_llama_cpp_compiles_for_gpus(containers: Path) -> None:
    with_it = load_image(containers, "llm", "cuda13")
    assert compiles_for_gpus(with_it)
    assert not compiles_for_gpus(load_image(containers, "llm", "cpu"))
    assert [lock.name for lock in locks_of(with_it)] == [
        "apt-cuda13.lock", "requirements-cuda13.lock", "cuda13-compiler.lock"]
    shutil.rmtree(with_it.folder / "llama.cpp")
    assert not compiles_for_gpus(with_it)
    assert [lock.name for lock in locks_of(with_it)] == [
        "apt-cuda13.lock", "requirements-cuda13.lock"]
