"""Convert a Hugging Face model to GGUF, llama.cpp's format, and see that it is the same model.

    llm-run python recipes/quantized/convert.py --model models/tiny --output tiny-f16.gguf
    llm-run python recipes/quantized/convert.py --adapter runs/mistral --output tuned.gguf

What llama.cpp can't convert is found before the weights are read, all of it at once: architecture,
tokenizer, quantized or damaged weights, room on the disk. Before that as well, the GGUF's tokenizer
has to make the tokens that transformers' makes. Afterwards both models read a text, and the
likeliest next token has to be the same for 99 % of its tokens (Q8_0: 95 %), near ties aside.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    import torch

    from llm_recipes.gguf.agreement import Agreement
    from llm_recipes.gguf.conversion import Draft, Source
    from llm_recipes.gguf.file import GgufFile
    from llm_recipes.model_folder import ModelFolder

TOKENS_DIFFER = "the GGUF's tokenizer would not make the tokens of the model's own"
ALL_THE_SAME = "--accept-differences true converts it all the same, and records what differs"
GB = 1e9


@dataclass(frozen=True)
class Plan:
    """A checked command line. settings: the options by name. type: f32, f16, bf16 or q8_0.

    base: what is converted, or what the adapter is merged into. stored: type of its weights.
    merged: type of the weights that go into the GGUF: of an adapter, f32 keeps all it has learned.
    rows: of the adapter's embeddings, if the base has another number.
    """

    settings: dict[str, Any]
    output: Path
    base: ModelFolder
    adapter: Path | None
    stored: torch.dtype
    merged: torch.dtype
    type: str
    rows: int | None


def convert(
    output: Path,
    model: str | None = None,
    adapter: str | None = None,
    type: Literal["auto", "f16", "bf16", "f32", "q8_0"] = "auto",
    overwrite: bool = False,
    check_tokens: int = 512,
    check_text: str = "python",
    accept_differences: bool = False,
    pre_tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Convert a Hugging Face model to GGUF, and see that it is the same model.

    Args:
        output: File to make, such as models/tiny-f16.gguf.
        model: Model folder, or a hub's name (OWNER/NAME); null: the adapter's base.
        adapter: PEFT adapter (folder or hub's name) that is merged into the model first; null:
            none.
        type: Of the matrices; auto: as the model's files have them. Vectors are always f32.
        overwrite: Convert although the output is there, and replace it.
        check_tokens: Tokens of a text of which GGUF and transformers must agree; 0 is off.
        check_text: That text, a file in UTF-8; python: a part of Python's manual.
        accept_differences: Keep a GGUF whose tokens or answers differ.
        pre_tokenizer: llama.cpp's name of how a BPE tokenizer splits text, such as qwen2, for one
            that it does not recognize; null: it has to.
        trust_remote_code: Run Python code that the model brings along, with your rights.
    """
    settings = dict(locals())
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from llm_recipes.device import dtype_name, use_granted_cpus
    from llm_recipes.gguf.new_gguf import RECIPE, check_output, made_again
    from llm_recipes.model_folder import folder_digest
    from llm_recipes.record import add_input, start_record

    raise_all(option_faults(settings))
    plan = make_plan(settings)
    record = start_record(RECIPE, settings, "cpu", deterministic=True)
    record["made_with"] = {
        "model": folder_digest(plan.base.path),
        "adapter": None if plan.adapter is None else folder_digest(plan.adapter),
        "type": plan.type,
        "pre_tokenizer": pre_tokenizer,
    }
    if not overwrite and made_again(plan.output, record["made_with"]):
        say(f"nothing to do: {plan.output} is made of this model already")
        if check_tokens:
            catch_up(plan)
        return
    check_output(plan.output, overwrite)
    text = check_text_of(settings)
    raise_all(early_faults(plan))
    add_input(record, "model", plan.base.path)
    add_input(record, "adapter", plan.adapter)
    use_granted_cpus()
    kind = f"{dtype_name(plan.stored)} as {plan.type}"
    say(f"converting {plan.base.path} ({plan.base.bytes / GB:.3g} GB, {kind})")
    make(plan, text, record)


