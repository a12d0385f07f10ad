"""BioC, as XML and JSON: nertool's own, the reference library's and other people's."""

import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bioc
import pytest
from bioc import biocjson, biocxml
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.documents import Document, Entity, Section, Span, document_to_json
from nertool.errors import NertoolError
from nertool.formats import FORMATS, ReadReport, Record, read_documents
from nertool.formats.base import RELATIONS
from nertool.formats.bioc_format import SENTENCE_INFONS, UNPLACED, read_bioc
from nertool.formats.bioc_writer import BiocWriter
from nertool.formats.offsets import UNITS, length, other_unit_note

from .document_strategies import rich_documents

ENDINGS = [".bioc.xml", ".bioc.json"]
TEXT = "🧬 lung and liver cancer"
DOCUMENT = Document(
    "pmid/1",
    (
        Section("title", TEXT, (Entity("disease", (Span(2, 6), Span(17, 23)), "lung cancer", score=0.5),)),
        Section("empty", ""),
        Section("abstract", "é IL-2\r\n", (Entity("gene", (Span(2, 6),), "IL-2", "bioc"),)),
    ),
    {"metadata": {"journal": "X", "year": 2020}},
)


def write(file: Path, documents: Iterable[Document]) -> Path:
    with BiocWriter(file) as writer:
        for document in documents:
            writer.write(document)
    return file


def read(content: str | bytes | Any, folder: Path) -> list[Record]:
    """Reads XML, given as text or bytes, or JSON, given as a value."""
    file = folder / "a.xml"
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_bioc(file))


def problem_of(content: Any, folder: Path) -> str:
    (record,) = read(content, folder)
    assert record.document is None
    return str(record.problems[0])


def annotation(start: int, end: int, text: str | None, label: str | None = "gene", **infons: Any) -> dict[str, Any]:
    own = {} if label is None else {"type": label}
    return {"id": "1", "infons": own | infons, "text": text, "locations": [{"offset": start, "length": end - start}]}


def passage(text: str | None, *annotations: Any, offset: Any = 0, sentences: Any = (), **infons: Any) -> dict[str, Any]:
    return {
        "offset": offset,
        "infons": infons,
        "text": text,
        "sentences": list(sentences),
        "annotations": list(annotations),
        "relations": [],
    }


def document(*passages: Any, identifier: Any = "d", **more: Any) -> dict[str, Any]:
    return {"id": identifier, "infons": {}, "passages": list(passages), "relations": []} | more


def to_xml(*raws: dict[str, Any]) -> str:
    """Returns the XML that the reference library makes of documents in BioC's JSON."""
    collection = bioc.BioCCollection()
    collection.source = collection.date = collection.key = ""
    collection.encoding = "UTF-8"
    for raw in raws:
        collection.add_document(biocjson.fromJSON(raw, "BioCDocument"))
    return biocxml.dumps(collection)


# What nertool writes


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=50, deadline=None)
@given(documents=st.lists(rich_documents(), max_size=3, unique_by=lambda document: document.id))
def test_whatever_documents_hold_comes_back(ending, documents, tmp_path_factory):
    file = write(tmp_path_factory.mktemp("bioc") / f".a{ending}", documents)
    records = list(read_bioc(file))
    assert [record.problems for record in records] == [()] * len(documents)
    assert [record.notes for record in records] == [{}] * len(documents)
    assert [document_to_json(record.document) for record in records] == list(map(document_to_json, documents))
    assert FORMATS["bioc"].losses is None


