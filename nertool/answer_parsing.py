"""Reading an LLM's answer, whatever it looks like: never raises, and says what was wrong."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import json_repair
import orjson

from nertool.alignment import Mention

_MENTION_KEYS = ("entity_match", "mention", "match", "entity", "text", "span", "string", "name", "term")
_CLASS_KEYS = (
    "entity_class", "entity_classes", "class", "classes", "label", "labels", "type", "types", "entity_type", "category",
    "categories", "entity_label",
)  # fmt: skip
_CONTEXT_KEYS = ("context", "sentence", "snippet", "quote")
_DEEPEST = 6


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of an answer.

    Args:
        mention: What is named.
        classes: What the LLM calls its classes.
    """

    mention: Mention
    classes: tuple[str, ...]


@dataclass(slots=True)
class ParsedAnswer:
    """What an answer says.

    Args:
        items: Its entries, in its order.
        malformed: Entries without a mention or a class, as text.
        cut_off: Whether the answer ends before its end.
        failure: Why nothing could be read at all; None for a readable answer, one without entities too.
    """

    items: list[Item] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    cut_off: bool = False
    failure: str | None = None


def parse_answer(answer: str, is_class: Callable[[str], bool]) -> ParsedAnswer:
    """Reads an answer: JSON if it is, else what can be made of it.

    Prose and code fences around JSON, several JSON values, trailing commas, single quotes, Python literals and an end
    that is missing are fine; of an answer that was cut off, the last entry is left out, as it may be cut, too. The
    shapes: a list of objects with a mention and a class (or classes) under any usual key; such a list inside an object;
    objects of mention → class(es) or class → mentions; lists of (mention, class).

    Args:
        answer: The raw answer.
        is_class: Tells whether a string is a wording of a class; it decides between mention → class and the reverse.
    """
    parsed = ParsedAnswer()
    text = re.sub(r"^.*</think>", "", answer, count=1, flags=re.DOTALL).removeprefix("\ufeff").strip()
    if not text:
        parsed.failure = "the answer is empty"
        return parsed
    try:
        values = [orjson.loads(text)]
    except orjson.JSONDecodeError:
        values = [value for block in _blocks(text) for value in _values(block, parsed)]
    if not values:
        parsed.failure = parsed.failure or "there is no JSON in the answer"
        return parsed
    parsed.failure = None
    for value in values:
        _collect(value, is_class, parsed, _DEEPEST)
    if not parsed.items and (parsed.malformed or all(value is None for value in values)):
        parsed.failure = "the JSON of the answer names no mentions with classes"
    return parsed


def _blocks(text: str) -> list[str]:
    """Returns what stands in code fences, or else the whole; a last fence may be open."""
    fenced = re.findall(r"```[\w-]*[ \t]*\r?\n?(.*?)(?:```|\Z)", text, flags=re.DOTALL)
    return [block for block in fenced if "[" in block or "{" in block] or [text]


def _values(block: str, parsed: ParsedAnswer) -> Iterator[Any]:
    """Yields the JSON values in a block, and what the repair library makes of a rest that isn't JSON."""
    decoder = json.JSONDecoder()
    position = 0
    while match := _JSON_BEGINS.search(block, position):
        try:
            value, position = decoder.raw_decode(block, match.start())
        except (ValueError, RecursionError):
            value, position = _repaired(block[match.start() :], parsed), len(block)
            if value is None:
                return
        yield value


# Not every bracket in prose begins JSON: citations [1] and {placeholders} don't.
_JSON_BEGINS = re.compile(r"""[\[{]\s*(?:[\[{"'\]}]|\w+\s*:)""")


def _repaired(text: str, parsed: ParsedAnswer) -> Any:
    """Returns what the repair library makes of broken JSON (of its whole entries, if it was cut off), or None."""
    whole = text.rstrip(" \t\r\n`")
    last = max(whole.rfind("}"), whole.rfind("]"))
    if last < 0 or re.match(r"\s*,\s*\S", whole[last + 1 :]):
        parsed.cut_off = True
        whole = _without_last_entry(whole)
    else:
        whole = whole[: last + 1]
        parsed.cut_off = whole.startswith("[") and whole.endswith("}")
    try:
        value = json_repair.loads(whole, skip_json_loads=True)
    except Exception:  # noqa: BLE001 (whatever the library trips over is beyond repair)
        value = None
    if isinstance(value, list | dict) and value:
        return value
    parsed.failure = (
        "the answer was cut off before the end of its first entry"
        if parsed.cut_off
        else "the JSON of the answer is broken beyond repair"
    )
    return None


