"""Types of quantization, predicted sizes, importance matrices, quality: on tiny models."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="llama.cpp is not here")

from llm_recipes.errors import LLMError
from llm_recipes.gguf import quality
from llm_recipes.gguf.evaluation_text import count_tokens, make_text, read_text
from llm_recipes.gguf.file import GgufFile, read_gguf
from llm_recipes.gguf.importance import (
    Engine,
    given_matrix,
    is_there,
    make_matrix,
    matrix_bytes,
    planned_matrix,
)
from llm_recipes.gguf.programs import program
from llm_recipes.gguf.quality import Evaluation, evaluate, evaluate_source, piece_size
from llm_recipes.gguf.quant_prediction import (
    Importance,
    QuantSettings,
    predict,
    quantized_types,
)
from llm_recipes.gguf.quant_types import (
    ALIASES,
    TYPES,
    nearest_types,
    resolve_types,
    tensor_type_faults,
)
from llm_recipes.gguf.quantizing import Target, base_name, fallback_lines, quantize_all

CPU = Engine(1, 0)
# One of each kind that is quick: IQ1 and most IQ2 take seconds for a million numbers.
MADE = (
    *("BF16", "F16", "Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("Q3_K_L", "IQ3_M", "IQ3_XS", "Q2_K", "Q2_K_S", "IQ2_XXS", "TQ2_0", "TQ1_0", "Q2_0", "Q1_0"),
)


def names(found: Any) -> list[str]:
    return [kind.name for kind in found]


def test_knows_every_type_of_the_images_llama_quantize() -> None:
    done = subprocess.run([program("llama-quantize"), "--help"], capture_output=True, text=True)
    listed = re.findall(r"^ +\d+ +or +(\S+) +: (.*)$", done.stdout, re.MULTILINE)
    own = {name for name, words in listed if "alias" not in words}
    assert own == set(TYPES)
    assert {name for name, words in listed if "alias" in words} <= set(ALIASES)


def test_names_in_any_spelling_once_and_in_order() -> None:
    found, faults = resolve_types(["q4_k_m,Q8_0", "Q4_K", "iq4-xs", "q8_0,"])
    assert names(found) == ["Q8_0", "Q4_K_M", "IQ4_XS"] and not faults


def test_unknown_names_all_at_once_with_the_nearest() -> None:
    found, faults = resolve_types(["Q4_K_X,Q8_0", "fp8", "Q9"])
    assert names(found) == ["Q8_0"]
    assert [fault.what.split()[-1] for fault in faults] == ["Q4_K_X", "fp8", "Q9"]
    assert "Q4_K_M" in faults[0].fix
    assert nearest_types("q3_k")[:2] == ["Q3_K_L", "Q3_K_M"]
    assert resolve_types([","])[1][0].what == "--types names no type"


def test_types_of_tensors_are_others() -> None:
    assert not tensor_type_faults("--output-type", "q6_k")
    assert not tensor_type_faults("--output-type", None)
    [fault] = tensor_type_faults("--output-type", "Q4_K_M")
    assert fault.fix == "--output-type Q4_K"


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("model-F16.gguf", "model"),
        ("Llama-3.2-1B.bf16.gguf", "Llama-3.2-1B"),
        ("model-f32-00001-of-00003.gguf", "model"),
        ("tiny's; ü.gguf", "tiny's; ü"),
        ("F16.gguf", "F16"),
        ("BF16_model.gguf", "BF16_model"),
    ],
)
def test_names_of_files(name: str, base: str) -> None:
    file = GgufFile(Path("/x") / name, (Path("/x") / name,), {}, (), 0)
    assert base_name(file) == base


@pytest.fixture(scope="module")
def source(tiny_gguf: Path) -> GgufFile:
    return read_gguf(tiny_gguf)


@pytest.fixture(scope="module")
def matrix(source: GgufFile, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An importance matrix of a short text, and its text."""
    text = make_text("short; ü.txt", read_text("python", held_out=False).content[:6000])
    planned = planned_matrix(tmp_path_factory.mktemp("matrix"), "digest", text, 4, 256)
    make_matrix(planned, source, text, count_tokens(source, text), 256, CPU)
    return planned


@pytest.fixture(scope="module")
def made(
    source: GgufFile, matrix: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Target, GgufFile]]:
    """The source in every type, all with the importance matrix."""
    folder = tmp_path_factory.mktemp("a folder's; ü")
    shutil.copy(matrix.path, folder)
    targets = []
    for name in MADE:
        kind = TYPES[name]
        named = matrix.named if kind.uses_importance else None
        prediction = predict(source, kind, QuantSettings(), named)
        targets.append(Target(folder / f"tiny-{name}.gguf", prediction, {"type": name}))
    found: dict[str, tuple[Target, GgufFile]] = {}
    quantize_all(
        source,
        targets,
        QuantSettings(),
        folder / matrix.path.name,
        1,
        2,
        lambda target: {"recipe": "quantized/quantize", "metrics": {}},
        lambda target: None,
        lambda target, file: found.update({target.name: (target, file)}),
    )
    return found


