"""The same bytes twice, through real Apptainer; and what would make them others is caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "bin"))

from _llm import setup  # noqa: E402
from _llm.apptainer import exec_flags  # noqa: E402
from _llm.contents.verify import explain  # noqa: E402
from _llm.errors import LLMError  # noqa: E402
from _llm.images import build as builder  # noqa: E402
from _llm.images.catalog import load_image  # noqa: E402
from _llm.sif import PARTITION, read_objects  # noqa: E402

NOBODY = 65534
DEFINITION = """\
Bootstrap: localimage
From: unused

%post
{post}

%test
    true

%labels
    llm.lock-date 2026-01-01
"""
# Everything that depends on a build's time, place or user and does not show in the image.
ORDINARY = """
    set -eu
    adduser --system --group --no-create-home somebody > /dev/null
    mkdir /opt/tiny && cd /opt/tiny
    echo now > file-time
    echo mine > mode-of-umask && mkdir folder-of-umask
    echo 'SECRET' > of-somebody && chown somebody:somebody of-somebody && chmod 600 of-somebody
    echo run > program && chmod 4755 program
    setfattr -n user.note -v $$ file-time 2> /dev/null || true
    sort > sorted << END
    i
    I
    ı
    z
    ä
    END
    date +%Z > time-zone
    printf '%s %s\\n' "${LANG:-}" "${LC_ALL:-}" > locale
    mkfifo pipe
    head -c 16 /dev/urandom > /var/log/log
    head -c 16 /dev/urandom | od -An -tx1 > /etc/machine-id
    head -c 16 /dev/urandom > /var/cache/apt/left-over
    hostname > /etc/hostname
    date > /root/.bash_history
    python3 - << END
    import compileall, os
    text = "\\n".join(f"def f{n}(self, name='the name', *, {chr(97 + n % 26)}=None):"
                     f"\\n    return 'a string', {n}, name in ('a', None, 'b')" for n in range(200))
    for folder in "abcdef":
        os.mkdir(folder)
        for number in range(5):
            open(f"{folder}/{number}.py", "w").write(text)
    END
    env -i PYTHONHASHSEED=0 python3 -S -s -B /mnt/compile_bytecode.py /opt/tiny
    python3 -m compileall -q -d /elsewhere /opt/tiny/a -f
"""
# What nobody can normalise: it shows, and is named.
INJECTED = """
    set -eu
    mkdir /opt/tiny && cd /opt/tiny
    head -c 16 /dev/urandom > random
    date +%s%N > time
    nproc > cpus
    python3 -c 'print({str(n) for n in range(50)})' > order-of-a-set
    touch "only-$(date +%N)"
    ln -s "target-$(date +%N)" link
    echo the same > the-same
