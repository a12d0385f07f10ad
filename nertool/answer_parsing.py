"""Reading an LLM's answer, whatever it looks like: never raises, and says what was wrong."""

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import json_repair
import orjson

from nertool.alignment import Mention

# Names of fields, without case and punctuation.
_MENTION_KEYS = ("entitymatch", "mention", "match", "entity", "text", "span", "string", "word", "name", "term")
_CLASS_KEYS = (
    "entityclass", "entityclasses", "class", "classes", "label", "labels", "type", "types", "entitytype", "entitylabel",
    "entitygroup", "category", "categories", "entity",
)  # fmt: skip
_CONTEXT_KEYS = ("context", "sentence", "snippet", "quote")
_DEEPEST = 6
_DEEPEST_BRACKETS = 100
# How often the repair library may look at a character: for broken lists of entities twice is enough.
_MOST_LOOKS = 30


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
    if text.startswith("<think>"):
        parsed.failure, parsed.cut_off = "the answer was cut off while thinking", True
        return parsed
    if "&quot;" in text and '"' not in text:
        text = html.unescape(text)
    if not text:
        parsed.failure = "the answer is empty"
        return parsed
    try:
        values = [_with_repeated_keys(text, orjson.loads(text))]
    except orjson.JSONDecodeError:
        values = [value for block in _blocks(text) for value in _values(block, is_class, parsed)]
    if not values:
        parsed.failure = parsed.failure or "there is no JSON in the answer"
        return parsed
    if parsed.failure is not None:  # of another piece of JSON in the answer
        parsed.malformed.append(parsed.failure)
        parsed.failure = None
    for value in values:
        _collect(value, is_class, parsed, _DEEPEST)
    if not parsed.items and (parsed.malformed or all(value is None for value in values)):
        parsed.failure = "the JSON of the answer names no mentions with classes"
    elif not parsed.items and parsed.cut_off:
        parsed.failure = "the answer was cut off before the end of its first entry"
    return parsed


def _with_repeated_keys(text: str, value: Any) -> Any:
    """Reads JSON of mentions and classes once more if it names a key twice, of which a parser keeps the last only."""

    def joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, inner in pairs:
            known = found.get(key, [])
            both = [*(known if isinstance(known, list) else [known]), *(inner if isinstance(inner, list) else [inner])]
            found[key] = both if key in found else inner
        return found

    if not isinstance(value, dict) or not any(_all_strings(inner) for inner in value.values()):
        return value
    try:
        return json.loads(text, object_pairs_hook=joined)
    except RecursionError:  # it gives up a little sooner than orjson
        return value


def _blocks(text: str) -> list[str]:
    """Returns what stands in code fences, or else the whole; a last fence may be open."""
    fenced = re.findall(r"```[\w-]*[ \t]*\r?\n?(.*?)(?:```|\Z)", text, flags=re.DOTALL)
    return [block for block in fenced if "[" in block or "{" in block] or [text]


def _values(block: str, is_class: Callable[[str], bool], parsed: ParsedAnswer) -> Iterator[Any]:
    """Yields the JSON values in a block, and what the repair library makes of a rest that isn't JSON."""
    decoder = json.JSONDecoder()
    position = 0
    while match := _JSON_BEGINS.search(block, position):
        try:
            value, position = decoder.raw_decode(block, match.start())
        except (ValueError, RecursionError):
            value, position = _repaired(block[match.start() :], is_class, parsed), len(block)
            if value is None:
                return
        yield value


# Not every bracket in prose begins JSON: citations [1] and {placeholders} don't.
_JSON_BEGINS = re.compile(r"""\[\s*(?:[\[{"'(\]]|\Z)|\{\s*(?:["'}]|\w+\s*:|\Z)""")


def _repaired(text: str, is_class: Callable[[str], bool], parsed: ParsedAnswer) -> Any:
    """Returns what the repair library makes of broken JSON (of its whole entries, if it was cut off), or None."""
    whole = text.rstrip(" \t\r\n`")
    if (kept := _whole_entries(whole, is_class)) is not None:
        parsed.cut_off = True
        whole = kept
    try:
        value = json_repair.loads(_Metered(whole), skip_json_loads=True) if whole else None
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


class _Metered(str):
    """A text for the repair library, which looks ahead so often that what an LLM repeats may take it minutes.

    Raises:
        TimeoutError: On being looked at too often.
    """

    def __init__(self, _: str) -> None:
        self._looks_left = 10_000 + _MOST_LOOKS * len(self)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        self._looks_left -= 1
        if self._looks_left < 0:
            raise TimeoutError("it would take too long")
        return super().__getitem__(key)


@dataclass(slots=True)
class _Open:
    """A bracket that isn't closed yet.

    Args:
        bracket: Which.
        key: What it is the value of, in an object.
        end_of_child: Where its last whole child ends; 0 if it has none.
        nested: Whether it has children with brackets of their own.
        after_colon: Whether the value of a key is due.
        last_string: The last string in it, maybe a key.
    """

    bracket: str
    key: str
    end_of_child: int = 0
    nested: bool = False
    after_colon: bool = False
    last_string: str = ""


# Whole strings, a quote that begins one without an end, brackets, and what stands between values.
_TOKEN = re.compile(
    r"""
    (?P<string> "(?:[^"\\]|\\.)*" | (?<=[\[{(,:\s]) '(?:[^'\\]|\\.)*' (?=\s*[\]}),:]) )
    | (?P<quote> " )
    | (?P<opening> [\[{] | (?<=[\[(,])\( | (?<=,\ )\( )
    | (?P<closing> [\]})] )
    | (?P<sign> [,:] )
    """,
    re.DOTALL | re.VERBOSE,
)
_CLOSING = {"[": "]", "{": "}", "(": ")"}
# An end like this closes something, however the quotes before it went wrong.
_CLOSED = re.compile(r"""["'}\])\dl]\s*[\]})]\s*\Z""")


