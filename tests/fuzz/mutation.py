"""Damage to inputs: of their bytes, lines, numbers and strings, and of the values in JSON and elements in XML."""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

MOST_BYTES = 65_536

ODD_STRINGS = [
    "",
    " ",
    "\0",
    "\ufeff",
    "\u2028",
    "\u0085",
    "\r",
    "\r\n",
    "\t",
    "\x1c",
    "e\u0301",
    "🧬",
    "𝔭53",
    "ﬁ",
    "İ",
    "ß",
    "א",
    "\u202e",
    "\ud800",
    "\udfff",
    "\U0010ffff",
    "../../x",
    "a/b",
    "-DOCSTART-",
    "%00",
    "x" * 300,
    "O",
    "B-x",
    "I-",
    "#",
    "|t|",
    "null",
    "1e999",
    "NaN",
    "-1",
    "9" * 30,
    "__proto__",
    "<b>&",
    "]]>",
    "\\u0000",
    "\\",
    '"',
    "'",
    "{}",
    "[]",
    "train.epochs",
    "a" * 70,
]
ODD_NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    255,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
    10**400,
    -0.0,
    0.5,
    1.5,
    1e16,
    1e308,
    float("inf"),
    float("nan"),
    5e-324,
]
ODD_VALUES: list[Any] = [None, True, False, "", [], {}, [[]], {"": None}, [None], [0], ["x"], {"a": {"b": []}}]
ODD_BYTES = [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x80\xa8",
    b"\r",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"\t",
    b"\x1a",
    b"\x0b",
    b"\x85",
    b'"',
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"<",
    b">",
    b"&",
    b"&#0;",
    b"&x;",
    b"<!DOCTYPE x [<!ENTITY x 'y'>]>",
    b"<![CDATA[",
    b"-->",
    b"|t|",
    b"|a|",
    b"-DOCSTART-",
    b"```",
    b"</think>",
    b"<think>",
    b"---",
    b"=",
    b"[[",
    b"'''",
]
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_STRING = re.compile(rb'"[^"\n]*"')
_ELEMENT = re.compile(rb"<(\w+)[^<>]*>.*?</\1>", re.DOTALL)
_TAG = re.compile(rb"</?\w[^<>]*>")


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Returns an input with one to four kinds of damage.

    Args:
        data: What to damage.
        rng: Decides how.
        others: Inputs that parts can be taken of.
    """
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
        kind = rng.random()
        if kind < 0.45 and (damaged := _damage_json(data, rng, others)) is not None:
            data = damaged
        else:
            data = rng.choice(_WAYS)(data, rng, others)
        data = data[:MOST_BYTES]
    return data


# Bytes and lines


def _place(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Returns where a part begins and ends, mostly a short one."""
    start = rng.randint(0, len(data))
    length = rng.choice([1, 2, 4, 8, 16, 64, 256, len(data)])
    return start, min(len(data), start + rng.randint(0, length))


