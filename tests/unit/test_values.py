"""Variables, home folders and kinds of values."""

from __future__ import annotations

import pytest

from _llm.values import expand_value, normalize, user_home

ENV = {"A": "/a", "EMPTY": "", "HOME": "/home/me"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${A}/x/${A}", "/a/x//a"),
        ("${B:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${B:-${A}/b}/c", "/a/b/c"),
        ("${B:-}", ""),
        ("${paths.cache}/images", "/cache/images"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expand_value(text, ENV, {"paths.cache": ("/cache", "")}) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${B}", r"\$B is not set"),
        ("$A", "write a variable as"),
        ("${A", "no closing brace"),
        ("${no.setting}", "no setting that comes before"),
    ],
)
def test_expansion_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_value(text, ENV, {})


def test_paths_of_the_environment_are_taken_as_they_are() -> None:
    assert normalize("path", "/with $x and  spaces", ENV, False) == "/with $x and  spaces"
    assert normalize("path", "~/x", ENV, False) == "/home/me/x"
    assert normalize("paths", "/a:/b c", ENV, False) == "/a\n/b c"


def test_home_is_taken_from_the_user_database_when_unset() -> None:
    assert user_home(ENV) == "/home/me"
    assert user_home({"HOME": "/home/me/"}) == "/home/me"
    assert user_home({}).startswith("/")