def _without_last_entry(text: str) -> str:
    """Cuts an unfinished answer back to its last whole entry."""
    closed = text.rfind("}")
    if closed > 0:
        return text[: closed + 1]
    ends = [match.start() + 1 for match in re.finditer(r"[\"'\]](?=\s*,\s*[\"'])", text)]
    return text[: ends[-1]] if ends else ""


def _collect(value: Any, is_class: Callable[[str], bool], parsed: ParsedAnswer, depth: int) -> None:
    if isinstance(value, list) and depth:
        if (
            len(value) == 2
            and all(isinstance(one, str) for one in value)
            and is_class(value[1])
            and not is_class(value[0])
        ):
            _add(value[0], value[1], {}, parsed)
            return
        for one in value:
            _collect(one, is_class, parsed, depth - 1)
    elif isinstance(value, dict) and depth:
        _collect_object(value, is_class, parsed, depth)
    elif value is not None:
        parsed.malformed.append(_short(value))


def _collect_object(value: dict[str, Any], is_class: Callable[[str], bool], parsed: ParsedAnswer, depth: int) -> None:
    keys = {str(key).strip().lower().replace(" ", "_"): key for key in value}
    mention = next((keys[key] for key in _MENTION_KEYS if key in keys), None)
    label = next((keys[key] for key in _CLASS_KEYS if key in keys and keys[key] != mention), None)
    if label is not None and (mention is not None or "parts" in keys):
        entry = {key: value[name] for key, name in keys.items()}
        _add(value[mention] if mention is not None else None, value[label], entry, parsed)
        return
    for key, inner in value.items():
        strings = [inner] if isinstance(inner, str) else inner
        if isinstance(strings, list) and strings and all(isinstance(one, str) for one in strings):
            if is_class(key) and not all(map(is_class, strings)):
                for one in strings:
                    _add(one, key, {}, parsed)
            else:
                _add(key, strings, {}, parsed)
        elif isinstance(inner, list | dict):
            _collect(inner, is_class, parsed, depth - 1)
        elif mention is not None:
            parsed.malformed.append(_short(value))
            return
        else:
            parsed.malformed.append(_short({key: inner}))


def _add(mention: Any, label: Any, entry: dict[str, Any], parsed: ParsedAnswer) -> None:
    """Takes an entry; one that lacks a mention or a class is malformed."""
    parts = tuple(_strings(entry.get("parts")))
    classes = tuple(dict.fromkeys(_strings(label)))
    texts = _strings(mention) or ([" ".join(parts)] if parts else [])
    if not texts or not classes:
        parsed.malformed.append(_short(entry or {str(mention): label}))
        return
    context = next((entry[key] for key in _CONTEXT_KEYS if isinstance(entry.get(key), str)), None)
    for text in texts:
        found = Mention(
            text=text,
            parts=parts if len(parts) > 1 and len(texts) == 1 else (),
            start=_offset(entry.get("start")),
            end=_offset(entry.get("end")),
            context=_clean(context) if context else None,
        )
        parsed.items.append(Item(found, classes))


def _strings(value: Any) -> list[str]:
    """Returns the non-empty strings of a string, a number, or a list of them."""
    values = value if isinstance(value, list) else [value]
    plain = [str(one) for one in values if isinstance(one, str | int | float) and not isinstance(one, bool)]
    return [cleaned for one in plain if (cleaned := _clean(one))]


def _clean(text: str) -> str:
    """Drops white space around a string, and halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode().strip()


def _offset(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _short(value: Any) -> str:
    try:
        text = _clean(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "(nested too deeply)"
    return text if len(text) <= 200 else f"{text[:199]}…"
