"""recipes/evaluate/harness.py on transformers models: lm-eval's own numbers, kept task by task."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model, recipe_environment
from paused import go_on, paused, wait_for_pause
from task_files import GROUPED, HARNESS, NAMES, harness_function, metrics, write_task, write_tasks

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

import lm_eval  # noqa: E402
import yaml  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llm_recipes.cli import Terminated  # noqa: E402
from llm_recipes.errors import LLMError, leaves  # noqa: E402
from llm_recipes.evaluation.run import read_run  # noqa: E402
from llm_recipes.record import read_record  # noqa: E402

Evaluate = Callable[..., int]


@pytest.fixture(scope="module")
def evaluate() -> Evaluate:
    return harness_function()


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> HFLM:
    return HFLM(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, reference: HFLM) -> Path:
    """A folder whose name has what names should not have."""
    return write_tasks(tmp_path_factory.mktemp("tasks") / "my tasks; ü's", reference)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(HARNESS), *map(str, arguments)]


def texts(value: Any) -> Any:
    """Numbers as texts, as lm-eval's command line writes those of samples."""
    return [texts(item) for item in value] if isinstance(value, list) else str(value)


def read_samples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def base(
    evaluate: Evaluate, model_folder: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An evaluation of all four tasks, one request at a time."""
    output = tmp_path_factory.mktemp("runs") / "base ü"
    evaluate(
        str(model_folder),
        list(GROUPED),
        output,
        include=[tasks],
        batch_size=1,
        cache=output.with_name("answers"),
    )
    return output


def test_numbers_are_those_of_lm_evals_command_line(
    base: Path, model_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    # Commas separate its arguments, and it takes no quotes: a path without what ours have.
    model = shutil.copytree(model_folder, tmp_path / "model")
    line = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    line += ["--model_args", f"pretrained={model},dtype=float32", "--batch_size", "1"]
    line += ["--include_path", str(tasks), "--tasks", ",".join(GROUPED), "--log_samples"]
    line += ["--output_path", str(tmp_path / "lm-eval")]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=300, env=recipe_environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "lm-eval").glob("*/results_*.json")
    theirs, ours = (json.loads(path.read_text()) for path in (file, base / "results.json"))
    assert set(metrics(ours)) == {*NAMES, "both"}
    assert ours["groups"] and str(ours["groups"]) == str(theirs["groups"])
    assert metrics(ours) == metrics(theirs)
    assert ours["versions"] == theirs["versions"] and ours["n-shot"] == theirs["n-shot"]
    for name in NAMES:
        [file] = (tmp_path / "lm-eval").glob(f"*/samples_{name}_*.jsonl")
        mine = read_samples(base / "samples" / f"{name}.jsonl")
        for one, other in zip(mine, read_samples(file), strict=True):
            assert one["doc_hash"] == other["doc_hash"]
            assert texts(one["resps"]) == texts(other["resps"])
            assert one["doc_id"] == other["doc_id"]


def test_numbers_are_those_of_lm_eval_in_chats_and_batches(
    evaluate: Evaluate, reference: HFLM, model_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    for name in ("choose", "say"):
        evaluate(
            str(model_folder),
            [str(tasks / f"{name}.yaml")],
            tmp_path / name,
            batch_size=3,
            apply_chat_template=True,
            system="Be short.",
            keep_answers=False,
        )
        theirs = HFLM(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=3)
        expected = lm_eval.simple_evaluate(
            model=theirs,
            tasks=[name],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            apply_chat_template=True,
            system_instruction="Be short.",
        )
        assert expected is not None
        found = json.loads((tmp_path / name / "results.json").read_text())
        assert metrics(found) == metrics(expected)
        samples = read_samples(tmp_path / name / "samples" / f"{name}.jsonl")
        mine = [[list(pair) for pair in sample["arguments"]] for sample in samples]
        assert mine == [
            [list(pair) for pair in sample["arguments"]] for sample in expected["samples"][name]
        ]
        task = read_run(tmp_path / name).tasks[name]
        assert task.conditions["prompt_style"] == "chat" and task.conditions["chat_template"]


def test_what_is_written_for_comparisons(base: Path) -> None:
    run = read_run(base)
    found = {name: task.metrics for name, task in run.tasks.items()}
    results = json.loads((base / "results.json").read_text())["results"]
    assert {name: task.main for name, task in run.tasks.items()} == {
        "choose": "acc",
        "say": "exact_match",
        "read": "bits_per_byte",
        "complete": "acc",
    }
    assert found["choose"]["acc"].kind == "right" and found["say"]["bleu"].kind == "aggregate"
    assert found["read"]["word_perplexity"].kind == "aggregate"
    assert found["choose"]["acc"].value == results["choose"]["acc,none"]
    assert found["choose"]["acc"].stderr == results["choose"]["acc_stderr,none"]
    assert found["say"]["exact_match"].value == 0.5
    per_byte = found["read"]["bits_per_byte"]
    assert per_byte.kind == "ratio" and not per_byte.higher_is_better and per_byte.stderr is None
    pairs = [item.scores["bits_per_byte"] for item in run.tasks["read"].items]
    bits, size = (math.fsum(pair[part] for pair in pairs) for part in (0, 1))  # type: ignore[index]
    assert bits / size == pytest.approx(results["read"]["bits_per_byte,none"], rel=1e-12)
    choose = run.tasks["choose"]
    assert (choose.version, choose.fewshot) == ("1.5", 2)
    assert len({item.cluster for item in choose.items}) == 4
    assert choose.items[4].groups == {"answer": "1"}
    assert [item.id for item in choose.items] == [str(number) for number in range(8)]
    shown = choose.items[1].shown
    assert shown is not None and shown.gold == "a name that is bound"
    assert shown.question == "Question: What is a object?\nAnswer:"
    assert len({item.prompt for item in choose.items}) == 8
    said = run.tasks["say"].items
    for item in said:
        assert item.shown is not None
        assert (item.shown.answer == item.shown.gold) == (item.scores["exact_match"] == 1.0)


def test_nothing_to_do_other_settings_and_changed_data(
    evaluate: Evaluate, model_folder: Path, tasks: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    config = yaml.safe_load((folder / "complete.yaml").read_text())
    config["dataset_kwargs"] = {"data_files": {"test": str(folder / "complete.jsonl")}}
    (folder / "complete.yaml").write_text(yaml.safe_dump(config))
    output, cache = tmp_path / "out", tmp_path / "answers"

    def run(**options: Any) -> str:
        given = {"include": [folder], "cache": cache, "output": output, **options}
        evaluate(str(model_folder), ["complete"], **given)
        return str(capfd.readouterr().err)

    first = run()
    assert "complete: 8 log-likelihoods\n" in first
    before = (output / "run.json").read_bytes()
    assert "nothing to do" in run()
    assert (output / "run.json").read_bytes() == before
    with pytest.raises(LLMError, match="holds another evaluation") as fault:
        run(limit=3)
    assert fault.value.why == "limit: None there, 3 now"
    assert "complete: 3 log-likelihoods\n" in run(limit=3, overwrite=True)
    assert len(read_run(output).tasks["complete"].items) == 3
    # Answers of earlier runs are taken only for the very same texts.
    assert "complete: 8 log-likelihoods, kept" in run(overwrite=True)
    rows = (folder / "complete.jsonl").read_text().replace("The", "Thy")
    (folder / "complete.jsonl").write_text(rows)
    with pytest.raises(LLMError, match="holds another evaluation") as fault:
        run()
    assert "have changed" in fault.value.why
    assert "complete: 8 log-likelihoods\n" in run(overwrite=True)
    # Another folder has another task of this name.
    other = shutil.copytree(folder, tmp_path / "other")
    form = (other / "complete.yaml").read_text()
    (other / "complete.yaml").write_text(form.replace("version: ", "version: 9"))
    with pytest.raises(LLMError, match="holds another evaluation"):
        run(include=[other])
    (output / "mine.txt").write_text("notes")
    with pytest.raises(LLMError, match="has not made"):
        run(limit=1, overwrite=True)


def test_before_is_never_taken_for_after(
    evaluate: Evaluate,
    base: Path,
    reference: HFLM,
    model_folder: Path,
    tasks: Path,
    tmp_path: Path,
    capfd: Any,
) -> None:
    """Weights that change under the same path, and an adapter; answers of both are in one cache."""
    cache = base.with_name("answers")
    changed = tmp_path / "model"
    shutil.copytree(model_folder, changed)
    options: dict[str, Any] = {"include": [tasks], "batch_size": 1, "cache": cache}
    evaluate(str(changed), ["choose,read"], tmp_path / "same", **options)
    assert capfd.readouterr().err.count("kept of an earlier run") == 2  # the same model, copied
    shutil.rmtree(changed)
    make_model(changed, initializer_range=0.3)
    evaluate(str(changed), ["choose,read"], tmp_path / "after", **options)
    assert "kept" not in capfd.readouterr().err
    first, after = (
        metrics(json.loads((folder / "results.json").read_text()))["read"]
        for folder in (base, tmp_path / "after")
    )
    assert first != after

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    tuned = get_peft_model(
        HFLM(pretrained=str(model_folder), device="cpu", dtype="float32").model,
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    evaluate(str(model_folder), ["read"], tmp_path / "lora", adapter=adapter, **options)
    assert "kept" not in capfd.readouterr().err
    theirs = HFLM(
        pretrained=str(model_folder), peft=adapter, device="cpu", dtype="float32", batch_size=1
    )
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = lm_eval.simple_evaluate(model=theirs, tasks=["read"], task_manager=manager)
    assert expected is not None
    found = metrics(json.loads((tmp_path / "lora" / "results.json").read_text()))
    assert found == metrics(expected) and found["read"] != first


def test_interrupted_and_resumed_equals_uninterrupted(
    evaluate: Evaluate, model_folder: Path, tasks: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    write_task(
        folder / "long.yaml",
        [{"prompt": f"Number {number}", "answer": ""} for number in range(12)],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="answer",
        generation_kwargs={"until": [], "max_gen_toks": 150, "do_sample": True, "temperature": 1.0},
        metric_list=[{"metric": "exact_match"}],
    )
    given = ["--model", model_folder, "--tasks", "choose,long,read", "--include", folder]
    given += ["--output", tmp_path / "out", "--cache", tmp_path / "answers", "--batch-size", 2]
    # Among the 900 tokens of `long`: `choose` comes before, with less than 50 forward passes.
    running = subprocess.Popen(
        paused("transformers:LlamaForCausalLM.forward", 100, command(*given)),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=recipe_environment(),
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line == "long: 12 answers\n":
            break
    pid = wait_for_pause(running)
    running.send_signal(signal.SIGTERM)
    go_on(pid, signal.SIGTERM)
    said = running.stderr.read()
    assert running.wait(timeout=60) == 143, said
    assert "the answers to 1 of 3 tasks are kept" in said and "the same command goes on" in said
    assert "Traceback" not in said
    record = read_record(tmp_path / "out" / "run.json")
    assert record is not None and record["status"] == "interrupted"
    with pytest.raises(LLMError, match="has no results"):
        read_run(tmp_path / "out")
    options: dict[str, Any] = {"include": [folder], "batch_size": 2}
    cache = tmp_path / "answers"
    evaluate(str(model_folder), ["choose,long,read"], tmp_path / "out", cache=cache, **options)
    said = capfd.readouterr().err
    assert "choose: 24 log-likelihoods, kept" in said and "long: 12 answers\n" in said
    whole = tmp_path / "whole"
    evaluate(str(model_folder), ["choose,long,read"], whole, keep_answers=False, **options)
    for file in sorted(path for path in whole.rglob("*.jsonl")):
        assert (tmp_path / "out" / file.relative_to(whole)).read_bytes() == file.read_bytes()
    ours, theirs = (json.loads((p / "results.json").read_text()) for p in (tmp_path / "out", whole))
    assert metrics(ours) == metrics(theirs)


def test_a_job_whose_time_is_over_is_started_again(
    evaluate: Evaluate,
    model_folder: Path,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = iter([False, True])  # before each task
    name = "llm_recipes.evaluation.task_by_task.stop_requested"
    monkeypatch.setattr(name, lambda: next(asked))
    monkeypatch.setenv("LLM_UNFINISHED_FILE", str(tmp_path / "unfinished"))
    options: dict[str, Any] = {"include": [tasks], "cache": tmp_path / "answers"}
    with pytest.raises(Terminated):
        evaluate(str(model_folder), ["complete,choose"], tmp_path / "out", **options)
    assert (tmp_path / "unfinished").exists()
    assert len(list((tmp_path / "answers").iterdir())) == 1
    record = read_record(tmp_path / "out" / "run.json")
    assert record is not None and record["status"] == "interrupted"


def test_several_processes_find_what_one_does(
    base: Path, model_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    given = ["--model", model_folder, "--tasks", ",".join(GROUPED), "--include", tasks]
    given += ["--output", tmp_path / "two", "--no-keep-answers", "--batch-size", 1]
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [sys.executable, *starter, *command(*given)[1:]]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=300, env=recipe_environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("choose: 24 log-likelihoods") == 1
    for file in sorted(base.rglob("*.jsonl")):
        assert (tmp_path / "two" / file.relative_to(base)).read_bytes() == file.read_bytes()
    one, two = (json.loads((p / "results.json").read_text()) for p in (base, tmp_path / "two"))
    assert metrics(one) == metrics(two)
    assert read_run(tmp_path / "two").record["metrics"]["processes"] == 2


def test_mistakes_are_said_at_once(model_folder: Path, tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        command(
            *("--model", model_folder, "--tasks", ",", "--limit", 0, "--num-fewshot", -1),
            *("--gpu-layers", 3, "--kv-type", "q8_0", "--batch-size", 0, "--fewshot-as-multiturn"),
            *("--task-data", "tatqa", "--task-data", "a=no/such", "--shard", "--device", "cpu"),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        env=recipe_environment(),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for said in (
        *("--limit 0", "--num-fewshot -1", "--tasks names no task", "--batch-size 0"),
        *("--gpu-layers has no meaning for", "--kv-type has no meaning for"),
        *("--fewshot-as-multiturn needs", "'tatqa' is not NAME=PATH", "no/such does not exist"),
        "--shard does not go with --device cpu",
    ):
        assert said in done.stderr, said


def faults(evaluate: Evaluate, *arguments: Any, **options: Any) -> list[LLMError]:
    with pytest.raises((LLMError, ExceptionGroup)) as raised:
        evaluate(*arguments, **options)
    error = raised.value
    return list(leaves(error)) if isinstance(error, BaseExceptionGroup) else [error]


def test_tasks_that_are_unknown_or_whose_data_are_not_here(
    evaluate: Evaluate, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_recipes import harness_tasks

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    known = {"output_type": "multiple_choice", "doc_to_text": "question", "doc_to_target": 0}
    known |= {"doc_to_choice": ["a", "b"], "test_split": "test"}
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, source in {
        "books": {"dataset_path": "nobody/books", "dataset_name": "main"},
        "sums": {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "hf://datasets/nobody/sums/data/1.jsonl"}},
            "tag": "numbers",
        },
        "gone": {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "no/x.json"}}},
    }.items():
        (tasks / f"{name}.yaml").write_text(json.dumps({"task": name, **known, **source}))
    (tasks / "both.yaml").write_text(json.dumps({"group": "both", "task": ["books", "sums"]}))
    # Reading all of lm-eval's own 14,000 files takes a while.
    own = TaskManager(include_path=str(tasks), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "TaskManager", lambda **_: own)
    options: dict[str, Any] = {"output": tmp_path / "out", "include": [tasks]}
    model = str(model_folder)
    said = [str(fault) for fault in faults(evaluate, model, ["boks,truthfulqa_mc"], **options)]
    assert "did you mean books?" in said[0]
    assert "lm-eval calls it truthfulqa_mc1 or truthfulqa_mc2" in said[1]
    said = [str(fault) for fault in faults(evaluate, model, ["books,sums,gone,both"], **options)]
    assert 'load_dataset("nobody/books", "main")' in said[0]
    assert "--task-data books=data/books" in said[0] and "HF_HOME" in said[0]
    assert "nobody/sums, of it data/1.jsonl" in said[1]
    assert "download --repo-type dataset nobody/sums --local-dir data/sums" in said[1]
    assert "no/x.json is not here" in said[2]
    assert "nobody/books (main), nobody/sums" in said[3]
    assert not (tmp_path / "out").exists()
    # A copy of a dataset's repository takes its place.
    rows = '{"question": "q"}\n{"question": "r"}\n'
    for folder in ("books", "sums"):
        (tmp_path / folder / "data").mkdir(parents=True)
    (tmp_path / "sums" / "data" / "1.jsonl").write_text(rows)
    (tmp_path / "books" / "data" / "test.jsonl").write_text(rows)
    (tmp_path / "books" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n"
        "    path: data/test.jsonl\n---\n"
    )
    [fault] = faults(evaluate, model, ["books"], task_data=[f"books={HARNESS}"], **options)
    assert "is no folder" in str(fault)
    data = [f"books={tmp_path / 'books'}", f"numbers={tmp_path / 'sums'}"]
    evaluate(model, ["books,numbers"], task_data=data, keep_answers=False, **options)
    run = read_run(tmp_path / "out")
    assert [len(run.tasks[name].items) for name in ("books", "sums")] == [2, 2]
    assert run.record["data"]["files"].keys() >= {str(tmp_path / "sums" / "data" / "1.jsonl")}


def test_what_another_run_has_written_meanwhile_is_not_replaced(
    evaluate: Evaluate,
    model_folder: Path,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, name = tmp_path / "out", "simple_evaluate"
    options: dict[str, Any] = {"include": [tasks], "keep_answers": False}
    original = evaluate.__globals__[name]

    def beside(*arguments: Any) -> Any:
        monkeypatch.setitem(evaluate.__globals__, name, original)
        evaluate(str(model_folder), ["complete"], output, limit=2, **options)
        return original(*arguments)

    monkeypatch.setitem(evaluate.__globals__, name, beside)
    with pytest.raises(LLMError, match="holds another evaluation"):
        evaluate(str(model_folder), ["complete"], output, limit=3, **options)
    assert len(read_run(output).tasks["complete"].items) == 2


def test_a_closed_place_for_results_is_said_before_a_model_is_loaded(
    evaluate: Evaluate, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # for root, all is open
    [fault] = faults(evaluate, str(model_folder), ["no such task"], tmp_path / "a" / "b")
    assert fault.what == f"cannot write {tmp_path / 'a' / 'b'}" and str(tmp_path) in fault.why


def test_a_closed_place_for_answers_does_not_end_the_run(
    evaluate: Evaluate, model_folder: Path, tasks: Path, tmp_path: Path, capfd: Any
) -> None:
    (tmp_path / "file").write_text("")
    options: dict[str, Any] = {"include": [tasks], "cache": tmp_path / "file"}
    evaluate(str(model_folder), ["complete,choose"], tmp_path / "out", **options)
    said = capfd.readouterr().err
    assert said.count("answers are not kept: cannot write") == 1
    assert read_run(tmp_path / "out").tasks.keys() == {"complete", "choose"}


def test_a_failing_task_and_its_record(
    evaluate: Evaluate, model_folder: Path, tmp_path: Path
) -> None:
    write_task(
        tmp_path / "odd.yaml",
        [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": ""}],
        output_type="loglikelihood",
        doc_to_text="{{prompt}}",
        doc_to_target="{{answer[0]}}",
        metric_list=[{"metric": "acc"}],
    )
    [fault] = faults(evaluate, str(model_folder), [str(tmp_path / "odd.yaml")], tmp_path / "out")
    assert "lm-eval" in str(fault) or "odd" in str(fault)
    record = read_record(tmp_path / "out" / "run.json")
    assert record is None or record["status"] == "failed"


def test_code_that_a_model_writes_and_tasks_that_come_twice(
    evaluate: Evaluate, model_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "def f():", "answer": "pass"}]
    form = {"doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}"}
    form |= {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    form |= {"generation_kwargs": {"until": ["\n"]}}
    write_task(tmp_path / "code.yaml", rows, unsafe_code=True, **form)
    named = [str(tmp_path / "code.yaml")]
    [fault] = faults(evaluate, str(model_folder), named, tmp_path / "out")
    assert "code: Python code that the model writes would be run" in str(fault)
    options: dict[str, Any] = {"keep_answers": False, "run_unsafe_code": True}
    [fault] = faults(evaluate, str(model_folder), named, tmp_path / "out", **options)
    assert "a task asks for answers of 256 tokens" in str(fault)
    evaluate(str(model_folder), named, tmp_path / "out", max_gen_toks=4, **options)
    assert read_run(tmp_path / "out").tasks["code"].conditions["max_gen_toks"] == "4"
    raw = make_model(tmp_path / "raw", chat=False)
    [fault] = faults(evaluate, str(raw), ["choose"], include=[tasks], apply_chat_template=True)
    assert "chat" in str(fault) and "YAML" not in str(fault)
    [fault] = faults(evaluate, str(model_folder), ["both,choose"], include=[tasks])
    assert "a task is asked for twice" in str(fault) and "'choose'" in str(fault)
