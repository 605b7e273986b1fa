"""llm-record: show the record of a run, check what it names, run it again.

llm-record show runs/base
llm-record replay runs/base
"""

from __future__ import annotations

import io
import json
import os
import sys

from _llm.errors import report
from _llm.record.options import HELP, Options, parse
from _llm.settings import load_settings


def main(arguments: list[str]) -> int:
    """Run `llm-record` with `arguments` (without its name); return its exit status."""
    options = parse(arguments)
    home = os.path.dirname(
        os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A record may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    if options.information == "--version":
        from _llm.help import version_text
        from _llm.run import VERSION

        print(version_text("llm-record", VERSION, home))
        return 0
    if options.information:
        print(HELP)
        return 0
    if options.command == "replay":
        from _llm.record.reading import find_record, read_record
        from _llm.record.replay import replay

        record = read_record(find_record(options.paths[0]))
        return replay(record, options, load_settings(dict(os.environ), home), home)
    return show(options, home)


def show(options: Options, home: str) -> int:
    """Print one or more records; return 2 where one can't be read, 1 for what --check found."""
    from _llm.record import show as shown
    from _llm.record.finding import obstacles
    from _llm.record.reading import normalised

    records, faults = shown.read_all(options.paths)
    status = report("llm-record", faults) if faults else 0
    if options.check:
        settings = load_settings(dict(os.environ), home)
        found = [(given, record, shown.check(record, settings, home)) for given, record in records]
        if options.json:
            _print_json([{"record": record.path, "findings": [one.as_json() for one in findings]}
                         for _, record, findings in found])
        else:
            for given, _, findings in found:
                title = [f"{given}:"] if len(found) > 1 else []
                print("\n".join(title + [one.lines() for one in findings]))
        return status or int(any(obstacles(findings) for _, _, findings in found))
    if options.json:
        _print_json([normalised(record) for _, record in records])
    elif len(options.paths) > 1:
        if records:
            print(shown.table(records))
    elif records:
        print(shown.screen(records[0][1], home))
    return status


def _print_json(answers: list[dict[str, object]]) -> None:
    """Print one object, of several a list."""
    answer = answers[0] if len(answers) == 1 else answers
    print(json.dumps(answer, indent=2, ensure_ascii=False))
