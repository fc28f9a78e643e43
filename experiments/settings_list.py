"""Every setting of a recipe: name, value, what it accepts, and what it means."""

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, RootModel

from data_catalog.records import Printed, Record, model_of
from experiments.experiment_config import ExperimentConfig
from experiments.recipes import resolve, section_of

WIDEST = 100
"""Columns that text is filled to at most."""
INDENT = 6


class Setting(Record):
    """A setting of a recipe."""

    name: str
    """Full dotted name, as `--set` takes it."""
    group: str
    """Name of the group that it belongs to; empty for those of no group."""
    value: Any
    """In the recipe with its changes."""
    recipe: Any
    """In the recipe."""
    expected: str
    """Type, and range or choices, in words."""
    value_schema: dict[str, Any]
    """The same as a JSON schema."""
    meaning: str


class SettingsList(Record):
    """What `--list-settings` prints."""

    recipe: str
    groups: dict[str, str]
    """What a group of settings is about, by its name."""
    settings: tuple[Setting, ...]


def record_or_settings(record: Printed) -> Printed:
    """What a script prints that has `--list-settings` and prints a record otherwise."""

    def printed() -> type[BaseModel]:
        root: Any = RootModel
        union: type[BaseModel] = root[model_of(record) | SettingsList]
        return union

    return printed


def list_settings(recipe: str, changes: list[str]) -> SettingsList:
    """The settings of a recipe with some of them changed.

    Args:
        recipe: Name.
        changes: As in `resolve`.

    Raises:
        ConfigError: A name is unknown, or a value impossible.
    """
    schema = ExperimentConfig.model_json_schema()
    own, changed = resolve(recipe), resolve(recipe, changes)
    groups: dict[str, str] = {}
    settings = []
    for section, name, here, there in _walk("", changed, own):
        field, prefix = type(section).model_fields[name], here[0]
        groups.setdefault(prefix, _summary(type(section)) if prefix else "")
        definition = schema["$defs"][type(section).__name__] if prefix else schema
        accepted = _without_titles(_resolved(definition["properties"][name], schema["$defs"]))
        settings.append(
            Setting(
                name=f"{prefix}.{name}" if prefix else name,
                group=prefix,
                value=here[1],
                recipe=there,
                expected=_words(accepted),
                value_schema=accepted,
                meaning=field.description or "",
            )
        )
    return SettingsList(recipe=recipe, groups=groups, settings=tuple(settings))


def _walk(
    prefix: str, section: BaseModel, other: BaseModel
) -> Iterator[tuple[BaseModel, str, tuple[str, Any], Any]]:
    """Section, field, (name of the group, value) and the value in another config, of all settings.

    A group that a recipe does not have cannot be set, and is left out.
    """
    dumped, others = section.model_dump(mode="json"), other.model_dump(mode="json")
    inner = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner.append((name, value, getattr(other, name)))
        elif not (prefix == "" and name == "recipe") and section_of(type(section), name) is None:
            yield section, name, (prefix, dumped[name]), others[name]
    for name, value, there in inner:
        yield from _walk(f"{prefix}.{name}" if prefix else name, value, there)


def _summary(section: type[BaseModel]) -> str:
    """The first line of a section's docstring."""
    return (section.__doc__ or "").strip().partition("\n")[0]


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with its references replaced by what they refer to."""
    if isinstance(schema, list):
        return [_resolved(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _resolved(part, definitions) for key, part in schema.items()}


def _without_titles(schema: dict[str, Any]) -> dict[str, Any]:
    """A setting's JSON schema without what stands in its other fields."""
    return {key: part for key, part in schema.items() if key not in ("title", "description", "default")}


def _words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema accepts, in words."""
    if "anyOf" in schema:
        return ", or ".join(_words(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    match schema["type"]:
        case "array":
            count = f" of {schema['minItems']}" if "prefixItems" in schema else ""
            parts = dict.fromkeys(map(_words, schema.get("prefixItems") or [schema["items"]]))
            return f"list{count}, each {', '.join(parts)}"
        case "object":
            keys = ", ".join(schema["propertyNames"]["enum"])
            return f"mapping of {keys} to {_words(schema['additionalProperties'])}"
        case kind:
            return {"boolean": "on or off", "null": "null", "string": "text"}.get(kind) or _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    """The words of a number: `integer from 1 to 16`, `number above 0 and below 1`."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{schema['type']} from {low:g} to {high:g}"
    ends = [
        f"{words} {end:g}"
        for words, end in (("from", low), ("above", above), ("up to", high), ("below", below))
        if end is not None
    ]
    return " ".join([schema["type"], " and ".join(ends)]).strip()


def as_typed(value: Any) -> str:
    """A value as one types it after `--set NAME=`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value)


def print_settings(listed: SettingsList) -> None:
    """Print settings for a terminal, filled to its width."""
    width = min(WIDEST, shutil.get_terminal_size().columns)

    def paragraph(text: str, indent: int = 0) -> None:
        space = " " * indent
        print(textwrap.fill(text, width, initial_indent=space, subsequent_indent=space))

    paragraph(
        f"Settings of recipe {listed.recipe}. Change one with --set NAME=VALUE; `model.` may be left out. A "
        "group that has NAME.enabled is switched by --set NAME=off as well."
    )
    group = None
    for setting in listed.settings:
        if setting.group != group:
            group = setting.group
            print()
            if group:
                paragraph(f"{group}: {listed.groups[group]}")
        is_changed = setting.value != setting.recipe
        origin = f"  (recipe: {as_typed(setting.recipe)})" if is_changed else ""
        print(f"  {setting.name} = {as_typed(setting.value)}{origin}")
        paragraph(f"[{setting.expected}] {setting.meaning}", INDENT)