def _flip(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _number in range(rng.choice([1, 1, 2, 8])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _place(data, rng)
    return data[:start] + rng.randbytes(min(end - start, 64)) + data[end:]


def _remove(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _place(data, rng)
    return data[:start] + data[end:]


def _truncate(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return data[: rng.randint(0, len(data))]


def _repeat(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, end = _place(data, rng)
    times = rng.choice([2, 2, 3, 10, 100, 2000])
    return data[:start] + (data[start:end] * times)[:MOST_BYTES] + data[end:]


def _insert(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start = rng.choice([0, len(data), rng.randint(0, len(data))])
    token = rng.choice(ODD_BYTES)
    return data[:start] + token * rng.choice([1, 1, 1, 2, 50, 5000]) + data[start:]


def _nest(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b"<a>", b"</a>"), (b"(", b")"), (b"['", b"']")])
    start, end = _place(data, rng)
    times = rng.choice([2, 30, 200, 900, 1100, 20_000])
    inner = data[start:end] or b"0"
    close = closing * times if rng.random() < 0.7 else b""
    return data[:start] + opening * times + inner + close + data[end:]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    start, end = _place(data, rng)
    first, last = _place(other, rng)
    return data[:start] + other[first:last] + data[end:]


def _swap(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    a, b, c, d = sorted(rng.randint(0, len(data)) for _number in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _lines(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    way = rng.randrange(5)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines[at:at] = [lines[at]] * rng.choice([1, 2, 50])
    elif way == 2:
        rng.shuffle(lines)
    elif way == 3:
        lines.insert(at, rng.choice(rng.choice(others).split(b"\n")))
    else:
        fields = lines[at].split(b"\t")
        rng.shuffle(fields)
        lines[at] = b"\t".join(fields[: rng.randint(0, len(fields))])
    return b"\n".join(lines)


def _line_ends(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", b"\x0c", b""]))


def _number(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    found = list(_NUMBER.finditer(data[:8192]))
    if not found:
        return _flip(data, rng, ())
    one = rng.choice(found)
    value = int(one[0]) + rng.choice([-2, -1, 1, 2, 1000]) if one[0].isdigit() and len(one[0]) < 15 else 0
    new = rng.choice(
        [str(rng.choice(ODD_NUMBERS)), str(value), b"9".decode() * rng.choice([19, 400, 5000]), "٣", "1_0"]
    )
    return data[: one.start()] + new.encode() + data[one.end() :]


def _string(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    found = list(_STRING.finditer(data[:8192]))
    if not found:
        return _insert(data, rng, ())
    one = rng.choice(found)
    odd = rng.choice(ODD_STRINGS)
    new = json.dumps(odd).encode() if rng.random() < 0.7 else b'"' + odd.encode(errors="surrogatepass") + b'"'
    return data[: one.start()] + new + data[one.end() :]


def _element(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    found = list(_ELEMENT.finditer(data[:8192]))
    if not found:
        return _splice(data, rng, others)
    one, other = rng.choice(found), rng.choice(found)
    new = rng.choice([b"", one[0] * rng.choice([2, 30]), other[0], rng.choice(_TAG.findall(data[:8192]) or [b""])])
    return data[: one.start()] + new + data[one.end() :]


_WAYS: list[Callable[[bytes, random.Random, Sequence[bytes]], bytes]] = [
    _flip,
    _overwrite,
    _remove,
    _truncate,
    _repeat,
    _insert,
    _insert,
    _nest,
    _splice,
    _swap,
    _lines,
    _lines,
    _line_ends,
    _number,
    _number,
    _string,
    _string,
    _element,
]

# JSON


def _damage_json(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes | None:
    """Changes a value or a key of JSON, or of one line of JSON; None if it is none."""
    value = _parsed(data)
    if value is not None:
        return _dumped(_changed(value[0], rng, others), rng)
    lines = data.split(b"\n")
    for at in rng.sample(range(len(lines)), min(3, len(lines))):
        if (value := _parsed(lines[at])) is not None:
            lines[at] = _dumped(_changed(value[0], rng, others), rng)
            return b"\n".join(lines)
    return None


def _parsed(data: bytes) -> tuple[Any] | None:
    if data[:1] not in (b"{", b"["):
        return None
    try:
        return (json.loads(data.decode(errors="surrogatepass")),)
    except (ValueError, RecursionError):
        return None


def _dumped(value: Any, rng: random.Random) -> bytes:
    plain = rng.random() < 0.5
    try:
        text = json.dumps(value, ensure_ascii=plain)
    except (ValueError, RecursionError):  # a number that is too long to write
        return b"[" * 1000
    return text.encode(errors="surrogatepass")


def _changed(value: Any, rng: random.Random, others: Sequence[bytes]) -> Any:
    """Returns JSON with one change somewhere."""
    holders: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(holders) < 300:
        one = waiting.pop()
        if isinstance(one, dict):
            holders += [(one, key) for key in one]
            waiting += one.values()
        elif isinstance(one, list):
            holders += [(one, at) for at in range(len(one))]
            waiting += one
    if not holders or rng.random() < 0.02:
        return rng.choice([[value], {"a": value}, value, *ODD_VALUES])
    holder, key = rng.choice(holders)
    other_holder, other_key = rng.choice(holders)
    way = rng.randrange(10)
    if way == 0:
        del holder[key]
    elif way == 1:
        holder[key] = rng.choice(ODD_VALUES)
    elif way == 2:
        holder[key] = rng.choice(ODD_NUMBERS)
    elif way == 3:
        holder[key] = rng.choice(ODD_STRINGS)
    elif way == 4:
        try:
            holder[key] = json.loads(json.dumps(other_holder[other_key]))  # a copy: no circles
        except (ValueError, RecursionError, KeyError, IndexError):
            holder[key] = None
    elif way == 5 and isinstance(holder, dict):
        new = rng.choice([*ODD_STRINGS, *(str(name) for _, name in holders[:50])])
        holder[new] = holder.pop(key)
    elif way == 6 and isinstance(holder, list):
        holder[key:key] = [holder[key]] * rng.choice([1, 3, 100])
    elif way == 7 and isinstance(holder[key], str):
        text = holder[key]
        at = rng.randint(0, len(text))
        holder[key] = rng.choice([text[:at] + rng.choice(ODD_STRINGS) + text[at:], text[:at], text[::-1], text * 20])
    elif way == 8 and isinstance(holder[key], int):
        holder[key] = holder[key] + rng.choice([-1, 1, 2, -2, 100, 0.5])
    elif way == 9:
        value_of = _parsed(rng.choice(others))
        holder[key] = value_of[0] if value_of else rng.choice(ODD_VALUES)
    else:
        for _ in range(rng.choice([1, 5, 300, 900])):
            holder[key] = rng.choice([[holder[key]], {"a": holder[key]}])
    return value
