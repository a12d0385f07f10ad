"""CoNLL: a token per line with its tag in the last column, a blank line after each sentence.

What nertool writes has five columns, parted by tabs: the token, its start and end in the section's text, the white
space after it, and the tag. Before each section stands a `-DOCSTART-` line with JSON about document and section.
"""

import json
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import orjson
from pydantic import BaseModel

from nertool.document_parsing import Problem
from nertool.documents import Document, Entity, Section
from nertool.formats.base import LinesWriter, Record
from nertool.formats.building import build_record, id_from
from nertool.formats.tagging import IRREGULAR, Tag, count_irregular, decode_tags

_START = "-DOCSTART-"
_BYTES_LOOKED_AT = 65_536  # to see how lines end
_NAMESPACE = "conll"
_SECTION = "text"
# A run of letters and digits with their combining accents, or any other single character that isn't white space.
_WORD = re.compile(r"(?:[^\W_][\u0300-\u036f]*)+|\S")
_IN_THE_WAY = re.compile(r"[\s%]")  # in labels; written as %XX
_ONE_SPACE, _NO_SPACE, _SPACES = "_", "SpaceAfter=No", "SpacesAfter="

COMMENTS = "comment lines"


class _Mention(NamedTuple):
    """An entity that tags can express, without white space at its ends."""

    start: int
    end: int
    entity: Entity


class _Token(NamedTuple):
    start: int
    end: int
    after: str  # the white space up to the next one
    tag: str


# Writing


class ConllWriter(LinesWriter):
    """Writes tokens with IOB2 tags."""

    # What the tags of an entity of one token, and of the last of several, begin with.
    single, last = "B", "I"

    def write(self, document: Document) -> None:
        """Writes the sections, one after the other."""
        about: dict[str, Any] = {"idx": document.id, **document.extra}
        if not document.sections:
            self._write_start({"document": about})
        for number, section in enumerate(document.sections):
            mentions, _ = _flatten(section)
            tokens = _tag(section.text, mentions, self.single, self.last)
            header: dict[str, Any] = {"document": about, "number": number}
            header["section"] = {"name": section.name, **section.extra}
            header["before"] = section.text[: tokens[0].start if tokens else None]
            header["namespace"] = mentions[0].entity.namespace if mentions else _NAMESPACE
            self._write_start(header)
            about = {"idx": document.id}  # the rest of it once is enough
            for token, following in zip(tokens, (*tokens, None)[1:], strict=True):
                text = section.text[token.start : token.end]
                self._file.write(f"{text}\t{token.start}\t{token.end}\t{_show_space(token.after)}\t{token.tag}\n")
                if following is None or _ends_sentence(text, token.after, following, section.text):
                    self._file.write("\n")

    def _write_start(self, header: dict[str, Any]) -> None:
        about = json.dumps(header, separators=(",", ":")).replace(" ", "\\u0020")
        self._file.write(f"{_START}\t{about}\t_\t_\tO\n\n")


class BioesConllWriter(ConllWriter):
    """Writes tokens with BIOES tags."""

    single, last = "S", "E"


def conll_losses(document: Document) -> Counter[str]:
    """Counts what of a document CoNLL can't hold."""
    losses: Counter[str] = Counter()
    for section in document.sections:
        mentions, lost = _flatten(section)
        losses.update(lost)
        for start, end, entity in mentions:
            losses["entities whose white space at the ends was cut off"] += (start, end) != entity.spans[0]
            losses["mentions' own texts, where they differ from the text"] += (
                entity.match != section.text[entity.start : entity.end]
            )
            losses["scores, mappings and other facts of entities"] += bool(entity.extra) or entity.score is not None
            losses["namespaces that differ from the first one's of their section"] += (
                entity.namespace != mentions[0].entity.namespace
            )
    return +losses


def _flatten(section: Section) -> tuple[list[_Mention], Counter[str]]:
    """Returns the mentions that tags can express, in text order, and counts the entities that are left out."""
    lost: Counter[str] = Counter()
    candidates: list[_Mention] = []
    for entity in section.entities:
        text = section.text[entity.start : entity.end]
        if len(entity.spans) > 1:
            lost["discontinuous entities (left out)"] += 1
        elif not text.strip():
            lost["entities of nothing but white space (left out)"] += 1
        else:
            start = entity.start + len(text) - len(text.lstrip())
            candidates.append(_Mention(start, start + len(text.strip()), entity))
    owners: list[_Mention | None] = [None] * len(section.text)
    mentions: list[_Mention] = []
    for mention in sorted(candidates, key=lambda candidate: (candidate.start - candidate.end, candidate.start)):
        start, end, _ = mention
        first, last = owners[start], owners[end - 1]
        if not any(owners[start:end]):
            owners[start:end] = [mention] * (end - start)
            mentions.append(mention)
        elif first is not None and first[:2] == (start, end):
            lost["further entities on the same characters (left out)"] += 1
        elif first is last:
            lost["entities inside longer ones (left out)"] += 1
        else:
            lost["entities that overlap others as long or longer in part (left out)"] += 1
    return sorted(mentions, key=lambda mention: mention.start), lost


