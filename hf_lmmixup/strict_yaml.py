"""YAML files of settings, read strictly: bounded, without aliases and code, every key known and there once.

A mapping becomes a dataclass; a key that the dataclass lacks, or a value of another type, is an error that says so::

    fill(SelectRecipe, {"min_score": "4"}, "pile.yaml: select")  ->  ValueError: ... min_score is '4', but must be int.
"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml


MAX_RECIPE_BYTES = 1_000_000
MAX_DEPTH = 50
"""Levels of nesting; PyYAML's time grows with their square."""

BLOCK_START = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken)
FLOW_START = (yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
END = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file of bounded size, without aliases and without code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is too large or too deep, not YAML, holds aliases or a key twice, or is not a mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No recipe at {path}.")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_RECIPE_BYTES} bytes; that is no recipe.")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_aliases_and_depths(path, text)
        _refuse_doubled_keys(path, yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} must hold a mapping of names to values.")
    return values


def _refuse_aliases_and_depths(path: Path, text: str) -> None:
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ValueError(f"{path} holds a YAML alias (*name). Write the value out.")
        depth += isinstance(token, BLOCK_START + FLOW_START) - isinstance(token, END)
        if depth > MAX_DEPTH:
            raise ValueError(f"{path} is nested deeper than {MAX_DEPTH} levels; that is no recipe.")


def _refuse_doubled_keys(path: Path, node: yaml.Node | None) -> None:
    """Of a key that is there twice YAML takes the last value and says nothing."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    seen = set[str]()
    for key, _ in pairs:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""  # no other key is one that a recipe may have
        if name in seen:
            raise ValueError(f"{path}:{key.start_mark.line + 1} has the key {name!r} again. Keep one of them.")
        seen.add(name)
    for one in node.value if isinstance(node, yaml.SequenceNode) else [value for _, value in pairs]:
        _refuse_doubled_keys(path, one)


def fill(kind: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a mapping.

    Args:
        kind: The dataclass; its fields may be dataclasses, numbers, texts, lists of texts, and `None` beside them.
        values: Its fields.
        where: What the mapping is called in messages.

    Raises:
        ValueError: If a key is unknown or missing, or a value has the wrong type.
    """
    fields = {one.name: one for one in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        allowed = sorted(set(fields) - {"folder"})
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}. Expected some of {allowed}.")
    missing = [name for name, one in fields.items() if _is_required(one) and name not in values]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}.")
    return kind(**{name: _value(fields[name].type, value, f"{where}: {name}") for name, value in values.items()})


def _is_required(one: dataclasses.Field) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping, not {value!r}.")
        return fill(kind, value, where)
    if kind == list[str]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{where} is {value!r}, but must be a list of texts.")
        return value
    allowed = getattr(kind, "__args__", (kind,))
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        value = float(value)
    if (isinstance(value, bool) and bool not in allowed) or not isinstance(value, allowed):
        names = " or ".join("null" if one is type(None) else one.__name__ for one in allowed)
        raise ValueError(f"{where} is {value!r}, but must be {names}.")
    return value
