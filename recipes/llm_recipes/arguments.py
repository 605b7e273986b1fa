"""Read a command line against a function's signature and name everything that is wrong with it.

jsonargparse stops at the first fault and suggests nothing; this comes before it.

    from llm_recipes.arguments import read_command_line
"""

from __future__ import annotations

import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from llm_recipes.encoding import is_utf8, not_utf8
from llm_recipes.errors import LLMError

OWN_OPTIONS = ("config", "print_config", "help")
TRUE_OR_FALSE = {"true": "true", "yes": "true", "false": "false", "no": "false"}


@dataclass
class CommandLine:
    """What a command line says: arguments in jsonargparse's spelling, its values, its faults."""

    arguments: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    faults: list[LLMError] = field(default_factory=list)


def read_command_line(function: Callable[..., Any], argv: Sequence[str]) -> CommandLine:
    """Translate arguments into jsonargparse's spelling; collect every one that cannot be meant."""
    parameters = _parameter_types(function)
    line = CommandLine()
    rest = list(argv)
    printing: list[str] = []
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if argument in ("-h", "--help"):
            line.arguments.append("--help")
        elif not argument.startswith("--") or not name:
            line.faults.append(_stray_argument(argument, rest))
        elif name == "print_config":
            printing.append(f"--print_config{equals}{value}")
        elif name.startswith("no_") and name[3:] in parameters and name not in parameters:
            line.values.setdefault(name[3:], []).append("false")
        elif name not in parameters and name != "config":
            line.faults.append(_unknown(f"option --{name}", name, parameters, "--"))
            if rest and not equals and not rest[0].startswith("--"):
                rest.pop(0)  # its value, so that it isn't reported as a fault of its own
        elif equals:
            line.values.setdefault(name, []).append(value)
        elif _is_flag(parameters.get(name)):
            explicit = bool(rest) and rest[0].lower() in TRUE_OR_FALSE
            line.values.setdefault(name, []).append(rest.pop(0) if explicit else "true")
        elif rest and not (rest[0].startswith("--") and _looks_like_option(rest[0], parameters)):
            line.values.setdefault(name, []).append(rest.pop(0))
        else:
            fix = f"give --{name}=VALUE (with the equals sign if the value starts with --)"
            line.faults.append(LLMError(f"option --{name} has no value", fix=fix))
    configs = line.values.pop("config", [])
    line.arguments += [f"--config={path}" for path in configs]
    line.arguments += [_spelled(name, line.values[name], parameters) for name in line.values]
    line.arguments += printing  # last, or it would leave out the options that keep their defaults
    line.values["config"] = configs
    return line


def _spelled(name: str, values: list[str], parameters: Mapping[str, Any]) -> str:
    item = _item_type(parameters[name])
    if _is_text(item):
        return f"--{name}=[{','.join(map(_quoted, values))}]"
    if item is not None:
        return f"--{name}=[{','.join(values)}]"
    if _is_flag(parameters[name]):
        return f"--{name}={TRUE_OR_FALSE.get(values[-1].lower(), values[-1])}"
    return f"--{name}={values[-1]}"


def _quoted(text: str) -> str:
    """A text in YAML's quotes. JSON escapes an emoji as two halves, which YAML keeps apart."""
    escaped = (char if ord(char) > 0xFFFF else json.dumps(char)[1:-1] for char in text)
    return f'"{"".join(escaped)}"'


def _parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    return {name: hints.get(name, str) for name in inspect.signature(function).parameters}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _is_flag(hint: Any) -> bool:
    return bool in _alternatives(hint)


def _item_type(hint: Any) -> Any:
    """The type of a list's items; None if the hint is no list."""
    for alternative in _alternatives(hint):
        if typing.get_origin(alternative) is list:
            return typing.get_args(alternative)[0]
    return None


def _is_text(hint: Any) -> bool:
    """Whether a value is always a text: YAML would take `on` and `off` for true and false."""
    words = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return hint is str or (bool(words) and all(isinstance(word, str) for word in words))


def _looks_like_option(argument: str, parameters: Mapping[str, Any]) -> bool:
    name = argument.partition("=")[0].lstrip("-").replace("-", "_")
    return name in parameters or name in OWN_OPTIONS or name.removeprefix("no_") in parameters


