"""The command line of llm-doctor."""

from __future__ import annotations

import pytest

from _llm.doctor.options import HELP, HIDDEN, OPTIONS, as_arguments, parse
from _llm.errors import LLMError


def test_everything() -> None:
    options = parse(
        ["--job", "--json", "--model", "a", "--model=b=c", "--limit", "29.5", "--checksum"]
    )
    assert (options.job, options.json, options.models) == (True, True, ["a", "b=c"])
    assert (options.limit, options.checksum, options.collect_env) == (29.5, True, False)


def test_all_faults_at_once() -> None:
    with pytest.raises(LLMError) as caught:
        parse(["--jbo", "x", "--job=1", "--limit", "soon", "--limit=1", "--image=", "--site"])
    for words in (
        "did you mean --job?",
        "no argument x",
        "--job takes no value",
        "--limit soon",
        "--limit 1:",
        "--image has an empty value",
        "--site needs a value",
    ):
        assert words in caught.value.why


def test_a_job_takes_longer() -> None:
    with pytest.raises(LLMError, match="wrong use") as caught:
        parse(["--limit", "6", "--job"])
    assert "too short for --job" in caught.value.why


def test_no_option_by_another_name() -> None:
    with pytest.raises(LLMError) as caught:
        parse(["--nod"])
    assert "--node" not in caught.value.why.replace("--nod;", "").replace("option --nod", "")


def test_help_names_every_option() -> None:
    assert not [option for option in OPTIONS if option not in HELP and option not in HIDDEN]


def test_nodes_get_the_options_that_matter_there() -> None:
    words = ["--model", "a b", "--image", "i", "--site", "s", "--checksum", "--collect-env"]
    assert as_arguments(parse(["--job", "--json", *words])) == words
