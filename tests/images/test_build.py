"""Building through real Apptainer: names by content, nothing half done, two builds at once."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "bin"))

from _llm import setup  # noqa: E402
from _llm.apptainer import exec_flags  # noqa: E402
from _llm.errors import LLMError  # noqa: E402
from _llm.images import build as builder  # noqa: E402
from _llm.images.catalog import load_image  # noqa: E402
from _llm.locking import only_one  # noqa: E402

DEFINITION = """\
Bootstrap: localimage
From: unused

%post
    {post}
    mkdir -p /opt/llm && cat /mnt/inputs.txt > /opt/llm/inputs.txt

%test
    test -s /opt/llm/inputs.txt

%labels
    llm.lock-date 2026-01-01
"""


@pytest.fixture
def request_(
    tmp_path: Path, base_image: Path, monkeypatch: pytest.MonkeyPatch,
) -> builder.Request:
    """A build of an image `tiny` on top of `base`, in folders with hostile names."""
    containers = tmp_path / "it's; a \"checkout\""
    (containers / "tiny").mkdir(parents=True)
    for pattern in ("*.sh", "*.py"):
        for script in (HOME / "containers").glob(pattern):
            shutil.copy2(script, containers)
    (containers / "tiny/apt.lock").write_text("# locked: 2026-01-01\n")
    (containers / "tiny/image.def").write_text(DEFINITION.format(post="true"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("LLM_BUILD_DIR", str(work))
    return builder.Request(
        containers=containers, images=tmp_path / "images ü", cache=tmp_path / "cache",
        apptainer=setup.ensure_apptainer(), flags=exec_flags(),
        base=str(base_image), fakeroot=setup.ensure_fakeroot())


def build(request: builder.Request) -> Path:
    return builder.build(load_image(request.containers, "tiny"), request)


def leftovers(request: builder.Request, work: Path) -> list[str]:
    hidden = [path.name for path in request.images.glob(".*part*")]
    return hidden + [path.name for path in work.iterdir()]


def test_builds_once_and_is_found_again(request_: builder.Request, tmp_path: Path) -> None:
    image = build(request_)
    assert image.name.startswith("tiny-") and (request_.images / "tiny.sif").resolve() == image
    assert leftovers(request_, tmp_path / "work") == []
    before = image.stat(), len(list((request_.images / "logs").iterdir()))
    assert build(request_) == image
    assert (image.stat(), len(list((request_.images / "logs").iterdir()))) == before
    inputs = subprocess.run([request_.apptainer, "exec", *request_.flags, image, "cat",
                             "/opt/llm/inputs.txt"], capture_output=True, text=True, check=True)
    assert "image: tiny" in inputs.stdout and "tool apptainer: 1." in inputs.stdout


def test_failure_shows_the_tail_and_leaves_nothing(
    request_: builder.Request, tmp_path: Path,
) -> None:
    definition = request_.containers / "tiny/image.def"
    definition.write_text(DEFINITION.format(post="echo the reason is here >&2; exit 7"))
    with pytest.raises(LLMError, match="building tiny failed") as raised:
        build(request_)
    assert "the reason is here" in raised.value.why
    assert list(request_.images.glob("*.sif")) == []
    assert leftovers(request_, tmp_path / "work") == []
    definition.write_text(DEFINITION.format(post="true"))
    assert build(request_).exists()


def test_failing_smoke_test_publishes_nothing(request_: builder.Request) -> None:
    definition = request_.containers / "tiny/image.def"
    definition.write_text(DEFINITION.format(post="true").replace("test -s", "test ! -s"))
    with pytest.raises(LLMError, match="smoke test failed"):
        build(request_)
    assert list(request_.images.glob("*.sif")) == []


def test_too_little_room_is_said_before_anything_is_built(request_: builder.Request) -> None:
    builder.NEED_GIB["huge"] = 10**6
    image = replace(load_image(request_.containers, "tiny"), variant="")
    old = builder.NEED_GIB[""]
    builder.NEED_GIB[""] = 10**6
    try:
        with pytest.raises(LLMError, match="GiB free, the build needs about"):
            builder.build(image, request_)
    finally:
        builder.NEED_GIB[""] = old
        del builder.NEED_GIB["huge"]


def test_another_base_from_an_oci_archive(
    request_: builder.Request, base_image: Path, apptainer: list[str], tmp_path: Path,
) -> None:
    """What `BASE=docker://…` does, from a file in a registry's own format."""
    archive = tmp_path / "debian.tar"
    make_oci_archive(archive, [*apptainer, "--no-home", str(base_image)])
    request = replace(request_, base=f"oci-archive:{archive}")
    image = build(request)
    assert image != builder.target_of(load_image(request.containers, "tiny"), request_)
    done = subprocess.run([*apptainer, str(image), "cat", "/etc/from-oci"], capture_output=True,
                          text=True, check=True)
    assert done.stdout == "yes\n"