def catch_up(plan: Plan) -> None:
    """Compare a finished file that was not compared, and say what speaks against it.

    Raises:
        LLMError: If it answers otherwise.
    """
    from llm_recipes.device import use_granted_cpus
    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.new_gguf import NOT_COMPARED, doubt_of
    from llm_recipes.record import read_record, record_path, write_record
    from llm_recipes.tokenizer_folder import load_tokenizer

    record = read_record(record_path(plan.output)) or {}
    doubt = doubt_of(record)
    if doubt == NOT_COMPARED and plan.adapter is None:
        text = check_text_of(plan.settings)
        use_granted_cpus()
        _, tokenizer = load_tokenizer(str(plan.base.path))
        record["metrics"].pop("not_compared", None)
        found = compare_answers(plan, plan.base, read_gguf(plan.output), tokenizer, text, record)
        if found is not None and not found.holds and not plan.settings["accept_differences"]:
            raise disagreement(found, plan.output)
        write_record(record_path(plan.output), record, "complete")
    elif doubt:
        say(f"note: {doubt}; --overwrite converts it again, and compares")


def option_faults(settings: dict[str, Any]) -> list[LLMError]:
    """What is wrong with the options by themselves."""
    faults = []
    if settings["model"] is None and settings["adapter"] is None:
        faults.append(LLMError("a model is missing", fix="--model FOLDER, or --adapter FOLDER"))
    if settings["check_tokens"] < 0:
        what = f"--check-tokens {settings['check_tokens']} is no number of tokens"
        faults.append(LLMError(what, fix="0 turns the comparison off"))
    return faults


def check_text_of(settings: dict[str, Any]) -> str:
    """What both models have to read; empty if they have not to.

    Raises:
        LLMError: If there is no such text.
    """
    from llm_recipes.gguf.agreement import default_text
    from llm_recipes.gguf.evaluation_text import PYTHON, read_text

    if not settings["check_tokens"]:
        return ""
    if settings["check_text"] == PYTHON:
        return default_text(characters=10 * settings["check_tokens"])
    return read_text(settings["check_text"], held_out=False).content


def make_plan(settings: dict[str, Any]) -> Plan:
    """Find the model, and see that an adapter is one of it.

    Raises:
        LLMError, ExceptionGroup: What is missing, damaged or does not fit.
    """
    import torch

    from llm_recipes.adapters import find_base
    from llm_recipes.merging import check_adapter, stored_dtype
    from llm_recipes.model_folder import find_adapter, find_model

    adapter, rows = None, None
    if settings["adapter"] is None:
        base = find_model(settings["model"])
    else:
        adapter = find_adapter(settings["adapter"])
        base = find_base(adapter, settings["model"])
        rows = check_adapter(adapter, base.path)
    stored = stored_dtype(base)
    kind = own_type(stored) if settings["type"] == "auto" else settings["type"]
    output = settings["output"].expanduser().absolute()
    merged = torch.float32 if adapter is not None and kind == "f32" else stored
    return Plan(settings, output, base, adapter, stored, merged, kind, rows)


def own_type(stored: torch.dtype) -> str:
    """The GGUF type that holds weights as they are: 8-bit floats need bf16."""
    import torch

    return {
        torch.float64: "f32",
        torch.float32: "f32",
        torch.float16: "f16",
    }.get(stored, "bf16")


def early_faults(plan: Plan) -> list[LLMError]:
    """All that is wrong before anything is loaded or written."""
    from llm_recipes.gguf.conversion_checks import source_faults
    from llm_recipes.gguf.pre_tokenizers import name_faults
    from llm_recipes.made_folder import check_space

    found = source_faults(plan.base, plan.settings["trust_remote_code"])
    found += name_faults(plan.settings["pre_tokenizer"])
    bits = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}[plan.type]
    needed = plan.base.bytes * bits / (8 * plan.stored.itemsize)
    if plan.adapter is not None:
        needed += plan.base.bytes * plan.merged.itemsize / plan.stored.itemsize  # merged model
    return found + faults_of(lambda: check_space(plan.output, int(needed)))


