"""lm-evaluation-harness on GGUF files: the same numbers as its own class for the HF folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import convert, recipe_environment
from task_files import HARNESS, NAMES, harness_function, metrics, write_task, write_tasks

pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llm_recipes import harness_tasks  # noqa: E402
from llm_recipes.errors import LLMError  # noqa: E402
from llm_recipes.evaluation.run import read_run  # noqa: E402
from llm_recipes.gguf.file import read_gguf  # noqa: E402
from llm_recipes.gguf.harness_model import GgufLM  # noqa: E402
from llm_recipes.gguf.model import ContextSettings, GgufModel  # noqa: E402
from llm_recipes.gguf.tokenizer import HUGGING_FACE_KEY  # noqa: E402
from llm_recipes.harness_requests import read_generation  # noqa: E402
from llm_recipes.harness_tasks import load_tasks, task_names  # noqa: E402

# Differences of a token's log-probability: sums in another order; weights and activations in fp16.
# (llama.cpp's flash attention computes in fp16 too, whatever the cache's type.)
CLOSE = {"f32": 5e-4, "f16": 5e-2}
BOS = "<s>"
LONG = "The import statement, in its basic form, is executed in two steps. " * 40
PAIRS = [
    ("The value of the expression is", " an integer"),
    ("The value of the expression is ", "an integer"),
    ("The value of the expression is   ", " a list"),
    ("", "An empty context"),
    (BOS, "written BOS"),
    ("é ü", " 漢字 🙂 ß"),
    ("Zeile\n", "\n  eins"),
    ("Question: what is a class?\nAnswer:", " A"),
    ("Question: what is a class?\nAnswer:", " B"),
    ("Question: what is a class?\nAnswer:", " a statement that"),
    ("a", "b"),
    ("   ", " only spaces before"),
    (LONG, " and then"),
    (LONG[:600], LONG[:500]),
]
TEXTS = ["The value of the expression is an integer.", LONG, "é ü 漢字 🙂", "x", ""]
PROMPTS = ["The for statement", "An object ", "é ü", f"{BOS}class C:", LONG, "x = [1, 2"]


@pytest.fixture(scope="module")
def reference(tiny_hf: Path) -> HFLM:
    return HFLM(pretrained=str(tiny_hf), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(scope="module", params=["f32", "f16"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ours(
    kind: str, tiny_hf: Path, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GgufLM]:
    path = tiny_gguf
    if kind == "f16":
        path = convert(tiny_hf, tmp_path_factory.mktemp("f16") / "tiny.gguf", "f16")
    file = read_gguf(path)
    # recipes/quantized/convert.py keeps it in the file
    file.metadata[HUGGING_FACE_KEY] = (tiny_hf / "tokenizer.json").read_text("utf-8")
    with GgufModel.load(file) as model:
        yield GgufLM(model, settings(kind))


def settings(kind: str) -> ContextSettings:
    exact = {"key_type": "f32", "value_type": "f32", "flash_attention": "off"}
    room = {"tokens": 128, "sequences": 5, "batch": 128, "micro_batch": 64}
    return ContextSettings(**room, **(exact if kind == "f32" else {}))  # type: ignore[arg-type]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(kind, {}, given, 0, ("task", number, 1))  # type: ignore[arg-type]
        for number, given in enumerate(arguments)
    ]


def test_tokens_are_those_of_transformers(ours: GgufLM, reference: HFLM) -> None:
    for text in [*TEXTS, *PROMPTS, *(a + b for a, b in PAIRS)]:
        assert ours.tok_encode(text) == reference.tok_encode(text), text
    for before, after in PAIRS:
        if before.strip():
            assert ours._encode_pair(before, after) == reference._encode_pair(before, after)
    assert ours.prefix_token_id == reference.prefix_token_id
    assert ours.eot_token_id == reference.eot_token_id
    assert ours.max_length == reference.max_length == 256


def test_log_likelihoods_are_those_of_transformers(
    ours: GgufLM, reference: HFLM, kind: str
) -> None:
    asked = instances("loglikelihood", PAIRS)
    found, expected = ours.loglikelihood(asked), reference.loglikelihood(asked)
    for pair, (value, greedy), (true_value, truly_greedy) in zip(
        PAIRS, found, expected, strict=True
    ):
        tokens = len(ours.tok_encode(pair[1]))
        assert value == pytest.approx(true_value, abs=CLOSE[kind] * tokens), pair
        assert greedy == truly_greedy, pair


def test_the_likeliest_continuation_is_known_as_such(ours: GgufLM, reference: HFLM) -> None:
    # Many texts of a token: some are what the model would say, and the same token again.
    prompts = [f"The {word}" for word in LONG[:300].split()[:30]]
    said = ours.generate_until(
        instances("generate_until", [(p, {"until": [], "max_gen_toks": 1}) for p in prompts])
    )
    pairs = [(p, space + a) for p, a in zip(prompts, said, strict=True) for space in ("", " ") if a]
    asked = instances("loglikelihood", pairs)
    found = [greedy for _, greedy in ours.loglikelihood(asked)]
    assert found == [greedy for _, greedy in reference.loglikelihood(asked)]
    assert True in found and False in found


def test_rolling_log_likelihoods_are_those_of_transformers(
    ours: GgufLM, reference: HFLM, kind: str
) -> None:
    asked = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    found, expected = ours.loglikelihood_rolling(asked), reference.loglikelihood_rolling(asked)
    assert len(reference.tok_encode(LONG)) > 2 * ours.max_length
    for text, value, true_value in zip(TEXTS, found, expected, strict=True):
        tokens = len(ours.tok_encode(text))
        assert value == pytest.approx(true_value, abs=CLOSE[kind] * tokens), text


@pytest.mark.parametrize(
    "options",
    [
        {"until": ["\n"], "max_gen_toks": 20},
        {"until": [" "], "max_gen_toks": 20},
        {"until": ["e", "of"], "max_new_tokens": 30, "do_sample": False, "temperature": 0.0},
        {"max_gen_toks": 16},
    ],
)
def test_answers_are_those_of_transformers(
    ours: GgufLM, reference: HFLM, kind: str, options: dict[str, Any]
) -> None:
    asked = instances("generate_until", [(prompt, options) for prompt in PROMPTS])
    found, expected = ours.generate_until(asked), reference.generate_until(asked)
    assert any(found)
    if kind == "f32":
        assert found == expected
    else:  # two tokens of nearly the same probability may change places
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= len(PROMPTS) - 1


def test_samples_of_a_prompt_differ_and_come_again(ours: GgufLM) -> None:
    options = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": []}
    [asked] = instances("generate_until", [("The for statement", options)])
    found = ours.generate_until([asked] * 4)
    assert len(set(found)) > 1
    assert ours.generate_until([asked] * 4) == found


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " What is an object? "},
    {"role": "assistant", "content": "An object is "},
]


def test_chats_are_rendered_as_by_transformers(ours: GgufLM, reference: HFLM) -> None:
    assert ours.apply_chat_template(CHAT[:2]) == reference.apply_chat_template(CHAT[:2])
    filled = ours.apply_chat_template(CHAT, add_generation_prompt=False)
    assert filled == reference.apply_chat_template(CHAT, add_generation_prompt=False)
    assert ours.chat_template(True) == reference.chat_template(True)
    text = ours.apply_chat_template(CHAT[:2])
    assert ours.tok_encode(text) == reference.tok_encode(text)
    assert ours.tok_encode(text).count(ours.tokenizer.bos_token_id) == 1
    with pytest.raises(LLMError, match="does not fit the model's chat template"):
        ours.apply_chat_template([{"role": "judge", "content": "x"}])


def test_what_cannot_be_scored(ours: GgufLM) -> None:
    with pytest.raises(LLMError, match="likelihood of nothing"):
        ours.loglikelihood(instances("loglikelihood", [("a", "b"), ("", "")]))
    with pytest.raises(LLMError, match="likelihood of nothing"):
        ours.loglikelihood(instances("loglikelihood", [("context", "")]))
    with pytest.raises(LLMError, match="too long to score"):
        ours.loglikelihood(instances("loglikelihood", [("context", LONG)]))
    with pytest.raises(LLMError, match="answers of 300 tokens"):
        ours.generate_until(instances("generate_until", [("a", {"max_gen_toks": 300})]))
    assert ours.loglikelihood([]) == ours.loglikelihood_rolling([]) == ours.generate_until([]) == []


def test_generation_options() -> None:
    found = read_generation({"until": "x", "temperature": 0.7, "top_p": 0.9}, 256)
    assert found.new_tokens == 256 and found.until == ("x",)
    assert (found.sampling.temperature, found.sampling.top_p) == (0.7, 0.9)
    assert [read_generation(o, 9, 5).sampling.seed for o in ({}, {"seed": 0})] == [5, 0]
    found = read_generation({"temperature": 0.7, "do_sample": False, "until": ["", "a"]}, 9)
    assert found.sampling.temperature == 0 and found.until == ("a",)
    with pytest.raises(ExceptionGroup) as faults:
        read_generation({"temprature": 1, "num_beams": 4, "max_gen_toks": "many"}, 1)
    said = " ".join(str(fault) for fault in faults.value.exceptions)
    assert "did you mean temperature?" in said and "beam search" in said and "'many'" in said


def test_lm_eval_opens_it_by_its_name(
    tiny_gguf: Path, reference: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)  # other tests run here too
    options = f"path={tiny_gguf},parallel=2,threads=1,prompt_threads=1,kv_type=f32,context=100"
    opened = get_model("gguf-file").create_from_arg_string(options, {"batch_size": 1})
    assert (opened.settings.sequences, opened.max_length) == (2, 100)
    asked = instances("loglikelihood", PAIRS[:2])
    for (value, _), (true_value, _) in zip(
        opened.loglikelihood(asked), reference.loglikelihood(asked), strict=True
    ):
        assert value == pytest.approx(true_value, abs=0.2)  # with flash attention


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, reference: HFLM) -> Path:
    """A folder whose name has what names should not have."""
    folder = write_tasks(tmp_path_factory.mktemp("tasks") / "my tasks; ü's", reference)
    (folder / "broken.yaml").write_text("task: broken\n  output_type: [\n")
    return folder


def evaluated(lm: Any, tasks: Path, **options: Any) -> dict[str, dict[str, Any]]:
    manager, loaded = load_tasks([str(tasks / f"{name}.yaml") for name in NAMES])
    assert task_names(loaded) == list(NAMES)
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=loaded,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=0,
        **options,
    )
    return metrics(results)


def close(
    found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]], rel: float
) -> None:
    """The same within a tolerance; questions of half right answers are answered the same."""
    assert found["choose"]["acc,none"] == expected["choose"]["acc,none"]
    for task in ("read", "complete"):
        for name, value in expected[task].items():
            if isinstance(value, float):
                assert found[task][name] == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("chat", [False, True])
def test_metrics_are_those_of_transformers(
    ours: GgufLM, reference: HFLM, tasks: Path, kind: str, chat: bool
) -> None:
    if chat and kind == "f16":
        pytest.skip("the form of prompts has nothing to do with the weights' type")
    expected = evaluated(reference, tasks, apply_chat_template=chat)
    found = evaluated(ours, tasks, apply_chat_template=chat)
    if not chat:
        assert 0 < expected["choose"]["acc,none"] < 1
        assert expected["say"]["exact_match,none"] == 0.5
    if kind == "f32":
        assert found["choose"] == expected["choose"]
        assert found["say"] == expected["say"]
    close(found, expected, 1e-3 if kind == "f32" else 2e-2)


def harness(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HARNESS), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=recipe_environment()
    )


def test_the_recipe_on_a_gguf_of_f16_finds_what_it_finds_on_its_folder(
    tiny_hf: Path, tasks: Path, tmp_path: Path, capfd: Any
) -> None:
    gguf = convert(tiny_hf, tmp_path / "tiny's f16; ü.gguf", "f16")
    named = ["--tasks", f"choose,{tasks / 'say.yaml'}", "--tasks", "read,complete"]
    named += ["--include", tasks, "--batch-size", 3, "--cache", tmp_path / "answers"]
    done = harness("--model", gguf, *named, "--output", tmp_path / "gguf")
    assert done.returncode == 0, done.stderr
    assert "exact_match" in done.stdout and "|choose" in done.stdout
    assert "\r" not in done.stderr and "Traceback" not in done.stderr
    given = {"include": [tasks], "batch_size": 3, "cache": tmp_path / "answers"}
    names = ["choose", str(tasks / "say.yaml"), "read,complete"]
    harness_function()(str(tiny_hf), names, tmp_path / "folder", **given)
    assert "kept of an earlier run" not in capfd.readouterr().err
    found = {
        name: metrics(json.loads((tmp_path / name / "results.json").read_text()))
        for name in ("folder", "gguf")
    }
    close(found["gguf"], found["folder"], 2e-2)
    runs = {name: read_run(tmp_path / name) for name in found}
    record = runs["gguf"].record
    assert record["status"] == "complete" and record["recipe"] == "evaluate/harness"
    assert record["data"]["tasks"] == ["choose", "say", "read", "complete"]
    assert record["metrics"]["parallel"] == 3 and record["model"]["dtype"] == "F16"
    # They can be compared item by item.
    for name in NAMES:
        one, other = (run.tasks[name] for run in runs.values())
        assert one.conditions == other.conditions and one.version == other.version
        assert [(i.id, i.doc, i.target, i.prompt) for i in one.items] == [
            (i.id, i.doc, i.target, i.prompt) for i in other.items
        ]
    again = harness("--model", gguf, *named, "--output", tmp_path / "gguf")
    assert again.returncode == 0 and "nothing to do" in again.stderr


def test_mistakes_are_said_before_the_model_is_loaded(
    tiny_gguf: Path, tasks: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-1000])
    done = harness("--model", cut, "--tasks", tasks / "choose.yaml")
    assert done.returncode == 2 and "is cut off" in done.stderr
    done = harness(
        *("--model", tiny_gguf, "--tasks", "x.yaml", "--limit", 0, "--max-gen-toks", -1),
        *("--threads", 0, "--adapter", "lora", "--device", "cpu"),
    )
    assert done.returncode == 2
    for said in ("--limit 0", "--max-gen-toks -1", "--threads 0"):
        assert said in done.stderr
    for option in ("adapter", "device"):
        assert f"--{option} has no meaning for {tiny_gguf}" in done.stderr


def test_unknown_and_broken_tasks(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading all of lm-eval's own 14,000 files takes a minute.
    known = TaskManager(include_path=tasks, include_defaults=False)
    monkeypatch.setattr(harness_tasks, "_manager", lambda *_: known)
    with pytest.raises(ExceptionGroup) as faults:
        load_tasks(["choos", "reed", str(tasks / "broken.yaml"), "no/such.yaml"], [tasks])
    said = [str(fault) for fault in faults.value.exceptions]
    assert "unknown task 'choos'" in said[0] and "did you mean choose" in said[0]
    assert "broken.yaml can't be read" in said[0]  # it may be the file that is meant
    assert "did you mean read" in said[1]
    assert "broken.yaml can't be read" in said[2]
    assert "cannot read the task no/such.yaml" in said[3]


def test_tasks_that_do_not_fit_their_data(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": 0}]
    good = {"output_type": "multiple_choice", "doc_to_choice": ["a", "b"]}
    fits = {"doc_to_text": "{{question}}", "doc_to_target": "answer"}
    write_task(tmp_path / "column.yaml", rows, **good, **fits | {"doc_to_target": 7})
    write_task(
        tmp_path / "metric.yaml",
        rows,
        metric_list=[{"metric": "acuracy"}],
        **good,
        **fits,
    )
    write_task(tmp_path / "gone.yaml", rows, **good, **fits)
    (tmp_path / "gone.jsonl").unlink()
    write_task(tmp_path / "empty.yaml", [], **good, **fits)
    write_task(tmp_path / "nameless.yaml", rows, task=None, **good, **fits)
    names = ("column", "metric", "gone", "empty")
    with pytest.raises(ExceptionGroup) as faults:
        load_tasks([str(tmp_path / f"{name}.yaml") for name in names])
    said = [str(fault) for fault in faults.value.exceptions]
    assert len(said) == len(names)
    for name, fault in zip(names, said, strict=True):
        assert f"task {name}" in fault or f"{name}.yaml" in fault, fault
    assert "the data of task" in said[2]
    with pytest.raises(LLMError, match="is no task"):
        load_tasks([str(tmp_path / "nameless.yaml")])
