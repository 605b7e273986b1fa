"""What a benchmark leaves: table, pictures, record; and the comparison of two.

    from llm_recipes.gguf.bench_report import report, report_comparison
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_recipes.device import (
    choose_device,
    choose_dtype,
    data_sheet,
    measure_peak,
    use_granted_cpus,
)
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.files import write_fault, write_text
from llm_recipes.gguf.bench_compare import compare, comparison_csv, comparison_lines, summary
from llm_recipes.gguf.bench_figures import Figure, Peak, gather
from llm_recipes.gguf.bench_options import RECORD
from llm_recipes.gguf.bench_plots import write_plots
from llm_recipes.gguf.bench_results import Result, read_results
from llm_recipes.gguf.bench_table import csv_text, markdown, show, table
from llm_recipes.gguf.engine import Device
from llm_recipes.record import write_record


def peak_of(gpus: Sequence[Device], measure_host: bool) -> Peak:
    """Bandwidths for the MBU: a GPU's data sheet, the host's if it is to be measured."""
    sheet = data_sheet(gpus[0].description) if gpus else None
    host, sources = None, []
    if measure_host:
        cpu = choose_device("cpu")
        use_granted_cpus()
        host = measure_peak(cpu, choose_dtype("auto", cpu)).bytes_per_s
        sources.append("host: measured at start")
    if sheet is not None:
        sources.append(f"GPU: {sheet.source}")
    return Peak(
        host,
        sheet.bytes_per_s if sheet else None,
        max(1, len(gpus)),
        ", ".join(sources) or "unknown: --measure-peak measures the host's",
    )


def report(
    output: Path,
    version: str,
    results: Sequence[Result],
    peak: Peak,
    record: dict[str, Any],
    status: str,
) -> None:
    """Print and write what is known of this llama.cpp; results of others stay in the file.

    Args:
        output: The benchmark's folder.
        version: Of llama.cpp.
        results: All that are in the folder.
        peak: Bandwidths.
        record: The run record; gets its metrics.
        status: complete, interrupted or failed.

    Raises:
        LLMError: If the folder can't be written.
    """
    figures = gather([result for result in results if result.build.get("version") == version])
    record["peak"] = asdict(peak)
    record["metrics"] = metrics(figures, version)
    if figures:
        lines = table(figures, peak)
        show(lines)
        write_text(output / "table.md", markdown(lines) + "\n" + footnote(figures, peak, version))
        write_text(output / "table.csv", csv_text(figures, peak))
        written = write_plots(figures, output)
        names = ["table.md", "table.csv", *(path.name for path in written)]
        print(f"written: {', '.join(names)} in {output}", file=sys.stderr, flush=True)
    write_record(output / RECORD, record, status)


def metrics(figures: Sequence[Figure], version: str) -> dict[str, Any]:
    """The record's numbers: how much was measured, and the fastest setting of each test."""
    best: dict[str, dict[str, Any]] = {}
    for figure in figures:
        title = f"{figure.model['title']} {figure.test.title}"
        if figure.rate and figure.rate > best.get(title, {}).get("tokens_per_s", 0.0):
            best[title] = {"tokens_per_s": figure.rate, "setting": figure.setting}
    measured = [figure for figure in figures if figure.rate is not None]
    return {
        "llama_cpp": version,
        "figures": len(measured),
        "failed": len(figures) - len(measured),
        "best": best,
    }


def footnote(figures: Sequence[Figure], peak: Peak, version: str) -> str:
    """What the table's numbers are."""
    build: dict[str, Any] = next((f.build for f in figures if "cpu_info" in f.build), {})
    devices = [str(build[name]) for name in ("cpu_info", "gpu_info") if build.get(name)]
    return (
        "ppN: processing a prompt of N tokens, tgN: generating N; mean ± standard deviation, of"
        " rounds where there are several, else of repeats. MBU: share of the memory bandwidth"
        f" ({peak.source}).\n\n{', '.join(devices) or 'Unknown device'}; llama.cpp {version}.\n"
    )


def report_comparison(paths: Sequence[Path], output: Path | None) -> None:
    """Print how the second benchmark's points compare with the first's; write it if asked.

    Raises:
        LLMError, ExceptionGroup: If one of them can't be read, or the folder can't be written.
    """
    sides: list[list[Figure]] = []
    faults: list[LLMError] = []
    for path in paths:
        faults += faults_of(lambda path=path: sides.append(gather(usable(path))))  # type: ignore[misc]
    raise_all(faults)
    found = compare(*sides)
    lines = comparison_lines(found)
    for name, path in zip("AB", paths, strict=True):
        print(f"{name}: {path}")
    if len(lines) > 1:
        show(lines)
    print("\n".join(summary(found)), flush=True)
    if output is None:
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(output, error) from error
    text = "\n".join([markdown(lines), *(f"- {line}" for line in summary(found)), ""])
    write_text(output / "comparison.md", text)
    write_text(output / "comparison.csv", comparison_csv(found))
    names = "comparison.md, comparison.csv"
    print(f"written: {names} in {output}", file=sys.stderr, flush=True)


def usable(path: Path) -> list[Result]:
    """Results of a benchmark's folder, its record or its points.jsonl.

    Raises:
        LLMError: If there are none.
    """
    place = path.expanduser()
    results = read_results(place.parent if place.name == RECORD else place)
    if not results:
        fix = "give the folder of a benchmark that has measured something"
        raise LLMError(f"{path} holds no results of a benchmark", fix=fix)
    return results
