"""Signing, checking and requiring through the real Apptainer, with tiny images made here.

python -m pytest tests/images/test_signing.py
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "bin"))
from _llm.errors import LLMError  # noqa: E402
from _llm.sif import SIGNATURE, payload_digest, read_objects  # noqa: E402
from _llm.signing import check  # noqa: E402
from _llm.signing import sign as sign_module  # noqa: E402
from _llm.signing.check import check_signature  # noqa: E402
from _llm.signing.sign import sign_image  # noqa: E402
from _llm.signing.signatures import read_signatures  # noqa: E402

KEYS = REPOSITORY / "tests" / "unit" / "signing" / "keys"
ONCE = "57611CD8E08DAFA6D53AB5A04EF38F18E14E9703"
SITE = "B899DF0FB62574380550EB8D8AAA7A06E75A19C2"


def key(name: str) -> str:
    return str(KEYS / name)


@pytest.fixture(scope="session")
def program(apptainer: list[str]) -> str:
    return apptainer[0]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def unsigned(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image as `make image` makes them, with the objects of one, that starts nothing."""
    folder = tmp_path_factory.mktemp("parts")
    image = folder / "base.sif"
    run(program, "sif", "new", image)
    for name, options in (
        ("definition", ["--datatype", "1"]),
        ("inspect-metadata.json", ["--datatype", "6"]),
        ("sbom.cdx.json", ["--datatype", "9", "--sbomformat", "cyclonedx-json"]),
        ("root", ["--datatype", "4", "--parttype", "2", "--partfs", "1", "--partarch", "2"]),
    ):
        (folder / name).write_bytes(b"hsqs " + name.encode() * 2000)
        run(program, "sif", "add", *options, "--groupid", "1", image, folder / name)
    return image


