"""Real SIFs compared, listed and audited: small ones of every kind, and the image base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "bin"))

from _llm.contents import difference, trees, unsquash  # noqa: E402
from _llm.contents.listing import list_files  # noqa: E402
from _llm.contents.software import components, list_in, read_software  # noqa: E402
from _llm.errors import LLMError  # noqa: E402
from _llm.images.sbom import make_sbom  # noqa: E402

SITE = "usr/local/lib/python3.11/dist-packages"
Make = Callable[..., Path]


def fill(tree: Path) -> None:
    """A small system with names that are hard to list."""
    for name in ("etc", ".singularity.d", f"{SITE}/own-1.0.dist-info", "a folder"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/os-release").write_text("ID=debian\nVERSION_ID=12\n")
    (tree / "a folder/file; 'x' ü").write_text("contents")
    (tree / "a folder/line\nbreak").write_text("contents")
    (tree / "a folder/arrow -> x").symlink_to("target -> y")
    (tree / "closed").write_text("secret")
    (tree / "closed").chmod(0)
    (tree / SITE / "own-1.0.dist-info/METADATA").write_text(
        "Name: own\nVersion: 1.0\nLicense-Expression: MIT\n")


@pytest.fixture
def make(tmp_path: Path, apptainer: list[str]) -> Make:
    """A function that packs a tree into a SIF, with the objects that an image of ours has."""
    mksquashfs = Path(unsquash.find_unsquashfs()).with_name("mksquashfs")

    def run(*words: object) -> None:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def pack(name: str, change: Callable[[Path], None] = lambda tree: None,
             options: tuple[str, ...] = (), listed: bool = True, label: str = "1") -> Path:
        folder = tmp_path / f"{name} of 'x'"
        tree, image = folder / "tree", folder / f"{name}.sif"
        fill(tree)
        change(tree)
        run(mksquashfs, tree, folder / "squashfs", "-noappend", "-quiet", "-no-progress",
            "-mkfs-time", "0", *options)
        (folder / "inspect-metadata.json").write_text(json.dumps(
            {"data": {"attributes": {"labels": {"llm.digest": label}}}, "type": "container"}))
        run(apptainer[0], "sif", "new", image)
        run(apptainer[0], "sif", "add", "--datatype", "6", "--groupid", "1", "--filename",
            "inspect-metadata.json", image, folder / "inspect-metadata.json")
        if listed:
            (folder / "sbom.cdx.json").write_bytes(make_sbom(tree, "own", label, "2026-11-22"))
            run(apptainer[0], "sif", "add", "--datatype", "9", "--sbomformat", "cyclonedx-json",
                "--groupid", "1", image, folder / "sbom.cdx.json")
        run(apptainer[0], "sif", "add", "--datatype", "4", "--parttype", "2", "--partfs", "1",
            "--partarch", "2", "--groupid", "1", image, folder / "squashfs")
        return image

    return pack


def touch_all(tree: Path) -> None:
    """Give every file the same time."""
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (0, 0), follow_symlinks=False)


def test_names_in_a_listing(make: Make) -> None:
    found = list_files(str(make("one", touch_all)))
    assert {"/", "/a folder/line\nbreak", "/a folder/file; 'x' ü", "/closed"} <= found.keys()
    assert found["/a folder/arrow -> x"].target == "target -> y"
    assert found["/a folder/arrow -> x"].time == "1970-01-01 00:00:00"


REASONS: dict[str, tuple[str, tuple[str, ...], Callable[[Path], None]]] = {
    "content": ("/etc/os-release", ("content",),
                lambda tree: (tree / "etc/os-release").write_text("ID=debian\nVERSION_ID=13\n")
                and None),
    "size": ("/etc/os-release", ("content",),
             lambda tree: (tree / "etc/os-release").write_text("") and None),
    "mode": ("/closed", ("mode",), lambda tree: (tree / "closed").chmod(0o4)),
    "link": ("/a folder/arrow -> x", ("link target",), lambda tree: (
        (tree / "a folder/arrow -> x").unlink(), (tree / "a folder/arrow -> x").symlink_to("z"),
        None)[-1]),
    "type": ("/closed", ("type",), lambda tree: (
        (tree / "closed").unlink(), (tree / "closed").mkdir(), None)[-1]),
    "gone": ("/closed", ("only in A",), lambda tree: (tree / "closed").unlink()),
    "new": ("/new\nline", ("only in B",), lambda tree: (tree / "new\nline").touch()),
}


@pytest.mark.parametrize("name", REASONS)
def test_each_reason_is_named(make: Make, name: str) -> None:
    path, reasons, change = REASONS[name]

    def changed(tree: Path) -> None:
        change(tree)
        touch_all(tree)

    found = trees.differences(make("a", touch_all), make("b", changed))
    assert found == [trees.Difference(path, reasons)]


def test_time_and_owner(make: Make) -> None:
    def later(tree: Path) -> None:
        touch_all(tree)
        os.utime(tree / "closed", (1, 1))

    one = make("a", touch_all)
    assert trees.differences(one, make("b", later)) == [trees.Difference("/closed", ("time",))]
    owned = trees.differences(one, make("c", touch_all, ("-force-uid", "5")), limit=2)
    assert [item.reasons for item in owned] == [("owner",)] * 2, "and no more than were asked for"


def test_order_and_superblock(make: Make, tmp_path: Path) -> None:
    one = make("a", touch_all)
    assert trees.differences(one, make("b", touch_all)) == []
    order = tmp_path / "priorities"
    order.write_text("closed 5\netc/os-release 9\n")
    sorted_ = make("c", touch_all, ("-sort", str(order)))
    assert trees.differences(one, sorted_) == [trees.Difference(trees.FILE_SYSTEM, ("order",))]
    blocks = make("d", touch_all, ("-b", "4K"))
    assert trees.differences(one, blocks)[0].reasons == ("block size",)
    packed = trees.differences(one, make("e", touch_all, ("-comp", "xz")))
    assert "compression" in packed[0].reasons


def test_what_stands_outside_the_file_system(make: Make) -> None:
    one, other = make("a", touch_all), make("b", touch_all, label="2", listed=False)
    found = {item.path: item.reasons for item in trees.object_differences(one, other)}
    assert found["(object 1, metadata)"][0] == "content"
    assert found["(object 2, SBOM)"] == ("only in A",)
    assert any(reason.startswith("id ") for reason in found["(header)"])
    assert trees.other_differences(one, one) == []


def test_a_list_of_software(make: Make) -> None:
    one, bare = make("a", touch_all), make("bare", touch_all, listed=False)
    assert list_in(str(one)) and list_in(str(bare)) is None
    for image in (one, bare):
        assert [c.name for c in components(read_software(str(image), "x"))] == ["own"]


def tool(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", HOME / "bin/_llm/tool.sh", *map(str, words)], check=False,
                          capture_output=True, text=True)


def test_diff_image(make: Make) -> None:
    def newer(tree: Path) -> None:
        metadata = tree / SITE / "own-1.0.dist-info/METADATA"
        metadata.write_text("Name: own\nVersion: 2.0\nLicense-Expression: MIT\n")
        (tree / "etc/new").write_text("x")
        touch_all(tree)

    one, other = make("a", touch_all), make("b", newer, listed=False, label="2")
    done = tool("diff-image", one, other, "--files")
    assert done.returncode == 1, done.stderr
    assert "own 1.0 -> 2.0" in done.stdout
    assert "1 added, 0 removed, 1 changed" in done.stdout
    assert "/etc/new: only in B" in done.stdout
    assert "llm.digest: 1 -> 2" in done.stdout
    same = make("c", touch_all)
    done = tool("diff-image", one, same, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"][0]["verdict"] == difference.SAME_CONTENTS
    assert tool("diff-image", one, "nothing.sif").returncode == 2


def test_signed_differently(make: Make, tmp_path: Path, apptainer: list[str]) -> None:
    one = make("a", touch_all)
    signed = tmp_path / "signed.sif"
    signed.write_bytes(one.read_bytes())
    key = tmp_path / "key.pem"
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)],
                          capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no openssl here")
    done = subprocess.run([apptainer[0], "sign", "--key", str(key), str(signed)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = tool("diff-image", one, signed)
    assert done.returncode == 0
    assert "the same contents, signed differently" in done.stdout


def test_audit(make: Make, tmp_path: Path) -> None:
    image = make("a", touch_all)
    assert tool("audit", image).returncode == 0
    advisories = tmp_path / "adv.json"
    advisories.write_text(json.dumps({"id": "X-1", "affected": [
        {"package": {"ecosystem": "PyPI", "name": "own"}, "versions": ["1.0"]}]}))
    done = tool("audit", image, "--advisories", advisories)
    assert (done.returncode, "X-1" in done.stdout) == (1, True)
    advisories.write_text("[{}]")
    done = tool("audit", image, "--advisories", advisories)
    assert (done.returncode, "record 1" in done.stderr) == (2, True)


@pytest.mark.parametrize("damage", ["cut", "middle", "none", "empty"])
def test_damaged_images(make: Make, damage: str, tmp_path: Path) -> None:
    data = bytearray(make("a", touch_all).read_bytes())
    if damage == "cut":
        del data[-4096:]
    elif damage == "middle":
        begin = data.index(b"hsqs") + 64
        data[begin:begin + 4096] = bytes(4096)
    elif damage == "none":
        data = bytearray(b"no image at all")
    else:
        data = bytearray()
    image = tmp_path / "damaged.sif"
    image.write_bytes(data)
    with pytest.raises(LLMError):
        list_files(str(image))
    for program in ("diff-image", "sizes"):
        words = (image, make(f"b-{program}", touch_all)) if program == "diff-image" else (image,)
        done = tool(program, *words)
        assert done.returncode == (2 if program == "diff-image" or damage != "middle" else 0), (
            done.stderr)
        assert "Traceback" not in done.stderr


def test_a_full_disk_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make("a", touch_all)
    monkeypatch.setattr(unsquash, "MARGIN", 1 << 60)
    with pytest.raises(LLMError, match="GiB free"), unsquash.unpacked(str(image)):
        pass
    monkeypatch.setattr(unsquash, "MARGIN", 0)
    run = unsquash.run_unsquashfs

    def cut_off(words: list[str], image_file: str) -> bytes:
        found = run(words, image_file)
        if "-dest" in words and "-lln" not in words:
            (Path(words[words.index("-dest") + 1]) / "etc/os-release").write_text("ID")
        return found

    monkeypatch.setattr(unsquash, "run_unsquashfs", cut_off)
    with pytest.raises(LLMError, match="unpacked completely"), unsquash.unpacked(str(image)):
        pass
    monkeypatch.setenv("LLM_BUILD_DIR", "/nowhere")
    with pytest.raises(LLMError, match="is not a writable folder"):
        unsquash.temporary_folder()


def test_every_package_of_base_is_listed_once(base_image: Path) -> None:
    document = read_software(str(base_image), "x")
    with unsquash.unpacked(str(base_image)) as tree:
        status = (tree / "var/lib/dpkg/status").read_text()
        again = make_sbom(tree, document["metadata"]["component"]["name"],
                          next(p["value"] for p in document["metadata"]["component"]["properties"]
                               if p["name"] == "llm:inputs-digest"),
                          document["metadata"]["timestamp"][:10])
    installed = sorted(line.removeprefix("Package: ") for line in status.splitlines()
                       if line.startswith("Package: "))
    assert sorted(c.name for c in components(document) if c.kind == "deb") == installed
    assert again == list_in(str(base_image)), "the list is that of the packed files"
    for part in document["components"]:
        assert part["type"] == "operating-system" or part["hashes"], part["name"]
    assert tool("audit", base_image).returncode == 0
