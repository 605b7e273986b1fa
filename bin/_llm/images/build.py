"""Build an image: inputs and hash, sandbox from the definition file, normalise, pack, test.

    sh bin/_llm/tool.sh image build --image llm --variant cpu
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _llm import checks
from _llm.debian import sha256_of
from _llm.errors import LLMError
from _llm.images import llama_cpp, needs, pip_settings, registry, staging, steps
from _llm.images.bootstrap import unpack_base
from _llm.images.catalog import Image, load_image
from _llm.images.inputs import DIGEST_LENGTH, digest_of, image_inputs, lock_date
from _llm.images.pack import COMPRESSION, FIXED, pack
from _llm.images.sbom import make_sbom
from _llm.images.store import Store, make_store
from _llm.locking import only_one

# As apptainer(1) names them, without APPTAINER_ or SINGULARITY_.
REGISTRY_VARIABLES = ("DOCKER_USERNAME", "DOCKER_PASSWORD", "NOHTTPS", "AUTHFILE")
# What else of the host's environment Apptainer gets: a build sees no locale, time zone or user.
PASSED = ("PATH", "HOME", "XDG_RUNTIME_DIR",
          *pip_settings.PROXY_VARIABLES, *pip_settings.CA_VARIABLES)
# Room for the sandbox and the packed image, in GiB (measured: cpu 2.5, cuda13 11).
NEED_GIB = {"": 2, "cpu": 6, "cuda12": 24, "cuda13": 24}


@dataclass(frozen=True)
class Request:
    """Everything that a build depends on besides the image itself.

    containers: folder of the definitions. images: where image files go. cache: downloads and
    compiled parts. base: BASE of the command line, "" for Debian's packages. architectures: GPU
    architectures as CMake writes them. apptainer: path of the program. flags: what `apptainer exec`
    needs here. fakeroot: folder of the fakeroot program, "" where it is not needed. mirror: the
    site profile's Debian mirrors, "" for the host's own. archives: folders that a site keeps inputs
    in, looked at before anything is fetched.
    """

    containers: Path
    images: Path
    cache: Path
    apptainer: str
    flags: tuple[str, ...]
    base: str = ""
    architectures: tuple[str, ...] = ()
    mirror: str = ""
    fakeroot: str = ""
    archives: tuple[str, ...] = ()

    @functools.cached_property
    def store(self) -> Store:
        """Where everything is kept that builds take from elsewhere."""
        return make_store(self.cache, self.archives)

    @functools.cached_property
    def pinned_base(self) -> str:
        """SHA-256 of the manifest that BASE names in its registry now; its blobs are kept."""
        folder = self.cache / "registry"
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / ".lock"):
            return registry.pin(self.base, self.store, folder, self.apptainer, self.env)

    @functools.cached_property
    def env(self) -> dict[str, str]:
        """Environment of Apptainer: nothing that would change a build by accident.

        How a registry is reached (account, no HTTPS, proxy) passes: it changes no image.
        """
        programs = ("APPTAINER_", "SINGULARITY_")
        env = {k: v for k, v in os.environ.items() if k in PASSED
               or (k.startswith(programs) and k.partition("_")[2] in REGISTRY_VARIABLES)}
        env["LC_ALL"] = "C.UTF-8"
        folders = [self.fakeroot, os.path.dirname(self.apptainer), env.get("PATH", "")]
        env["PATH"] = os.pathsep.join([*filter(None, folders), "/usr/sbin", "/sbin"])
        return env

    @functools.cached_property
    def tools(self) -> dict[str, str]:
        """Versions of the programs that make the image."""
        mksquashfs = subprocess.run([self.mksquashfs, "-version"], capture_output=True, text=True,
                                    check=False, env=self.env).stdout.split("\n")[0]
        return {"apptainer": checks.apptainer_version(self.apptainer),
                "mksquashfs": " ".join(mksquashfs.split()[:3]),
                "mksquashfs arguments": f"{COMPRESSION} {FIXED}"}

    @functools.cached_property
    def mksquashfs(self) -> str:
        """Path of the program."""
        program = shutil.which("mksquashfs", path=self.env["PATH"])
        if not program:
            raise LLMError("mksquashfs is missing", "it packs an image; Apptainer's own packages "
                           "bring it along", "an administrator installs the package squashfs-tools")
        return program


def inputs_of(image: Image, request: Request) -> dict[str, str]:
    """Every input of an image; its parents' through their digest."""
    arguments: dict[str, str] = {}
    if image.parent:
        parent = digest_of(inputs_of(load_image(request.containers, image.parent), request))
    else:
        parent = request.base or "Debian packages"
        file = steps.file_of_base(request.base)
        if file:
            parent = f"file {sha256_of(file)}"
        if registry.is_reference(request.base):
            parent = f"{registry.PREFIX}sha256:{request.pinned_base}"
    if compiles_for_gpus(image):
        arguments["CUDA_ARCHITECTURES"] = " ".join(request.architectures)
    return image_inputs(image, parent, arguments, request.tools)


