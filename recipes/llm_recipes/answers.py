"""The file of answers: JSON Lines that grow while a run goes on and survive whatever ends it.

While a run goes on, answers are appended to `NAME.partial` (its first line says which settings
made them). Once all are there, they are sorted into the prompts' order, the run's record is
written, the file gets the name `NAME`, and only then the partial file goes: a run that is stopped
anywhere in between can be ended by the same command. That command continues a partial file; other
settings are refused, with what differs.

    from llm_recipes.answers import open_answers
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.files import open_locked, refuse_device, staged_text, write_fault

HEADER = "made_with"
TOO_LONG = "prompt_too_long"  # finish_reason of the empty answer to a prompt that leaves no room
Key = tuple[str, int]  # the prompt's id as JSON, and the sample's number


def answer_key(answer: Mapping[str, Any]) -> Key:
    """Which completion an answer is."""
    return json.dumps(answer["id"]), int(answer["sample"])


class Answers:
    """An open file of answers. `done` holds what earlier runs have written.

    finished: all of it is in the file with the final name, and nothing else is to be done to it.
    """

    def __init__(
        self, path: Path, partial: Path, file: FileIO, done: dict[Key, Any], finished: bool
    ) -> None:
        self.path = path
        self.partial = partial
        self.done = done
        self.finished = finished
        self.appended = 0
        self._file = file

    def append(self, answer: Mapping[str, Any]) -> None:
        """Write one answer; it is in the file when this returns.

        Raises:
            LLMError: If the disk is full or the file cannot be written; what was written is kept.
        """
        line = (json.dumps(answer, ensure_ascii=False) + "\n").encode()
        _write_all(self._file, line, self.partial)
        self.done[answer_key(answer)] = answer
        self.appended += 1

    def finish(self, order: Sequence[Key], keep: Callable[[str], None]) -> None:
        """Write all answers in this order to the final name; then the partial file goes away.

        Args:
            order: Every answer.
            keep: Writes the run's record; it gets the SHA-256 of the file before the file has its
                name, so that the file is never without its record.
        """
        text = "".join(json.dumps(self.done[key], ensure_ascii=False) + "\n" for key in order)
        with staged_text(self.path, text):
            keep(sha256(text.encode()).hexdigest())
        try:
            self.partial.unlink(missing_ok=True)
        except OSError as error:
            raise write_fault(self.partial, error) from error


class PrintedAnswers:
    """Answers that go to standard output, in order, each as soon as those before it are there."""

    def __init__(self, order: Sequence[Key]) -> None:
        self.done: dict[Key, Any] = {}
        self._waiting = list(reversed(order))

    def append(self, answer: Mapping[str, Any]) -> None:
        """Print what can be printed now."""
        self.done[answer_key(answer)] = answer
        while self._waiting and self._waiting[-1] in self.done:
            key = self._waiting.pop()
            print(json.dumps(self.done[key], ensure_ascii=False), flush=True)

    def finish(self, order: Sequence[Key], keep: Callable[[str], None]) -> None:
        """Print what is left: after an interruption there are gaps. There is no record to keep."""
        for key in order:
            if key in self._waiting and key in self.done:
                print(json.dumps(self.done[key], ensure_ascii=False), flush=True)
        self._waiting.clear()


@contextlib.contextmanager
def open_answers(
    path: Path,
    made_with: Mapping[str, Any],
    contents: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    overwrite: bool,
) -> Iterator[Answers]:
    """Open a file of answers for appending; an earlier, unfinished one is continued.

    Args:
        path: The final name.
        made_with: Every setting that an answer depends on.
        contents: Each prompt's content by its key.
        record: The run record of the finished file that may be there, with its `made_with` and
            `output_digest`.
        overwrite: Replace what other settings made; the old file stays until the new one is
            complete, and an unfinished file of the same settings is continued.

    Raises:
        LLMError: If other settings or prompts made what is there, another process writes it, or
            it cannot be written.
    """
    if os.path.isdir(path):  # unlike Path.is_dir it raises nothing for closed folders
        raise LLMError(f"{path} is a folder", fix=f"name a file: --output {path}/answers.jsonl")
    refuse_device(path)
    partial = path.with_name(path.name + ".partial")
    done: dict[Key, Any] = {}
    finished = False
    there = None if overwrite else _read_output(path)
    with open_locked(partial) as file:
        header, rows = _read_partial(file)
        if there is not None and not (header == made_with and _is_made_of(rows, there)):
            try:
                done = _read_finished(path, there, made_with, contents, record)
            except LLMError:
                if file.seek(0, os.SEEK_END) == 0:  # made just now
                    partial.unlink(missing_ok=True)
                raise
            finished = not rows
        if header is not None and not (overwrite and header != made_with):
            _refuse_differences(partial, header, made_with, rows, contents)
            done.update({answer_key(row): row for row in rows})
        else:
            _write_header(file, partial, made_with)
        answers = Answers(path, partial, file, done, finished)
        try:
            yield answers
        finally:
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
            if not rows and not answers.appended:  # nothing but its header
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)


def _read_output(path: Path) -> bytes | None:
    """What the file with the final name holds, None if there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = error.strerror or str(error)
        raise LLMError(f"cannot read {path}", reason, "choose another --output") from None


