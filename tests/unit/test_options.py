"""The command line: options end where the command begins, and every mistake is named."""

from __future__ import annotations

import pytest

from _llm.errors import LLMError
from _llm.options import OPTIONS, parse


def test_options_end_at_the_command() -> None:
    options = parse(["--image", "a", "python", "--image", "b", "--help"])
    assert options.image == "a"
    assert options.information == ""
    assert options.command == ["python", "--image", "b", "--help"]


def test_two_dashes_end_the_options() -> None:
    options = parse(["--gpu", "--", "--odd-program", "--", "x"])
    assert options.gpu is True
    assert options.command == ["--odd-program", "--", "x"]


def test_both_ways_to_give_a_value() -> None:
    options = parse(["--bind=/a:/b", "--bind", "/c", "--env", "X=1=2", "--env=Y=", "true"])
    assert options.binds == ["/a:/b", "/c"]
    assert options.env == {"X": "1=2", "Y": ""}
    assert options.command == ["true"]


def test_all_mistakes_at_once() -> None:
    with pytest.raises(LLMError) as caught:
        parse(["--imge=x", "--env", "1X=2", "--gpu=yes", "--no-gpu", "--gpu", "--image=", "--bind"])
    text = str(caught.value)
    assert "there is no option --imge; did you mean --image?" in text
    assert "--env 1X=2: write it as NAME=VALUE" in text
    assert "--gpu takes no value" in text
    assert "contradict each other" in text
    assert "--image has an empty value" in text
    assert "--bind needs a value" in text


def test_help_explains_every_option() -> None:
    from _llm.help import HELP

    assert [option for option in OPTIONS if option not in HELP] == []
    assert max(len(line) for line in HELP.splitlines()) <= 100