def compiles_for_gpus(image: Image) -> bool:
    """Whether the build compiles code for GPUs: llama.cpp's, in a variant that has one."""
    return image.variant.startswith("cuda") and (image.folder / "llama.cpp").is_dir()


def target_of(image: Image, request: Request) -> Path:
    """Path of the image file for the inputs as they are now."""
    return file_for(image, request, inputs_of(image, request))


def file_for(image: Image, request: Request, inputs: Mapping[str, str]) -> Path:
    """Path of the image file for given inputs."""
    return request.images / f"{image.label}-{digest_of(inputs)[:DIGEST_LENGTH]}.sif"


def build(image: Image, request: Request) -> Path:
    """Return the image's file, built when no file with these inputs is there.

    Its parents are built first. Two builds at once wait for each other; the second finds the image.
    """
    missing = [str(file) for file in locks_of(image) if not file.exists()]
    if missing:
        raise LLMError(f"image {image.label} can't be built yet: it is not locked",
                       f"missing: {', '.join(missing)}",
                       f"make lock IMAGE={image.name} VARIANT={image.variant}")
    inputs = inputs_of(image, request)
    target = file_for(image, request, inputs)
    link = request.images / f"{image.label}.sif"
    if target.exists():
        with contextlib.suppress(OSError):  # an image in somebody else's folder
            steps.set_link(target, link)
        return target
    request.images.mkdir(parents=True, exist_ok=True)
    parent = build(load_image(request.containers, image.parent), request) if image.parent else None
    with only_one(request.images / f".{image.label}.lock") as alone:
        if alone:
            remove_parts(request.images, image)
        if not target.exists():
            make(image, parent, inputs, target, request)
            steps.set_link(target, link)
    return target


def locks_of(image: Image) -> list[Path]:
    """The locks that an image needs."""
    apt = image.folder / (f"apt-{image.variant}.lock" if image.variant else "apt.lock")
    python = image.folder / f"requirements-{image.variant}.lock"
    compiler = image.folder / "llama.cpp" / f"{image.variant}-compiler.lock"
    compilers = [compiler] if compiles_for_gpus(image) else []
    return [apt, *([python] if image.variant else []), *compilers]