def _tag(text: str, mentions: list[_Mention], single: str, last: str) -> list[_Token]:
    """Cuts a text into tokens, also where a mention begins or ends within a word, and tags them."""
    cuts = {position for start, end, _ in mentions for position in (start, end)}
    places = [place for word in _WORD.finditer(text) for place in _cut(word.start(), word.end(), cuts)]
    starts = [mention.start for mention in mentions]
    tokens: list[_Token] = []
    for (start, end), (following, _) in zip(places, (*places, (len(text), 0))[1:], strict=True):
        mention = mentions[index] if (index := bisect(starts, start) - 1) >= 0 else None
        tag = "O"
        if mention is not None and end <= mention.end:
            begins, ends = start == mention.start, end == mention.end
            prefix = (single if ends else "B") if begins else (last if ends else "I")
            tag = f"{prefix}-{_IN_THE_WAY.sub(lambda found: quote(found[0]), mention.entity.label)}"
        tokens.append(_Token(start, end, text[end:following], tag))
    return tokens


def _cut(start: int, end: int, cuts: set[int]) -> Iterator[tuple[int, int]]:
    for position in range(start + 1, end):
        if position in cuts:
            yield start, position
            start = position
    yield start, end


def _ends_sentence(token: str, after: str, following: _Token, text: str) -> bool:
    """Tells whether a sentence ends: roughly, but never within an entity."""
    if following.tag[0] in "IE":
        return False
    return after.count("\n") > 1 or (token in ".?!" and after != "" and not text[following.start].islower())


def _show_space(space: str) -> str:
    """Writes white space without any, in the way of CoNLL-U's last column."""
    if space in ("", " "):
        return _ONE_SPACE if space else _NO_SPACE
    return _SPACES + json.dumps(space)[1:-1].replace(" ", r"\s")


def _read_space(shown: str) -> str | None:
    """Returns the white space that `_show_space` wrote, or None if it is something else."""
    if shown in (_ONE_SPACE, _NO_SPACE):
        return " " if shown == _ONE_SPACE else ""
    escaped = shown.removeprefix(_SPACES).replace(r"\s", " ")
    try:
        space: str = json.loads(f'"{escaped}"')
    except ValueError:
        return None
    return space if shown.startswith(_SPACES) and space.isspace() else None


# Reading


class _Line(NamedTuple):
    number: int
    data: bytes  # without the line end


class _Header(BaseModel):
    """What nertool writes into a `-DOCSTART-` line.

    Args:
        document: KAZU's JSON of the document, without the sections; after the first section just the id.
        number: Which section follows, counted from 0.
        section: KAZU's JSON of the section, without text and entities; None if the document has no sections.
        before: What of the text is before the first token.
        namespace: What found the section's entities.
    """

    document: dict[str, Any]
    number: int = 0
    section: dict[str, Any] | None = None
    before: str = ""
    namespace: str = _NAMESPACE


@dataclass
class _Part:
    """A section, as far as it was read.

    Args:
        about: Its name and other facts.
        pieces: Its text, in pieces.
        namespace: What found its entities.
        own: Whether nertool wrote it, with offsets and white space.
        sentences: For each sentence the start, end and tag of its tokens.
        length: How long the text is.
    """

    about: dict[str, Any] = field(default_factory=lambda: {"name": _SECTION})
    pieces: list[str] = field(default_factory=list)
    namespace: str = _NAMESPACE
    own: bool = False
    sentences: list[list[tuple[int, int, Tag]]] = field(default_factory=lambda: [[]])
    length: int = 0

    def add(self, *pieces: str) -> None:
        """Adds to the end of the text."""
        self.pieces.extend(pieces)
        self.length += sum(map(len, pieces))

    def add_token(self, token: str, tag: Tag) -> tuple[int, int]:
        """Adds a token to the end of the text, and returns where it is."""
        place = (self.length, self.length + len(token))
        self.sentences[-1].append((*place, tag))
        self.add(token)
        return place

    def tags(self) -> list[list[Tag]]:
        """Returns the tags of each sentence."""
        return [[tag for _, _, tag in sentence] for sentence in self.sentences]

    def to_json(self) -> dict[str, Any]:
        """Returns KAZU's JSON."""
        text = "".join(self.pieces)
        entities = []
        for sentence, tags in zip(self.sentences, self.tags(), strict=True):
            for label, first, end in decode_tags(tags):
                start, stop = sentence[first][0], sentence[end - 1][1]
                entity = {"entity_class": unquote(label) if self.own else label, "match": text[start:stop]}
                entities.append({**entity, "namespace": self.namespace, "spans": [{"start": start, "end": stop}]})
        return {**self.about, "text": text, "entities": entities}


def read_conll(file: Path) -> Iterator[Record]:
    """Reads a document from what follows a `-DOCSTART-` line, or from each sentence before the first such line.

    Columns are parted by tabs, or by spaces where a line has no tab; the token is the first, the tag the last of them.
    The tags may be IOB1, IOB2, BIOES or BILOU. Where nertool didn't write the file, the text is the tokens with a space
    between them and a line break between sentences.
    """
    for number, lines in enumerate(_split(file), start=1):
        yield _parse(f"{file}:{lines[0].number}", lines, f"{id_from(file)}-{number}")


