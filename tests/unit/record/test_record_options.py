"""The command line of llm-record: everything wrong with it is said at once."""

from __future__ import annotations

import pytest

from _llm.errors import LLMError
from _llm.record.options import HELP, OPTIONS, parse


def test_what_is_given_holds() -> None:
    options = parse(["replay", "a b", "--output=x", "--tolerance", "0.5", "--best-effort", "--json",
                     "--", "--device", "cpu"])
    assert (options.command, options.paths, options.output) == ("replay", ["a b"], "x")
    assert options.tolerance == 0.5 and options.best_effort and options.json
    assert options.extra == ["--device", "cpu"]
    assert parse(["show", "a", "b", "--check"]).paths == ["a", "b"]
    assert parse(["--help", "--nonsense-is-not-looked-at"]).information == "--help"


@pytest.mark.parametrize(("words", "wanted"), [
    ([], "no command given"),
    (["shwo", "a"], "did you mean show?"),
    (["show"], "show needs a record"),
    (["replay", "a", "b"], "replay takes one record"),
    (["replay", "a", "--chek"], "did you mean --check?"),
    (["replay", "a", "--check"], "--check is for show"),
    (["show", "a", "--output", "x"], "--output is for replay"),
    (["show", "a", "--", "--x"], "nothing behind --"),
    (["replay", "a", "--output"], "--output needs a value"),
    (["replay", "a", "--output="], "empty value"),
    (["replay", "a", "--json=1"], "takes no value"),
    (["replay", "a", "--tolerance", "nan"], "--tolerance nan"),
    (["replay", "a", "--tolerance", "much"], "--tolerance much"),
    (["replay", "a", "--tolerance", "1"], "--tolerance 1"),
])
def test_every_fault_is_named(words: list[str], wanted: str) -> None:
    with pytest.raises(LLMError) as caught:
        parse(words)
    assert wanted in caught.value.why


def test_the_help_has_every_option() -> None:
    assert all(option in HELP for option in OPTIONS)
    assert max(map(len, HELP.splitlines())) <= 100
