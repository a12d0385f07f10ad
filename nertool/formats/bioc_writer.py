"""Writing BioC, as XML or JSON, so that reading it gives the same documents."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from nertool.documents import Document, Span, document_to_json, match_text
from nertool.extras import require
from nertool.formats.bioc_format import FACTS, IDENTIFIER, IDENTIFIERS, NAMESPACE, xml_safe

if TYPE_CHECKING:
    from bioc import BioCAnnotation, BioCCollection, BioCDocument

_NEVER_METADATA = {FACTS, "section_type", IDENTIFIER}


class BiocWriter:
    """Writes one collection, document by document: JSON if the path ends in `.json`, else XML."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        require("bioc")
        from bioc import BioCCollection  # noqa: PLC0415

        collection = BioCCollection()
        collection.source, collection.date, collection.key = "nertool", "", ""  # no date: equal files each time
        file = self._stack.enter_context(self.path.open("wb"))
        as_json = self.path.name.lower().endswith(".json")
        self._clean = str if as_json else xml_safe
        self._write = self._stack.enter_context((_json_collection if as_json else _xml_collection)(file, collection))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def write(self, document: Document) -> None:
        """Writes one document."""
        self._write(_to_bioc(document, self._clean))


@contextmanager
def _json_collection(file: IO[bytes], collection: "BioCCollection") -> "Iterator[Callable[[BioCDocument], None]]":
    from bioc import biocjson  # noqa: PLC0415

    separator = json.dumps({**biocjson.toJSON(collection), "documents": []}).removesuffix("]}")

    def write(document: "BioCDocument") -> None:
        nonlocal separator
        file.write(f"{separator}\n{json.dumps(biocjson.toJSON(document), ensure_ascii=False)}".encode())
        separator = ","

    yield write
    file.write((b"" if separator == "," else separator.encode()) + b"\n]}\n")


@contextmanager
def _xml_collection(file: IO[bytes], collection: "BioCCollection") -> "Iterator[Callable[[BioCDocument], None]]":
    from bioc import biocxml  # noqa: PLC0415

    with biocxml.iterwrite(file, encoding="UTF-8") as writer:
        writer.write_collection_info(collection)
        yield writer.write_document


def _to_bioc(document: Document, clean: Callable[[str], str]) -> "BioCDocument":
    """Returns a document in BioC's classes.

    Args:
        document: The document.
        clean: Replaces what the file can't hold, one character by one.
    """
    from bioc import BioCDocument, BioCPassage  # noqa: PLC0415

    fields = document_to_json(document)
    result = BioCDocument()
    result.id = clean(fields.pop("idx"))
    sections = fields.pop("sections")
    result.infons = _to_infons(fields, {"idx": document.id}, {}, clean)
    offset = number = 0
    for section in sections:
        passage = BioCPassage()
        text, name, entities = section.pop("text"), section.pop("name"), section.pop("entities", [])
        passage.offset, passage.text = offset, clean(text)
        name_key = "section_type" if "type" in section.get("metadata", {}) else "type"
        exact = {"text": text, "name": name}
        passage.infons = _to_infons(section, exact, {name_key: clean(name)}, clean)
        for entity in entities:
            passage.add_annotation(_to_annotation(str(number), entity, text, offset, clean))
            number += 1
        result.add_passage(passage)
        offset += len(text) + 1
    return result


def _to_annotation(
    identifier: str, entity: dict[str, Any], text: str, offset: int, clean: Callable[[str], str]
) -> "BioCAnnotation":
    from bioc import BioCAnnotation, BioCLocation  # noqa: PLC0415

    label, spans = entity.pop("entity_class"), tuple(Span(**span) for span in entity.pop("spans"))
    mention = match_text(text, spans)
    known = {"match": mention, "namespace": NAMESPACE, "start": entity["start"], "end": entity["end"]}
    fields = {key: value for key, value in entity.items() if known.get(key) != value}
    if "match" in fields:
        fields["spans"] = [span._asdict() for span in spans]  # what it is the match of
    annotation = BioCAnnotation()
    annotation.id, annotation.text = identifier, clean(mention)
    annotation.infons = _to_infons(fields, {"entity_class": label}, {"type": clean(label)}, clean)
    for start, end in spans:
        annotation.add_location(BioCLocation(start + offset, end - start))
    return annotation


def _to_infons(
    fields: dict[str, Any],
    exact: Mapping[str, str],
    own: Mapping[str, str],
    clean: Callable[[str], str],
) -> dict[str, str]:
    """Returns infons.

    Args:
        fields: What BioC has no place for, as in KAZU's JSON.
        exact: What BioC has a place for, under the names in KAZU's JSON; kept again where it had to be cleaned.
        own: Infons that are not metadata: the class of an annotation, the name of a section.
        clean: Replaces what the file can't hold.
    """
    facts = {key: value for key, value in fields.items() if key != "metadata"}
    facts |= {key: value for key, value in exact.items() if clean(value) != value}
    infons, as_json, rest = dict(own), [], {}
    for key, value in fields.get("metadata", {}).items():
        name = IDENTIFIER if key == IDENTIFIERS else key
        if key in own or key in _NEVER_METADATA or clean(key) != key:
            rest[key] = value
        elif isinstance(value, str) and clean(value) == value:
            infons[name] = value
        else:
            infons[name] = json.dumps(value)
            as_json.append(name)
    if rest or fields.get("metadata") == {}:
        facts["metadata"] = rest
    if as_json:
        facts["json"] = as_json
    return {**infons, FACTS: json.dumps(facts)} if facts else infons