def make(plan: Plan, text: str, record: dict[str, Any]) -> None:
    """Convert the model, merged with its adapter if it has one."""
    from llm_recipes.gguf.new_gguf import merged_folder, new_gguf
    from llm_recipes.merged_folder import merge_into
    from llm_recipes.model_folder import find_model

    with new_gguf(plan.output) as partial:
        if plan.adapter is None:
            convert_folder(plan, plan.base, partial, text, record)
            return
        # What the base's architecture and tokenizer can't be, merging would not change.
        begin(plan, plan.base.path, partial)[0].close()
        with merged_folder(plan.output) as folder:
            kinds = plan.stored, plan.merged
            merge_into(folder, plan.base, plan.adapter, plan.rows, *kinds, "--type f32")
            convert_folder(plan, find_model(str(folder)), partial, text, record)


def convert_folder(
    plan: Plan, model: ModelFolder, partial: Path, text: str, record: dict[str, Any]
) -> None:
    """Write the GGUF of a folder, compare it, and give it its name.

    Raises:
        LLMError: If it is not the same model.
    """
    from llm_recipes.gguf.conversion_checks import row_remarks
    from llm_recipes.gguf.new_gguf import disagreeing_name, finish

    start = time.monotonic()
    draft, tokenizer = begin(plan, model.path, partial)
    with draft:
        differences, remarks = compare_tokenizers(plan, model.path, tokenizer, draft)
        for remark in (*draft.remarks, *remarks, *row_remarks(draft.file)):
            say(f"note: {remark}")
        draft.write_weights()
    seconds = time.monotonic() - start
    record["model"] = describe_model(plan, draft)
    record["metrics"] = {
        "convert_s": round(seconds, 1),
        "bytes": draft.file.bytes,
        "bits_per_weight": round(draft.file.bits_per_weight, 3),
        "token_differences": differences,
    }
    agreement = compare_answers(plan, model, draft.file, tokenizer, text, record)
    if agreement is not None and not agreement.holds:
        if not plan.settings["accept_differences"]:
            kept = disagreeing_name(plan.output)
            finish(partial, kept, record, "failed")
            raise disagreement(agreement, kept)
        say("it is kept all the same: --accept-differences")
    finish(partial, plan.output, record)
    size = f"{draft.file.bytes / GB:.3g} GB, {draft.file.bits_per_weight:.3g} bits a weight"
    print(f"GGUF in {plan.output} ({draft.file.file_type}, {size}, {seconds:.0f} s)")