def _whole_entries(text: str, is_class: Callable[[str], bool]) -> str | None:  # noqa: PLR0912 (one scanner)
    """Cuts JSON that ends before its end back to its last whole entry, and closes it; None if it isn't cut off.

    Entries are the objects of a list, which may be in an object; the mentions of a class; or the pairs of an object.
    """
    stack: list[_Open] = []
    for token in _TOKEN.finditer(text):
        kind, at = token.lastgroup, token[0]
        if kind == "quote":
            if _CLOSED.search(text) and text[-1] == _CLOSING[text[0]]:
                return None  # a quote inside of a string; the repair library knows better
            break
        if kind == "opening" and len(stack) == _DEEPEST_BRACKETS:
            return ""
        if kind == "opening":
            stack.append(_Open(at, stack[-1].last_string if stack else ""))
            continue
        if kind == "closing":
            if not any(_CLOSING[one.bracket] == at for one in stack):
                continue
            while _CLOSING[stack.pop().bracket] != at:
                pass  # an inner bracket that was never closed
            if not stack:
                return None  # the first value is whole; what follows is prose
            stack[-1].nested = True
        inner = stack[-1]
        if kind == "string":
            inner.last_string = at[1:-1]
        if at == ",":
            inner.end_of_child, inner.after_colon = token.start(), False
        elif at == ":":
            inner.after_colon = True
        elif kind == "closing" or inner.bracket != "{" or inner.after_colon:
            inner.end_of_child = token.end()
    level = 0
    while len(stack) > level + 1 and stack[level].bracket == "{" and _holds_entries(stack[level + 1 :], is_class):
        level += 1
    while level and not stack[level].end_of_child:
        level -= 1
    end = stack[level].end_of_child
    return text[:end] + "".join(_CLOSING[one.bracket] for one in reversed(stack[: level + 1])) if end else ""


def _holds_entries(inner: list[_Open], is_class: Callable[[str], bool]) -> bool:
    """Tells whether an open value of an object holds entries, rather than being a part of one."""
    first = inner[0]
    return first.bracket == "{" or first.nested or len(inner) > 1 or is_class(first.key)


def _collect(
    value: Any, is_class: Callable[[str], bool], parsed: ParsedAnswer, depth: int, label: str | None = None
) -> None:
    """Takes the entries of a value; `label` is their class if it stands above them."""
    if isinstance(value, list) and depth:
        pair = len(value) == 2 and all(isinstance(one, str) for one in value)
        if pair and is_class(value[1]) and not is_class(value[0]):
            _add(value[0], value[1], {}, parsed)
            return
        for one in value:
            _collect(one, is_class, parsed, depth - 1, label)
    elif isinstance(value, dict) and depth:
        _collect_object(value, is_class, parsed, depth, label)
    elif value is not None:
        parsed.malformed.append(_short(value))


def _collect_object(
    value: dict[str, Any], is_class: Callable[[str], bool], parsed: ParsedAnswer, depth: int, label: str | None
) -> None:
    entry = {_field_name(key): inner for key, inner in value.items()}
    mention = next((key for key in _MENTION_KEYS if key in entry), None)
    named = next((key for key in _CLASS_KEYS if key in entry and key != mention), None)
    if (mention or "parts" in entry) and (named or label is not None):
        _add(entry[mention] if mention else None, entry[named] if named else label, entry, parsed)
        return
    pairs = {key: strings for key, inner in value.items() if (strings := _all_strings(inner))}
    mapping = _is_mapping(pairs, is_class)
    if mapping:
        for key, strings in pairs.items():
            if is_class(key) and not all(map(is_class, strings)):
                for one in strings:
                    _add(one, key, {}, parsed)
            else:
                _add(key, strings, {}, parsed)
    nested = {key: inner for key, inner in value.items() if isinstance(inner, list | dict) and key not in pairs}
    for key, inner in nested.items():
        _collect(inner, is_class, parsed, depth - 1, key if is_class(key) else label)
    if value and not nested and not mapping:
        parsed.malformed.append(_short(value))


def _field_name(key: Any) -> str:
    return re.sub(r"[\W_]", "", str(key)).lower()


def _all_strings(value: Any) -> list[str]:
    """Returns a string, or the strings of a list of nothing else, as a list."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        return []
    present = [one for one in strings if one is not None]
    return present if all(isinstance(one, str) for one in present) else []


def _is_mapping(pairs: dict[str, list[str]], is_class: Callable[[str], bool]) -> bool:
    """Tells whether an object is one of mentions and classes: some key or value is a class."""
    return any(
        any(map(is_class, strings)) or is_class(key)
        for key, strings in pairs.items()
        if _field_name(key) not in (*_MENTION_KEYS, *_CLASS_KEYS)  # {"class": "drug"} lacks a mention
    )


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
    plain = [
        one if isinstance(one, str) else str(one) for one in values if isinstance(one, str) or _is_plain_number(one)
    ]
    return [cleaned for one in plain if (cleaned := _clean(one))]


def _is_plain_number(value: Any) -> bool:
    """Tells whether a number is one that its digits give back; JSON has no others, but repaired JSON may."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and re.fullmatch(r"-?[\d.]{1,15}", str(value)) is not None
    )


def _clean(text: str) -> str:
    """Drops white space around a string, and halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", errors="ignore").decode().strip()


def _offset(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _short(value: Any) -> str:
    try:
        text = _clean(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "(nested too deeply)"
    return text if len(text) <= 200 else f"{text[:199]}…"
