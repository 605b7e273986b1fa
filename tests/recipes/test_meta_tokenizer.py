"""Meta's tokenizers: the ids are those of sentencepiece and tiktoken themselves."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meta_checkpoints
import pytest
import sentencepiece
import tiktoken
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from llm_recipes.errors import LLMError
from llm_recipes.meta import tokenizer as meta_tokenizer
from llm_recipes.meta.tokenizer import (
    load_tokenizer,
    stop_ids,
    tokenizer_kind,
    vocabulary_size,
    write_hf_tokenizer,
    write_meta_tokenizer,
)
from llm_recipes.meta.tokenizer_files import special_tokens
from llm_recipes.model_folder import LFS_POINTER
from llm_recipes.prompts import apply_template, encode

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
HOSTILE = 'it\'s; "a" ü.model'
# From the model card of Llama 3, not from the code under test.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    *("The capital of Germany is", " one", "  two", "   three", "trailing ", "trailing   "),
    *("a  b   c\n\n\td  \n", "\n", "\t", " ", "  ", "x\r\ny\r", " " * 40, "a" * 3000, "-" * 77),
    *("1234567890 12 3.14", "it's IT'S I'LL", "def f(x):\n    return x**2\n\n\nprint(f( 3))"),
    *(
        "größe Straße naïve",
        "日本語テキスト",
        "😀👩\u200d👩\u200d👧 emoji",
        "e\u0301 \u00a0\u200b\ufeff",
    ),
    *("\x00\x01", "\u2581under\u2581", "<0x41>", "\U0010ffff", "</s> <|eot_id|>", "[INST]"),
    *(" <PRE> x", "<PRE>", "a <PRE>the.the. th", "the <PRE><PRE>"),
)
Truth = Callable[[str], list[int]]


def random_texts() -> list[str]:
    choose = random.Random(0)
    words = [*meta_checkpoints._text().split()[:3000], *" \n\t .,_*#=-()0123456789üé日😀"]
    return ["".join(choose.choices(words, k=choose.randint(1, 20))) for _ in range(2000)]


def spaces_last(model: bytes) -> bytes:
    """The model with the scores that Llama's own has: runs of spaces are merged last, from left."""
    found = sentencepiece_model_pb2.ModelProto()
    found.ParseFromString(model)
    for piece in found.pieces:
        if len(piece.piece) > 1 and set(piece.piece) == {"\u2581"}:
            piece.score = -1e9
    data: bytes = found.SerializeToString()
    return data


def own_pieces(model: bytes) -> bytes:
    """The model with pieces that its user has defined, one of which begins as another."""
    found = sentencepiece_model_pb2.ModelProto()
    found.ParseFromString(model)
    for piece, text in zip(found.pieces[-3:], ("\u2581<PRE>", "th", "the."), strict=True):
        if text in {other.piece for other in found.pieces}:
            next(other for other in found.pieces if other.piece == text).piece = f"old {text}"
        piece.piece, piece.type = text, piece.USER_DEFINED
    data: bytes = found.SerializeToString()
    return data


MODELS = {"pieces": bytes, "pieces, spaces last": spaces_last, "own pieces": own_pieces}


