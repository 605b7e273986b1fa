"""One HTML file and Markdown of run records: what was run on what, with which results.

    llm-run python recipes/evaluate/report.py --run runs/base --run runs/lora --run comparison \\
        --output report
    llm-run python recipes/evaluate/report.py --run runs --output report --sid 100

Any run.json of any recipe will do, also ANSWERS.run.json, a run's folder, or a folder of such
folders. Nothing but records is read, and the files that lie beside them: no model, no network.
OUTPUT gets report.html, which needs no other file and no script, report.md, and run.json. The same
records give the same report, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_recipes.cli import Terminated, run_recipe
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.evaluation.report.blocks import Report
    from llm_recipes.evaluation.report.collect import Run

RECIPE = "evaluate/report"
RECORD = "run.json"


def report(
    run: list[Path],
    output: Path,
    title: str = "Report",
    items: int = 20,
    sid: list[str] | None = None,
) -> None:
    """Make one HTML file and Markdown of run records.

    Args:
        run: A run.json, an ANSWERS.run.json, a folder with one, or a folder of such folders; repeat
            the option.
        output: Folder for report.html and report.md.
        title: At the top of the report.
        items: Answers that are shown side by side at most, those first where runs differ; 0: none.
        sid: Items whose answers are shown instead: their ids, or numbers from 0 such as 100 or 3-7;
            repeat the option.
    """
    settings = dict(locals())
    from llm_recipes.evaluation.report.collect import collect
    from llm_recipes.evaluation.report.sections import make_report
    from llm_recipes.output_folder import check_output_folder

    folder = output.expanduser().absolute()
    faults = []
    if items < 0:
        faults.append(LLMError(f"--items {items} is not possible", "at least 0, which is none"))
    faults += faults_of(lambda: check_output_folder(folder, RECORD, RECIPE, "report"))
    runs: list[Run] = []
    notes: list[str] = []

    def read() -> None:
        found, unusable = collect(run)
        runs.extend(found)
        notes.extend(unusable)

    faults += faults_of(read)
    raise_all(faults)
    for note in notes:
        say(f"left out: {note}")
    made = make_report(title, runs, notes, folder, items, sid or [])
    files = [one.file for one in runs]
    write(folder, settings, files, made, {"runs": len(runs), "left_out": len(notes)})
    print(folder / "report.html")


def write(
    folder: Path,
    settings: dict[str, Any],
    files: list[Path],
    made: Report,
    counts: dict[str, int],
) -> None:
    """Write the record, which says whose folder it is, both files, and the record's end.

    files: the records that the report is of.

    Raises:
        LLMError: If the folder can't be written.
    """
    from llm_recipes.evaluation.report.html import html
    from llm_recipes.evaluation.report.markdown import markdown
    from llm_recipes.files import write_fault, write_text
    from llm_recipes.record import add_input, start_record, write_record

    record = start_record(RECIPE, settings, "cpu", deterministic=True)
    add_input(record, "data", files)
    record["metrics"] = counts
    texts = {"report.html": html(made), "report.md": markdown(made)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(folder, error) from error
    write_record(folder / RECORD, record, "running")
    status = "failed"
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
        status = "complete"
    except (KeyboardInterrupt, Terminated):
        status = "interrupted"
        raise
    finally:
        try:
            names = texts if status == "complete" else ()
            write_record(folder / RECORD, record, status, results=names)
        except LLMError as fault:  # it must not hide what ended the run
            say(str(fault))


if __name__ == "__main__":
    run_recipe(report)