@pytest.mark.parametrize("control", ["\x00", "\x0b", "\x1f", "\ufffe", "\uffff", "\r", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_characters_that_xml_cannot_hold_come_back_wherever_they_are(tmp_path, ending, control):
    odd = f"a{control}b\ufffd"
    entity = Entity(odd, (Span(0, 2),), odd[:2], odd, extra={"metadata": {odd: odd, "list": [odd]}, "_id": odd})
    documents = [Document(odd, (Section(odd, odd, (entity,), {"metadata": {"x": odd}}),), {"metadata": {odd: 1}})]
    (record,) = read_bioc(write(tmp_path / f"a{ending}", documents))
    assert document_to_json(record.document) == document_to_json(documents[0])


def test_the_path_decides_between_xml_and_json_and_bytes_are_the_same_each_time(tmp_path):
    for name in ("a.bioc.json", "A.JSON"):
        assert json.loads(write(tmp_path / name, [DOCUMENT]).read_bytes())["documents"][0]["id"] == "pmid/1"
    for name in ("a.bioc.xml", "a"):
        assert ElementTree.parse(write(tmp_path / name, [DOCUMENT])).getroot().tag == "collection"
    for ending in ENDINGS:
        again = write(tmp_path / f"b{ending}", [DOCUMENT])
        assert again.read_bytes() == (tmp_path / f"a{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_reference_library_reads_what_nertool_writes(tmp_path, ending):
    file = write(tmp_path / f"a{ending}", [DOCUMENT, Document("2", ())])
    with file.open("rb") as source:
        first, second = (biocxml if ending.endswith("xml") else biocjson).load(source).documents
    assert (first.id, first.infons["journal"], first.infons["year"], second.id) == ("pmid/1", "X", "2020", "2")
    title, _, abstract = first.passages
    assert (title.infons["type"], title.offset, title.text) == ("title", 0, TEXT)
    (disease,), (gene,) = title.annotations, abstract.annotations
    assert (disease.infons["type"], disease.text, disease.infons["score"]) == ("disease", "lung cancer", "0.5")
    assert [(place.offset, place.length) for place in disease.locations] == [(2, 4), (17, 6)]
    assert gene.infons == {"type": "gene"}
    whole = "\n".join(section.text for section in DOCUMENT.sections)
    assert whole[gene.total_span.offset : gene.total_span.end] == "IL-2"
    title.annotations.clear()  # the validator wants a discontinuous mention with all that is between its parts
    bioc.validator.BioCValidator().validate_doc(first)
    gene.locations[0].offset += 1
    with pytest.raises(ValueError, match="Annotation text is incorrect"):
        bioc.validator.BioCValidator().validate_doc(first)


def test_changes_that_another_tool_makes_are_read_and_not_undone(tmp_path):
    entity = Entity("a\x0b", (Span(0, 1),), "another")
    file = write(tmp_path / "a.xml", [Document("1\x0b", (Section("s\x0b", "x\x0b", (entity,)),))])
    (record,) = read_bioc(file)
    assert record.document.sections[0].entities[0].match == "another"
    changed = (
        file.read_text().replace("\ufffd", "!").replace('length="1"', 'length="2"').replace("<text>x<", "<text>x!<")
    )
    (record,) = read(changed, tmp_path)
    (section,) = record.document.sections
    assert (record.document.id, section.name, section.text, section.entities[0].label) == ("1!", "s!", "x!", "a!")
    assert section.entities[0].match == "x!"


@pytest.mark.parametrize("ending", ENDINGS)
def test_through_read_documents_the_ending_tells_the_format(tmp_path, ending):
    write(tmp_path / f"a{ending}", [DOCUMENT])
    assert list(read_documents(tmp_path, ReadReport())) == [DOCUMENT]


# What others write


def test_a_collection_of_the_reference_library_is_read(tmp_path):
    collection = bioc.BioCCollection()
    collection.source, collection.date, collection.key, collection.encoding = "PubTator", "2024", "x.key", "UTF-8"
    for number in range(2):
        raw = document(
            passage("IL-2 é😀", annotation(0, 4, "IL-2", identifier="3558"), type="title"),
            passage("x IL-2", annotation(10, 14, "IL-2"), offset=8, type="front", section_type="ABSTRACT"),
            identifier=str(number),
        )
        collection.add_document(biocjson.fromJSON(raw, "BioCDocument"))
    of_xml = read(biocxml.dumps(collection), tmp_path)
    of_json = read(biocjson.dumps(collection), tmp_path)
    assert [record.document.id for record in of_xml] == ["0", "1"]
    for record in of_xml + of_json:
        assert (record.problems, record.notes) == ((), {})
        title, abstract = record.document.sections
        assert (title.name, title.text, title.extra) == ("title", "IL-2 é😀", {})
        assert title.entities == (Entity("gene", (Span(0, 4),), "IL-2", "bioc"),)
        assert title.entities[0].extra == {"metadata": {"identifiers": "3558"}}
        assert (abstract.name, abstract.extra) == ("ABSTRACT", {"metadata": {"type": "front"}})
        assert abstract.entities == (Entity("gene", (Span(2, 6),), "IL-2", "bioc"),)


def test_a_passage_may_have_its_text_in_sentences(tmp_path):
    first = passage("IL-2 é.", annotation(10, 14, "IL-2"), offset=10)
    second = passage("A gene", annotation(21, 25, "gene"), offset=19, note="x")
    raw = document(passage(None, annotation(12, 16, "-2 é"), offset=10, sentences=[first, second]))
    for content in (to_xml(raw), document(*raw["passages"])):
        (record,) = read(content, tmp_path)
        (section,) = record.document.sections
        assert section.text == "IL-2 é.  A gene"
        assert [entity.match for entity in section.entities] == ["IL-2", "gene", "-2 é"]
        assert section.extra == {"sentence_spans": [{"start": 0, "end": 7}, {"start": 9, "end": 15}]}
        assert record.notes == {SENTENCE_INFONS: 1}
    for offset in (18, 16, 10**17):
        second["offset"] = offset
        expected = offset == 18
        (record,) = read(document(passage(None, offset=10, sentences=[first, {**second, "annotations": []}])), tmp_path)
        assert (record.document is not None) == expected
    assert "passages[0].sentences[1].offset: 100000000000000000 is no place" in str(record.problems[0])


def test_annotations_of_the_document_find_their_passage_and_relations_are_counted(tmp_path):
    relation = {"id": "R", "infons": {}, "nodes": [{"refid": "1", "role": "x"}]}
    raw = document(
        passage("IL-2", offset=0),
        passage("TP53", offset=5) | {"relations": [relation]},
        annotations=[annotation(5, 9, "TP53"), annotation(0, 4, "IL-2"), annotation(0, 0, "MeSH") | {"locations": []}],
        relations=[relation, relation],
    )
    for content in (to_xml(raw), raw):
        (record,) = read(content, tmp_path)
        assert [[entity.match for entity in section.entities] for section in record.document.sections] == [
            ["IL-2"],
            ["TP53"],
        ]
        assert record.notes == {RELATIONS: 3, UNPLACED: 1}
    assert problem_of(document(passage("IL-2"), annotations=[annotation(0, 5, None)]), tmp_path) == (
        "annotations[0]: 0–5 is not inside its passage"
    )


@pytest.mark.parametrize("unit", UNITS[1:])
def test_offsets_in_other_units_are_read_where_all_mentions_show_it(tmp_path, unit):
    texts = ("😀 é IL-2 é", "𝔭 é. TP53")
    passages, offset = [], 0
    for text, mention in zip(texts, ("IL-2", "TP53"), strict=True):
        start = offset + length(text[: text.index(mention)], unit)
        passages.append(passage(text, annotation(start, start + 4, mention), offset=offset))
        offset += length(text, unit) + 1
    (record,) = read(document(*passages), tmp_path)
    assert [section.entities[0].match for section in record.document.sections] == ["IL-2", "TP53"]
    assert record.notes == {other_unit_note(unit): 1}
    passages[0]["annotations"].append(annotation(0, 1, "nonsense"))
    assert "annotations[0]: " in problem_of(document(*passages), tmp_path)
    del passages[0]["annotations"][1]
    passages[1]["annotations"][0]["text"] = None  # without a mention nothing shows that it is meant so
    assert problem_of(document(*passages), tmp_path)


def test_sentences_in_other_units_are_put_where_they_are(tmp_path):
    first, second = passage("é😀 IL-2.", annotation(7, 11, "IL-2")), passage("x", offset=13)
    (record,) = read(document(passage(None, sentences=[first, second])), tmp_path)
    assert record.document.sections[0].text == "é😀 IL-2. x"
    assert record.notes == {other_unit_note("UTF-8 bytes"): 1}


@pytest.mark.parametrize("mention", ["lung cancer", "lungcancer", "lung ... cancer", "lung and liver\ncancer"])
@pytest.mark.parametrize("order", [1, -1])
def test_mentions_of_discontinuous_annotations_may_be_joined_in_any_way(tmp_path, mention, order):
    places = [{"offset": 2, "length": 4}, {"offset": 17, "length": 6}][::order]
    (record,) = read(document(passage(TEXT, annotation(2, 6, mention) | {"locations": places})), tmp_path)
    assert record.document.sections[0].entities[0].match == "lung cancer"
    (record,) = read(document(passage(TEXT, annotation(2, 6, "liver cancer") | {"locations": places})), tmp_path)
    assert "but the annotation says 'liver cancer'" in str(record.problems[0])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda raw: raw,
        lambda raw: [raw],
        lambda raw: {"documents": [raw]},
        lambda raw: [{"source": "PMC", "documents": [raw]}],
        lambda raw: {"PubTator3": [raw]},
    ],
)
def test_json_comes_in_the_wrappings_that_the_services_of_ncbi_have(tmp_path, wrap):
    infons = {"identifier": None, "valid": True, "normalized": [3558]}
    raw = document(passage("IL-2", annotation(0, 4, "IL-2", **infons), type="title"), identifier=39, _id="39|None")
    (record,) = read(wrap(raw), tmp_path)
    assert record.document == Document(
        "39", (Section("title", "IL-2", (Entity("gene", (Span(0, 4),), "IL-2", "bioc"),)),)
    )
    assert record.document.sections[0].entities[0].extra == {"metadata": {"valid": True, "normalized": [3558]}}


def test_xml_may_have_a_doctype_other_encodings_and_repeated_infons(tmp_path):
    text = (
        "<?xml version='1.0' encoding='{}'?>\n<!DOCTYPE collection SYSTEM 'BioC.dtd'><collection><source/>"
        "<document><id>é</id><infon key='a'>1</infon><infon key='a'>2</infon><passage><offset> 0 </offset>"
        "<text>CO<sub>2</sub> &amp; &#128512;<!-- x -->é</text></passage></document></collection>"
    )
    for encoding in ("UTF-8", "UTF-16", "ISO-8859-1", "utf-8-sig"):
        (record,) = read(text.format(encoding.removesuffix("-sig")).encode(encoding), tmp_path)
        assert record.document == Document("é", (Section("text", "CO2 & 😀é"),))
        assert record.document.extra == {"metadata": {"a": ["1", "2"]}}


# What is wrong


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            annotation(1, 4, "IL-2"),
            "passages[0].annotations[0]: 1–4 is 'L-2' in the text, but the annotation says 'IL-2'",
        ),
        (
            annotation(0, 4, "IL-3"),
            "passages[0].annotations[0]: 0–4 is 'IL-2' in the text, but the annotation says 'IL-3'",
        ),
        (annotation(0, 5, "IL-2 "), "passages[0].annotations[0]: 0–5 is not inside its passage"),
        (annotation(2, 2, ""), "passages[0].annotations[0]: 2–2 is not inside its passage"),
        (annotation(9, 13, "IL-2"), "passages[0].annotations[0]: 9–13 is not inside its passage"),
        (annotation(0, 4, "IL-2", None), "passages[0].annotations[0]: has no infon 'type', which names the class"),
        (annotation(0, 4, "IL-2", ""), "sections[0].entities[0].entity_class: must not be empty"),
        (annotation(0, 4, "IL-2", nertool="["), "passages[0].annotations[0]: the infon 'nertool' is not what nertool"),
        (annotation(0, 4, "IL-2", nertool="[]"), "passages[0].annotations[0]: the infon 'nertool' is not what nertool"),
        (annotation(0, 4, "IL-2", nertool='{"x": 1}'), "sections[0].entities[0]: unknown key 'x'"),
    ],
)
def test_a_wrong_annotation_is_reported_and_the_rest_goes_on(tmp_path, change, problem):
    raw, good = document(passage("IL-2", change)), document(passage("IL-2"), identifier="good")
    for content in ([raw, good], to_xml(raw, good)):
        bad, fine = read(content, tmp_path)
        assert bad.place == f"{tmp_path}/a.xml: document 1"
        assert str(bad.problems[0]).startswith(problem)
        assert b"IL-2" in bad.raw
        assert fine.document.id == "good"


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (document(passage("x", offset=None)), "passages[0].offset: must be a whole number"),
        (
            document(passage("x", offset=-1)),
            "passages[0].offset: must be a whole number that is not negative, not '-1'",
        ),
        (document(passage("x", offset="1e3")), "passages[0].offset: must be a whole number"),
        (document(passage("x", offset=True)), "passages[0].offset: must be a whole number"),
        (document(passage(["x"])), "passages[0].text: must be a string"),
        (document(passage("x", {"locations": [1]})), "passages[0].annotations[0].locations: must be a list of objects"),
        (
            document(passage("x", annotation(0, 1, None) | {"text": 7})),
            "passages[0].annotations[0].text: must be a string",
        ),
        (
            document(passage("x", annotation(0, 1, "x", ["a"]))),
            "sections[0].entities[0].entity_class: must be a string",
        ),
        (document(passage("x") | {"infons": ["a"]}), "passages[0].infons: must be an object"),
        (
            document(passage("x") | {"relations": {}, "annotations": 3}),
            "passages[0].annotations: must be a list of objects",
        ),
        (
            document(passage(None, sentences=[{"offset": 0, "text": 5}])),
            "passages[0].sentences[0].text: must be a string",
        ),
        (document(1), "passages: must be a list of objects"),
        (document(passage("\ud83d")), "sections[0].text: holds half of a surrogate pair"),
        (document(identifier=["x"]), "idx: must be a string, not a list"),
        ({"id": "x"}, "no BioC: a document must be an object with passages"),
        ({"documents": [[]]}, "no BioC: a document must be an object with passages"),
        ("text", "no BioC"),
        (b"{", "not valid JSON"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"passages": ' + b"[" * 600 + b"]" * 600 + b"}", "passages: must be a list of objects"),
        ("<html/>", "no BioC: the outermost element is 'html', not 'collection'"),
        ("", "not valid XML: no element found"),
        (b"<collection>\xff", "not valid XML: not well-formed (invalid token): line 1, column 12"),
        ("<?xml version='1.0' encoding='x-none'?><collection/>", "not valid XML: unknown encoding"),
        ("<collection><document><passage><offset>x</offset></passage></document></collection>", "passages[0].offset: "),
    ],
)
def test_whatever_else_is_wrong_is_a_problem_and_no_crash(tmp_path, raw, problem):
    if raw == "text":
        raw = ["text"]
    assert problem_of(raw, tmp_path).startswith(problem)


