"""TOML and YAML files as nested dicts of plain values; anything else is a UserError of one line."""

import re
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedsdr.errors import UserError
from fedsdr.file_reading import read_text

MAX_BYTES, MAX_DEPTH = 2**18, 16

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


def shown(value: object) -> str:
    """Return `value` quoted for an error message, on one line and with its middle cut if long."""
    return _short.repr(value)


def read_table(path: Path, if_missing: str) -> dict[str, Any]:
    """Return what a TOML file holds, or a YAML file if its name ends in .yaml or .yml.

    Raises UserError that names the file if it is missing (`if_missing` says what to do then),
    larger than 256 KiB, not a regular file, not UTF-8 (a byte order mark is accepted), broken, or
    holds values that `check_plain` rejects.
    """
    fix = "give a TOML or YAML file in UTF-8"
    text = read_text(path, fix, f"no such file ({if_missing})", MAX_BYTES)
    form = "YAML" if path.suffix.lower() in (".yaml", ".yml") else "TOML"
    try:
        table = _parse_yaml(text) if form == "YAML" else _parse_toml(text)
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        reason = reason.partition("; use sys")[0]  # Python's advice on integers
        raise UserError(f"{path}: not valid {form}: {reason}{line}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: must hold keys and values, not {shown(table)}")
    check_plain(table, str(path))
    return table


def parse_value(text: str) -> Any:
    """Return a TOML value; anything else is text."""
    try:
        table = _parse_toml(f"x = {text}")
    except (ValueError, RecursionError):
        return text
    return table["x"] if len(table) == 1 else text


def check_plain(value: object, where: str, key: str = "") -> None:
    """Raise UserError, starting with `where`, unless `value` is made of plain values alone.

    Those are text (no NUL, no lone surrogate), 64-bit integers, floats, booleans, None, lists and
    mappings, at most MAX_DEPTH deep.
    """
    stack = [(value, key, 0)]
    while stack:
        value, key, depth = stack.pop()
        problem = ""
        if depth > MAX_DEPTH:
            problem = "is nested too deeply"
        elif isinstance(value, Mapping):
            stack += [(name, "a key", depth) for name in value]
            stack += [(v, f"{key}.{name}".lstrip("."), depth + 1) for name, v in value.items()]
        elif isinstance(value, list):
            stack += [(item, key, depth + 1) for item in value]
        elif isinstance(value, str):
            if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
                problem = "has text with a NUL character or not in UTF-8"
        elif isinstance(value, int):
            problem = "" if -(2**63) <= value < 2**63 else "is an integer of more than 64 bits"
        elif value is not None and not isinstance(value, float):
            problem = f"is a {type(value).__name__}; put it in quotes"
        if problem:
            raise UserError(f"{where}: {shown(key)} {problem}")


def _parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text holds; RecursionError also for a dotted key of 200 parts or more, for
    which tomllib takes quadratic memory."""
    if re.search(r"(?<![^\s=\[{,])(?:[^\s.=\[\]{},]++[ \t]*+\.[ \t]*+){199}", text):
        raise RecursionError
    return tomllib.loads(text)


def _parse_yaml(text: str) -> Any:
    """Return what a YAML text holds; YAMLError for aliases, which can explode, and for tags."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:  # PyYAML takes quadratic time for deep nesting
            raise RecursionError
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise _yaml_error("aliases (*name) and tags (!name) are not supported", event)
    node = yaml.compose(text, yaml.SafeLoader)
    return {} if node is None else _plain(node)


def _plain(node: Any) -> Any:
    """Return the value of a YAML node. An unquoted scalar is null, what TOML reads, or else text.

    So `3e-4` is a number and `no` is text, unlike in YAML 1.1.
    """
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        if node.style is not None:
            return node.value
        return None if node.value in ("", "~", "null") else parse_value(node.value)
    table: dict[str, Any] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise _yaml_error("a key must be text", name)
        if name.value in table:
            raise _yaml_error(f"the key {shown(name.value)} is set twice", name)
        table[name.value] = _plain(value)
    return table


def _yaml_error(problem: str, at: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