def make(
    image: Image, parent: Path | None, inputs: Mapping[str, str], target: Path, request: Request,
) -> None:
    """Build one image whose parent is there, in visible steps."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    log = steps.Log(request.images / "logs" / f"{target.stem}-{stamp}.log")
    print(f"image: building {target}\nimage: log {log.path}", flush=True)
    warn_of_quota(request.images)
    compiled = []
    if (image.folder / "llama.cpp").is_dir():
        compiled = compiled_parts(image, parent, request, log)
    with staging.work_folder(os.environ, NEED_GIB.get(image.variant, 4)) as work:
        log.step(1, 5, f"inputs: {len(inputs)} of them, digest {digest_of(inputs)[:DIGEST_LENGTH]}")
        folder = work / "staging"
        binds = stage(image, folder, request)
        (folder / "inputs.txt").write_text(
            "".join(f"{key}: {value}\n" for key, value in sorted(inputs.items())))
        for name, part in compiled:
            (folder / name).mkdir()
            binds += ["--bind", f"{part}:{staging.INSIDE}/{name}:ro"]
        root = "" if image.parent or request.base else str(work / "root")
        if root:
            unpack_base((folder / "debs/pool").glob("*.deb"), work / "root")
        arguments = build_arguments(image, str(parent or ""), root, digest_of(inputs))
        definition = (image.folder / "image.def").read_text()
        if not image.parent:
            base = request.base
            if registry.is_reference(base):
                base = registry.make_layout(request.pinned_base, request.store, work / "base")
            definition = steps.effective_definition(definition, base)
        env = build_env(request, work, image)
        log.step(2, 5, "sandbox from the definition file")
        sandbox = steps.make_sandbox(request.apptainer, image, definition, arguments, binds, work,
                                     env, log)
        log.step(3, 5, "normalise: nothing of this build's time, place or user stays")
        day, digest = day_of(image), digest_of(inputs)
        written = canonical_definition(image, request, inputs)
        check_inputs(inputs, inputs_of(image, request))
        (sandbox / ".singularity.d/Singularity").write_text(written)
        (folder / "tree").mkdir()
        steps.normalise(request.apptainer, sandbox, binds, day, env, log)
        log.step(4, 5, "pack")
        sbom = make_sbom(sandbox, image.label, digest, day)
        part = target.with_name(f".{target.name}.part-{os.getpid()}")
        try:
            pack(request.apptainer, request.mksquashfs, sandbox, part, definition=written,
                 sbom=sbom, digest=digest, epoch=epoch_of(day), env=env, log=log)
            log.step(5, 5, f"smoke test ({part.stat().st_size / 2**20:.0f} MiB)")
            steps.smoke_test(request.apptainer, part, request.flags, env, log)
            steps.publish(part, target)
        finally:
            part.unlink(missing_ok=True)
    print(f"image: {target} is ready", flush=True)


def check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise LLMError where inputs changed while they were read: the name would not say of what the
    image is made."""
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise LLMError("inputs changed while the image was built", ", ".join(changed),
                       "the same command again")


def stage(image: Image, folder: Path, request: Request, flavour: str = "") -> list[str]:
    """Make the staging folder of an image, or of the sandbox that compiles a flavour of llama.cpp.

    Everything that comes from elsewhere is in the archive then, checked by its SHA-256: the sandbox
    needs no network. Returns the `--bind` options that show it to the build.
    """
    wanted = needs.needs_of_compiling(image, flavour, request.containers) if flavour \
        else needs.needs_of(image, request.containers)
    files = needs.collect(wanted, request.store, request.mirror)
    return staging.make_staging(folder, request.containers, files, request.store, request.cache)


def build_env(request: Request, work: Path, image: Image) -> dict[str, str]:
    """Environment of one build: Apptainer's temporary files in the work folder."""
    env = dict(request.env)
    env["APPTAINER_TMPDIR"] = env["TMPDIR"] = str(work)
    env["APPTAINER_CACHEDIR"] = str(request.cache / "apptainer")
    env["SOURCE_DATE_EPOCH"] = str(epoch_of(day_of(image)))
    return env


def build_arguments(image: Image, parent: str, root: str, digest: str) -> dict[str, str]:
    """Build arguments of the definition file: those that it names."""
    everything = {"PARENT": parent, "ROOT": root, "VARIANT": image.variant, "DIGEST": digest,
                  "LOCK_DATE": lock_date(image)}
    text = (image.folder / "image.def").read_text()
    return {key: value for key, value in everything.items() if f"{{{{ {key} }}}}" in text}


