"""Versions compare as packaging and dpkg compare them."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from _llm.contents.versions import debian_key, python_key, without_local

PYTHON_IN_ORDER = [
    "1.dev0", "1.0.dev456", "1.0a1", "1.0a2.dev456", "1.0a12.dev456", "1.0a12", "1.0b1.dev456",
    "1.0b2", "1.0b2.post345.dev456", "1.0b2.post345", "1.0rc1.dev456", "1.0rc1", "1.0",
    "1.0+abc.5", "1.0+abc.7", "1.0+5", "1.0.post456.dev34", "1.0.post456", "1.0.15", "1.1.dev1",
    "1.10", "2!0.1",
]
DEBIAN_IN_ORDER = [
    "0~~", "0~~a", "0~", "0", "0a", "0+", "1.0~rc1-1", "1.0-0~1", "1.0-0", "1.0-1", "1.0-1+b1",
    "1.0-1+deb12u1", "1.0-1+deb12u2", "1.0-1+deb12u10", "1.0a-1", "1.0+dfsg-1", "1.0.0", "1.9",
    "1.10", "1:0",
]


def test_python_order() -> None:
    keys = [python_key(version) for version in PYTHON_IN_ORDER]
    for one, other in zip(keys, keys[1:]):
        assert one < other
    assert sorted(keys) == keys


@pytest.mark.parametrize("a, b", [
    ("1.0", "1"), ("1.0.0", "v1"), ("1.0a1", "1.0-alpha.1"), ("1.0.post1", "1.0-1"),
    ("1.0.post0", "1.0.post"), ("1.0c1", "1.0RC1"), ("1.0rev3", "1.0.post3"), ("0!1", "1"),
    ("1.0+a-b", "1.0+A.b"), (" 1.0 ", "1.0"),
])
def test_python_spellings(a: str, b: str) -> None:
    assert python_key(a) == python_key(b)


@pytest.mark.parametrize("text", ["", "1..0", "1.0-", "abc", "1.0+", "1.0 1", "١.0", "9" * 600])
def test_no_python_version(text: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        python_key(text)


def test_local_part() -> None:
    assert without_local("2.13.0+cpu") == "2.13.0"
    assert python_key("2.13.0+cpu") > python_key("2.13.0")


def test_debian_order() -> None:
    keys = [debian_key(version) for version in DEBIAN_IN_ORDER]
    for number, (one, other) in enumerate(zip(keys, keys[1:])):
        assert one < other, DEBIAN_IN_ORDER[number:number + 2]


@pytest.mark.parametrize("a, b", [
    ("1.0", "0:1.0"), ("1.0", "1.0-0"), ("1.00", "1.0"), ("1a", "1a0"),
])
def test_debian_spellings(a: str, b: str) -> None:
    assert debian_key(a) == debian_key(b)


@pytest.mark.parametrize("text", ["", "1 0", "a:1", "1.0;2", "1_0", "9" * 600])
def test_no_debian_version(text: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        debian_key(text)


@pytest.mark.skipif(not shutil.which("dpkg"), reason="no dpkg here")
def test_debian_as_dpkg_does() -> None:
    source = random.Random(20261128)

    def version() -> str:
        middle = "".join(source.choices("01a~~.+-0", k=source.randint(0, 4)))
        return source.choice(["", "0:", "10:"]) + source.choice("01") + middle + source.choice(
            ["0", "-0", "-1", "-0a", "~"])

    for _ in range(150):
        a, b = version(), version()
        try:
            one, other = debian_key(a), debian_key(b)
        except ValueError:
            continue
        word = "lt" if one < other else "eq" if one == other else "gt"
        done = subprocess.run(["dpkg", "--compare-versions", a, word, b], check=False,
                              capture_output=True)
        assert done.returncode == 0, (a, word, b)
