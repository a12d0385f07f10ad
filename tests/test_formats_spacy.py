import gc
import pickle
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool import extras
from nertool.documents import Document, Entity, Section, Span, document_to_json
from nertool.errors import NertoolError
from nertool.formats.spacy_docbin import OTHER_ENTS, OTHER_FACTS, OTHER_SPANS, SpacyWriter, read_spacy
from tests.document_strategies import rich_documents, texts

spacy = pytest.importorskip("spacy")
srsly = pytest.importorskip("srsly")
from spacy.tokens import Doc, DocBin  # noqa: E402
from spacy.tokens import Span as SpacySpan  # noqa: E402
from spacy.vocab import Vocab  # noqa: E402

NLP = spacy.blank("en")


def write(path: Path, *written: Document) -> Path:
    with SpacyWriter(path) as writer:
        for document in written:
            writer.write(document)
    return path


def docs_of(path: Path) -> list[Doc]:
    return list(DocBin().from_disk(path).get_docs(Vocab()))  # which knows no string


def save(path: Path, docs: list[Doc], **options) -> Path:
    DocBin(docs=docs, **options).to_disk(path)
    return path


def entity(text: str, label: str, *spans: tuple[int, int], **facts) -> Entity:
    return Entity(label, tuple(Span(*span) for span in spans), " ".join(text[a:b] for a, b in spans), **facts)


def found(document: Document) -> list[tuple[str, str]]:
    return [(entity.label, entity.match) for section in document.sections for entity in section.entities]


def problems_of(records) -> list[str]:
    return [str(problem) for record in records for problem in record.problems]


# What is written


@settings(max_examples=120, deadline=None)
@given(originals=st.lists(rich_documents(), min_size=1, max_size=3, unique_by=lambda document: document.id))
def test_nothing_of_any_document_is_lost_and_plain_spacy_has_its_text_and_entities(originals, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("spacy") / "a.spacy", *originals)
    records = list(read_spacy(path))
    assert problems_of(records) == []
    assert [dict(record.notes) for record in records] == [{}] * len(originals)
    assert [document_to_json(record.document) for record in records] == list(map(document_to_json, originals))
    docs = iter(docs_of(path))
    for document in originals:
        for section in document.sections or (Section("", ""),):
            doc = next(docs)
            assert doc.text == section.text
            continuous = [entity for entity in section.entities if len(entity.spans) == 1]
            spans = [(span.label_, (span.start_char, span.end_char), span.text) for span in doc.spans["sc"]]
            assert spans == [(one.label, one.spans[0], section.text[one.start : one.end]) for one in continuous]
            assert {(ent.label_, (ent.start_char, ent.end_char)) for ent in doc.ents} <= {span[:2] for span in spans}


@settings(max_examples=80, deadline=None)
@given(text=texts)
def test_where_no_entity_is_in_the_way_the_tokens_are_those_of_spacy(text, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("tokens") / "a.spacy", Document("d", (Section("s", text),)))
    tokens = NLP.make_doc(text)
    assert [(token.text, token.whitespace_) for token in docs_of(path)[0]] == [
        (token.text, token.whitespace_) for token in tokens
    ]


def test_tokens_are_cut_at_entities_and_ents_are_the_longest_ones_without_overlap_or_white_space_at_the_ends(tmp_path):
    text = "lung and  liver cancers "
    entities = (
        entity(text, "inside", (10, 15)),
        entity(text, "disease", (10, 22)),
        entity(text, "again", (10, 22)),
        entity(text, "organ", (0, 4)),
        entity(text, "space", (4, 8)),
        entity(text, "parts", (0, 4), (16, 22)),
        entity(text, "end", (22, 24)),
    )
    (doc,) = docs_of(write(tmp_path / "a.spacy", Document("d", (Section("s", text, entities),))))
    assert [token.text for token in doc] == ["lung", " ", "and", " ", "liver", "cancer", "s", " "]
    assert [(ent.label_, ent.text) for ent in doc.ents] == [("organ", "lung"), ("disease", "liver cancer")]
    assert all(token.ent_iob_ for token in doc)  # nothing is left open
    assert [span.label_ for span in doc.spans["sc"]] == ["inside", "disease", "again", "organ", "space", "end"]