@pytest.fixture(scope="module", params=[*MODELS, "ranks"])
def given(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Path, Any]:
    """A tokenizer.model under a hostile name, and the library that it is made for."""
    path = tmp_path_factory.mktemp("it's; ü") / HOSTILE
    if request.param == "ranks":
        path.write_bytes(meta_checkpoints.tiktoken_file())
        lines = path.read_bytes().splitlines()
        ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
        special = {name: len(ranks) + i for i, name in enumerate(special_tokens())}
        return path, tiktoken.Encoding(
            "llama", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
    path.write_bytes(MODELS[request.param](meta_checkpoints.pieces_file()))
    return path, sentencepiece.SentencePieceProcessor(model_file=str(path))


def true_ids(library: Any, text: str) -> list[int]:
    """What Meta's code makes of a text: BOS, and the library's ids."""
    if isinstance(library, tiktoken.Encoding):
        begin = library.encode("<|begin_of_text|>", allowed_special="all")
        return [*begin, *library.encode(text, disallowed_special=())]
    return [library.bos_id(), *library.encode(text)]


def test_ids_are_those_of_the_library(given: tuple[Path, Any]) -> None:
    path, library = given
    tokenizer = load_tokenizer(path, None, chat=False)
    texts = [*TEXTS, *random_texts()]
    for text, ids in zip(texts, encode(texts, tokenizer, plain=True), strict=True):
        expected = true_ids(library, text)
        assert ids == expected, text
        assert tokenizer.decode(ids, skip_special_tokens=True) == library.decode(expected[1:])
    assert encode([TEXTS[0]], tokenizer) == [true_ids(library, TEXTS[0])]
    assert encode([""], tokenizer) == [true_ids(library, "")]
    assert len(tokenizer) == vocabulary_size(path)


def test_a_model_without_the_space_in_front(tmp_path: Path) -> None:
    found = sentencepiece_model_pb2.ModelProto()
    found.ParseFromString(meta_checkpoints.pieces_file())
    found.normalizer_spec.add_dummy_prefix = False
    path = tmp_path / "tokenizer.model"
    path.write_bytes(found.SerializeToString())
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(path, None, chat=False)
    for text in TEXTS:
        ids = encode([text], tokenizer, plain=True)[0]
        assert ids == true_ids(library, text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == library.decode(ids[1:])


def test_hugging_faces_folder_has_the_same_ids(given: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = given
    write_hf_tokenizer(path, tmp_path, chat=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "extra_special_tokens", "is_local"} & set(settings)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    ours, theirs = load_tokenizer(path, None, chat=True), AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, *random_texts()[:200]]
    assert theirs(texts)["input_ids"] == ours(texts)["input_ids"]
    assert theirs.chat_template == ours.chat_template
    assert stop_ids(theirs, None) == stop_ids(ours, None)
    assert theirs("a")["input_ids"][0] == theirs.bos_token_id
    assert (tmp_path / "tokenizer.model").is_file() == (tokenizer_kind(path) == "sentencepiece")

    again = tmp_path / "meta"
    again.mkdir()
    assert write_meta_tokenizer(tmp_path, again)
    assert (again / "tokenizer.model").read_bytes() == path.read_bytes()


def test_the_original_file_is_kept(tmp_path: Path) -> None:
    original = tmp_path / "original" / "tokenizer.model"
    original.parent.mkdir()
    original.write_bytes(meta_checkpoints.tiktoken_file().removesuffix(b"\n"))
    written = tmp_path / "meta"
    written.mkdir()
    assert write_meta_tokenizer(tmp_path, written)
    assert (written / "tokenizer.model").read_bytes() == original.read_bytes()


def _split_otherwise(settings: dict[str, Any]) -> None:
    settings["pre_tokenizer"] = {"type": "ByteLevel", "use_regex": True}


def _another_special_token(settings: dict[str, Any]) -> None:
    settings["added_tokens"][0]["content"] = "<|endoftext|>"


def _without_a_byte(settings: dict[str, Any]) -> None:
    vocabulary = settings["model"]["vocab"]
    vocabulary["\u0100\u0100\u0100"] = vocabulary.pop("!")


@pytest.mark.parametrize("change", [_split_otherwise, _another_special_token, _without_a_byte])
def test_no_ranks_for_a_tokenizer_that_works_otherwise(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    ranks = tmp_path / "ranks"
    ranks.write_bytes(meta_checkpoints.tiktoken_file())
    write_hf_tokenizer(ranks, tmp_path, chat=False)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    change(settings)
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    written = tmp_path / "meta"
    written.mkdir()
    assert not write_meta_tokenizer(tmp_path, written)
    (tmp_path / "tokenizer.json").unlink()
    assert not write_meta_tokenizer(tmp_path, written)
    assert not list(written.iterdir())


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CHATS = (
    [user(" What is 2 + 2? ")],
    [system(" Be  brief. "), user("Hi\n")],
    [user("  Hi"), answer(" Hello. \n"), user("Bye")],
    [system("S"), user("1"), answer("2"), user("3"), answer("4"), user("5")],
)


@pytest.mark.parametrize("messages", CHATS)
def test_chats_are_as_with_metas_code(
    messages: list[dict[str, str]], given: tuple[Path, Any]
) -> None:
    path, library = given
    tokenizer = load_tokenizer(path, None, chat=True)
    ids = encode([apply_template(messages, tokenizer, "chat")], tokenizer)[0]
    expected: list[int]
    if isinstance(library, tiktoken.Encoding):
        mark = {name: [library.encode_single_token(name)] for name in special_tokens()}
        expected = [*mark["<|begin_of_text|>"]]
        for message in [*messages, answer("")]:
            head = library.encode(message["role"])
            expected += mark["<|start_header_id|>"] + head + mark["<|end_header_id|>"]
            expected += library.encode("\n\n") + library.encode(message["content"].strip())
            expected += mark["<|eot_id|>"]
        expected.pop()  # the answer is open
    else:
        turns = list(messages)
        if turns[0]["role"] == "system":
            first = f"<<SYS>>\n{turns[0]['content']}\n<</SYS>>\n\n{turns[1]['content']}"
            turns[:2] = [user(first)]
        expected = []
        for question, reply in zip(turns[:-1:2], turns[1::2], strict=True):
            text = f"[INST] {question['content'].strip()} [/INST] {reply['content'].strip()} "
            expected += [library.bos_id(), *library.encode(text), library.eos_id()]
        last = f"[INST] {turns[-1]['content'].strip()} [/INST]"
        expected += [library.bos_id(), *library.encode(last)]
    assert ids == expected


@pytest.mark.parametrize(
    "messages",
    [
        [user("1"), user("2")],
        [answer("1"), user("2")],
        [user("1"), system("2")],
        [user("1"), answer("2")],
        [system("1")],
        [{"role": "tool", "content": "1"}],
    ],
)
def test_roles_in_wrong_order(messages: list[dict[str, str]], given: tuple[Path, Any]) -> None:
    tokenizer = load_tokenizer(given[0], None, chat=True)
    with pytest.raises(LLMError, match="chat template") as caught:
        apply_template(messages, tokenizer, "chat")
    assert "role" in caught.value.why


def test_a_finished_chat_ends_with_its_answer(given: tuple[Path, Any]) -> None:
    tokenizer = load_tokenizer(given[0], None, chat=True)
    text = apply_template([user("1"), answer("2")], tokenizer, "chat", answer_follows=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"][-1] in stop_ids(tokenizer, None)


def test_the_sidecars_tokenizer_goes_first(tmp_path: Path) -> None:
    ranks, sidecar = tmp_path / "ranks", tmp_path / "huggingface"
    ranks.write_bytes(meta_checkpoints.tiktoken_file())
    sidecar.mkdir()
    pieces = tmp_path / "pieces"
    pieces.write_bytes(meta_checkpoints.pieces_file())
    assert load_tokenizer(ranks, sidecar, chat=False).bos_token == "<|begin_of_text|>"
    (sidecar / "tokenizer.model").write_bytes(pieces.read_bytes())
    assert load_tokenizer(None, sidecar, chat=False).bos_token == "<s>"
    assert load_tokenizer(ranks, sidecar, chat=False).bos_token == "<|begin_of_text|>"
    write_hf_tokenizer(pieces, sidecar, chat=False)
    assert load_tokenizer(ranks, sidecar, chat=False).bos_token == "<s>"
    assert load_tokenizer(ranks, sidecar, chat=False).chat_template is None
    assert "[INST]" in load_tokenizer(ranks, sidecar, chat=True).chat_template
    (sidecar / "chat_template.jinja").write_text("its own")
    assert load_tokenizer(ranks, sidecar, chat=True).chat_template == "its own"
    (sidecar / "tokenizer.json").write_text("{")
    with pytest.raises(LLMError, match="cannot load the tokenizer in"):
        load_tokenizer(ranks, sidecar, chat=False)


def test_what_ends_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(meta_checkpoints.tiktoken_file())
    ranks = meta_checkpoints.MERGED
    llama_3 = load_tokenizer(path, None, chat=False)
    assert (llama_3.bos_token_id, llama_3.eos_token_id) == (ranks, ranks + 1)
    assert stop_ids(llama_3, None) == {ranks + 1, ranks + 8, ranks + 9}
    path.write_bytes(meta_checkpoints.pieces_file())
    llama_2 = load_tokenizer(path, None, chat=False)
    assert stop_ids(llama_2, tmp_path) == {2}
    settings = tmp_path / "generation_config.json"
    settings.write_text('{"eos_token_id": [2, 7]}')
    assert stop_ids(llama_2, tmp_path) == {2, 7}
    settings.write_text('{"eos_token_id": 9}')
    assert stop_ids(llama_2, tmp_path) == {2, 9}
    settings.write_text("[")
    with pytest.raises(LLMError, match="is not JSON"):
        stop_ids(llama_2, tmp_path)


def test_no_tokenizer() -> None:
    with pytest.raises(LLMError, match="the checkpoint has no tokenizer") as caught:
        load_tokenizer(None, None, chat=False)
    assert "--tokenizer FILE" in caught.value.fix


def _lines(change: Callable[[list[bytes]], None]) -> bytes:
    lines = meta_checkpoints.tiktoken_file().splitlines()
    change(lines)
    return b"\n".join(lines) + b"\n"


def _only_pieces(model: bytes) -> bytes:
    found = sentencepiece_model_pb2.ModelProto()
    found.ParseFromString(model)
    for field in ("trainer_spec", "normalizer_spec"):
        found.ClearField(field)
    data: bytes = found.SerializeToString()
    return data


DAMAGED = {
    "empty": (lambda: b"", "it is empty"),
    "blank": (lambda: b" \n" * 9000, "it is empty"),
    "pointer": (lambda: LFS_POINTER + b".github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "json": (lambda: b' {"model": {}}', "tokenizer.json"),
    "html": (lambda: b"<!DOCTYPE html>", "neither"),
    "zeros": (lambda: bytes(5000), "neither"),
    "cut piece": (lambda: meta_checkpoints.pieces_file()[:5000], "in the middle of a piece"),
    "cut": (lambda: _only_pieces(meta_checkpoints.pieces_file()), "without the model's settings"),
    "no base64": (lambda: _lines(lambda x: x.insert(300, b"#!? 300")), "line 301: '#!? 300'"),
    "bad padding": (lambda: _lines(lambda x: x.insert(300, b"QUJDR 300")), "line 301"),
    "no rank": (lambda: _lines(lambda x: x.__setitem__(300, b"QUJD")), "is not `base64 rank`"),
    "gap": (lambda: _lines(lambda x: x.__delitem__(400)), "rank 400 is missing"),
    "token twice": (lambda: _lines(lambda x: x.append(x[9].split()[0] + b" 512")), "the token"),
    "rank twice": (lambda: _lines(lambda x: x.append(b"/////w== 9")), "rank 9 was there"),
    "no bytes": (lambda: b"QUJD 0\nREVG 1\n", "256 of the 256 single bytes"),
    "cut line": (lambda: meta_checkpoints.tiktoken_file()[:-3], "rank 5 was there"),
    "many": (lambda: _lines(lambda x: x.extend([b"?"] * 1000)), "995 more lines"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / HOSTILE
    make, said = DAMAGED[kind]
    path.write_bytes(make())
    for use in (vocabulary_size, lambda path: load_tokenizer(path, None, chat=False)):
        faults: list[LLMError] = []
        try:
            use(path)
        except* LLMError as group:
            faults = list(group.exceptions)  # type: ignore[arg-type]
        assert 0 < len(faults) < 10
        shown = "\n".join(map(str, faults))
        assert str(path) in shown and said in shown, shown


def test_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LLMError, match="cannot read the tokenizer"):
            tokenizer_kind(path)


def test_models_that_are_no_llamas(tmp_path: Path) -> None:
    found = sentencepiece_model_pb2.ModelProto()
    found.ParseFromString(meta_checkpoints.pieces_file())
    path = tmp_path / "tokenizer.model"
    for field, value in (("remove_extra_whitespaces", True), ("precompiled_charsmap", b"x")):
        changed = sentencepiece_model_pb2.ModelProto()
        changed.CopyFrom(found)
        setattr(changed.normalizer_spec, field, value)
        path.write_bytes(changed.SerializeToString())
        with pytest.raises(LLMError, match="is no tokenizer of a Llama"):
            load_tokenizer(path, None, chat=False)
    found.trainer_spec.model_type = 1
    path.write_bytes(found.SerializeToString())
    with pytest.raises(LLMError, match="is no tokenizer of a Llama"):
        load_tokenizer(path, None, chat=False)
    assert vocabulary_size(path) == meta_checkpoints.PIECES


def test_telling_kinds_apart_needs_no_library(tmp_path: Path) -> None:
    for name, data in (
        ("pieces", meta_checkpoints.pieces_file()),
        ("ranks", meta_checkpoints.tiktoken_file()),
    ):
        (tmp_path / name).write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from llm_recipes.meta.tokenizer import *\n"
        "print(*(tokenizer_kind(Path(p)) for p in sys.argv[1:]))\n"
        "print(*(vocabulary_size(Path(p)) for p in sys.argv[1:]))\n"
        "print({'torch', 'transformers', 'tokenizers', 'sentencepiece'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pieces"), str(tmp_path / "ranks")]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(RECIPES)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["sentencepiece tiktoken", "512 768", "set()"]


def test_ids_are_not_taken_from_a_stale_cache(tmp_path: Path) -> None:
    """tiktoken itself keeps what it has read by its path, and would show another file's."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(meta_checkpoints.tiktoken_file())
    assert meta_tokenizer.vocabulary_size(path) == 768
    path.write_bytes(_lines(lambda lines: lines.__delitem__(511)))
    assert meta_tokenizer.vocabulary_size(path) == 767
    assert len(load_tokenizer(path, None, chat=False)) == 767