def canonical_definition(image: Image, request: Request, inputs: Mapping[str, str]) -> str:
    """The definition file as an image carries it: build arguments replaced, and its base named by
    what it is, not by where it was."""
    parent, root = inputs["parent"], "locked-debian-packages"
    if image.parent:
        parent = f"{image.parent}-{parent[:DIGEST_LENGTH]}"
    text = (image.folder / "image.def").read_text()
    if request.base and not image.parent:
        base = parent if "://" in parent else f"localimage:{parent}"
        text = steps.effective_definition(text, base)
    for name, value in build_arguments(image, parent, root, digest_of(inputs)).items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    return text


def compiled_parts(
    image: Image, parent: Path | None, request: Request, log: steps.Log,
) -> list[tuple[str, Path]]:
    """Return what of llama.cpp goes into the image, as (name in staging, folder), compiled first
    where the cache lacks it."""
    parts = [("llama.cpp", compiled(image, parent, "cpu", (), request, log))]
    if compiles_for_gpus(image):
        folder = compiled(image, parent, image.variant, request.architectures, request, log)
        parts.append(("llama.cpp-gpu", folder))
    return parts


def compiled(
    image: Image, parent: Path | None, flavour: str, architectures: Sequence[str], request: Request,
    log: steps.Log,
) -> Path:
    """Return the folder of one flavour of llama.cpp, compiled when absent."""
    scripts = image.folder / "llama.cpp"
    key = llama_cpp.compile_key(scripts, flavour, architectures)
    kept = llama_cpp.compiled_folder(request.cache, flavour, key)
    if llama_cpp.is_complete(kept):
        return kept
    with only_one(request.images / f".llama.cpp-{flavour}.lock"):
        if not llama_cpp.is_complete(kept):
            print(f"image: compiling llama.cpp ({flavour}); once, about 20 minutes on 2 cores "
                  "(CUDA: 40 for one architecture)", flush=True)
            compile_llama(image, parent, flavour, architectures, kept, request, log)
    return kept


def compile_llama(
    image: Image, parent: Path | None, flavour: str, architectures: Sequence[str], kept: Path,
    request: Request, log: steps.Log,
) -> None:
    """Compile one flavour in a sandbox of its own and keep the result in the cache."""
    scripts = image.folder / "llama.cpp"
    with staging.work_folder(os.environ, 8) as work:
        folder = work / "staging"
        cpu = replace(image, variant="cpu")
        binds = stage(cpu, folder, request, flavour)
        (folder / "compile-apt.lock").write_text(locks_of(cpu)[0].read_text())
        for name, source in (("llama.cpp-scripts", scripts), ("out", work / "out")):
            (folder / name).mkdir()
            source.mkdir(exist_ok=True)
            binds += ["--bind", f"{source}:{staging.INSIDE}/{name}"]
        arguments = {"PARENT": str(parent), **llama_cpp.compile_arguments(flavour, architectures)}
        definition = (scripts / "compile.def").read_text()
        env = build_env(request, work, image)
        steps.make_sandbox(request.apptainer, image, definition, arguments, binds, work, env, log)
        llama_cpp.keep(work / "out", kept)


def remove_parts(images: Path, image: Image) -> None:
    """Remove what builds of this image left behind that were killed while they packed."""
    for part in images.glob(f".{image.label}-*.sif.part-*"):
        with contextlib.suppress(OSError):
            part.unlink()


def day_of(image: Image) -> str:
    """The day that an image's files and labels have: that of its newest lock, else 1970-01-01."""
    try:
        return datetime.date.fromisoformat(lock_date(image)).isoformat()
    except ValueError:
        return "1970-01-01"


def epoch_of(day: str) -> int:
    """Seconds since 1970 of a day's beginning (UTC)."""
    moment = datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.timezone.utc)
    return int(moment.timestamp())


def warn_of_quota(images: Path) -> None:
    """Say when images go to a home folder, which on clusters is small and under quota."""
    home = os.path.realpath(os.path.expanduser("~"))
    inside = os.path.realpath(images).startswith(home + os.sep)
    if inside and checks.is_network_file_system(Path(home)):
        print(f"image: note: {images} is in your home folder on a network file system; images take "
              "1 to 10 GB. LLM_IMAGE_DIR=/path/on/scratch puts them elsewhere", flush=True)