"""


@dataclass
class Place:
    """Where one build happens: a copy of everything that it reads, at another path."""

    containers: Path
    images: Path
    work: Path
    base: Path


def place(folder: Path, base: Path, post: str) -> Place:
    containers = folder / "check out; it's"
    (containers / "tiny").mkdir(parents=True)
    for pattern in ("*.sh", "*.py"):
        for script in (HOME / "containers").glob(pattern):
            shutil.copy2(script, containers)
    (containers / "tiny/apt.lock").write_text("# locked: 2026-01-01\n")
    # A here-document ends with END at the beginning of a line.
    lines = [line[4:] if line.startswith("    ") else line for line in post.splitlines()]
    (containers / "tiny/image.def").write_text(DEFINITION.format(post="\n".join(lines)))
    (folder / "work").mkdir()
    # The path of the base is no input: its content is.
    copy = folder / "base.sif"
    shutil.copy(base, copy)
    return Place(containers, folder / "images", folder / "work", copy)


def build(where: Place, fakeroot: str = "") -> Path:
    request = builder.Request(
        containers=where.containers, images=where.images, cache=where.images / "cache",
        apptainer=setup.ensure_apptainer(), flags=exec_flags(), base=str(where.base),
        fakeroot=fakeroot or setup.ensure_fakeroot())
    return builder.build(load_image(where.containers, "tiny"), request)


@contextmanager
def conditions(umask: int, cpus: set[int]) -> Iterator[None]:
    old_mask, old_cpus = os.umask(umask), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.umask(old_mask)
        os.sched_setaffinity(0, old_cpus)


@pytest.fixture(scope="module")
def ordinary(
    tmp_path_factory: pytest.TempPathFactory, base_image: Path,
) -> Path:
    """A build under the usual conditions."""
    where = place(tmp_path_factory.mktemp("usual"), base_image, ORDINARY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_BUILD_DIR", str(where.work))
        return build(where)


def test_time_umask_locale_place_and_cpus_leave_no_trace(
    ordinary: Path, tmp_path: Path, base_image: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = place(tmp_path, base_image, ORDINARY)
    other = where.work / "another folder ü"
    other.mkdir()
    for name, value in (("LLM_BUILD_DIR", str(other)), ("TMPDIR", str(other)), ("USER", "someone"),
                        ("TZ", "Pacific/Kiritimati"), ("LC_ALL", "tr_TR.UTF-8"), ("LANG", "C"),
                        ("SOURCE_DATE_EPOCH", "77"), ("PYTHONHASHSEED", "77"),
                        ("PYTHONOPTIMIZE", "2"), ("HOSTNAME", "another")):
        monkeypatch.setenv(name, value)
    with conditions(0o077, {max(os.sched_getaffinity(0))}):
        again = build(where)
    assert explain(ordinary, again) == []
    assert again.name == ordinary.name and again.read_bytes() == ordinary.read_bytes()


AS_NOBODY = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_reproducible import Place, build
print(build(Place(*map(Path, sys.argv[3:7])), sys.argv[7]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_an_ordinary_user_makes_the_same_bytes(ordinary: Path, base_image: Path) -> None:
    from test_llm_run import with_fuse

    folder = Path("/var/tmp") / f"llm-test-reproducible-{os.getpid()}"
    folder.mkdir()
    try:
        # Checkout and programs may lie where another user can't read.
        shutil.copytree(HOME / "bin", folder / "bin", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(HOME / "sites", folder / "sites")
        shutil.copy(__file__, folder)
        where = place(folder / "build", base_image, ORDINARY)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder),
               "LLM_BUILD_DIR": str(where.work), "LLM_APPTAINER": setup.ensure_apptainer()}
        words = [folder / "bin", folder, where.containers, where.images, where.work, where.base,
                 setup.ensure_fakeroot()]
        ids = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        done = subprocess.run(
            [*with_fuse(folder, True), *ids, sys.executable, "-c", AS_NOBODY, *map(str, words)],
            env=env, capture_output=True, text=True, check=False, cwd="/", timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        again = Path(done.stdout.splitlines()[-1])
        assert explain(ordinary, again) == []
        assert again.read_bytes() == ordinary.read_bytes() and again.stat().st_uid == NOBODY
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_what_was_removed_is_not_there(ordinary: Path, apptainer: list[str]) -> None:
    script = textwrap.dedent("""\
        cd /opt/tiny
        test ! -e pipe -a ! -e /var/log/log -a ! -e /var/cache/apt/left-over
        test ! -s /etc/machine-id -a ! -e /root/.bash_history
        stat -c '%n %a %U %Y' file-time mode-of-umask folder-of-umask of-somebody program
        cat time-zone
        cut -d: -f3 /etc/shadow | sort -u
        grep -c ^somebody: /etc/shadow
        python3 -c '
        import importlib.util as u, pathlib
        for f in pathlib.Path("/").glob("usr/lib/python3*/**/*.pyc"):
            assert f.read_bytes()[4] == 1, f
        print(*sorted(pathlib.Path("b").rglob("*.pyc"))[:1], *pathlib.Path("a").rglob("*.pyc"))'
        """)
    done = subprocess.run([*apptainer, "--cleanenv", "--no-home", ordinary, "sh", "-ec", script],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    day = "1767225600"  # 2026-01-01, in seconds and in days since 1970
    days = str(int(day) // 86400)
    assert done.stdout.splitlines() == [
        f"file-time 644 root {day}", f"mode-of-umask 644 root {day}",
        f"folder-of-umask 755 root {day}", f"of-somebody 644 root {day}",
        f"program 755 root {day}", "UTC", days, "1", "b/__pycache__/0.cpython-311.pyc"]


def test_each_thing_that_differs_is_named_with_its_reason(
    tmp_path: Path, base_image: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for name, cpus in (("a", os.sched_getaffinity(0)), ("b", {max(os.sched_getaffinity(0))})):
        (tmp_path / name).mkdir()
        where = place(tmp_path / name, base_image, INJECTED)
        monkeypatch.setenv("LLM_BUILD_DIR", str(where.work))
        with conditions(0o022, cpus):
            found.append(build(where))
    lines = explain(*found)
    for path in ("random", "time", "order-of-a-set", *(["cpus"] if os.cpu_count() != 1 else [])):
        assert f"/opt/tiny/{path}: content" in lines
    assert "/opt/tiny/link: link target" in lines
    reasons = [line.split(": ")[1] for line in lines if "/opt/tiny/only-" in line]
    assert sorted(reasons) == ["only in A", "only in B"]
    assert not any("the-same" in line for line in lines)


def test_a_path_of_the_build_in_the_image_ends_the_build(
    tmp_path: Path, base_image: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = place(tmp_path, base_image, "    mkdir /opt/tiny; cat /mnt/place > /opt/tiny/prefix\n")
    monkeypatch.setenv("LLM_BUILD_DIR", str(where.work))
    make = builder.steps.make_sandbox

    def with_a_path(*words: object, **named: object) -> Path:
        folder = next(word for word in words if isinstance(word, Path))
        (folder / "staging/place").write_text(f"prefix={folder}/lib\n")
        return make(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builder.steps, "make_sandbox", with_a_path)
    with pytest.raises(LLMError) as caught:
        build(where)
    assert "/opt/tiny/prefix holds the path of its build" in caught.value.why
    assert list(where.images.glob("*.sif")) == [] and list(where.work.iterdir()) == []


def test_a_byte_of_the_squashfs_is_noticed(ordinary: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sif"
    shutil.copy(ordinary, copy)
    item = next(item for item in read_objects(str(copy)) if item.type == PARTITION)
    with open(copy, "r+b") as stream:
        stream.seek(item.offset + 8)  # the time in the superblock
        stream.write(b"\x01")
    assert explain(ordinary, copy) != [] and explain(ordinary, ordinary) == []


def test_base_is_the_same_bytes_twice(tmp_path: Path, base_image: Path) -> None:
    """From nothing, by the manual's command; the image that is there is a third build of it."""
    env = {**os.environ, "LLM_BUILD_DIR": str(tmp_path)}
    done = subprocess.run(["make", "verify-image", "IMAGE=base"], cwd=HOME, capture_output=True,
                          text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "the same" in line)
    digest = subprocess.run(["sha256sum", base_image], capture_output=True, text=True, check=True)
    assert line.endswith(digest.stdout.split()[0])
    assert list(tmp_path.iterdir()) == []
