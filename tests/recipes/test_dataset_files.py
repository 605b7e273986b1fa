"""Rows of files: each with its place, bad ones in theirs, and nothing that is only half read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_recipes.dataset_files import Row, data_files, missing_source, read_rows
from llm_recipes.errors import LLMError

HOSTILE = "it's; data ü"


def read(path: Path) -> list[tuple[str, object]]:
    """Places (without the path) with values, or the fault's first line for a bad row."""
    return [
        (row.where.removeprefix(f"{path}, "), row.values)
        if isinstance(row, Row)
        else (row.what.removeprefix(f"{path}, "), None)
        for row in read_rows(path)
    ]


def write(folder: Path, suffix: str, data: bytes | str) -> Path:
    path = folder / f"{HOSTILE}{suffix}"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_json_lines(tmp_path: Path) -> None:
    lines = b'\xef\xbb\xbf{"a": 1}\r\n\n{\n[1]\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": 2}'
    for suffix in (".jsonl", ".ndjson", ".JSONL"):
        assert read(write(tmp_path, suffix, lines)) == [
            ("line 1", {"a": 1}),
            ("line 3 is not JSON", None),
            ("line 4 is no JSON object", None),
            ("line 5 is not UTF-8", None),
            ("line 6 is not UTF-8", None),
            ("line 7", {"a": 2}),
        ]


def test_json_list_with_lines(tmp_path: Path) -> None:
    text = '[\n {"a": "[\\n"},\n 3,\n\n {"a":\n 2}]\n'
    assert read(write(tmp_path, ".json", text)) == [
        ("item 1 (line 2)", {"a": "[\n"}),
        ("item 2 (line 3) is no JSON object", None),
        ("item 3 (line 5)", {"a": 2}),
    ]


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ('[{"a": 1}, {"a": ', "item 2 (line 1) is not JSON, nor can be what follows"),
        ('[{"a": 1}', "item 1 (line 1) is not followed by , or ]"),
        ('[{"a": 1} {"a": 2}]', "item 1 (line 1) is not followed by , or ]"),
        ('[{"a": 1},', "item 2 (line 1) is not JSON, nor can be what follows"),
        ('[{"a": 1}, ' + "[" * 100_000, "item 2 (line 1) is not JSON, nor can be what follows"),
    ],
)
def test_a_list_that_is_cut_off(text: str, last: str, tmp_path: Path) -> None:
    found = read(write(tmp_path, ".json", text))
    assert found[0] == ("item 1 (line 1)", {"a": 1})
    assert found[-1] == (last, None)


def test_other_json(tmp_path: Path) -> None:
    one = {"a": 1}
    assert read(write(tmp_path, ".json", json.dumps(one, indent=1))) == [("line 1", one)]
    many = json.dumps({"version": 2, "data": [one, one]})
    assert read(write(tmp_path, ".json", many)) == [("item 1", one), ("item 2", one)]
    lines = '{"a": 1}\n{"a": 1}\n'
    assert read(write(tmp_path, ".json", lines)) == [("line 1", one), ("line 2", one)]
    for empty in ("", " \n", "[]", "[ \n]", "{}"):
        assert read(write(tmp_path, ".json", empty)) == []
    with pytest.raises(LLMError, match="is not UTF-8"):
        read(write(tmp_path, ".json", b'[{"a":\n "\xff"}]'))
    with pytest.raises(LLMError, match="is not UTF-8"):
        read(write(tmp_path, ".jsonl", '{"a": 1}'.encode("utf-16")))


def test_csv(tmp_path: Path) -> None:
    text = b'a,b\r\n1,"two, \n""lines"""\r\n\r\nonly\r\n\xff,x\r\n' + b"1," + b"x" * 200_000
    found = read(write(tmp_path, ".csv", text))
    assert found[0] == ("line 2", {"a": "1", "b": 'two, \n"lines"'})
    assert found[1:3] == [("line 5 has 1 fields", None), ("line 6 is not UTF-8", None)]
    assert found[3] == ("line 7", {"a": "1", "b": "x" * 200_000})
    assert read(write(tmp_path, ".csv", "a;b\n1;2")) == [("line 2", {"a": "1", "b": "2"})]
    assert read(write(tmp_path, ".tsv", "a\tb\n1,0\t2")) == [("line 2", {"a": "1,0", "b": "2"})]
    assert read(write(tmp_path, ".csv", "")) == []
    open_quote = read(write(tmp_path, ".csv", 'a,b\n1,2\n"3,4\n5,6\n'))
    assert open_quote[-1] == ("line 3 and what follows are no CSV", None)
    with pytest.raises(LLMError, match="does not name its columns"):
        read(write(tmp_path, ".csv", "a,a\n1,2"))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")

    path = tmp_path / f"{HOSTILE}.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x", None], "b": [1, 2]}), path)
    assert read(path) == [("row 1", {"a": "x", "b": 1}), ("row 2", {"a": None, "b": 2})]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LLMError, match="no whole Parquet file"):
        read(path)


def test_text_is_one_document_or_several(tmp_path: Path) -> None:
    text = "\nFirst line\n\n---\nlast line\n"
    expected = {"text": text.strip("\n")}
    assert read(write(tmp_path, ".txt", text)) == [("line 1", expected)]
    parts = f"a\r\n<|endoftext|>\n\n<|endoftext|>\n{text}<|endoftext|> not alone\n"
    assert [values for _, values in read(write(tmp_path, ".md", parts))] == [
        {"text": "a"},
        {"text": "First line\n\n---\nlast line\n<|endoftext|> not alone"},
    ]
    assert read(write(tmp_path, ".txt", " \n")) == []
    with pytest.raises(LLMError, match="is not UTF-8") as caught:
        read(write(tmp_path, ".txt", b"a\nb\xff"))
    assert "line 2, byte 4" in caught.value.why


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "README.md", ".hidden.jsonl"):
        (tmp_path / name).write_text("")
    assert [p.name for p in data_files(tmp_path)] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(LLMError, match="several kinds"):
        data_files(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLMError, match="holds no data"):
        data_files(tmp_path / "empty")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for name, fix in (("a.jsonl.gz", "unpack"), ("a.docx", "ending")):
        (tmp_path / name).write_text("")
        with pytest.raises(LLMError, match="no known kind") as caught:
            data_files(tmp_path / name)
        assert fix in caught.value.fix
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LLMError, match="cannot read"):
        data_files(tmp_path / "link.jsonl")
    (tmp_path / "dolly.jsonl").write_text("")
    assert "dolly.jsonl" in missing_source(str(tmp_path / "doly.jsonl")).fix
