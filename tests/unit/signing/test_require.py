"""What a site requires of images, with something in Apptainer's place that counts its checks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from file_times import move_time

from _llm.errors import LLMError
from _llm.options import parse
from _llm.pins import likely_images
from _llm.place import Place
from _llm.settings import Settings, load_settings
from _llm.sif import payload_digest
from _llm.signing import check, require
from _llm.signing.ahead import job_has_gpus, look_ahead
from _llm.signing.check import Verified
from _llm.signing.keys import Key
from _llm.signing.require import allowed_digests, check_required
from _llm.step import plan_step

KEYS = Path(__file__).resolve().parent / "keys"
OTHER = "sha256:" + "0" * 64


@pytest.fixture
def image(images: Path) -> str:
    return str(images / "other.sif")


class Checks:
    """Stands for Apptainer: which images are signed, and what was asked."""

    def __init__(self) -> None:
        self.signed: set[str] = set()
        self.asked: list[str] = []
        self.expires: float | None = None

    def verify(self, apptainer: str, path: str, keys: list[Key], scratch: str) -> Verified:
        self.asked.append(path)
        if path not in self.signed:
            raise LLMError(f"the image {path} is not signed", "it has no signature", "sign it")
        return Verified("Ann\nX", keys[0].fingerprint, 0, self.expires)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    found = Checks()
    monkeypatch.setattr(check, "verify", found.verify)
    return found


def site(home: Path, env: dict[str, str], text: str) -> Settings:
    file = home / "sites" / "ours.ini"
    file.write_text(f"[container]\n{text}", encoding="utf-8")
    return load_settings(env, str(home), str(file))


def required(settings: Settings, path: str, cache: Path) -> list[str]:
    return check_required(settings, path, lambda: "apptainer", str(cache), str(cache))


SIGNATURE = f"require = signature\nkeys = {KEYS / 'ec.pub'}\n"


def test_nothing_is_required(home: Path, env: dict[str, str], image: str, tmp_path: Path) -> None:
    assert required(site(home, env, ""), image, tmp_path) == []
    assert required(site(home, env, "require = none\n"), str(tmp_path), tmp_path) == []


def test_a_digest(home: Path, env: dict[str, str], image: str, tmp_path: Path) -> None:
    digest = payload_digest(image)
    settings = site(home, env, f"require = digest\ndigests = {OTHER}\n  {digest}\n")
    assert required(settings, image, tmp_path) == [digest]
    settings = site(home, env, f"require = digest\ndigests = {OTHER}\n")
    with pytest.raises(LLMError, match=r"must not be used: a digest is required \(profile") as e:
        required(settings, image, tmp_path)
    assert digest in e.value.why and "none of the 1" in e.value.why
    with open(image, "ab") as file:  # behind its last object: still the same image
        file.write(b"x")
    settings = site(home, env, f"require = digest\ndigests = {digest}\n")
    assert required(settings, image, tmp_path) == [digest]


def test_files_with_digests(tmp_path: Path) -> None:
    listed = tmp_path / "a list"
    listed.write_text(f'{{"payload": "{OTHER}"}}\nsha256:{"1" * 63}\nsha256:{"2" * 64} x.sif\n')
    assert allowed_digests([str(listed)]) == {OTHER, "sha256:" + "2" * 64}
    listed.write_text("x" * (1 << 25) + f"sha256:{'3' * 64}")
    with pytest.raises(LLMError, match="a list cannot be read"):
        allowed_digests([str(listed)])
    listed.write_bytes(b"\xff\0 nothing")
    with pytest.raises(LLMError, match="allows no image at all"):
        allowed_digests([str(listed)])
    with pytest.raises(LLMError, match="nosuch cannot be read"):
        allowed_digests([OTHER, str(tmp_path / "nosuch")])


def test_a_signature_is_checked_once(
    home: Path, env: dict[str, str], image: str, tmp_path: Path, checks: Checks
) -> None:
    settings = site(home, env, SIGNATURE)
    with pytest.raises(LLMError, match="a signature is required") as caught:
        required(settings, image, tmp_path)
    assert "is not signed" in caught.value.why
    with pytest.raises(LLMError):  # what failed is not kept
        required(settings, image, tmp_path)
    checks.signed.add(image)
    checks.asked.clear()
    first = required(settings, image, tmp_path)
    assert required(settings, image, tmp_path) == first and "Ann X" in first[0]
    assert checks.asked == [image]


@pytest.mark.parametrize("change", ["image", "key", "keys", "end", "month", "damage"])
def test_what_was_found_counts_no_more(
    home: Path, env: dict[str, str], image: str, tmp_path: Path, checks: Checks, change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    key = tmp_path / "key.pub"
    key.write_bytes((KEYS / "ec.pub").read_bytes())
    text = f"require = signature\nkeys = {key}\n"
    checks.signed.add(image)
    now = time.time()
    checks.expires = now + 100 if change == "end" else None
    required(site(home, env, text), image, tmp_path)
    [kept] = (tmp_path / "image-signatures").iterdir()
    if change == "image":
        data = Path(image).read_bytes()
        before = os.stat(image).st_ctime_ns
        Path(image).write_bytes(data)
        move_time(Path(image), before)
    elif change == "key":
        key.write_bytes((KEYS / "rsa.pub").read_bytes())
    elif change == "keys":
        text += f"  {KEYS / 'rsa.pub'}\n"
    elif change == "damage":
        kept.write_bytes(kept.read_bytes()[:20])
    else:
        later = now + (101 if change == "end" else require.KEPT_SECONDS + 1)
        monkeypatch.setattr(time, "time", lambda: later)
    required(site(home, env, text), image, tmp_path)
    assert len(checks.asked) == 2


def test_both(
    home: Path, env: dict[str, str], image: str, tmp_path: Path, checks: Checks
) -> None:
    digest = payload_digest(image)
    text = SIGNATURE.replace("signature", "signature digest") + "digests = "
    with pytest.raises(LLMError, match="a signature and digest is required"):
        required(site(home, env, text + digest), image, tmp_path)
    checks.signed.add(image)
    assert len(required(site(home, env, text + digest), image, tmp_path)) == 2
    with pytest.raises(LLMError, match="a signature and digest is required"):
        required(site(home, env, text + OTHER), image, tmp_path)


def test_folders_and_bare_squashfs(
    home: Path, env: dict[str, str], tmp_path: Path
) -> None:
    squashfs = tmp_path / "x.sqsh"
    squashfs.write_bytes(b"hsqs" + bytes(100))
    digest = payload_digest(str(squashfs))
    settings = site(home, env, f"require = digest\ndigests = {digest}\n")
    assert required(settings, str(squashfs), tmp_path) == [digest]
    with pytest.raises(LLMError) as caught:
        required(settings, str(tmp_path), tmp_path)
    assert "unpacked folder" in caught.value.why
    with pytest.raises(LLMError) as caught:
        required(site(home, env, SIGNATURE), str(squashfs), tmp_path)
    assert "no signature that could be checked" in caught.value.why


def test_missing_keys(home: Path, env: dict[str, str], image: str, tmp_path: Path) -> None:
    with pytest.raises(LLMError) as caught:
        required(site(home, env, "require = signature\n"), image, tmp_path)
    assert "no key is named" in caught.value.why
    with pytest.raises(LLMError, match="nosuch cannot be read"):
        required(site(home, env, "require = signature\nkeys = /nosuch\n"), image, tmp_path)


def test_the_variable_adds_and_takes_nothing_away(home: Path, env: dict[str, str]) -> None:
    def wanted(profile: str, variable: str) -> list[str]:
        env["LLM_REQUIRE"] = variable
        return site(home, env, profile).items("container", "require")

    assert wanted("", "none") == ["none"]
    assert wanted("", "digest") == ["digest"]
    assert wanted("require = signature\n", "none") == ["signature"]
    assert wanted("require = signature\n", "") == ["signature"]
    assert wanted("require = signature\n", "digest") == ["signature", "digest"]
    assert wanted("require = none\n", "digest,signature") == ["digest", "signature"]
    env["LLM_REQUIRE"] = "digest"
    origin = site(home, env, "require = signature\n").origin("container", "require")
    assert origin.startswith("profile ") and origin.endswith("; environment variable LLM_REQUIRE")
    with pytest.raises(LLMError) as caught:
        wanted("require = signature\n", "digset")
    assert "did you mean digest?" in caught.value.why


def test_faults_of_the_profile(home: Path, env: dict[str, str]) -> None:
    text = "require = signed\nkeys = site.pub\ndigests = sha256:abc\n"
    with pytest.raises(LLMError, match="3 faults") as caught:
        site(home, env, text)
    for words in ("'signed' is no requirement", "'site.pub' is no absolute path", "'sha256:abc'"):
        assert words in caught.value.why


def ahead(
    home: Path, env: dict[str, str], text: str, *words: str, gpus: bool = False,
    several: bool = False,
) -> list[str]:  # fmt: skip
    settings = site(home, env, text)
    return look_ahead(parse([*words, "x"]), settings, env, str(home), gpus, several)


@pytest.fixture
def user(env: dict[str, str], images: Path, tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "apptainer"
    program.touch(0o755)
    env.update(LLM_IMAGE_DIR=str(images), LLM_LOCAL_DIR=str(tmp_path), LLM_APPTAINER=str(program))
    return env


def test_which_images_a_job_will_probably_use(
    home: Path, user: dict[str, str], images: Path
) -> None:
    def names(gpus: bool, *words: str, image: str = "llm") -> tuple[list[str], list[str]]:
        overrides = {"container.image": image}
        settings = load_settings(user, str(home), None, overrides)
        likely, others = likely_images(parse([*words, "x"]), settings, user, str(home), gpus)
        return [Path(p).name[:8] for p in likely], [Path(p).name[:8] for p in others]

    assert names(False) == (["llm-cpu-"], ["llm-cuda"])
    assert names(True) == (["llm-cuda"], ["llm-cpu-"])
    assert names(True, "--no-gpu") == (["llm-cpu-"], ["llm-cuda"])
    assert names(False, "--gpu") == (["llm-cuda"], ["llm-cpu-"])
    assert names(False, image="llm-cuda12") == (["llm-cuda"], [])
    assert names(False, image=str(images / "llm-cpu.sif")) == (["llm-cpu-"], [])
    assert names(False, image="/nosuch.sif") == ([], [])
    (images / "llm-cuda12.sif").unlink()
    assert names(True) == (["llm-cpu-"], [])


def test_no_image_is_allowed(home: Path, user: dict[str, str], checks: Checks) -> None:
    with pytest.raises(LLMError, match="a signature is required"):
        ahead(home, user, SIGNATURE)
    assert len(checks.asked) == 2


def test_the_image_of_the_job_is_allowed(
    home: Path, user: dict[str, str], images: Path, checks: Checks
) -> None:
    cpu = os.path.realpath(images / "llm-cpu.sif")
    checks.signed.add(cpu)
    assert ahead(home, user, SIGNATURE) == []
    assert checks.asked == [cpu]
    [notice] = ahead(home, user, SIGNATURE, gpus=True)  # the other variant, which it would use
    assert "llm-cuda12-ba9876543210.sif must not be used" in notice


def test_without_apptainer_the_nodes_check(
    home: Path, user: dict[str, str], checks: Checks, tmp_path: Path
) -> None:
    user["LLM_APPTAINER"] = str(tmp_path / "nosuch")
    [notice] = ahead(home, user, SIGNATURE)
    assert notice.startswith("the image's signature is checked on the nodes")
    with pytest.raises(LLMError, match="a digest is required"):
        ahead(home, user, f"require = digest\ndigests = {OTHER}\n")


def test_the_digest_is_read_before_many_nodes_would(
    home: Path, user: dict[str, str], tmp_path: Path
) -> None:
    digests = Path(user["HOME"]) / ".cache/llm/image-digests"
    assert ahead(home, user, "") == [] and not digests.exists()
    assert ahead(home, user, "", several=True) == []
    assert len(list(digests.iterdir())) == 1


def test_a_job_with_gpus() -> None:
    assert not job_has_gpus({}, on_its_node=False)
    assert job_has_gpus({"SLURM_GPUS_PER_NODE": "2"}, on_its_node=False)


@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_step_is_not_started_in_an_image_that_is_not_allowed(
    home: Path, user: dict[str, str], checks: Checks, images: Path, is_allowed: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "srun").write_text("#!/bin/sh\n")
    (programs / "srun").chmod(0o755)
    user.update(PATH=str(programs), SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="1")
    settings = site(home, user, SIGNATURE)
    options, place = parse(["x"]), Place("batch", "7")
    if is_allowed:
        checks.signed.add(os.path.realpath(images / "llm-cpu.sif"))
        step = plan_step(options, settings, user, str(home), place)
        assert step.arguments[0] == str(programs / "srun") and step.notices == []
        return
    with pytest.raises(LLMError, match="a signature is required"):
        plan_step(options, settings, user, str(home), place)