@pytest.fixture
def image(unsigned: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images of ünï; 'x'"
    folder.mkdir()
    return Path(shutil.copy(unsigned, folder / "base.sif"))


@pytest.fixture
def keyring(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keyring of Apptainer's with two secret keys, of which one has expired."""
    folder = tmp_path / "keyring"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("APPTAINER_KEYSDIR", str(folder))
    monkeypatch.setenv("SINGULARITY_KEYSDIR", str(folder))
    for name in ("once", "site"):
        done = subprocess.run([program, "key", "import", key(f"{name}.secret.asc")], input="\n",
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def others(image: Path) -> list[str]:
    """What is beside the image: what a signing that failed may have left."""
    return [name for name in os.listdir(image.parent) if name != image.name]


@pytest.mark.parametrize("name", ["ed25519", "ec", "rsa"])
def test_a_pem_key(program: str, image: Path, unsigned: Path, name: str) -> None:
    image.chmod(0o640)
    sign_image(program, image, key(f"{name}.pem"), "")
    assert payload_digest(str(image)) == payload_digest(str(unsigned))
    assert stat.S_IMODE(image.stat().st_mode) == 0o640
    assert others(image) == []
    said = check_signature(program, str(image), [key("site.asc"), key(f"{name}.pub")])
    assert said.startswith(f"signed by {key(name + '.pub')}, SHA256:")
    assert time.strftime(" on %Y-", time.gmtime()) in said and said.endswith(" UTC")


def test_a_pgp_key(program: str, image: Path, unsigned: Path, keyring: Path) -> None:
    sign_image(program, image, "", "site@EXAMPLE")
    assert payload_digest(str(image)) == payload_digest(str(unsigned))
    shutil.rmtree(keyring)  # the check has one of its own
    said = check_signature(program, str(image), [key("site.asc")])
    assert said.startswith(f"signed by Site Images <site@example.org>, {SITE}, on ")
    assert not keyring.exists()


def test_a_certificate(program: str, image: Path) -> None:
    sign_image(program, image, key("rsa.pem"), "")
    said = check_signature(program, str(image), [key("valid.crt")])
    assert said.startswith("signed by Cluster Images, SHA256:")
    with pytest.raises(LLMError, match="has expired") as caught:
        check_signature(program, str(image), [key("expired.crt")])
    assert "2012-01-01" in caught.value.why
    assert check_signature(program, str(image), [key("expired.crt"), key("valid.crt")]) == said


def test_signed_twice_with_the_same_key(
    program: str, image: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for pem, signer in ((key("ed25519.pem"), ""), ("", SITE)):
        sign_image(program, image, pem, signer)
        before = image.read_bytes(), image.stat().st_ino
        capsys.readouterr()
        sign_image(program, image, pem, signer)
        assert (image.read_bytes(), image.stat().st_ino) == before
        assert "is already signed by" in capsys.readouterr().err


def test_signed_by_several(program: str, image: Path, unsigned: Path, keyring: Path) -> None:
    for pem, signer in ((key("ed25519.pem"), ""), (key("ec.pem"), ""), ("", SITE[-16:])):
        sign_image(program, image, pem, signer)
    assert sum(item.type == SIGNATURE for item in read_objects(str(image))) == 3
    assert payload_digest(str(image)) == payload_digest(str(unsigned))
    for name in ("ed25519.pub", "ec.pub", "site.asc"):
        assert check_signature(program, str(image), [key(name)])
    with pytest.raises(LLMError, match="signed by somebody else") as caught:
        check_signature(program, str(image), [key("rsa.pub"), key("once.asc")])
    assert SITE in caught.value.why and ONCE in caught.value.why
    assert others(image) == []


def test_not_signed(program: str, image: Path) -> None:
    with pytest.raises(LLMError, match="is not signed"):
        check_signature(program, str(image), [key("rsa.pub")])
    sign_image(program, image, key("rsa.pem"), "")
    check_signature(program, str(image), [key("rsa.pub")])
    run(program, "sif", "del", "5", image)
    with pytest.raises(LLMError, match="is not signed"):
        check_signature(program, str(image), [key("rsa.pub")])


def test_a_signature_that_names_a_key_and_is_not_by_it(program: str, image: Path) -> None:
    other = image.with_name("other.sif")
    shutil.copy(image, other)
    sign_image(program, image, key("ed25519.pem"), "")
    [item] = [item for item in read_objects(str(image)) if item.type == SIGNATURE]
    data = bytearray(image.read_bytes())
    begin = data.index(b'"sig":"', item.offset) + 7
    data[begin : begin + 4] = b"AAAA"
    image.write_bytes(data)
    with pytest.raises(LLMError, match="does not hold"):
        check_signature(program, str(image), [key("ed25519.pub")])


@pytest.mark.parametrize("way", ["pem", "pgp"])
def test_a_changed_byte_in_each_object(
    program: str, image: Path, keyring: Path, way: str
) -> None:
    pem, signer, public = (key("ec.pem"), "", key("ec.pub"))
    if way == "pgp":
        pem, signer, public = "", SITE, key("site.asc")
    sign_image(program, image, pem, signer)
    data = image.read_bytes()
    for item in read_objects(str(image)):
        changed = bytearray(data)
        changed[item.offset + item.size // 3] ^= 1
        image.write_bytes(changed)
        with pytest.raises(LLMError, match=r"does not hold|somebody else"):
            check_signature(program, str(image), [public])
        if item.type != SIGNATURE:
            with pytest.raises(LLMError, match=r"was changed after .* had signed it"):
                sign_image(program, image, pem, signer)
    image.write_bytes(data)
    assert check_signature(program, str(image), [public])


@pytest.mark.parametrize(
    "options",
    [
        ["--datatype", "7"],
        ["--datatype", "7", "--groupid", "1"],
        ["--datatype", "7", "--groupid", "2"],
        ["--datatype", "4", "--parttype", "4", "--partfs", "1", "--partarch", "2"],
        ["--datatype", "4", "--parttype", "4", "--partfs", "1", "--partarch", "2", "--groupid",
         "1"],
    ],
)  # fmt: skip
def test_an_object_that_was_added_after_signing(
    program: str, image: Path, options: list[str]
) -> None:
    sign_image(program, image, key("ec.pem"), "")
    run(program, "sif", "add", *options, image, KEYS / "README.md")
    with pytest.raises(LLMError, match="holds something that its signature does not cover"):
        check_signature(program, str(image), [key("ec.pub")])


def test_an_object_that_no_signature_would_cover_is_not_signed(program: str, image: Path) -> None:
    run(program, "sif", "add", "--datatype", "7", image, KEYS / "README.md")
    before = image.read_bytes()
    with pytest.raises(LLMError, match="cannot be signed") as caught:
        sign_image(program, image, key("ec.pem"), "")
    assert "objects 5, which belong to no group" in caught.value.why
    assert image.read_bytes() == before


def test_a_pgp_key_that_has_expired(
    program: str, image: Path, unsigned: Path, keyring: Path
) -> None:
    with pytest.raises(LLMError, match="would not hold") as caught:
        sign_image(program, image, "", "Once")
    assert "expired" in caught.value.why
    assert image.read_bytes() == unsigned.read_bytes() and others(image) == []
    run(program, "sign", "--keyidx", "0", image)  # Apptainer itself does
    with pytest.raises(LLMError, match="has expired") as caught:
        check_signature(program, str(image), [key("once.asc")])
    assert "2020-12-31" in caught.value.why
    said = check_signature(program, str(image), [key("once-renewed.asc")])
    assert ONCE in said


def test_a_pgp_key_that_was_revoked(program: str, image: Path, keyring: Path) -> None:
    sign_image(program, image, "", SITE)
    with pytest.raises(LLMError, match="that was revoked"):
        check_signature(program, str(image), [key("site-revoked.asc")])


def test_which_pgp_key(program: str, image: Path, keyring: Path) -> None:
    with pytest.raises(LLMError, match="which PGP key") as caught:
        sign_image(program, image, "", "")
    assert SITE in caught.value.why and "there are 2 keys" in caught.value.why
    with pytest.raises(LLMError, match="which PGP key") as caught:
        sign_image(program, image, "", "example.org")
    assert "2 keys fit 'example.org'" in caught.value.why
    index = sign_module.choose_signer(program, SITE).words[1]
    for wanted in (index, SITE.lower(), "0x" + SITE[-16:], f"{SITE[:20]} {SITE[20:]}", "Site I"):
        assert sign_module.choose_signer(program, wanted).fingerprint == SITE
    shutil.rmtree(keyring)
    keyring.mkdir(mode=0o700)
    with pytest.raises(LLMError, match="has no private key"):
        sign_image(program, image, "", "")
    with pytest.raises(LLMError, match="both given"):
        sign_image(program, image, key("ec.pem"), "Site")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ec.pub", "no private key"),
        ("site.secret.asc", "it is a PGP key; import it"),
        ("nosuch.pem", "No such file"),
        ("README.md", "no private key"),
    ],
)
def test_what_is_no_private_key(
    program: str, image: Path, unsigned: Path, name: str, words: str
) -> None:
    with pytest.raises(LLMError, match="cannot be used") as caught:
        sign_image(program, image, key(name), "")
    assert words in caught.value.why
    assert image.read_bytes() == unsigned.read_bytes() and others(image) == []


def test_a_passphrase(
    program: str, image: Path, unsigned: Path, keyring: Path, tmp_path: Path
) -> None:
    run(program, "key", "newpair", "--password=pass phrase", "--name=Ann", "--email=ann@x.org",
        "--comment=", "--push=false", "--bit-length=2048")  # fmt: skip
    tool = [sys.executable, "-I", str(REPOSITORY / "bin/_llm/main.py"), "sign"]
    tool += ["--image", str(image), "--signer", "ann@x.org"]
    env = {**os.environ, "LLM_APPTAINER": program}
    done = subprocess.run(tool, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "start it on a terminal" in done.stderr
    assert image.read_bytes() == unsigned.read_bytes() and others(image) == []
    answer, seen = on_a_terminal(tool, env, "passphrase", "pass phrase\n")
    assert answer == 0, seen
    assert [item.type for item in read_objects(str(image))].count(SIGNATURE) == 1


def on_a_terminal(
    command: list[str], env: Mapping[str, str], question: str, answer: str
) -> tuple[int, str]:
    """Start a program on a terminal of its own, answer its question, wait for its end."""
    import pty
    import termios

    child, handle = pty.fork()
    if child == 0:
        os.execve(command[0], command, dict(env))
    seen, answered = b"", False
    while True:
        try:
            piece = os.read(handle, 1024)
        except OSError:
            break
        if not piece:
            break
        seen += piece
        if question.encode() in seen and not answered:
            answered = True
            # What is typed before the terminal stops to echo may be thrown away then.
            while termios.tcgetattr(handle)[3] & termios.ECHO:
                time.sleep(0.02)
            os.write(handle, answer.encode())
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), seen.decode(errors="replace")


@pytest.mark.parametrize("room", ["for half of the copy", "for no signature"])
def test_a_full_disk(program: str, image: Path, unsigned: Path, room: str) -> None:
    size = image.stat().st_size
    limit = size // 2 if room == "for half of the copy" else size + 10
    code = "import sys, resource; sys.path.insert(0, sys.argv[1]); n = int(sys.argv[5])\n"
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))\n"
    code += "from pathlib import Path; from _llm.errors import LLMError\n"
    code += "from _llm.signing.sign import sign_image, Signer; from _llm.signing import sign\n"
    # The small file that is signed first would not fit either.
    code += "sign.pem_signer = lambda a, k: Signer(k, 'SHA256:x', ('--key', k))\n"
    code += "try: sign_image(sys.argv[2], Path(sys.argv[3]), sys.argv[4], '')\n"
    code += "except LLMError as error: print(error); sys.exit(2)\n"
    command = [sys.executable, "-c", code, str(REPOSITORY / "bin"), program, str(image),
               key("ec.pem"), str(limit)]  # fmt: skip
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "be copied" in done.stdout or "be signed" in done.stdout
    assert image.read_bytes() == unsigned.read_bytes() and others(image) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption(
    program: str, image: Path, unsigned: Path, tmp_path: Path, number: signal.Signals
) -> None:
    # An Apptainer that hangs where it signs the copy.
    slow = tmp_path / "apptainer"
    slow.write_text(
        f"#!/bin/sh\ncase \"$1 $*\" in\n"
        f"sign*.sif.signing-*) touch '{tmp_path}/there'; exec sleep 60;; esac\n"
        f"exec '{program}' \"$@\"\n"
    )
    slow.chmod(0o755)
    command = [sys.executable, "-I", str(REPOSITORY / "bin/_llm/main.py"), "sign", "--image",
               str(image), "--key", key("ec.pem")]  # fmt: skip
    env = {**os.environ, "LLM_APPTAINER": str(slow)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as started:  # fmt: skip
        while not (tmp_path / "there").exists():
            assert started.poll() is None
            time.sleep(0.02)
        assert others(image)
        os.killpg(started.pid, number)
        _, said = started.communicate(timeout=30)
    assert started.returncode != 0 and "Traceback" not in said
    assert image.read_bytes() == unsigned.read_bytes() and others(image) == []


def test_a_link_is_followed(program: str, image: Path) -> None:
    link = image.with_name("link.sif")
    link.symlink_to(image.name)
    sign_image(program, link, key("ec.pem"), "")
    assert link.is_symlink() and check_signature(program, str(image), [key("ec.pub")])


def test_what_is_no_image_file(program: str, tmp_path: Path) -> None:
    squashfs = tmp_path / "x.sqsh"
    squashfs.write_bytes(b"hsqs" + bytes(500))
    for path in (tmp_path, squashfs, tmp_path / "nosuch"):
        with pytest.raises(LLMError, match="cannot be signed"):
            sign_image(program, path, key("ec.pem"), "")
    for path in (tmp_path, squashfs):
        with pytest.raises(LLMError, match="no signature that could be checked"):
            check_signature(program, str(path), [key("ec.pub")])


def test_the_commands(program: str, image: Path, tmp_path: Path) -> None:
    env = {**os.environ, "LLM_APPTAINER": program, "HOME": str(tmp_path), "LLM_SITE": "default"}
    env["LLM_IMAGE_DIR"] = str(image.parent)

    def tool(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(REPOSITORY / "bin/_llm/main.py"), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    done = tool("verify", "--image", "base")
    assert done.returncode == 2 and "which key is the signature to be checked with" in done.stderr
    done = tool("verify", "--image", "base", "--key", key("ec.pub"))
    assert done.returncode == 2 and "is not signed" in done.stderr
    done = tool("sign", "--image", "base", "--key", key("ec.pem"))
    assert done.returncode == 0, done.stderr
    assert payload_digest(str(image)) in done.stdout
    profile = tmp_path / "our site.ini"
    profile.write_text(f"[container]\nkeys = {key('rsa.pub')}\n  {key('ec.pub')}\n")
    env["LLM_SITE"] = str(profile)
    done = tool("verify", "--image", "base")
    assert done.returncode == 0, done.stderr
    for words in (key("ec.pub"), "SHA256:", "on  ", payload_digest(str(image))):
        assert words in done.stdout


class Cluster:
    """A site that requires something, and a user of it with the image base."""

    def __init__(self, folder: Path, image: Path, program: str) -> None:
        self.folder = folder
        self.image = folder / "images of 'us'" / "base.sif"
        self.image.parent.mkdir()
        try:
            os.link(image, self.image)
        except OSError:
            shutil.copy(image, self.image)
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "LLM_APPTAINER": program,
            "LLM_IMAGE_DIR": str(self.image.parent), "LLM_LOCAL_DIR": str(folder),
            "LLM_SITE": str(folder / "site.ini"),
        }  # fmt: skip

    def requires(self, text: str) -> None:
        (self.folder / "site.ini").write_text("[container]\n" + text)

    def llm_run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(REPOSITORY / "bin" / "llm-run"), "--image", "base", *words]
        return subprocess.run(command, env={**self.env, **env}, cwd=self.folder,
                              capture_output=True, text=True, timeout=300)  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path, base_image: Path, program: str) -> Cluster:
    return Cluster(tmp_path, base_image, program)