def test_ids_and_names_are_in_user_data_and_identifiers_are_kb_ids(tmp_path):
    known = entity("IL-2", "gene", (0, 4), extra={"metadata": {"identifiers": "3558"}})
    path = write(
        tmp_path / "a.spacy", Document("pmid-1", (Section("title", "x"), Section("abstract", "IL-2", (known,))))
    )
    first, second = docs_of(path)
    assert [second.user_data[key] for key in ("id", "section", "name")] == ["pmid-1", 1, "abstract"]
    assert first.user_data["section"] == 0
    assert [second.spans["sc"][0].kb_id_, second.ents[0].kb_id_] == ["3558", "3558"]


@pytest.mark.parametrize("component", ["ner", "spancat"])
def test_spacy_trains_from_what_is_written(tmp_path, component):
    from spacy.training import Corpus

    text = "we gave aspirin to mice \n and "
    entities = (entity(text, "drug", (8, 15)), entity(text, "space", (23, 30)), entity(text, "drug", (15, 16)))
    document = Document("d", (Section("s", text, entities), Section("empty", ""), Section("plain", "no entities")))
    path = write(tmp_path / "a.spacy", document, Document("none", ()))
    nlp = spacy.blank("en")
    nlp.add_pipe(component)
    examples = list(Corpus(path)(nlp))
    nlp.initialize(lambda: examples)
    losses = nlp.update(examples)
    assert losses[component] > 0
    assert "drug" in nlp.get_pipe(component).labels


def test_nothing_is_written_if_the_writing_fails(tmp_path):
    with pytest.raises(KeyError), SpacyWriter(tmp_path / "a.spacy") as writer:
        writer.write(Document("d", (Section("s", "x"),)))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


# DocBins of others


def test_a_docbin_of_a_pipeline_of_spacys_is_read(tmp_path):
    nlp = spacy.blank("en")
    patterns = [{"label": "drug", "pattern": "aspirin"}, {"label": "gene", "pattern": "IL-2", "id": "3558"}]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)
    nlp.add_pipe("sentencizer")
    texts = ["We gave aspirin.\r\n", "", "IL-2 and  aspirin 😀"]
    first, second, third = read_spacy(save(tmp_path / "ruled.spacy", list(nlp.pipe(texts)), store_user_data=True))
    assert [record.document.id for record in (first, second, third)] == ["ruled-1", "ruled-2", "ruled-3"]
    assert [record.document.sections[0].text for record in (first, second, third)] == texts
    assert found(first.document) == [("drug", "aspirin")]
    assert third.document.sections == (
        Section(
            "text",
            texts[2],
            (
                entity(texts[2], "gene", (0, 4), namespace="spacy"),
                entity(texts[2], "drug", (10, 17), namespace="spacy"),
            ),
        ),
    )
    assert (first.notes, second.notes, third.notes) == ({}, {}, {})


def test_the_spans_of_sc_go_before_ents_and_what_is_not_used_is_counted(tmp_path):
    doc = NLP("lung cancer of mice")
    doc.spans["sc"] = [doc[0:2], SpacySpan(doc, 0, 1, "organ", kb_id="U:1"), SpacySpan(doc, 0, 2, "disease")]
    doc.spans["other"] = [doc[1:2], doc[0:2]]
    doc.spans["sc"] = list(doc.spans["sc"])[1:]
    doc.set_ents([SpacySpan(doc, 0, 2, "disease"), SpacySpan(doc, 3, 4, "species")])
    doc.cats = {"oncology": 1.0}
    only_ents = NLP("IL-2")
    only_ents.spans["sc"] = []
    only_ents.set_ents([SpacySpan(only_ents, 0, 1, "gene")])
    first, second = read_spacy(save(tmp_path / "a.spacy", [doc, only_ents]))
    assert found(first.document) == [("organ", "lung"), ("disease", "lung cancer")]
    assert first.document.sections[0].entities[0].extra == {"metadata": {"identifiers": "U:1"}}
    assert first.notes == {OTHER_ENTS: 1, OTHER_SPANS: 2, OTHER_FACTS: 1}
    assert found(second.document) == [("gene", "IL-2")]