@pytest.mark.parametrize("name", MADE)
def test_sizes_and_types_are_as_predicted(name: str, made: Any) -> None:
    target, file = made[name]
    assert file.path.stat().st_size == target.prediction.bytes
    assert {t.name: t.type for t in file.tensors} == dict(target.prediction.tensors)
    assert file.file_type == name
    assert file.bits_per_weight == pytest.approx(target.prediction.bits_per_weight)
    assert not target.temporary.exists()


@pytest.mark.parametrize("name", MADE)
def test_what_was_made_computes(name: str, made: Any) -> None:
    import numpy as np

    from llm_recipes.gguf.model import ContextSettings, GgufModel

    with GgufModel.load(made[name][1]) as model, model.context(ContextSettings(32)) as context:
        ids = model.tokenizer("The import statement")["input_ids"]
        count = len(ids)
        wanted = [False] * (count - 1) + [True]
        logits = context.decode(ids, range(count), [0] * count, wanted)
    assert np.isfinite(logits).all() and logits.std() > 0


def test_without_a_matrix_sizes_are_as_predicted_too(source: GgufFile, tmp_path: Path) -> None:
    kinds = ["IQ4_XS", "Q4_0", "Q2_K"]  # the first two choose other types with a matrix
    targets = [
        Target(tmp_path / f"{name}.gguf", predict(source, TYPES[name], QuantSettings()), {})
        for name in kinds
    ]
    sizes: list[int] = []
    quantize_all(
        source,
        targets,
        QuantSettings(),
        None,
        1,
        1,
        lambda target: {"metrics": {}},
        lambda target: None,
        lambda target, file: sizes.append(file.path.stat().st_size),
    )
    assert sizes == [target.prediction.bytes for target in targets]


def test_a_source_in_shards_is_predicted_as_a_whole(source: GgufFile, tmp_path: Path) -> None:
    split = [program("llama-gguf-split"), "--split", "--split-max-tensors", "6"]
    subprocess.run([*split, str(source.path), str(tmp_path / "x")], check=True, capture_output=True)
    shards = read_gguf(tmp_path / "x-00001-of-00004.gguf")
    assert len(shards.shards) == 4 and base_name(shards) == "x"
    for name in ("Q8_0", "Q4_K_M"):
        whole, parts = (predict(file, TYPES[name], QuantSettings()) for file in (source, shards))
        assert parts.bytes == whole.bytes and parts.tensors == whole.tensors


def test_settings_change_the_prediction_as_they_change_the_file(
    source: GgufFile, tmp_path: Path
) -> None:
    settings = QuantSettings(embeddings="Q8_0", output="Q4_0", pure=True)
    target = Target(tmp_path / "x.gguf", predict(source, TYPES["Q4_K_M"], settings), {})
    types = target.prediction.tensors
    assert types["token_embd.weight"] == "Q8_0" and types["output.weight"] == "Q4_0"
    assert {t for n, t in types.items() if n.startswith("blk.") and "norm" not in n} == {"Q4_K"}
    files: list[GgufFile] = []
    start: Any = lambda target: {"metrics": {}}  # noqa: E731
    quantize_all(
        source, [target], settings, None, 1, 1, start, lambda t: None, lambda t, f: files.append(f)
    )
    assert {t.name: t.type for t in files[0].tensors} == dict(types)
    assert files[0].bytes == target.prediction.bytes


def test_which_types_need_a_matrix(source: GgufFile) -> None:
    needing = {
        name for name in TYPES if predict(source, TYPES[name], QuantSettings()).needs_importance
    }
    assert needing == {
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
    }
    named = Importance("importance.gguf", None)
    assert not predict(source, TYPES["IQ1_S"], QuantSettings(), named).needs_importance