def test_a_site_that_requires_a_digest(cluster: Cluster) -> None:
    digest = payload_digest(str(cluster.image))
    cluster.requires(f"require = digest\ndigests = sha256:{'0' * 64}\n")
    done = cluster.llm_run("echo", "ran")
    assert done.returncode == 2 and done.stdout == ""
    assert "a digest is required (profile" in done.stderr and digest in done.stderr
    listed = cluster.folder / "a release's sums"
    listed.write_text(json.dumps({"images": [{"payload": digest}]}))
    cluster.requires(f"require = digest\ndigests = sha256:{'0' * 64}\n  {listed}\n")
    done = cluster.llm_run("echo", "ran")
    assert done.stdout == "ran\n", done.stderr
    # A variable takes nothing away.
    cluster.requires(f"require = digest\ndigests = sha256:{'0' * 64}\n")
    assert cluster.llm_run("true", LLM_REQUIRE="none").returncode == 2


def test_a_site_that_requires_a_signature(cluster: Cluster, program: str) -> None:
    cluster.requires(f"require = signature\nkeys = {key('ec.pub')}\n")
    done = cluster.llm_run("echo", "ran")
    assert done.returncode == 2 and "a signature is required (profile" in done.stderr
    assert "is not signed" in done.stderr
    sign_image(program, cluster.image, key("ec.pem"), "")
    done = cluster.llm_run("echo", "ran")
    assert done.stdout == "ran\n", done.stderr
    [kept] = (cluster.folder / ".cache/llm/image-signatures").iterdir()
    # Kept: the second start asks no Apptainer to verify.
    log = cluster.folder / "asked"
    slow = cluster.folder / "apptainer"
    slow.write_text(f"#!/bin/sh\necho \"$1\" >> '{log}'\nexec '{program}' \"$@\"\n")
    slow.chmod(0o755)
    assert cluster.llm_run("true", LLM_APPTAINER=str(slow)).returncode == 0
    assert "verify" not in log.read_text().split()
    # Another key, and one that has ended since, are no answer.
    cluster.requires(f"require = signature\nkeys = {key('rsa.pub')}\n")
    done = cluster.llm_run("true")
    assert done.returncode == 2 and "signed by somebody else" in done.stderr
    cluster.requires(f"require = signature\nkeys = {key('ec.pub')}\n")
    kept.write_text("1" + kept.read_text()[kept.read_text().index("\n") :])
    assert cluster.llm_run("true", LLM_APPTAINER=str(slow)).returncode == 0
    assert "verify" in log.read_text().split()
    # Both, of which one is missing; the environment may want more than the site.
    done = cluster.llm_run("true", LLM_REQUIRE="digest")
    assert done.returncode == 2 and "allows no image at all" in done.stderr


