"""report.py: records of every recipe as one HTML file and Markdown, run as a user runs it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import report_records as made
from conftest import RECIPES, recipe_environment

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, faults_of
from llm_recipes.evaluation.report.answers import pick
from llm_recipes.evaluation.report.blocks import Report
from llm_recipes.evaluation.report.collect import Run, collect
from llm_recipes.evaluation.report.diff import changed, different
from llm_recipes.evaluation.report.html import html
from llm_recipes.evaluation.report.markdown import markdown
from llm_recipes.evaluation.report.pictures import axis_of, thinned
from llm_recipes.evaluation.report.sections import make_report
from llm_recipes.evaluation.report.values import bytes_text, clean, duration, figure, number

RECIPE = RECIPES / "evaluate" / "report.py"
VOID = {"meta", "line", "circle", "path", "polyline", "br"}
TAGS = """html head meta title style body header h1 h2 h3 nav ul li a main section div table caption
    thead tbody tfoot tr th td bdi span strong svg g line circle path polyline text figure
    figcaption p details summary dl dt dd code pre article mark ins del"""
OF_MARKDOWN = "h1 h2 h3 p ul li table thead tbody tr th td strong em code pre a"


def report(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPE), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**recipe_environment(), **environment},
    )


def report_here(*arguments: object) -> int:
    """The recipe in this process, which spares another import of torch; its exit status."""
    from runpy import run_path

    recipe = run_path(str(RECIPE))["report"]
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe, list(map(str, arguments)))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of every recipe, and a comparison by compare.py itself."""
    runs = made.write_all(tmp_path_factory.mktemp("all it's; ü") / "runs")
    names = ("base", "base+lora", "base+full")
    command = [sys.executable, str(RECIPES / "evaluate" / "compare.py")]
    command += [word for name in names for word in ("--run", str(runs / name))]
    command += ["--all-pairs", "--output", str(runs / "comparison")]
    command += ["--fail-if-worse", "--margin", "0.02"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=recipe_environment()
    )
    assert done.returncode in (0, 1), done.stderr
    return runs


@pytest.fixture(scope="module")
def texts(folder: Path) -> tuple[str, str]:
    """The whole report of them: HTML and Markdown."""
    made_of = build(folder)
    return html(made_of), markdown(made_of).replace("\\", "")


def build(*paths: Path, items: int = 20, chosen: Sequence[str] = ()) -> Report:
    runs, notes = collect(paths)
    return make_report("Report", runs, notes, paths[0].parent / "report", items, chosen)


def both(*paths: Path) -> str:
    found = build(*paths)
    return html(found) + markdown(found)


def row(text: str, *starts: str) -> str:
    """The line of a Markdown table that begins with these cells."""
    begin = "| " + " | ".join(starts) + " |"
    found = [line for line in text.splitlines() if line.startswith(begin)]
    assert found, f"no row {begin}"
    return found[0]


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