def _split(file: Path) -> Iterator[list[_Line]]:
    """Parts the lines of a file into those of each document."""
    lines: list[_Line] = []
    marked = has_tokens = False
    last: _Header | None = None
    for number, raw_line in enumerate(_raw_lines(file), start=1):
        line = _Line(number, raw_line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip(b"\r\n"))
        ends = not line.data.strip() and not marked
        if _is_start(line.data):
            header = _read_header(line.data)
            ends = not _goes_on(header, last)
            marked, last = True, header
        if ends and has_tokens:
            yield lines
            lines, has_tokens = [], False
        if line.data.strip() or marked:
            lines.append(line)
            has_tokens = has_tokens or not _is_comment(line.data)
    if has_tokens:
        yield lines


def _raw_lines(file: Path) -> Iterator[bytes]:
    """Yields the lines of a file, which may end as those of old Macs, all of them, with a carriage return alone."""
    with file.open("rb") as data:
        start = data.read(_BYTES_LOOKED_AT)
        data.seek(0)
        if b"\r" in start and b"\n" not in start:
            yield from data.read().split(b"\r")
        else:
            yield from data


def _is_start(line: bytes) -> bool:
    """Tells whether a line is a `-DOCSTART-` line, and not that of a longer token."""
    return line.split(None, 1)[:1] == [_START.encode()]


def _goes_on(header: _Header | None, last: _Header | None) -> bool:
    """Tells whether a header is of the same document as the one before it."""
    if header is None or last is None:
        return False
    return header.document.get("idx") == last.document.get("idx") and header.number > last.number


def _read_header(line: bytes) -> _Header | None:
    """Returns what a `-DOCSTART-` line says, or None if nertool didn't write it."""
    about = line.split(b"\t")[1:2]
    try:
        return _Header.model_validate(orjson.loads(about[0])) if about else None
    except ValueError:
        return None


def _columns(line: str) -> list[str]:
    return [column.strip() for column in line.split("\t")] if "\t" in line else re.split(" +", line.strip())


def _is_comment(line: bytes) -> bool:
    """Tells whether a line can't be the token `#…` with its tag."""
    columns = _columns(line.decode(errors="replace"))
    return line.startswith(b"#") and (len(columns) == 1 or Tag.parse(columns[-1]) is None)


def _parse(place: str, lines: list[_Line], identifier: str) -> Record:
    """Reads one document; it gets the id `identifier` if the file doesn't tell one."""
    document: dict[str, Any] = {}
    parts: list[_Part] = []
    problems: list[Problem] = []
    notes: Counter[str] = Counter()
    for number, data in lines:
        try:
            line = data.decode()
        except UnicodeDecodeError as error:
            problems.append(Problem(f"line {number}", f"not UTF-8: {error.reason} at byte {error.start}"))
            continue
        if _is_start(data):
            header = _read_header(data)
            document = document or (header.document if header else {"idx": identifier})
            if header is None:
                if b"\t{" in data:
                    problems.append(Problem(f"line {number}", "what it says of the document can't be read"))
                parts.append(_Part())
            elif header.section is not None:
                parts.append(_Part(header.section, namespace=header.namespace, own=True))
                parts[-1].add(header.before)
        elif _is_comment(data):
            notes[COMMENTS] += 1
        elif line.strip():
            parts = parts or [_Part()]
            if (reason := _add_token(parts[-1], _columns(line))) is not None:
                problems.append(Problem(f"line {number}", reason))
        elif parts and parts[-1].sentences[-1]:
            parts[-1].sentences.append([])
    raw = b"\n".join(line.data for line in lines)
    if problems:
        return Record(place, None, tuple(problems), raw)
    notes[IRREGULAR] = count_irregular(tags for part in parts for tags in part.tags())
    result = {"idx": identifier, **document, "sections": [part.to_json() for part in parts]}
    return build_record(place, result, raw, +notes)


def _add_token(part: _Part, columns: list[str]) -> str | None:
    """Adds the token of a line to a section; returns what is wrong, or None."""
    tag = Tag.parse(columns[-1])
    if len(columns) == 1 or not columns[0]:
        return "a token and a tag expected"
    if tag is None:
        return f"{columns[-1]!r} is no tag: O, or B-, I-, E-, S-, L- or U- with a class"
    if not part.own:
        if part.length:
            part.add(" " if part.sentences[-1] else "\n")
        part.add_token(columns[0], tag)
        return None
    if len(columns) != 5 or (after := _read_space(columns[3])) is None:
        return "a token, its start and end, the white space after it, and a tag expected"
    start, end = part.add_token(columns[0], tag)
    part.add(after)
    if columns[1:3] != [str(start), str(end)]:
        return f"the token is at {start}–{end} of what was read so far, but the line says {columns[1]}–{columns[2]}"
    return None