def test_a_requirement_that_cannot_be_met(cluster: Cluster, tmp_path: Path) -> None:
    cluster.requires("require = signature\n")
    done = cluster.llm_run("true")
    assert done.returncode == 2 and "no key is named" in done.stderr
    cluster.requires(f"require = signature\nkeys = {tmp_path}/nosuch\n")
    done = cluster.llm_run("true")
    assert done.returncode == 2 and "nosuch cannot be read" in done.stderr
    cluster.requires(f"require = signature\nkeys = {key('ec.pem')}\n")
    done = cluster.llm_run("true")
    assert done.returncode == 2 and "it is a private key" in done.stderr
    unpacked = tmp_path / "unpacked"
    (unpacked / ".singularity.d").mkdir(parents=True)
    done = cluster.llm_run("--image", str(unpacked), "true")
    assert done.returncode == 2 and "it is an unpacked folder" in done.stderr


@pytest.mark.parametrize("what", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_end_during_the_copy(
    program: str, image: Path, unsigned: Path, monkeypatch: pytest.MonkeyPatch, what: BaseException
) -> None:
    def half(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:5000])
        raise what

    monkeypatch.setattr(check, "copy_file", half)
    expected = KeyboardInterrupt if what is KeyboardInterrupt else LLMError
    with pytest.raises(expected):
        sign_image(program, image, key("ec.pem"), "")
    assert image.read_bytes() == unsigned.read_bytes() and others(image) == []


def test_signed_twice_at_the_same_time(
    program: str, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signature is lost without a word."""
    check_copy = sign_module._check_copy

    def slowly(*arguments: Any) -> None:
        check_copy(*arguments)
        monkeypatch.setattr(sign_module, "_check_copy", check_copy)
        monkeypatch.setattr(os, "getpid", lambda: 1)  # another process
        sign_image(program, image, key("rsa.pem"), "")

    monkeypatch.setattr(sign_module, "_check_copy", slowly)
    with pytest.raises(LLMError, match="was changed while a copy of it was signed"):
        sign_image(program, image, key("ec.pem"), "")
    assert len(read_signatures(str(image))) == 1 and others(image) == []
