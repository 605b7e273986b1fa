"""What a server's user needs: the key, a file that holds it, and lines to type.

    . ~/.cache/llm/servers/JOB.env      # OPENAI_BASE_URL and OPENAI_API_KEY, as clients read them

A job's log may be readable by everyone, and `ps` shows the command lines of all users: the key is
in this file alone, mode 0600, and on a terminal.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shlex
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.gguf.server_address import LOCAL_PORT, Listening, tunnel

HEADER = "# A server of recipes/quantized/serve.py"
KEY_BYTES = 32
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class ApiKey:
    """value: what clients send; None: no key is asked for. file: where a user keeps an own one."""

    value: str | None
    file: Path | None = None


def choose_key(file: Path | None, without: bool) -> ApiKey:
    """A new random key, the user's own, or none.

    Args:
        file: The user's own, one a line; lines that begin with # don't count.
        without: Ask for no key.

    Raises:
        LLMError: If the file can't be read by its owner alone, or holds no key.
    """
    if without:
        return ApiKey(None)
    if file is None:
        return ApiKey(secrets.token_urlsafe(KEY_BYTES))
    file = file.expanduser()
    try:
        mode = file.stat().st_mode
        lines = file.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        fix = "leave --api-key-file out: a key is made then"
        raise LLMError(f"cannot read the key file {file}", why, fix) from None
    if mode & OTHERS:
        fix = f"chmod 600 {shlex.quote(str(file))}"
        raise LLMError(f"others may read the key file {file}", "its key is no secret then", fix)
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        fix = "one key a line, or leave --api-key-file out"
        raise LLMError(f"the key file {file} holds no key", fix=fix)
    # llama-server takes a line as it is, and no client sends a blank or a carriage return in a key.
    if any(not (key.isascii() and key.isprintable() and " " not in key) for key in keys):
        why = "a line has blanks, a carriage return or other characters that no key has"
        raise LLMError(f"the key file {file} holds no usable key", why, "letters, digits, - and _")
    return ApiKey(keys[0], file)


@dataclass(frozen=True)
class Connection:
    """A running server as its user sees it. alias: the model's name in requests."""

    place: Listening
    port: int
    key: str | None
    alias: str
    is_chat: bool
    context: int
    slots: int

    @property
    def url(self) -> str:
        """The base of OpenAI-compatible requests."""
        return f"{self.place.url(self.port)}/v1"


def default_file(env: Mapping[str, str]) -> Path:
    """Where the connection is written: below the user's home, which login nodes share."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    if job := env.get("SLURM_JOB_ID"):
        # As Slurm names it: a job may have several steps and tasks, each with a server.
        name = f"{job}.{env.get('SLURM_STEP_ID', 'batch')}.{env.get('SLURM_PROCID', '0')}"
    return Path("~/.cache/llm/servers").expanduser() / f"{name}.env"


def check_file(file: Path) -> None:
    """See that the connection can be written, and that nothing of the user's is lost by it.

    Raises:
        LLMError: If something else is there, or the folder can't be written.
    """
    ours = True
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        with open(file, encoding="utf-8") as there:
            ours = there.readline().startswith(HEADER)
    except UnicodeDecodeError:
        ours = False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _write_fault(file, error) from None
    if not ours:
        fix = "choose another --connection"
        raise LLMError(f"{file} is there and no connection of a server", fix=fix)
    if not os.access(file.parent, os.W_OK):
        raise _write_fault(file, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


@contextlib.contextmanager
def connection_file(file: Path, connection: Connection) -> Iterator[None]:
    """A file for shells and dotenv that its owner alone can read; gone when the block ends.

    Raises:
        LLMError: If it can't be written.
    """
    check_file(file)
    text = file_text(connection)
    _write_private(file, text)
    try:
        yield
    finally:
        # Another server may have taken the name since.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if file.read_text(encoding="utf-8") == text:
                file.unlink()


def file_text(connection: Connection) -> str:
    """The file's content; no key leaves an empty one, which clients send and nobody checks."""
    values = {
        "OPENAI_BASE_URL": connection.url,
        "OPENAI_API_KEY": connection.key or "none",
        "OPENAI_MODEL": connection.alias,
    }
    where = f"{socket.gethostname()}, process {os.getpid()}"
    if job := os.environ.get("SLURM_JOB_ID"):
        where += f", job {job}"
    lines = [f"{HEADER}, on {where}.", "# It is removed when the server ends."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _write_private(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # of a process with our number, long gone
        with open(os.open(temporary, flags, PRIVATE_FILE), "w", encoding="utf-8") as writer:
            writer.write(text)
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _write_fault(file, error) from None


def _write_fault(file: Path, error: OSError) -> LLMError:
    fix = "choose another --connection, in a folder that you can write"
    what = f"cannot write the connection file {file}"
    return LLMError(what, error.strerror or str(error), fix)


def instructions(
    connection: Connection, file: Path, show_key: bool, env: Mapping[str, str] | None = None
) -> str:
    """What to type, here and at home, to use the server.

    Args:
        connection: The server.
        file: Where the connection was written.
        show_key: Show the key itself; only where nobody else reads along.
        env: The environment; None is this process's.
    """
    env = os.environ if env is None else env
    quoted = shlex.quote(str(file))
    key = "none is asked for" if connection.key is None else f"in {quoted}, which only you can read"
    if show_key and connection.key is not None:
        key = f"{connection.key} (also {key})"
    home = f"then http://127.0.0.1:{LOCAL_PORT}/v1"
    home += "" if connection.key is None else ", with the key of that file"
    lines = [
        f"  key: {key}",
        f"  model: {connection.alias}",
        "On the cluster:",
        f"  . {quoted}",
        f"  {curl_line(connection, env)}",
        "At home (perhaps with the login node's full name):",
        f"  {tunnel(connection.place, connection.port, env)}",
        f"  {home}",
        "Requests travel by http, not encrypted but for ssh's part of the way.",
    ]
    return "\n".join(lines)


def curl_line(connection: Connection, env: Mapping[str, str]) -> str:
    """A request by curl; the key comes through standard input, so that `ps` does not show it."""
    body: dict[str, object] = {"model": connection.alias, "max_tokens": 64}
    if connection.is_chat:
        path = "chat/completions"
        body["messages"] = [{"role": "user", "content": "Hello!"}]
    else:
        path = "completions"
        body["prompt"] = "My favourite condiment is"
    # A proxy of the site knows no addresses within the cluster.
    proxied = any(env.get(name) for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"))
    parts = ["curl", *(["--noproxy '*'"] if proxied else [])]
    if connection.key is not None:
        header = """printf 'Authorization: Bearer %s' "$OPENAI_API_KEY" |"""
        parts = [header, *parts, "-H @-"]
    parts += [f'"$OPENAI_BASE_URL/{path}"', "-H 'Content-Type: application/json'"]
    parts += ["-d", shlex.quote(json.dumps(body, ensure_ascii=False))]
    return " ".join(parts)
