"""The choice of the image and of the GPU options, which only the node can make."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.gpus import Gpus
from _llm.options import Options, parse
from _llm.rank import choose_image, gpu_flags
from _llm.settings import load_settings

NEW = Gpus("nvidia", "580.65.06", ("NVIDIA H200",))
OLD = Gpus("nvidia", "470.82.01", ("Tesla T4",))
AMD = Gpus("amd")
NONE = Gpus()


class Node:
    """A node with these images on which llm-run is started."""

    def __init__(self, home: Path, env: dict[str, str], images: Path) -> None:
        self.home, self.env = str(home), {**env, "LLM_IMAGE_DIR": str(images)}

    def choose(self, gpus: Gpus, *arguments: str) -> tuple[str, list[str], list[str]]:
        """Return variant, GPU options and notices."""
        options: Options = parse([*arguments, "true"])
        overrides = {"container.image": options.image} if options.image else {}
        settings = load_settings(self.env, self.home, overrides=overrides)
        notices: list[str] = []
        image = choose_image(options, settings, gpus, self.home, notices)
        return image.variant, gpu_flags(options, gpus, image), notices


@pytest.fixture
def node(home: Path, env: dict[str, str], images: Path) -> Node:
    return Node(home, env, images)


def test_without_gpus(node: Node) -> None:
    assert node.choose(NONE) == ("cpu", [], [])


def test_the_best_variant_that_is_built(node: Node, images: Path) -> None:
    assert node.choose(NEW) == ("cuda12", ["--nv"], [])
    (images / "llm-cuda13-aaaaaaaaaaaa.sif").write_bytes((images / "other.sif").read_bytes())
    (images / "llm-cuda13.sif").symlink_to("llm-cuda13-aaaaaaaaaaaa.sif")
    assert node.choose(NEW) == ("cuda13", ["--nv"], [])


def test_only_a_cpu_image_where_a_gpu_is(node: Node, images: Path) -> None:
    (images / "llm-cuda12.sif").unlink()
    variant, flags, notices = node.choose(NEW)
    assert (variant, flags) == ("cpu", [])
    assert "this node has a GPU (NVIDIA H200, driver 580.65.06)" in notices[0]
    assert "image VARIANT=cuda13" in notices[0]
    # Who asks for the CPU, one way or the other, needs no notice.
    assert node.choose(NEW, "--no-gpu") == ("cpu", [], [])
    assert node.choose(NEW, "--image", "llm-cpu") == ("cpu", [], [])


def test_gpus_that_no_variant_supports(node: Node) -> None:
    variant, flags, notices = node.choose(OLD)
    assert (variant, flags) == ("cpu", [])
    assert "no variant of the image works with a driver this old" in notices[0]
    assert "AMD" in node.choose(AMD)[2][0]


def test_an_image_of_the_users_own(node: Node) -> None:
    assert node.choose(NEW, "--image", "other") == ("", ["--nv"], [])
    assert node.choose(AMD, "--image", "other") == ("", ["--rocm"], [])
    assert node.choose(NONE, "--image", "other") == ("", [], [])
    assert node.choose(NEW, "--image", "other", "--no-gpu") == ("", [], [])
    assert node.choose(NONE, "--image", "other", "--gpu") == ("", ["--nv"], [])


def test_gpus_asked_for_and_not_to_be_had(node: Node, images: Path) -> None:
    assert node.choose(NONE, "--gpu")[:2] == ("cuda12", ["--nv"])
    (images / "llm-cuda12.sif").unlink()
    with pytest.raises(LLMError, match="is for the CPU only"):
        node.choose(NEW, "--gpu")


def test_an_image_for_newer_gpus(node: Node, images: Path) -> None:
    for path in images.glob("llm-c*.sif"):
        path.unlink()
    (images / "llm-cuda13-aaaaaaaaaaaa.sif").write_bytes((images / "other.sif").read_bytes())
    (images / "llm-cuda13.sif").symlink_to("llm-cuda13-aaaaaaaaaaaa.sif")
    variant, _, notices = node.choose(Gpus("nvidia", "580.65.06", ("Tesla V100-SXM2-16GB",)))
    assert variant == "cuda13"
    assert "llm-cuda13 does not work with it" in notices[0]


def test_a_gpu_image_is_the_last_resort_without_gpus(node: Node, images: Path) -> None:
    (images / "llm-cpu.sif").unlink()
    assert node.choose(NONE) == ("cuda12", [], [])
