"""The settings as TOML: all of them with their meanings, to begin a file with; or as they are, and from where."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nertool.errors import NertoolError, nearest_name
from nertool.settings import ENVIRONMENT_PREFIX, SECRETS, Settings

_TYPES = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "null": "unset",
    "object": "table",
}
_WIDTH = 100
_ORIGIN_COLUMN = 44
_HEAD = """\
# Settings of nertool. What begins with # and a name is the default: take the # away to set something else.
# What wins: a command's own option, --set SECTION.NAME=VALUE, NERTOOL_SECTION__NAME in the environment, this file.
"""


def parts(section: str | None = None) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields the sections of the settings, or one of them: name and model.

    Raises:
        NertoolError: If there is no such section.
    """
    fields = Settings.model_fields
    if section is not None and section not in fields:
        raise NertoolError(
            f"unknown settings section {section!r}{nearest_name(section, fields)}", f"one of {', '.join(fields)}"
        )
    for name in fields if section is None else [section]:
        part: type[BaseModel] = fields[name].annotation  # type: ignore[assignment]
        yield name, part


def template(section: str | None = None) -> str:
    """Returns a settings file in which everything is commented out, with meaning, type, range and default.

    Secrets aren't among them: they belong into the environment.
    """
    lines = [_HEAD]
    for name, part in parts(section):
        schema = part.model_json_schema()
        lines += [*_comment(schema["description"]), f"[{name}]", ""]
        for key, rule in schema["properties"].items():
            if f"{name}.{key}" in SECRETS:
                variable = f"{ENVIRONMENT_PREFIX}{name.upper()}__{key.upper()}"
                lines += [f"# {key} is a secret: set it in the environment, as {variable}.", ""]
                continue
            lines += _comment(f"{rule['description']} ({', '.join([type_in_words(rule), *ranges_in_words(rule)])})")
            default = rule["default"]
            lines += [f"#{key} = # unset" if default is None else f"#{key} = {as_toml(default)}", ""]
    return "\n".join(lines)


def trace(settings: Settings, origins: Mapping[str, str], section: str | None = None) -> dict[str, dict[str, Any]]:
    """Returns section → name → `value` and `origin`; of secrets only whether they are set."""
    return {
        name: {
            key: {"value": _shown(f"{name}.{key}", value), "origin": _kind(origins.get(f"{name}.{key}", "default"))}
            for key, value in getattr(settings, name)
        }
        for name, _ in parts(section)
    }


def traced_as_toml(traced: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns what `trace` does as a settings file, with the origins as comments."""
    lines = []
    for section, values in traced.items():
        lines.append(f"[{section}]")
        for key, item in values.items():
            value, origin = item["value"], " ".join(item["origin"].split())
            if f"{section}.{key}" in SECRETS or value is None:
                line = f"# {key} is {value or 'unset'}"
            else:
                line = f"{key} = {as_toml(value)}"
            lines.append(f"{line:{_ORIGIN_COLUMN}}  # {origin}")
        lines.append("")
    return "\n".join(lines)


def as_toml(value: Any) -> str:
    """Returns a value as TOML writes it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return _quoted(value) if isinstance(value, str) else str(value)  # dates and times


def type_in_words(rule: Mapping[str, Any]) -> str:
    """Returns the type that a setting's JSON schema asks for."""
    if "enum" in rule:
        return "one of " + ", ".join(f"`{value}`" for value in rule["enum"])
    if "anyOf" in rule:
        return " or ".join(type_in_words(choice) for choice in rule["anyOf"] if choice.get("type") != "null")
    if rule["type"] == "array":
        item = rule["prefixItems"][0] if "prefixItems" in rule else rule["items"]
        return f"list of {rule.get('minItems', '')} {_TYPES[item['type']]}s".replace("  ", " ")
    return {"path": "path", "password": "secret"}.get(rule.get("format", "")) or _TYPES[rule["type"]]


def ranges_in_words(rule: Mapping[str, Any]) -> list[str]:
    """Returns the range that a setting's JSON schema asks for, if any."""
    if "anyOf" in rule:
        return [text for choice in rule["anyOf"] for text in ranges_in_words(choice)]
    if "prefixItems" in rule:
        return [f"each {text}" for text in ranges_in_words(rule["prefixItems"][0])]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {rule[key]:g}" for key, sign in signs.items() if key in rule]
    return [" and ".join(bounds)] if bounds else []


def _shown(name: str, value: Any) -> Any:
    if name in SECRETS:
        return "not set" if value is None else "set"
    return str(value) if isinstance(value, Path) else value


def _kind(origin: str) -> str:
    return "--set" if origin.startswith("--set ") else origin


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> Iterable[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")