def test_another_base_from_a_registry(
    request_: builder.Request, base_image: Path, apptainer: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`BASE=docker://…` against a registry on this machine that speaks the real protocol."""
    blobs, manifest = oci_image([*apptainer, "--no-home", str(base_image)])
    registry = Registry(blobs, manifest)
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    try:
        base = f"docker://127.0.0.1:{registry.server_port}/debian:bookworm-slim"
        # As a site with a registry of its own without certificates would.
        monkeypatch.setenv("APPTAINER_NOHTTPS", "1")
        image = build(replace(request_, base=base))
        gone = base.replace("bookworm-slim", "no-such-tag")
        with pytest.raises(LLMError, match=r"cannot fetch docker://.*no-such-tag") as raised:
            build(replace(request_, base=gone))
        assert "404" in raised.value.why
        # The digest is an input, the tag and the registry's name are not.
        digest = f"docker://localhost:{registry.server_port}/debian@{manifest['digest']}"
        assert build(replace(request_, base=digest)) == image
    finally:
        registry.shutdown()
        registry.server_close()
    # Without the registry, from what is kept: the same inputs, so the same image.
    image.unlink()
    assert build(replace(request_, base=base)) == image
    done = subprocess.run([*apptainer, str(image), "cat", "/etc/from-oci"], capture_output=True,
                          text=True, check=True)
    assert done.stdout == "yes\n"


class Registry(http.server.ThreadingHTTPServer):
    """One image, served as the OCI distribution specification 1.1 says."""

    def __init__(self, blobs: dict[str, bytes], manifest: dict[str, object]) -> None:
        super().__init__(("127.0.0.1", 0), RegistryHandler)
        self.blobs, self.manifest = blobs, manifest


class RegistryHandler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD of /v2/, /v2/NAME/manifests/TAG and /v2/NAME/blobs/DIGEST."""

    server: Registry

    def do_GET(self) -> None:
        """Send what the path names, or 404."""
        kind, _, name = self.path.rpartition("/")
        digest = str(self.server.manifest["digest"]) if name == "bookworm-slim" else name
        data = self.server.blobs.get(digest.removeprefix("sha256:"))
        media = "application/octet-stream"
        if self.path == "/v2/":
            data, media = b"{}", "application/json"
        elif kind.endswith("/manifests"):
            media = str(self.server.manifest["mediaType"])
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data or b"")))
        if data:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "GET" and data:
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


def oci_image(execute: list[str]) -> tuple[dict[str, bytes], dict[str, object]]:
    """A file tree as an OCI image: its blobs by digest, and its manifest's descriptor."""
    layer = subprocess.run(
        [*execute, "sh", "-c", "mkdir /tmp/oci$$ && cd /tmp/oci$$ && mkdir etc && echo yes > "
         "etc/from-oci && tar -c --exclude=./dev --exclude=./proc --exclude=./sys --exclude=./tmp "
         "--exclude=./etc/resolv.conf --exclude=./etc/hosts --one-file-system -C / . -C /tmp/oci$$ "
         "./etc/from-oci; rm -r /tmp/oci$$"], capture_output=True, check=True).stdout
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "size": len(data),
                "digest": f"sha256:{digest}"}

    first = blob("layer.v1.tar", layer)
    config = blob("config.v1+json", json.dumps({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [first["digest"]]}}).encode())
    return blobs, blob("manifest.v1+json", json.dumps(
        {"schemaVersion": 2, "config": config, "layers": [first],
         "mediaType": "application/vnd.oci.image.manifest.v1+json"}).encode())


def make_oci_archive(archive: Path, execute: list[str]) -> None:
    """Write a file tree as an OCI image (OCI image layout specification 1.0)."""
    blobs, manifest = oci_image(execute)
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
             "index.json": json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode(),
             **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()}}
    with tarfile.open(archive, "w") as tar:
        for folder in ("blobs", "blobs/sha256"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


BUILD_IN_A_PROCESS = """\
import sys
sys.path.insert(0, {bin!r})
from pathlib import Path
from _llm.images import build as b
from _llm.images.catalog import load_image
r = b.Request(containers=Path({containers!r}), images=Path({images!r}), cache=Path({cache!r}),
              apptainer={apptainer!r}, flags={flags!r}, base={base!r}, fakeroot={fakeroot!r})
print(b.build(load_image(r.containers, "tiny"), r))
"""


def start(request: builder.Request) -> subprocess.Popen[str]:
    code = BUILD_IN_A_PROCESS.format(
        bin=str(HOME / "bin"), containers=str(request.containers), images=str(request.images),
        cache=str(request.cache), apptainer=request.apptainer, flags=request.flags,
        base=request.base, fakeroot=request.fakeroot)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.STDOUT)


def test_two_builds_at_once_give_one_image(request_: builder.Request, tmp_path: Path) -> None:
    request_.images.mkdir()
    # Neither may be through before the other one starts: both wait for a third.
    with only_one(request_.images / ".tiny.lock"):
        both = [start(request_) for _ in range(2)]
        for process in both:
            assert process.stdout and any("waiting for it" in line for line in process.stdout)
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert sum("1/5 inputs" in output for output in outputs) == 1, outputs
    assert leftovers(request_, tmp_path / "work") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_image_and_the_next_one_works(
    request_: builder.Request, tmp_path: Path, number: signal.Signals,
) -> None:
    definition = request_.containers / "tiny/image.def"
    marker = tmp_path / "work"
    definition.write_text(DEFINITION.format(post="touch /mnt/reached; sleep 60"))
    process = start(request_)
    deadline = time.monotonic() + 120
    while not list(marker.glob("*/staging/reached")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(marker.glob("*/staging/reached")), "the build never reached %post"
    process.send_signal(number)
    process.wait(60)
    assert process.returncode != 0
    assert list(request_.images.glob("*.sif")) == []
    definition.write_text(DEFINITION.format(post="true"))
    assert build(request_).exists()
    assert leftovers(request_, tmp_path / "work") == []