class Checker(HTMLParser):
    """Sees that elements are closed in order, and keeps what matters of them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.bare_headers = 0
        self.unnamed_pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(found)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [v or "" for n, v in attrs if n in ("href", "src", "data", "action")]
        self.bare_headers += tag == "th" and "scope" not in found
        if tag == "svg" and "svg" not in self.open:
            self.unnamed_pictures += not ("aria-label" in found or "aria-hidden" in found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


# What the report says


def test_every_recipe_is_there_with_its_numbers(folder: Path, texts: tuple[str, str]) -> None:
    _, text = texts
    runs = section(text, "What was run")
    for recipe in ("data/tiny", "data/digits", "finetune/sft", "finetune/merge", "finetune/sweep",
                   "inference/generate", "quantized/convert", "quantized/quantize",
                   "quantized/bench", "quantized/compare", "evaluate/harness", "evaluate/qa",
                   "evaluate/compare", "future/thing"):  # fmt: skip
        assert f"| {recipe} |" in runs, recipe
    assert "with changes" in row(runs, "lora", "finetune/sft", "✓ complete")
    assert "with changes" not in row(runs, "full", "finetune/sft", "✓ complete")
    assert "tiny, 6.98 billion" in row(runs, "base", "evaluate/qa", "✓ complete")
    two = markdown(build(folder / "base", folder / "lora"))
    assert "all with image llm-cuda13 0a1b0a1b0a1b" in two and "| image |" not in two
    assert "sha256:" + "0a1b" * 16 in runs  # whole in the run's own part
    assert "- driver" not in runs and "host: driver: 580.65.06" in runs
    assert "- variables: NCCL_DEBUG INFO, OMP_NUM_THREADS 16" in runs
    assert "- folder: /home/me/it's work" in runs
    assert "0a1b0a1b\n" not in runs.replace("sha256:" + "0a1b" * 16, "")  # results
    assert "Slurm: job: 4711" in runs and "Slurm: partition: gpu" in runs
    assert "energy kwh: 1.25" in runs and "nested a s: 3.5\xa0s" in runs
    command = "recipes/finetune/sft.py --model 'models/it'\"'\"'s here' --output runs/x"
    assert f"- command: {command}" in runs


def test_training_speed_and_quantization_say_what_the_records_say(texts: tuple[str, str]) -> None:
    page, text = texts
    assert "| lora | 600 | 4,873,800 | 0.0002 |" in row(text, "lora", "lora")
    speed = section(text, "Throughput and memory")
    cells = row(speed, "lora").split(" | ")
    assert "26,203" in cells and "41.2\xa0%" in cells and "61.3\xa0GB" in cells
    assert row(speed, "batch 8").rstrip(" |").endswith("out of memory")
    assert row(speed, "m-Q4_K_M", "pp512").startswith("| m-Q4_K_M | pp512 | 1,004 ± 4")
    quantized = section(text, "Quantization")
    change = row(quantized, "Q4_K_M").split(" | ")[5]
    # 100 (e^0.021 - 1), and of 0.021 ± 1.96 (0.0015 + 0.021/12)
    assert change == "2.12 % (1.47 to 2.77)"
    # a merged model has its base's metrics.jsonl, and was not trained itself
    assert "merged" not in section(text, "Training")
    assert page.count('<svg height="240"') == 6  # 2 losses, 2 rates, 2 trade-offs
    assert "Loss of 2 runs over the steps" in page and "lora, held out" in page


def test_summary_has_the_verdicts_and_what_did_not_end(
    folder: Path, texts: tuple[str, str]
) -> None:
    page, text = texts
    summary = section(text, "Summary")
    metrics = json.loads((folder / "comparison" / "run.json").read_text())["metrics"]
    sentences = [c["sentence"] for c in metrics["comparisons"] if c["is_main"]]
    assert len(sentences) == 6
    for sentence in sentences:  # the test and the number of items are in the table
        told, p, rest = sentence.partition(", p ")
        assert p and told in summary
        assert (" would often go unnoticed here" in rest) == ("no detectable" in told)
    assert "McNemar" not in summary and "sign-flip" not in summary
    assert summary.count("a true difference below") == summary.count("no detectable difference")
    assert "▲ base+lora is better than base in tatqa_dev: exact_match 40.00 % -> 60.00 %" in summary
    assert summary.index("▲") < summary.index("○ no detectable difference between base+full")
    assert "✗ failed: base+full in tatqa_dev: not shown to be non-inferior" in summary
    assert "stopped (finetune/sft) is interrupted, not complete" in summary
    assert "failed (evaluate/harness) is failed, not complete" in summary
    assert "<strong>base+lora is better than base in tatqa_dev</strong>" in page
    compared = row(section(text, "Comparisons"), "base+lora against base")
    first = metrics["comparisons"][0]
    for value in (first["difference"], first["low"], first["high"]):
        assert f"{100 * value:+.2f}" in compared
    assert compared.rstrip(" |").endswith(f"| {100 * first['detectable']:.2f}")
    assert "- 180 items in 30 clusters; sign-flip test, exact, by cluster" in text  # of all rows
    assert text.count("p is corrected for 6 tests (Holm)") == 1


def test_without_a_comparison_the_summary_draws_no_conclusion(folder: Path) -> None:
    text = markdown(build(folder / "base", folder / "base+lora"))
    assert "No comparison is among these records" in section(text, "Summary")
    assert "better" not in section(text, "Summary")


def test_results_have_intervals_and_groups(folder: Path, texts: tuple[str, str]) -> None:
    page, text = texts
    results = section(text, "Results")
    items = made.tatqa(0.57, 2).items
    share = sum(item.scores["exact_match"] for item in items) / len(items)
    assert f"| {100 * share:.1f} (" in row(results, "base+lora")
    part = [i for i in items if i.groups == {"answer_type": "count", "answer_from": "text"}]
    right = sum(item.scores["exact_match"] for item in part)
    cells = row(results, "count × text").split(" | ")
    assert cells[2] == str(len(part))
    assert cells[4].startswith(f"{100 * right / len(part):.1f} (")
    # Wilson's interval by clusters is at least as wide as by single items
    low, high = map(float, re.findall(r"[\d.]+", cells[4])[1:])
    spread = 196 * (right / len(part) * (1 - right / len(part)) / len(part)) ** 0.5
    assert high - low > 1.5 * spread
    assert "180 items in 30 clusters" in results
    assert page.count('<svg class="whisker" height="24"') == 2 * 3 + 2 * 3


def test_runs_that_measured_something_else_are_named(tmp_path: Path) -> None:
    made.write_evaluation(tmp_path / "a", 1, 0.4, 1, "m")
    other = made.tatqa(0.4, 1, items=60)
    changes = {**other.conditions, "chat_template": "ffff"}
    record = made.record("evaluate/qa", 2)
    changed_task = type(other)(**{**vars(other), "fewshot": 5, "conditions": changes})
    made.write_tasks(tmp_path / "b", [changed_task], record)
    made.write(tmp_path / "b", record)
    text = markdown(build(tmp_path / "a", tmp_path / "b")).replace("\\", "")
    assert (
        "not the same measurement: b has fewshot 5, not 0, chat_template ffff, not 1c9b,"
        " other items" in text
    )


def test_answers_side_by_side_begin_where_runs_differ(folder: Path) -> None:
    runs = [folder / name for name in ("base", "base+lora")]
    text = markdown(build(*runs, items=3))
    assert text.count("\n### tatqa\\_dev, q") == 3
    for item in section(text, "Answers side by side").split("\n### ")[1:]:
        assert "base: wrong:" in item and "base+lora: right:" in item
    one = markdown(build(*runs, chosen=["q007"]))
    assert one.count("\n### tatqa") == 1 and "### tatqa\\_dev, q007" in one
    several = markdown(build(*runs, chosen=["3-5,7"]))
    assert re.findall(r"### tatqa\\_dev, (q\d+)", several) == ["q003", "q004", "q005", "q007"]
    assert "Answers side by side" not in html(build(*runs, items=0))
    with pytest.raises(LLMError, match="--sid q999 is no item of these runs"):
        build(*runs, chosen=["q999", "q007"])
    with pytest.raises(LLMError, match="is no item") as fault:
        pick([], ["1"])
    assert fault.value.why == "no run kept its answers"


def test_generated_answers_stand_beside_each_other(folder: Path) -> None:
    paths = [folder / "answers" / name for name in ("a.jsonl", "b.jsonl")]
    page = html(build(*paths))
    assert "It is <mark>the</mark><mark> </mark>" in page or "<mark>the number 3</mark>" in page
    assert page.count('<article class="item">') == 2


def test_real_records_of_this_library(tmp_path: Path, model_folder: Path) -> None:
    data, lora = tmp_path / "sums.jsonl", tmp_path / "lora"
    rows = [{"instruction": f"{n} plus 1?", "output": str(n + 1)} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = tmp_path / "answers.jsonl"
    tune = f"finetune/sft.py --data {data} --output {lora} --max-steps 4 --evaluate-every 2"
    ask = f"inference/generate.py --prompt 1+1? --output {answers} --max-new-tokens 4"
    for words in (f"{tune} --held-out 0.2 --max-length 64", ask):
        recipe, *options = words.split()
        command = [sys.executable, str(RECIPES / recipe), *options, "--model", str(model_folder)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=200, env=recipe_environment()
        )
        assert done.returncode == 0, done.stderr
    text = markdown(build(tmp_path))
    record = json.loads((lora / "run.json").read_text())
    trained = row(section(text, "Training"), "lora", "lora", "4")
    for name in ("first_loss", "last_loss", "held_out_loss"):
        assert figure(record["metrics"][name]) in trained
    rates = row(section(text, "Throughput and memory"), "answers")
    answered = json.loads((tmp_path / "answers.run.json").read_text())["metrics"]
    assert f"| {bytes_text(answered['peak_host_bytes'])} |" in rates
    assert record["model"]["digest"][:12] in row(text, "lora", "finetune/sft")
    assert "2 runs: 1 finetune/sft, 1 inference/generate; all are complete" in text


# What it is made of


def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    names = sorted(path.name for path in folder.iterdir())
    random.Random(4).shuffle(names)
    copy.mkdir()
    for name in names:  # another order in the file system, and other times
        target = copy / name
        shutil.copytree(folder / name, target) if (folder / name).is_dir() else shutil.copy(
            folder / name, target
        )
    first = report("--run", folder, "--output", folder.parent / "report", PYTHONHASHSEED="1",
                   TZ="Asia/Tokyo", LC_ALL="C")  # fmt: skip
    other = report("--run", "runs", "--output", "report", cwd=tmp_path, PYTHONHASHSEED="2",
                   TZ="America/Lima")  # fmt: skip
    assert (first.returncode, other.returncode) == (0, 0), first.stderr + other.stderr
    for name in ("report.html", "report.md"):
        assert (folder.parent / "report" / name).read_bytes() == (
            tmp_path / "report" / name
        ).read_bytes()


def test_the_same_command_again_changes_nothing_and_reports_no_report(tmp_path: Path) -> None:
    made.write_training(tmp_path / "runs" / "lora", 3, 30)
    command = ("--run", tmp_path / "runs", "--output", tmp_path / "runs" / "report")
    assert report_here(*command) == 0
    files = [tmp_path / "runs" / "report" / f"report.{kind}" for kind in ("html", "md")]
    before = [file.read_bytes() for file in files]
    record = json.loads((tmp_path / "runs" / "report" / "run.json").read_text())
    assert record["recipe"] == "evaluate/report" and record["status"] == "complete"
    assert record["metrics"]["runs"] == 1
    assert report_here(*command) == 0
    assert [file.read_bytes() for file in files] == before
    text = before[1].decode()
    assert record["started"][:16] not in text and "evaluate/report" not in text


def test_a_folder_of_something_else_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_training(tmp_path / "lora", 3, 5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("my own")
    assert report_here("--run", tmp_path / "lora", "--output", tmp_path / "mine") == 2
    assert "is not the folder of a report" in capsys.readouterr().err
    assert (tmp_path / "mine" / "report.html").read_text() == "my own"
    assert os.listdir(tmp_path / "mine") == ["report.html"]


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_training(tmp_path / "lora", 3, 5)
    command = ("--run", tmp_path / "lora", "--output", tmp_path / "report")
    assert report_here(*command) == 0
    before = (tmp_path / "report" / "report.html").read_bytes()
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if str(target).endswith("report.md"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert report_here(*command) == 2
    assert "no space left to write" in capsys.readouterr().err
    record = json.loads((tmp_path / "report" / "run.json").read_text())
    assert record["status"] == "failed"
    monkeypatch.undo()
    assert report_here(*command) == 0
    assert (tmp_path / "report" / "report.html").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "report")) == ["report.html", "report.md", "run.json"]


def test_html_is_whole_accessible_and_needs_nothing_else(texts: tuple[str, str]) -> None:
    page, _ = texts
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    checker = checked(page)
    assert checker.tags <= set(TAGS.split())
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.bare_headers == 0 and checker.unnamed_pictures == 0
    assert not {name for name in checker.attributes if name.startswith("on") or name == "style"}
    for address in checker.addresses:
        assert not re.match(r"[a-z+.-]+:|//", address, re.IGNORECASE), address
        assert not address.startswith("#") or address[1:] in checker.ids
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src &#39;none&#39;" in page
    headings = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_a_report_is_no_part_of_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    assert report_here("--run", folder / "base", "--output", first) == 0
    assert report_here("--run", first, "--output", tmp_path / "second") == 2
    assert "there is nothing to report" in capsys.readouterr().err
    options = ("--run", folder / "base", "--run", first, "--output", tmp_path / "second")
    assert report_here(*options) == 0
    assert f"left out: {first / 'run.json'}: it is of a report" in capsys.readouterr().err


def test_links_are_relative_and_lead_to_files(folder: Path) -> None:
    output = folder.parent / "out" / "deeper: #1?"
    assert report_here("--run", folder, "--output", output) == 0
    page = (output / "report.html").read_text()
    addresses = [a for a in checked(page).addresses if not a.startswith("#")]
    found = [(output / unquote(address)).resolve() for address in addresses]
    assert all(path.is_file() for path in found)
    assert folder / "lora" / "metrics.jsonl" in found
    assert folder / "failed" / "job 4711.log" in found
    assert folder / "base" / "scores" / "python docs.jsonl" in found
    assert all(folder / name / "run.json" in found for name in ("base", "quantized", "unknown"))


def test_hostile_texts_are_harmless(tmp_path: Path) -> None:
    made.write_hostile(tmp_path / "runs")
    found = build(tmp_path / "runs")
    page, text = html(found), markdown(found)
    page.encode(), text.encode()  # no lone surrogates
    assert checked(page).tags <= set(TAGS.split())
    for part in (page, text):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", part)
    assert "&lt;script&gt;" in page and "[U+202E]txet" in page and "␀␇␛[31m" in page
    assert "{{ 7 * 7 }}" in page and " 49 " not in page
    rendered = as_html(text)
    assert set(re.findall(r"<(\w+)", rendered)) <= set(OF_MARKDOWN.split())
    assert set(re.findall(r'href="([a-z]+:|//)', rendered)) == set()
    assert rendered.count("<h2>") == len(found.sections)


def as_html(text: str) -> str:
    """Markdown as one of its readers shows it, raw HTML included."""
    markdown_it = pytest.importorskip("markdown_it")
    return str(markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


# What can't be used


def test_records_that_cannot_be_used_are_named_all_at_once(tmp_path: Path) -> None:
    made.write_training(tmp_path / "good", 1, 5)
    files = {
        "torn": '{"schema": 1, "recipe": "a',
        "foreign": '{"name": "package", "version": "1.0"}',
        "newer": '{"schema": 2, "recipe": "finetune/sft"}',
        "list": "[1, 2]",
        "empty": "",
        "deep": "[" * 200_000,
        "binary": "\x00\x01",
    }
    for name, content in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    made.write_evaluation(tmp_path / "cut", 1, 0.4, 1, "m")
    scores = tmp_path / "cut" / "scores" / "tatqa_dev.jsonl"
    scores.write_text(scores.read_text()[:-900])
    (tmp_path / "nothing").mkdir()
    names = [*files, "cut", "nothing", "absent", "good"]
    done = report(
        *(word for name in names for word in ("--run", tmp_path / name)),
        *("--output", tmp_path / "report", "--items", "-1"),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for expected in (
        "--items -1 is not possible",
        "torn/run.json can't be used",
        "foreign/run.json is no run record",
        "newer/run.json is of a newer version",
        "its schema is 2, and this version reads 1",
        "list/run.json is no run record",
        "empty/run.json can't be used",
        "deep/run.json can't be used",
        "binary/run.json can't be used",
        f"the scores of tatqa_dev in {tmp_path / 'cut'} can't be used",
        "nothing holds no run record",
        "absent does not exist",
    ):
        assert expected in done.stderr
    assert "good" not in done.stderr.replace("goods", "")
    assert not (tmp_path / "report").exists()


def test_a_damaged_record_among_others_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_training(tmp_path / "runs" / "good", 1, 5)
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "run.json").write_text("{")
    os.mkfifo(tmp_path / "runs" / "pipe.run.json")
    assert report_here("--run", tmp_path / "runs", "--output", tmp_path / "report") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    for said in (capsys.readouterr().err, text.replace("\\", "")):
        assert f"left out: {tmp_path}/runs/torn/run.json can't be used" in said
        assert "pipe.run.json can't be used: it is no file" in said
    only = faults_of(lambda: collect([tmp_path / "runs" / "torn"]))
    assert [fault.what for fault in only] == [f"{tmp_path}/runs/torn/run.json can't be used"]


def test_a_record_with_anything_in_it_is_shown(folder: Path, tmp_path: Path) -> None:
    """Every value of every record in turn is something else: it is shown, or refused."""
    rng = random.Random(0)
    others = [None, "x", -1, [1, "a", {}], {"a": {"b": []}}, float("nan"), 10**400, True, ""]
    left_out = {"answers", "base+lora", "base+full", "full"}
    tried = 0
    for source in sorted(folder.rglob("*.json*")):
        name = source.relative_to(folder).parts[0]
        if name in left_out or source.name == "comparison.json" or "scores" in source.parts:
            continue
        target = tmp_path / "run"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source.parent, target) if source.parent != folder else target.mkdir()
        file = target / source.name
        first, _, rest = source.read_text().partition("\n" if source.suffix == ".jsonl" else "\0")
        content = json.loads(first)
        places = [place for place in all_places(content) if place[0] not in ("slurm", "code")]
        for place in rng.sample(places, min(len(places), 15)):
            file.write_text(json.dumps(replaced(content, place, rng.choice(others))) + "\n" + rest)
            try:
                both(target if source.parent != folder else file)
            except* LLMError:
                pass
            tried += 1
    assert tried > 200


def all_places(value: object, above: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:2]))
    return [p for k, v in inner for p in [(*above, k), *all_places(v, (*above, k))]]


def replaced(value: object, place: tuple[object, ...], new: object) -> object:
    copy = json.loads(json.dumps(value))
    part = copy
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = new
    return copy


# Its parts


def test_names_are_short_and_different(tmp_path: Path) -> None:
    for path in ("a/base", "b/base", "lora"):
        made.write_training(tmp_path / path, 1, 3)
    runs, _ = collect([tmp_path, tmp_path / "lora" / "run.json", tmp_path / "a" / "base"])
    assert sorted(run.name for run in runs) == ["a/base", "b/base", "lora"]


def test_a_folder_of_runs_goes_by_their_time_and_takes_no_parts_of_a_run(tmp_path: Path) -> None:
    for name, hour in (("z", 1), ("a", 5), ("m", 3)):
        made.write_training(tmp_path / name, hour, 3)
    made.write_training(tmp_path / "m" / "runs" / "inner", 2, 3)
    made.write_training(tmp_path / ".hidden", 2, 3)
    made.write_sweep(tmp_path / "sweep", 7)
    made.write_training(tmp_path / "sweep" / "runs" / "batch 2", 6, 3)
    runs, _ = collect([tmp_path])
    assert [run.name for run in runs] == ["z", "m", "a", "sweep"]
    assert isinstance(runs[0], Run)


def test_replays_are_no_part_of_a_folder_of_runs(tmp_path: Path) -> None:
    """They lie beside their runs, and a report is the same after one."""
    for name, hour in (("a", 1), ("a.replay-1", 2), ("elsewhere", 3)):
        made.write_training(tmp_path / name, hour, 3)
    file = tmp_path / "elsewhere" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "replay_of": {"path": "a"}}))
    runs, notes = collect([tmp_path])
    assert [run.file.parent.name for run in runs] == ["a"]
    assert not notes
    runs, _ = collect([tmp_path / "a.replay-1", file])  # who names them gets them
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1,234.5 million", "1,235 million"),
        ("", "all new"),
        ("gone", ""),
        ("the same words", "the same words"),
        ("a b c d", "b x d  e"),
        ("ünï\ncode — −5 %", "ünï code - -5 %"),
        ("word " * 2000, "word " * 1999 + "other"),
    ],
)
def test_differences_keep_both_texts(old: str, new: str) -> None:
    pieces = changed(old, new)
    assert "".join(p.text for p in pieces if p.change != "new") == old
    assert "".join(p.text for p in pieces if p.change != "gone") == new
    marked = different(old, new)
    assert "".join(p.text for p in marked) == new
    assert any(p.change == "other" for p in marked) == (old != new and new != "")


def test_a_number_is_one_word() -> None:
    assert [p.text for p in changed("1,234.5 million", "1,235 million")] == [
        "1,234.5",
        "1,235",
        " million",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.45923, "0.4592"),
        (1713.4, "1,713"),
        (2e-05, "2e−05"),
        (-0.00771, "−0.00771"),
        (1e15, "1,000,000,000,000,000"),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_units() -> None:
    assert figure(-0.0001, 2) == "0.00"
    assert duration(7384) == "2\xa0h 03\xa0min" and duration(0.25) == "0.25\xa0s"
    assert bytes_text(61_300_000_000) == "61.3\xa0GB" and bytes_text(4.2e6) == "4.2\xa0MB"
    assert [number(v) for v in (True, "1", float("nan"), 10**400, 2)] == [None] * 4 + [2.0]
    assert clean("a\u202eb\x1b\ud800") == "a[U+202E]b␛[U+D800]"


@pytest.mark.parametrize(
    "values", [[0.4], [-3.0, 1e6], [1e-12, 2e-12], [5.0, 5.0000001], [0.0], [1e300, 2e300], [-1e-9]]
)
def test_an_axis_has_room_for_all(values: list[float]) -> None:
    axis = axis_of(values)
    assert axis.low <= min(values) and axis.high >= max(values) and axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 8
    assert len(set(axis.labels)) > 1
    assert all(-0.001 <= axis.share(value) <= 1.001 for value in values)


def test_long_curves_are_thinned_with_both_ends() -> None:
    points = [(float(n), float(n % 7)) for n in range(100_000)]
    found = thinned(points)
    assert len(found) == 240
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert sum(y for _, y in found) / 240 == pytest.approx(3, abs=0.1)