def _stray_argument(argument: str, rest: Sequence[str]) -> LLMError:
    return LLMError(
        f"argument {argument!r} belongs to no option",
        "every value follows an option's name",
        f"quote a value with spaces: --option {(argument + ' ' + ' '.join(rest[:1])).strip()!r}",
    )


def _unknown(what: str, name: str, known: Mapping[str, Any], prefix: str) -> LLMError:
    nearest = difflib.get_close_matches(name, [*known, *OWN_OPTIONS], n=3, cutoff=0.6)
    if nearest:
        choices = " or ".join(prefix + n.replace("_", "-") for n in nearest)
        return LLMError(f"unknown {what.replace('_', '-')}", fix=f"did you mean {choices}?")
    return LLMError(f"unknown {what.replace('_', '-')}", fix="--help lists every option")


def value_faults(
    function: Callable[..., Any], values: Mapping[str, Sequence[str]], prefix: str
) -> list[LLMError]:
    """Check each value alone, because jsonargparse stops at the first fault."""
    parameters = _parameter_types(function)
    faults = []
    for name, given in values.items():
        if name == "config" or not given:
            continue
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{name}", type=parameters[name])
        try:
            parser.parse_args([_spelled(name, list(given), parameters)])
        except jsonargparse.ArgumentError:
            option = prefix + name.replace("_", "-")
            readable = all(map(is_utf8, given))  # YAML takes no half characters in lists
            bad = _bad_value(option, given[-1], parameters[name])
            faults.append(bad if readable else not_utf8(option))
    return faults


def _bad_value(name: str, value: object, hint: Any) -> LLMError:
    return LLMError(f"{name} {value!r} is not valid", f"expected {_described(hint)}")


def _described(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    parts: list[str] = []
    for alternative in _alternatives(hint):
        if typing.get_origin(alternative) is typing.Literal:
            parts += [str(choice) for choice in typing.get_args(alternative)]
        elif typing.get_origin(alternative) is list:
            parts.append(f"a list, each {_described(typing.get_args(alternative)[0])}")
        else:
            fallback = getattr(alternative, "__name__", str(alternative))
            parts.append(words.get(alternative, {"str": "text"}.get(fallback, fallback)))
    return " or ".join(parts)


def config_faults(function: Callable[..., Any], line: CommandLine) -> list[LLMError]:
    """Every unreadable file, unknown key and bad value of the YAML files, with its line."""
    parameters = _parameter_types(function)
    faults: list[LLMError] = []
    for path in line.values.get("config", []):
        try:
            text = Path(path).read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            settings = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or one_line(str(error))
            faults.append(LLMError(f"cannot read the configuration {path}", reason))
            continue
        if root is None:
            continue
        if not isinstance(settings, dict):
            faults.append(
                LLMError(f"{path} holds no settings", "expected lines such as `key: value`")
            )
            continue
        lines = {str(key.value): key.start_mark.line + 1 for key, _ in root.value}
        for key, value in settings.items():
            where = f"{path}, line {lines.get(str(key), '?')}: "
            if str(key) not in parameters:
                faults.append(_unknown_key(where, str(key), parameters))
            elif not _fits(str(key), value, parameters[str(key)]):
                faults.append(_bad_value(f"{where}{key}", value, parameters[str(key)]))
    return faults


def _unknown_key(where: str, key: str, parameters: Mapping[str, Any]) -> LLMError:
    nearest = difflib.get_close_matches(key.replace("-", "_"), parameters, n=3, cutoff=0.6)
    fix = f"did you mean {' or '.join(nearest)}?" if nearest else "--print_config lists all keys"
    return LLMError(f"{where}unknown key {key!r}", fix=fix)


def _fits(name: str, value: object, hint: Any) -> bool:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=hint)
    try:
        parser.parse_object({name: value})
    except jsonargparse.ArgumentError:
        return False
    return True


def missing_faults(function: Callable[..., Any], line: CommandLine) -> list[LLMError]:
    """Required options that neither the command line nor a file gives."""
    given = set(line.values)
    for path in line.values.get("config", []):
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return []  # reported already; nobody knows what it would have held
        given |= set(settings) if isinstance(settings, dict) else set()
    required = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty and parameter.name not in given
    ]
    return [
        LLMError(f"option --{name.replace('_', '-')} is missing", fix="--help says what it is")
        for name in required
    ]


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())
