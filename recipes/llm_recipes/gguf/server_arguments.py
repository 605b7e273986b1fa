"""llama-server's command line and environment: what is decided, and what must be off.

from llm_recipes.gguf.server_arguments import arguments, environment
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_recipes.gguf.server_address import Listening
from llm_recipes.gguf.server_connection import ApiKey
from llm_recipes.gguf.server_plan import ServerPlan

MIB = 2**20
# Copies of a slot's state for models with windowed attention or a recurrent state; llama-server
# keeps 32 of each slot in the host's memory if nobody says less.
STATE_COPIES = 4
HTTP_THREADS = 8  # more than slots, for health, metrics and requests that wait
# Each option of llama-server has a variable LLAMA_ARG_..., which would add tools, keys or logged
# prompts to what is decided here; AIP_... make it listen elsewhere.
NOT_PASSED = ("LLAMA_", "AIP_")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def arguments(
    plan: ServerPlan,
    place: Listening,
    port: int,
    alias: str,
    key: ApiKey,
    rpc: Sequence[str] = (),
) -> list[str]:
    """The options of llama-server; none of them is a secret, for `ps` shows them."""
    context = plan.context
    slots = context.sequences
    # Before --device, which names what the other hosts offer.
    options: dict[str, object] = {"--rpc": ",".join(rpc)} if rpc else {}
    options |= {
        "--model": plan.file.path,
        "--alias": alias,
        "--host": place.bind,
        "--port": port,
        "--parallel": slots,
        "--ctx-size": context.tokens * slots,
        "--threads": context.threads,
        "--threads-batch": context.prompt_threads,
        "--threads-http": slots + HTTP_THREADS,
        "--batch-size": context.batch,
        "--ubatch-size": context.micro_batch,
        "--cache-type-k": context.key_type,
        "--cache-type-v": context.value_type,
        "--flash-attn": context.flash_attention,
        "--gpu-layers": plan.placement.gpu_layers,
        "--split-mode": plan.placement.split,
        "--cache-ram": plan.prompt_cache_bytes // MIB,
        "--ctx-checkpoints": STATE_COPIES,
        # Without it any page that a browser shows may ask a server that asks for no key.
        "--cors-origins": "localhost",
        # What does not fit was refused before; it would make the context smaller in silence.
        "--fit": "off",
        "--verbosity": 3,
        "--log-colors": "off",
    }
    if plan.placement.shares:
        options["--tensor-split"] = ",".join(f"{share:g}" for share in plan.placement.shares)
    if plan.threads.numa == "distribute":
        options["--numa"] = plan.threads.numa
    if plan.placement.devices is not None:
        options["--device"] = ",".join(plan.placement.devices) or "none"
    if key.file is not None:
        options["--api-key-file"] = key.file
    # Each slot has room of its own: with a common one a long request takes that of others.
    flags = ["--no-kv-unified", "--offline", "--no-ui", "--no-slots", "--metrics"]
    flags += ["--log-prefix", "--no-log-timestamps"]
    return [text for name, value in options.items() for text in (name, str(value))] + flags


def environment(key: ApiKey, env: Mapping[str, str]) -> dict[str, str]:
    """Its environment, with a key that was made here."""
    passed = {
        name: value
        for name, value in env.items()
        if not name.startswith(NOT_PASSED) and name not in SECRETS
    }
    # A user's llama.cpp/config.ini holds options too.
    passed["XDG_CONFIG_HOME"] = "/dev/null"
    passed.setdefault("GGML_NO_BACKTRACE", "1")  # else ggml calls a debugger before it aborts
    if key.value is not None and key.file is None:
        passed["LLAMA_API_KEY"] = key.value
    return passed


def alias_of(wanted: str | None, stem: str) -> str:
    """The model's name in requests; a comma would make two of it."""
    return (wanted or stem).replace(",", "_").strip() or "model"