def _is_made_of(rows: Sequence[Mapping[str, Any]], data: bytes) -> bool:
    """Whether the output holds answers of the partial file only: a run was stopped between them.

    Then there is nothing to refuse, whatever became of the record. Any other file is not ours.
    """
    ours = {json.dumps(row, sort_keys=True) for row in rows}
    lines = [line for line in data.split(b"\n") if line.strip()]
    found = [json.dumps(row, sort_keys=True) for row in _parse(data)]
    return len(found) == len(lines) > 0 and ours.issuperset(found)


def _read_finished(
    path: Path,
    data: bytes,
    made_with: Mapping[str, Any],
    contents: Mapping[str, Any],
    record: Mapping[str, Any] | None,
) -> dict[Key, Any]:
    if record is None or record.get("output_digest") != sha256(data).hexdigest():
        why = "no run record beside it says which settings made it as it is now"
        raise LLMError(f"{path} is there already", why, "choose another --output, or --overwrite")
    rows = _parse(data)
    _refuse_differences(path, record["made_with"], made_with, rows, contents)
    return {answer_key(row): row for row in rows}


def _read_partial(file: FileIO) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Header and answers; a torn last line, left by a kill, is cut off: it will be made again."""
    file.seek(0)
    data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    rows = _parse(whole)
    if len(whole) < len(data):
        rest = _parse(data[len(whole) :])
        if rest:  # only the end of the line was missing
            file.write(b"\n")
            rows += rest
        else:
            file.truncate(len(whole))
    file.seek(0, os.SEEK_END)
    if rows and HEADER in rows[0]:
        return rows[0][HEADER], [row for row in rows[1:] if "id" in row and "sample" in row]
    return None, []


def _parse(data: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line damaged by a crash of the machine: made again
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _write_header(file: FileIO, partial: Path, made_with: Mapping[str, Any]) -> None:
    file.truncate(0)
    _write_all(file, (json.dumps({HEADER: made_with}, ensure_ascii=False) + "\n").encode(), partial)


def _write_all(file: FileIO, line: bytes, path: Path) -> None:
    """Append a whole line or nothing: a full disk takes a part of it first."""
    start = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        with contextlib.suppress(OSError):
            file.truncate(start)
        raise write_fault(path, error) from error


def _refuse_differences(
    path: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    contents: Mapping[str, Any],
) -> None:
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key != "prompts"
    ]
    if before.get("prompts") != now.get("prompts"):
        differences.append(_prompt_difference(rows, contents))
    if differences:
        raise LLMError(
            f"{path} was made with other settings or prompts",
            "\n".join(differences),
            "give the old settings to continue it, choose another --output, or --overwrite",
        )


def _prompt_difference(rows: Sequence[Mapping[str, Any]], contents: Mapping[str, Any]) -> str:
    answered = {json.dumps(row["id"]): row.get("prompt") for row in rows}
    changed = [key for key in answered if key in contents and contents[key] != answered[key]]
    gone = [key for key in answered if key not in contents]
    parts = [
        f"{name}: {', '.join(keys[:5])}{' …' if len(keys) > 5 else ''}"
        for name, keys in (("changed", changed), ("missing", gone))
        if keys
    ]
    return f"the prompts differ ({'; '.join(parts) or 'others were added or reordered'})"