@pytest.mark.parametrize(
    "declaration", ['<!ENTITY a "aaaa">', '<!ENTITY a SYSTEM "secret.txt">', '<!ENTITY % a SYSTEM "secret.txt"> %a;']
)
def test_entities_are_refused_and_neither_grow_nor_fetch_files(tmp_path, declaration):
    (tmp_path / "secret.txt").write_text("secret")
    xml = f"<!DOCTYPE collection [{declaration}]><collection><document><id>&a;</id></document></collection>"
    assert problem_of(xml, tmp_path) == "declares the entity 'a', which could fill the memory or fetch other files"


def test_after_a_place_that_is_no_xml_the_documents_before_it_are_there(tmp_path):
    xml = write(tmp_path / "a.xml", [Document(str(number), ()) for number in range(3)]).read_text()
    *documents, broken = read(xml.replace("<id>2", "<id>&2"), tmp_path)
    assert [record.document.id for record in documents] == ["0", "1"]
    assert broken.place == f"{tmp_path}/a.xml: document 3"
    with pytest.raises(NertoolError, match="document 3: not valid XML"):
        list(read_documents(tmp_path / "a.xml", ReadReport()))


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path):
    text = "IL-2 😀 " * 5_000
    file = write(tmp_path / "a.xml", (Document(str(number), (Section("s", text),)) for number in range(60)))
    tracemalloc.start()
    try:
        assert sum(record.document is not None for record in read_bioc(file)) == 60
        assert tracemalloc.get_traced_memory()[1] < 20 * 4 * len(text)  # 4 bytes for a character
    finally:
        tracemalloc.stop()