def test_what_spacy_changed_in_a_file_of_nertools_is_so_afterwards(tmp_path):
    text = "IL-2 in lung and liver cancer"
    entities = (
        entity(text, "gene", (0, 4), score=0.5, extra={"metadata": {"score": 0.5}, "_id": "x"}),
        entity(text, "disease", (8, 12), (23, 29), namespace="gpt"),
        entity(text, "organ", (8, 12), namespace="gpt"),
    )
    path = write(tmp_path / "a.spacy", Document("d", (Section("s", text, entities),)))
    (doc,) = docs_of(path)
    doc.spans["sc"] = [SpacySpan(doc, 4, 6, "disease"), doc.spans["sc"][0]]  # the organ is gone
    (record,) = read_spacy(save(path, [doc], store_user_data=True))
    expected = (*entities[:2], entity(text, "disease", (17, 29), namespace="spacy"))
    assert document_to_json(record.document) == document_to_json(Document("d", (Section("s", text, expected),)))


def _ids(document: Document) -> list[object]:
    return [one.extra.get("metadata", {}).get("identifiers") for one in document.sections[0].entities]


def test_identifiers_that_spacy_changed_are_so_afterwards(tmp_path):
    text = "IL-2 IL-6 TNF p53 EGFR"
    places = [(0, 4), (5, 9), (10, 13), (14, 17), (18, 22)]
    metadata: list[dict[str, object]] = [
        {"identifiers": "3558", "score": 0.5}, {"identifiers": "old"}, {"identifiers": ["a", "b"]},
        {"identifiers": "7157"}, {},
    ]  # fmt: skip
    entities = tuple(
        entity(text, "gene", place, extra={"metadata": its}) for place, its in zip(places, metadata, strict=True)
    )
    path = write(tmp_path / "a.spacy", Document("d", (Section("s", text, entities),)))
    (doc,) = docs_of(path)
    spans = list(doc.spans["sc"])
    spans[0].kb_id_, spans[1].kb_id_ = "9999", ""
    doc.spans["sc"] = spans
    linked = list(doc.ents)  # where spaCy's entity linker writes
    linked[4].kb_id_ = "1956"
    doc.set_ents([linked[2], linked[4]])
    (record,) = read_spacy(save(path, [doc], store_user_data=True, attrs=["ENT_IOB", "ENT_TYPE", "ENT_KB_ID"]))
    assert _ids(record.document) == ["9999", None, ["a", "b"], "7157", "1956"]
    first, second, *_ = record.document.sections[0].entities
    assert first.extra["metadata"] == {"identifiers": "9999", "score": 0.5} and first.namespace == entities[0].namespace
    assert "metadata" not in second.extra


def test_of_entities_on_one_place_each_keeps_its_identifiers(tmp_path):
    entities = tuple(
        entity("IL-2", "gene", (0, 4), extra={"_id": one, "metadata": {"identifiers": one}}) for one in ("1", "2", "3")
    )
    path = write(tmp_path / "a.spacy", Document("d", (Section("s", "IL-2", entities),)))
    (doc,) = docs_of(path)
    last, first = doc.spans["sc"][2], doc.spans["sc"][0]
    first.kb_id_ = "4"
    doc.spans["sc"] = [last, first]
    (record,) = read_spacy(save(path, [doc], store_user_data=True))
    assert [one.extra["_id"] for one in record.document.sections[0].entities] == ["1", "3"]
    assert _ids(record.document) == ["4", "3"]


def test_sections_find_together_wherever_they_are_in_the_file(tmp_path):
    sections = tuple(Section(f"n{number}", f"text {number}") for number in range(12))
    originals = [Document("a", sections, {"metadata": {"x": 1}}), Document("b", sections[:3]), Document("none", ())]
    path = write(tmp_path / "a.spacy", *originals)
    docs = docs_of(path)
    random.Random(1).shuffle(docs)
    again = [record.document for record in read_spacy(save(path, docs, store_user_data=True))]
    assert sorted(map(document_to_json, again), key=str) == sorted(map(document_to_json, originals), key=str)


