"""Figures of benchmarks: averages and their uncertainty, comparison, what is written and read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.gguf import bench_compare, bench_results, bench_table
from llm_recipes.gguf.bench_figures import Figure, Peak, gather, t_quantile
from llm_recipes.gguf.bench_plan import duration, estimate, rpc_endpoints
from llm_recipes.gguf.bench_plots import write_plots
from llm_recipes.gguf.bench_points import (
    Axes,
    Machine,
    Measurement,
    Model,
    Point,
    Setting,
    bytes_read,
    combinations,
)
from llm_recipes.gguf.bench_results import Result, missing_tests, read_results
from llm_recipes.gguf.engine import Device
from llm_recipes.gguf.file import GgufFile, GgufTensor

PP, TG = Measurement(prompt=512), Measurement(new=128)
VERSION = "version: 1"
GB = 10**9


def gguf_file(experts: int = 0, tied: bool = False, size: int = 1000, layers: int = 2) -> GgufFile:
    """A header of a model whose tensors have `size` bytes each."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "made up",
        "general.file_type": 1,
        "llama.block_count": layers,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.feed_forward_length": 128,
        "tokenizer.ggml.tokens#count": 100,
    }
    names = ["token_embd", "output_norm", *([] if tied else ["output"])]
    for layer in range(layers):
        names += [f"blk.{layer}.attn_q", f"blk.{layer}.ffn_up{'_exps' if experts else ''}"]
    if experts:
        metadata |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
    tensors = [GgufTensor(f"{name}.weight", "F16", (size // 2, 1), size) for name in names]
    path = Path("/models/made-up-F16.gguf")
    return GgufFile(path, (path,), metadata, tuple(tensors), size * len(tensors))


def model(**changes: Any) -> Model:
    return Model(gguf_file(**changes), "d" * 64)


def result(
    seconds: list[float],
    number: int = 1,
    test: Measurement = TG,
    status: str = "done",
    of: Model | None = None,
    version: str = VERSION,
    **setting: Any,
) -> Result:
    point = Point(of or model(), Setting(**{"threads": 2, **setting}), (PP, TG))
    return Result(
        key=point.key(test, version),
        round=number,
        status=status,
        model=point.model.described(),
        setting=asdict(point.setting),
        test=asdict(test),
        seconds=seconds,
        build={"version": version, "cpu_info": "a CPU"},
        read_bytes=2.0 * GB,
    )


def figure(rates: list[float], **more: Any) -> Figure:
    """A figure of rounds of one repeat each."""
    results = [result([128 / rate], n, **more) for n, rate in enumerate(rates, 1)]
    (found,) = gather(results)
    return found


def test_rounds_count_where_there_are_several_else_repeats() -> None:
    repeats = gather([result([1.0, 2.0])])[0]
    assert repeats.values == [128.0, 64.0] and repeats.rate == 96.0
    rounds = gather([result([1.0, 1.0], 1), result([2.0, 2.0], 2)])[0]
    assert rounds.values == [128.0, 64.0]
    # Repeats within a round are no measurements of their own: two values, not four.
    assert rounds.error == pytest.approx(12.71 * rounds.spread / math.sqrt(2))
    once = gather([result([1.0])])[0]
    assert once.rate == 128.0 and once.spread is None and once.error is None


def test_quantiles_of_student() -> None:
    assert [t_quantile(n) for n in (1, 2, 4.9, 20)] == [12.71, 4.30, 2.78, 2.09]
    assert t_quantile(60) == pytest.approx(2.0003, abs=2e-3)
    assert t_quantile(1e6) == pytest.approx(1.96, abs=1e-3)


def test_what_worked_once_counts_before_what_failed() -> None:
    failed = result([], status="failed")
    assert gather([failed, result([1.0])])[0].status == "done"
    assert gather([result([1.0]), failed])[0].rate == 128.0
    assert gather([failed])[0].status == "failed"


def test_mbu_where_the_bandwidth_is_known() -> None:
    on_host, peak = figure([10.0, 10.0]), Peak(host=40.0 * GB, gpu=100.0 * GB, gpus=2)
    assert on_host.mbu(peak) == pytest.approx(0.5)
    assert on_host.mbu(Peak()) is None
    assert figure([10.0], gpu_layers=3).mbu(peak) == pytest.approx(0.2)
    assert figure([10.0], gpu_layers=3, split="row").mbu(peak) == pytest.approx(0.1)
    assert figure([10.0], gpu_layers=2).mbu(peak) is None  # some layers here, some there
    assert figure([10.0], hosts=1, gpu_layers=3).mbu(peak) is None


@pytest.mark.parametrize(
    ("a", "b", "ratio", "verdict"),
    [
        ([100, 101, 99], [110, 111, 109], 1.1, "B is faster"),
        ([100, 101, 99], [90, 91, 89], 0.9, "B is slower"),
        ([100, 101, 99], [100.5, 102, 99], 1.005, "within noise"),
        # Far apart, and still nothing is known: the rounds of one differ as much.
        ([100, 140, 60], [120, 121, 119], 1.2, "within noise"),
        ([100], [120, 121, 119], 1.2, "one repeat: not known"),
        ([100, 100], [120, 120], 1.2, "B is faster"),
    ],
)
def test_ratio_and_its_uncertainty(
    a: list[float], b: list[float], ratio: float, verdict: str
) -> None:
    found = bench_compare.compare([figure(a)], [figure(b)])
    (one,) = found.ratios
    assert one.ratio == pytest.approx(ratio) and one.verdict == verdict
    assert verdict in bench_compare.summary(found)[-1]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    import random

    noise, hits, one = random.Random(1), 0, figure([1.0])
    for _ in range(400):
        a = [(100 * (1 + 0.02 * noise.gauss(0, 1)),) for _ in range(4)]
        b = [(110 * (1 + 0.05 * noise.gauss(0, 1)),) for _ in range(4)]
        sides = [replace(one, samples=tuple(samples)) for samples in (a, b)]
        found = bench_compare.ratio_of(*sides)
        assert found and found.error
        hits += abs(found.ratio - 1.1) <= found.error
    assert 370 <= hits <= 398  # 95 % of 400 are 380


def test_comparison_matches_points_and_lists_the_others() -> None:
    of_a = [figure([1.0], threads=2), figure([1.0], threads=4)]
    of_b = [figure([1.0], threads=4), figure([1.0], threads=8), figure([9.0], test=PP)]
    found = bench_compare.compare(of_a, of_b)
    assert [ratio.a.setting["threads"] for ratio in found.ratios] == [4]
    lines = bench_compare.summary(found)
    assert "only in A: made-up-F16 tg128, threads 2" in lines
    assert "only in B: made-up-F16 tg128, threads 8" in lines
    assert "only in B: made-up-F16 pp512, threads 2" in lines


def test_comparison_says_what_else_differs() -> None:
    a = [figure([1.0])]
    b = [figure([1.0], version="version: 2", of=Model(gguf_file(), "e" * 64))]
    lines = bench_compare.summary(bench_compare.compare(a, b))
    assert "llama.cpp: A is version: 1, B is version: 2" in lines
    assert "made up F16: the files are not the same" in lines


def test_two_different_models_are_compared_with_each_other() -> None:
    file = gguf_file()
    other = replace(file, metadata={**file.metadata, "general.file_type": 7})
    found = bench_compare.compare([figure([1.0])], [figure([2.0], of=Model(other, "e" * 64))])
    assert [ratio.ratio for ratio in found.ratios] == [pytest.approx(2.0)]
    assert found.notes == ("different models: A is made up F16, B is made up Q8_0",)


def test_a_table_shows_what_varies(tmp_path: Path) -> None:
    figures = [figure([10.0, 12.0], threads=2), figure([20.0], threads=4, depth=64)]
    figures += [figure([512.0], test=PP, threads=4, depth=64)]
    lines = bench_table.table(figures, Peak(host=100.0 * GB))
    assert lines[0] == [
        *("model", "type", "GB", "bits/weight", "threads", "depth"),
        *("pp512, tok/s", "tg128, tok/s", "MBU", "result"),
    ]
    assert lines[1][4:] == ["2", "0", "-", "11.00 ± 1.41", "22 %", "done"]
    assert lines[2][4:] == ["4", "64", "2048", "20.00", "40 %", "done"]
    assert "| made-up-F16 | F16 |" in bench_table.markdown(lines)
    text = bench_table.csv_text(figures, Peak())
    assert len(text.splitlines()) == 4 and text.startswith("title,name,type,")
    names = {path.name for path in write_plots(figures, tmp_path)}
    assert names == {"threads.png", "depth.png"}
    assert write_plots(figures[:1], tmp_path) == []


def test_results_survive_what_a_full_disk_leaves(tmp_path: Path) -> None:
    file = tmp_path / bench_results.RESULTS
    bench_results.append(tmp_path, result([1.0]))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2])
    bench_results.append(tmp_path, result([2.0], 2))
    for junk in (b"\xff\x00", b"[]", b'{"key": 1}', b"null"):
        file.write_bytes(file.read_bytes() + junk + b"\n")
    assert [found.seconds for found in read_results(tmp_path)] == [[1.0], [2.0]]
    with pytest.raises(LLMError, match="cannot read results"):
        read_results(tmp_path / "nowhere")


def test_missing_tests() -> None:
    point = Point(model(), Setting(threads=2), (PP, TG))
    done = [result([1.0], 1, TG), result([], 1, PP, "failed")]
    assert missing_tests(point, 1, done, set(), VERSION) == [PP]
    assert missing_tests(point, 2, done, set(), VERSION) == [PP, TG]
    assert missing_tests(point, 2, done, {point.key(PP, VERSION)}, VERSION) == [TG]
    # Another llama.cpp, or a model with another content, is another measurement.
    assert missing_tests(point, 1, done, set(), "version: 2") == [PP, TG]
    other = replace(point, model=Model(gguf_file(), "e" * 64))
    assert missing_tests(other, 1, done, set(), VERSION) == [PP, TG]
    no_memory = [result([], 1, TG, "out of memory")]
    assert missing_tests(point, 2, no_memory, set(), VERSION) == [PP]


def test_results_of_another_machine_are_not_gone_on_with(tmp_path: Path) -> None:
    mine = replace(result([1.0]), build={"cpu": "a CPU", "gpu_info": "a GPU"})
    for cpu, gpus in (("a CPU", "a GPU"), ("a CPU", None)):
        bench_results.check_machine(tmp_path, [mine], cpu, gpus)
    for cpu, gpus in (("another", "a GPU"), ("a CPU", "another"), ("a CPU", "")):
        with pytest.raises(LLMError, match="has results of another machine"):
            bench_results.check_machine(tmp_path, [mine], cpu, gpus)


def test_combinations_are_counted_once() -> None:
    axes = Axes(threads=(1, 2), batch=(64, 512), micro_batch=(128, 512), prompt=(8, 8), new=(0,))
    points = combinations([model()], axes, Machine())
    # A batch of 64 has one micro batch only, whatever is asked for.
    assert len(points) == 2 * 3
    assert points[0].tests == (Measurement(prompt=8),)
    axes = Axes(threads=(1,), kv_type=("f16", "q8_0"), flash_attention=("on", "off"))
    found = combinations([model()], axes, Machine())
    assert [point.status for point in found] == ["", "", "", "impossible"]


def test_gpu_layers_and_what_does_not_fit() -> None:
    def gpu(free: int) -> Machine:
        return Machine((Device("CUDA0", "a GPU", "gpu", free, free, 0),))

    axes = Axes(threads=(1,), gpu_layers=(0, 1, "auto", "all", 99))
    points = combinations([model(size=GB // 10)], axes, gpu(8 * GB))
    assert [point.setting.gpu_layers for point in points] == [0, 1, 3]
    points = combinations([model(size=10 * GB)], axes, gpu(8 * GB))
    ends = {point.setting.gpu_layers: point.status for point in points}
    assert ends[1] == ends[3] == "does not fit"
    assert "GPU" in next(point.note for point in points if point.setting.gpu_layers == 3)


def test_bytes_that_a_token_reads() -> None:
    # Two layers of two tensors, norm and output; of the embeddings only a row.
    assert bytes_read(gguf_file()) == 6000
    assert bytes_read(gguf_file(tied=True)) == 6000
    assert bytes_read(gguf_file(experts=8)) == 4000 + 2 * 1000 * 2 // 8


def test_estimates_grow_with_the_work() -> None:
    small, large = (Point(model(size=s), Setting(threads=2), (PP, TG)) for s in (GB // 10, GB))
    seconds = [estimate(point, (PP, TG), 1, ()) for point in (small, large)]
    assert seconds[0] < seconds[1]
    assert estimate(large, (PP, TG), 4, ()) > seconds[1]
    deep = replace(large, setting=Setting(threads=2, depth=4096))
    assert estimate(deep, (PP, TG), 1, ()) > seconds[1]
    assert [duration(s) for s in (40, 600, 7200)] == ["40 s", "10 min", "2.0 h"]


def test_endpoints_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_RPC_ENDPOINTS", "10.0.0.1:50052, 10.0.0.2:1")
    assert rpc_endpoints() == ("10.0.0.1:50052", "10.0.0.2:1")
    monkeypatch.setenv("LLM_RPC_ENDPOINTS", "10.0.0.1")
    with pytest.raises(LLMError, match="names no worker"):
        rpc_endpoints()


def test_a_result_is_json(tmp_path: Path) -> None:
    bench_results.append(tmp_path, result([1.0]))
    line = json.loads((tmp_path / bench_results.RESULTS).read_text())
    assert line["test"] == {"prompt": 0, "new": 128} and line["setting"]["threads"] == 2