@pytest.fixture
def narrow(tmp_path: Path) -> GgufFile:
    """A Llama with rows of 288 numbers, which blocks of 32 divide and those of K-quants don't."""
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path / "narrow.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(288)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (64, 288), "output": (64, 288), "blk.0.attn_q": (288, 288)}
    shapes |= {"blk.0.ffn_down": (288, 256), "blk.0.attn_norm": (288,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf(path)


def test_rows_that_do_not_divide_are_named(narrow: GgufFile) -> None:
    prediction = predict(narrow, TYPES["Q4_K_M"], QuantSettings())
    fallen = {one.name: (one.wanted, one.used) for one in prediction.fallbacks}
    assert fallen == {
        "token_embd.weight": ("Q4_K", "Q5_0"),
        "blk.0.attn_q.weight": ("Q4_K", "Q5_0"),
        "output.weight": ("Q6_K", "Q8_0"),
    }
    extra = {one.name: one.extra_bytes for one in prediction.fallbacks}
    # Q4_K has 4.5 bits and Q5_0 5.5, Q6_K 6.5625 and Q8_0 8.5: one bit more, and almost two.
    assert extra["blk.0.attn_q.weight"] == 288 * 288 * (5.5 - 4.5) / 8
    assert extra["output.weight"] == 64 * 288 * (8.5 - 6.5625) / 8
    [line] = fallback_lines([prediction])
    assert line.startswith("Q4_K_M: 3 of 5 tensors fall back to another type, 0.0171 MB more: ")
    assert "1 with rows of 288 get Q8_0 for Q6_K (output.weight)" in line
    assert fallback_lines([predict(narrow, TYPES["Q8_0"], QuantSettings())]) == []
    [line] = fallback_lines([predict(narrow, TYPES["MXFP4_MOE"], QuantSettings())])
    assert line == "MXFP4_MOE: no tensor of this model gets MXFP4, but F32, Q8_0"


def test_the_matrix_is_of_its_text(matrix: Any, source: GgufFile, tmp_path: Path) -> None:
    held = read_gguf(matrix.path)
    assert held.metadata["imatrix.datasets"] == ["short; ü.txt"]
    assert held.metadata["imatrix.chunk_count"] == 4
    assert held.bytes <= 2 * matrix_bytes(source) + 4096
    given = given_matrix(tmp_path, matrix.path, source)
    assert given.text == "short; ü.txt" and given.path.parent == tmp_path
    with pytest.raises(LLMError, match="is no importance matrix"):
        given_matrix(tmp_path, source.path, source)


def test_a_matrix_of_another_model_is_refused(
    matrix: Any, trained_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(LLMError, match="of another model"):
        given_matrix(tmp_path, matrix.path, read_gguf(trained_gguf))


def test_an_interrupted_matrix_is_continued(
    source: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_recipes.gguf import importance

    text = make_text("text.txt", read_text("python", held_out=False).content[:20_000])
    tokens = count_tokens(source, text)
    monkeypatch.setattr(importance, "BATCH", 512)
    whole = planned_matrix(tmp_path, "whole", text, 18, 256)
    make_matrix(whole, source, text, tokens, 256, CPU)
    monkeypatch.setattr(importance, "PART", 6)
    halved = planned_matrix(tmp_path, "halved", text, 18, 256)
    commands: list[list[str]] = []
    run = importance.run_watched

    def stop_in_the_second(command: Any, on_text: Any) -> str:
        commands.append(list(command.arguments))

        def stop(printed: str) -> None:
            on_text(printed)
            if len(commands) == 2 and importance.PIECE_DONE.search(printed):
                raise KeyboardInterrupt  # the program is ended in the middle of its part

        return run(command, stop)

    monkeypatch.setattr(importance, "run_watched", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        make_matrix(halved, source, text, tokens, 256, CPU)
    assert len(commands) == 2 and not is_there(halved)
    commands += [[]]  # stopped no more
    make_matrix(halved, source, text, tokens, 256, CPU)
    skipped = [command[command.index("--chunk") + 1] for command in commands[3:]]
    assert skipped == ["6", "12"]
    assert _sums(halved.path) == pytest.approx(_sums(whole.path), rel=1e-5)
    assert sorted(tmp_path.iterdir()) == sorted([halved.path, whole.path])
    make_matrix(halved, source, text, tokens, 256, CPU)
    assert len(commands) == 5  # it is there


def test_texts_are_read_as_they_are(source: GgufFile, tmp_path: Path) -> None:
    """Backslashes, names of special tokens, new lines at the end: the pieces that were counted."""
    import numpy as np

    from llm_recipes.gguf.model import GgufModel

    line = '{"text": "$\\\\nabla \\\\times \\\\rho$ \\n C:\\new\\table \\x41 <s></s>"}\n'
    with GgufModel.load(source, vocabulary_only=True) as model:
        ids_of = lambda text: model.own_tokenizer(text, split_special_tokens=True)["input_ids"]  # noqa: E731
        content = line * 12
        while len(ids_of(content + "\n")) % 64:  # another token more or less is another piece
            content += "a "
        ids = ids_of(content + "\n")
    text = make_text("latex.jsonl", content + "\n\n")
    tokens = count_tokens(source, text)
    assert tokens == len(ids)
    path, base = tmp_path / text.name, tmp_path / "predictions"
    path.write_text(text.content)
    evaluate_source(source, Evaluation(path, 64, tokens // 64, CPU), base)
    held = np.frombuffer(base.read_bytes(), np.int32, tokens, offset=20)
    assert held.tolist() == ids
    planned = planned_matrix(tmp_path, "latex", text, 0, 64)
    make_matrix(planned, source, text, tokens, 64, CPU)
    assert read_gguf(planned.path).metadata["imatrix.chunk_count"] == tokens // 64


def _sums(path: Path) -> dict[str, float]:
    from gguf import GGUFReader

    return {tensor.name: float(tensor.data.sum()) for tensor in GGUFReader(path).tensors}


def test_quality_is_as_expected_of_the_types(trained_gguf: Path, tmp_path: Path) -> None:
    """The fewer bits, the further from the source; a matrix helps, or does no harm."""
    trained = read_gguf(trained_gguf)
    text = read_text("python", held_out=True)
    path = tmp_path / "the text; ü.txt"
    path.write_text(text.content)
    training = read_text("python", held_out=False)
    matrix = planned_matrix(tmp_path, "digest", training, 24, 256)
    make_matrix(matrix, trained, training, count_tokens(trained, training), 256, CPU)
    files = {}
    for label, named in (("", None), (" with matrix", matrix)):
        targets = []
        for name in ("Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K"):
            kind = TYPES[name]
            prediction = predict(trained, kind, QuantSettings(), named and named.named)
            targets.append(Target(tmp_path / f"{name}{label}.gguf", prediction, {}))
        quantize_all(
            trained,
            targets,
            QuantSettings(),
            named and named.path,
            1,
            1,
            lambda target: {"metrics": {}},
            lambda target: None,
            lambda target, file: files.update({target.path.stem: file}),
        )
    how = Evaluation(path, 256, 12, CPU)
    base = tmp_path / "predictions"
    own = evaluate_source(trained, how, base)
    assert base.stat().st_size == how.base_bytes(trained.vocabulary)
    assert 5 < own.perplexity < trained.vocabulary and own.perplexity_error > 0
    found = {name: evaluate(file, how, base) for name, file in files.items()}
    for name, one in found.items():
        print(f"{name}: perplexity {one.perplexity:.2f}, KL {one.kl_mean:.5f}, {one.same_top:.1%}")
    divergences = [found[name].kl_mean for name in ("Q8_0", "Q4_K_M", "Q2_K")]
    assert divergences == sorted(divergences) and divergences[0] < divergences[2] / 10
    assert found["Q8_0"].perplexity <= 1.01 * found["Q4_K_M"].perplexity
    assert found["Q4_K_M"].perplexity <= 1.02 * found["Q2_K"].perplexity
    assert found["Q8_0"].same_top > found["Q2_K"].same_top > 0.3
    assert 0 < found["Q2_K"].kl_mean < found["Q2_K"].kl_99 <= found["Q2_K"].kl_max
    for name in ("IQ4_XS", "Q2_K"):
        assert found[f"{name} with matrix"].kl_mean <= 1.15 * found[name].kl_mean


def test_too_short_a_text_gives_no_figures(source: GgufFile, tmp_path: Path) -> None:
    """llama-perplexity says so with exit status 0."""
    text = tmp_path / "short.txt"
    text.write_text("too short")
    with pytest.raises(LLMError, match="has not measured") as caught:
        evaluate_source(source, Evaluation(text, 256, 2, CPU), tmp_path / "base")
    assert "tokens" in caught.value.why


def test_a_full_disk_is_noticed(
    source: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama-perplexity does not notice it, and the comparison would be with half of a file."""
    base = tmp_path / "base"
    base.write_bytes(b"half of it")
    text = "Final estimate: PPL = 12.5 +/- 0.5"
    monkeypatch.setattr(quality, "run_watched", lambda *_: text)
    with pytest.raises(LLMError, match="could not be kept"):
        evaluate_source(source, Evaluation(tmp_path, 256, 2, CPU), base)


def test_pieces_are_no_longer_than_the_model_can_see(source: GgufFile) -> None:
    assert piece_size(source) == 256
    assert piece_size(SimpleNamespace(context_length=None)) == 512  # type: ignore[arg-type]


def test_quantized_sources_are_known(source: GgufFile, made: Any) -> None:
    assert quantized_types(source) == []
    assert quantized_types(made["Q8_0"][1]) == ["Q8_0"]
    assert set(quantized_types(made["Q4_K_M"][1])) == {"Q4_K", "Q6_K"}