# What is wrong


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_pickle_is_read(tmp_path):
    payload = pickle.dumps(Evil(tmp_path / "pwned"))
    pickle.loads(payload)
    (tmp_path / "pwned").unlink()  # it works
    message = srsly.msgpack_loads(zlib.decompress(write(tmp_path / "a.spacy", Document("d", ())).read_bytes()))
    for number, data in enumerate(
        [
            payload,
            zlib.compress(payload),
            zlib.compress(srsly.msgpack_dumps(payload)),
            zlib.compress(srsly.msgpack_dumps({**message, "user_data": [payload]})),
            zlib.compress(srsly.msgpack_dumps({**message, "span_groups": [payload]})),
        ]
    ):
        file = tmp_path / f"{number}.spacy"
        file.write_bytes(data)
        assert len(problems_of(read_spacy(file))) == 1
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("data", [b"", b"\x00" * 20, b"text", zlib.compress(b""), zlib.compress(b"\x81\xa1a\x01")])
def test_what_is_no_docbin_is_reported(tmp_path, data):
    (tmp_path / "a.spacy").write_bytes(data)
    (record,) = read_spacy(tmp_path / "a.spacy")
    assert record.place == f"{tmp_path}/a.spacy:1"
    assert str(record.problems[0]).startswith("not a DocBin of spaCy, or a damaged one: ")
    assert gc.isenabled()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_reported_and_never_an_exception(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    text = "IL-2 in mice"
    document = Document("d", (Section("s", text, (entity(text, "gene", (0, 4)),)), Section("t", "more")))
    inner = bytearray(zlib.decompress(write(folder / "a.spacy", document, document).read_bytes()))
    position = data.draw(st.integers(0, len(inner) - 1))
    inner[position] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "b.spacy").write_bytes(zlib.compress(bytes(inner)))
    for record in read_spacy(folder / "b.spacy"):
        assert (record.document is None) == bool(record.problems)
    assert gc.isenabled()


def test_a_damaged_doc_does_not_hide_the_others(tmp_path):
    docs = [NLP("first"), NLP("second"), NLP("third")]
    docs[1].spans["sc"] = [SpacySpan(docs[1], 0, 1, "gene")]
    bin_ = DocBin(docs=docs)
    bin_.strings.remove("gene")
    bin_.to_disk(tmp_path / "a.spacy")
    records = list(read_spacy(tmp_path / "a.spacy"))
    assert sorted(record.document.sections[0].text for record in records if record.document) == ["first", "third"]
    (bad,) = [record for record in records if record.document is None]
    assert bad.place == f"{tmp_path}/a.spacy:2"
    assert str(bad.problems[0]).startswith("a damaged Doc: ")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"section": "0"}, "a damaged Doc: user_data['section'] must be a number, not '0'"),
        ({"nertool": "["}, "a damaged Doc: "),
        ({"nertool": '{"section": {"entities": [{}]}}'}, "a damaged Doc: 'spans'"),
        ({"nertool": '{"section": {"words": 1}}'}, "sections[0]: unknown key 'words'"),
        ({"nertool": '{"section": {"metadata": 1}}'}, "sections[0].metadata: must be an object, not a number"),
        ({"name": None}, "sections[0].name: must be a string, not null"),
    ],
)
def test_user_data_that_was_changed_badly_is_reported(tmp_path, changes, problem):
    path = write(tmp_path / "a.spacy", Document("d", (Section("s", "x"),)), Document("e", ()))
    docs = docs_of(path)
    docs[0].user_data.update(changes)
    records = list(read_spacy(save(path, docs, store_user_data=True)))
    assert [record.document for record in records if record.document] == [Document("e", ())]
    assert problems_of(records)[0].startswith(problem)


def test_a_section_that_is_there_twice_is_reported(tmp_path):
    path = write(tmp_path / "a.spacy", Document("d", (Section("s", "one"),)), Document("d", (Section("s", "two"),)))
    bad, good = read_spacy(path)
    assert good.document == Document("d", (Section("s", "one"),))
    assert problems_of([bad]) == ["section 0 of 'd' is in the file already"]
    assert bad.raw == b'{"name":"s","text":"two","entities":[]}'


def test_without_spacy_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.spacy").touch()
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "spacy")
    for use in (lambda: list(read_spacy(tmp_path / "a.spacy")), SpacyWriter(tmp_path / "b.spacy").__enter__):
        with pytest.raises(NertoolError) as error:
            use()
        assert error.value.hint == "pip install 'nertool[formats]'"