def begin(plan: Plan, folder: Path, partial: Path) -> tuple[Draft, Any]:
    """Write the GGUF's header; returns it and transformers' tokenizer.

    Raises:
        LLMError, ExceptionGroup: What can't be converted, or has no room.
    """
    from llm_recipes.gguf.conversion import Source, draft_gguf
    from llm_recipes.gguf.conversion_checks import vocabulary_faults
    from llm_recipes.made_folder import check_space
    from llm_recipes.tokenizer_folder import load_tokenizer

    _, tokenizer = load_tokenizer(str(folder))
    raise_all(vocabulary_faults(folder, tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    carried = None if backend is None else backend.to_str()
    source = Source(folder, plan.type, name_of(plan), plan.settings["pre_tokenizer"], carried)
    found: list[Draft] = []
    faults = faults_of(lambda: found.append(draft_gguf(source, partial)))
    raise_all([with_fitting_name(fault, source, tokenizer) for fault in faults])
    check_space(plan.output, found[0].file.bytes)
    return found[0], tokenizer


def name_of(plan: Plan) -> str:
    """The model's name in the file: the hub's, or that of its folder."""
    name: str = plan.settings["adapter"] or plan.settings["model"]
    folder = plan.adapter or plan.base.path
    # A hub's model lies in a folder that is named by a hash.
    return folder.resolve().name if Path(name).expanduser().is_dir() else name.split("/")[-1]


def with_fitting_name(fault: LLMError, source: Source, tokenizer: Any) -> LLMError:
    """The fault; of an unknown tokenizer with the pre-tokenizer that fits, if one does."""
    from llm_recipes.gguf.conversion import unknown_tokenizer
    from llm_recipes.gguf.pre_tokenizers import fitting

    if fault.what != unknown_tokenizer(source.folder):
        return fault
    name = fitting(source, tokenizer)
    if name is None:
        return fault
    return LLMError(fault.what, fault.why, f"--pre-tokenizer {name} makes the same tokens")


def compare_tokenizers(
    plan: Plan, folder: Path, tokenizer: Any, draft: Draft
) -> tuple[list[str], list[str]]:
    """Compare the GGUF's tokenizer with transformers'; returns what differs, and remarks.

    Raises:
        LLMError: If usual texts become other tokens, or special tokens are lost.
    """
    from llm_recipes.gguf import agreement as agreements
    from llm_recipes.gguf.conversion import header_tokenizer
    from llm_recipes.gguf.tokenizer import HUGGING_FACE_KEY

    with header_tokenizer(draft.path) as found:
        plain = agreements.tokenizer_differences(tokenizer, found, agreements.PLAIN_TEXTS)
        edges = agreements.tokenizer_differences(tokenizer, found, agreements.EDGE_TEXTS)
        severe = [*map(str, plain), *agreements.special_token_differences(tokenizer, found)]
        remarks = [f"llama.cpp makes other tokens of {difference}" for difference in edges]
        if remarks and draft.file.metadata.get(HUGGING_FACE_KEY):
            remarks.append("our recipes use the model's own tokenizer, which the file carries")
        remarks += agreements.end_token_remarks(folder, found)
    if severe and not plan.settings["accept_differences"]:
        raise LLMError(TOKENS_DIFFER, "\n".join(severe[:8]), ALL_THE_SAME)
    return [*severe, *map(str, edges)], severe + remarks


def compare_answers(
    plan: Plan,
    model: ModelFolder,
    file: GgufFile,
    tokenizer: Any,
    text: str,
    record: dict[str, Any],
) -> Agreement | None:
    """Let both models read the text; None, with a note, where that can't be.

    Raises:
        LLMError: If llama.cpp can't compute with the file.
    """
    from llm_recipes.device import memory_errors, use_granted_cpus
    from llm_recipes.gguf import agreement as agreements

    if not text:
        return None
    length = file.context_length or agreements.WINDOW
    windows = agreements.windows_of(text, tokenizer, plan.settings["check_tokens"], length)
    lacking = agreements.memory_lacking(model.bytes, file)
    if lacking:
        not_compared(lacking, record)
        return None
    say(f"comparing {sum(map(len, windows))} tokens with transformers in fp32")
    try:
        with memory_errors("transformers computed the text", "--check-tokens 0"):
            wanted = agreements.transformers_scores(model.path, plan.merged, windows)
    except LLMError as error:  # a kind of model or of weights that it can't run here
        not_compared(f"{error.what}: {error.why}", record)
        return None
    found = agreements.gguf_scores(file.path, windows, use_granted_cpus())
    agreement = agreements.compare_scores(found, wanted, plan.type)
    record["metrics"]["agreement"] = agreement.as_record()
    say(str(agreement))
    return agreement


def not_compared(why: str, record: dict[str, Any]) -> None:
    """Note that nothing is known of the answers."""
    record["metrics"]["not_compared"] = why
    say(f"note: not compared with transformers: {why}")


def disagreement(agreement: Agreement, kept: Path) -> LLMError:
    """What a GGUF that answers otherwise means for a user."""
    what = "the GGUF does not answer as transformers does"
    why = f"{agreement}; at least {agreement.limit:.0%} are expected"
    return LLMError(what, why, f"it is kept as {kept}; {ALL_THE_SAME}")


def describe_model(plan: Plan, draft: Draft) -> dict[str, Any]:
    """The record's part on the model."""
    return {
        "path": str(plan.output),
        "name": draft.file.name,
        "source": str(plan.base.path),
        "adapter": None if plan.adapter is None else str(plan.adapter),
        "architecture": draft.file.architecture,
        "parameters": draft.file.parameters,
        "dtype": draft.file.file_type,
    }


if __name__ == "__main__":
    run_recipe(convert)
