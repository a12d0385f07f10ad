"""PubTator: title and abstract lines, then tab-separated annotations with offsets into `title + " " + abstract`."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nertool.document_parsing import Problem
from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.formats.base import RELATIONS, LinesWriter, Record, with_digest

_OFFSET = re.compile(r"[0-9]{1,18}")
_RELATION_TYPE = re.compile(r"[A-Za-z]{2}")  # where an annotation has its start
_SEPARATORS = re.compile(r"[\r\n\t]")
_TEXT_LINE = re.compile(r"([^|\t]+)\|([ta])\|(.*)")
_NAMESPACE = "pubtator"
_SECTION_NAMES = {"t": "title", "a": "abstract"}


def read_pubtator(file: Path) -> Iterator[Record]:
    """Reads the documents of a PubTator file, which are parted by blank lines.

    Relation lines are counted and left out. An annotation's identifiers go to `metadata["identifiers"]`.
    """
    block: list[tuple[int, str]] = []
    with file.open(encoding="utf-8-sig", newline="\n", errors="surrogateescape") as lines:
        for number, raw_line in enumerate(lines, start=1):
            line = raw_line.rstrip("\r\n")
            if line.strip():
                block.append((number, line))
            elif block:
                yield _parse_block(file, block)
                block = []
    if block:
        yield _parse_block(file, block)


def _parse_block(file: Path, block: list[tuple[int, str]]) -> Record:
    place = f"{file}:{block[0][0]}"
    raw = "\n".join(line for _, line in block).encode(errors="surrogateescape")
    problems: list[Problem] = []
    texts: dict[str, str] = {}
    identifiers: set[str] = set()
    annotations: list[tuple[int, list[str]]] = []
    notes: Counter[str] = Counter()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return Record(place, None, (Problem("", "not UTF-8"),), raw)
    for number, line in block:
        if text_line := _TEXT_LINE.fullmatch(line):
            identifiers.add(text_line[1])
            if text_line[2] in texts:
                problems.append(Problem(f"line {number}", f"a second {_SECTION_NAMES[text_line[2]]} line"))
            texts[text_line[2]] = text_line[3]
            continue
        fields = line.split("\t")
        identifiers.add(fields[0])
        if len(fields) >= 5 and _OFFSET.fullmatch(fields[1]) and _OFFSET.fullmatch(fields[2]) and fields[4]:
            annotations.append((number, fields))
        elif len(fields) < 4 or not _RELATION_TYPE.match(fields[1]):
            expected = "a text line (ID|t|…) nor an annotation (ID, start, end, mention, class, tab-separated)"
            problems.append(Problem(f"line {number}", f"neither {expected}"))
        else:
            notes[RELATIONS] += 1
    if len(identifiers) != 1:
        problems.append(Problem("", f"one id expected before a blank line, found {', '.join(sorted(identifiers))}"))
    if "t" not in texts:
        problems.append(Problem("", "the title line (ID|t|…) is missing"))
    if problems:
        return Record(place, None, tuple(problems), raw)
    entities: dict[str, list[Entity]] = {"t": [], "a": []}
    for number, fields in annotations:
        _add_entity(number, fields, texts, entities, problems)
    if problems:
        return Record(place, None, tuple(problems), raw)
    sections = tuple(
        Section(_SECTION_NAMES[key], text, tuple(entities[key])) for key, text in sorted(texts.items(), reverse=True)
    )
    return Record(place, Document(identifiers.pop(), sections), notes=dict(notes))


def _add_entity(
    number: int, fields: list[str], texts: dict[str, str], entities: dict[str, list[Entity]], problems: list[Problem]
) -> None:
    start, end, mention, label = int(fields[1]), int(fields[2]), fields[3], fields[4]
    offset_of_abstract = len(texts["t"]) + 1
    key, shift = ("t", 0) if start < offset_of_abstract else ("a", offset_of_abstract)
    text = texts.get(key, "")
    span = Span(start - shift, end - shift)
    place = f"line {number}"
    if span.start >= span.end or span.end > len(text):
        problems.append(Problem(place, f"{start}–{end} is not a span inside the {_SECTION_NAMES[key]}"))
    elif text[span.start : span.end] != mention:
        found = text[span.start : span.end]
        problems.append(Problem(place, f"{start}–{end} is {found!r} in the text, but the line says {mention!r}"))
    else:
        metadata = {"metadata": {"identifiers": fields[5]}} if len(fields) > 5 and fields[5] else {}
        entities[key].append(Entity(label, (span,), mention, _NAMESPACE, extra=metadata))


class PubtatorWriter(LinesWriter):
    """Writes title and abstract; further sections are joined to the abstract."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._taken: set[str] = set()

    def write(self, document: Document) -> None:
        """Writes a block of lines."""
        identifier = clean_id(document.id)
        if identifier in self._taken:
            identifier = with_digest(identifier, document.id)
        self._taken.add(identifier)
        title, *rest = [_SEPARATORS.sub(" ", section.text) for section in document.sections] or [""]
        lines = [f"{identifier}|t|{title}", f"{identifier}|a|{' '.join(rest)}"]
        shift = 0
        for section in document.sections:
            for entity in section.entities:
                if len(entity.spans) == 1:
                    mention = _SEPARATORS.sub(" ", section.text[entity.start : entity.end])
                    concept = _SEPARATORS.sub(" ", str(entity.extra.get("metadata", {}).get("identifiers", "")))
                    label = _SEPARATORS.sub(" ", entity.label)
                    start, end = entity.start + shift, entity.end + shift
                    lines.append(f"{identifier}\t{start}\t{end}\t{mention}\t{label}\t{concept}")
            shift += len(section.text) + 1
        self._file.write("\n".join(lines) + "\n\n")


def pubtator_losses(document: Document) -> Counter[str]:
    """Counts what of a document PubTator can't hold."""
    sections = document.sections
    entities = [(entity, section.text) for section in sections for entity in section.entities]
    losses = {
        "discontinuous entities (left out)": sum(len(entity.spans) > 1 for entity, _ in entities),
        "scores, mappings and other facts of entities": sum(_has_other_facts(entity) for entity, _ in entities),
        "namespaces of entities": sum(entity.namespace != _NAMESPACE for entity, _ in entities),
        "strings of entities that differ from the text": sum(
            entity.match != match_text(text, entity.spans) for entity, text in entities
        ),
        "documents whose sections beyond the title became one abstract": int(len(sections) > 2),
        "documents without title or abstract, which got empty ones": int(len(sections) < 2),
        "section names": sum(
            section.name != name for section, name in zip(sections, _SECTION_NAMES.values(), strict=False)
        ),
        "metadata and sentence spans of documents and sections": len(document.extra)
        + sum(len(section.extra) for section in sections),
        "texts whose line breaks or tabs became spaces": sum(
            bool(_SEPARATORS.search(section.text)) for section in sections
        ),
        "ids and classes whose separators were replaced": (clean_id(document.id) != document.id)
        + sum(bool(_SEPARATORS.search(entity.label)) for entity, _ in entities),
    }
    return +Counter(losses)


def clean_id(identifier: str) -> str:
    """Returns an id without the characters that part it from what follows."""
    return re.sub(r"[|\t\r\n]|^\ufeff", "_", identifier) or "_"


def _has_other_facts(entity: Entity) -> bool:
    if not entity.extra and entity.score is None:
        return False
    identifiers = entity.extra.get("metadata", {}).get("identifiers")
    kept = isinstance(identifiers, str) and identifiers and not _SEPARATORS.search(identifiers)
    return not kept or entity.extra != {"metadata": {"identifiers": identifiers}} or entity.score is not None
