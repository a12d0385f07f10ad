import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.documents import Document, Entity, Section, Span, document_to_json
from nertool.formats.base import ReadReport
from nertool.formats.conll import COMMENTS, BioesConllWriter, ConllWriter, conll_losses, read_conll
from nertool.formats.reading import FORMATS, read_documents
from nertool.formats.tagging import IRREGULAR, Tag, count_irregular, decode_tags
from tests.document_strategies import rich_documents

WRITERS = {".conll": ConllWriter, ".bioes": BioesConllWriter}
FACTS = "scores, mappings and other facts of entities"
NAMESPACES = "namespaces that differ from the first one's of their section"
OWN_TEXTS = "mentions' own texts, where they differ from the text"
CUT_OFF = "entities whose white space at the ends was cut off"


def write(path, *written: Document):
    with WRITERS[path.suffix](path) as writer:
        for document in written:
            writer.write(document)
    return path


def read_one(path) -> Document:
    (record,) = read_conll(path)
    assert record.problems == ()
    return record.document


def foreign(path, text: str, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def found(document: Document) -> list[tuple[str, str]]:
    return [(entity.label, entity.match) for section in document.sections for entity in section.entities]


def problems_of(record) -> list[str]:
    return [str(problem) for problem in record.problems]


def section_with(text: str, *mentions: tuple[str, int, int]) -> Section:
    return Section("s", text, tuple(Entity(label, (Span(a, b),), text[a:b], "gpt") for label, a, b in mentions))


# What is written


def test_a_section_is_tokens_with_offsets_white_space_and_tags(tmp_path):
    section = section_with("IL-2  binds\u00a0β.", ("a gene", 0, 4), ("protein", 12, 13))
    path = write(tmp_path / "a.conll", Document("x y", (section,), {"metadata": {"pmid": 1}}))
    header, *lines = path.read_text().splitlines()
    assert lines == [
        "",
        "IL\t0\t2\tSpaceAfter=No\tB-a%20gene",
        "-\t2\t3\tSpaceAfter=No\tI-a%20gene",
        r"2	3	4	SpacesAfter=\s\s	I-a%20gene",
        r"binds	6	11	SpacesAfter=\u00a0	O",
        "β\t12\t13\tSpaceAfter=No\tB-protein",
        ".\t13\t14\tSpaceAfter=No\tO",
        "",
    ]
    start, about, *rest = header.split("\t")
    assert (start, rest) == ("-DOCSTART-", ["_", "_", "O"])
    assert not any(char.isspace() for char in about)
    assert json.loads(about)["document"] == {"idx": "x y", "metadata": {"pmid": 1}}


def test_bioes_tags_say_where_an_entity_ends(tmp_path):
    section = section_with("a b c d", ("X", 0, 1), ("X", 2, 7))
    lines = write(tmp_path / "a.bioes", Document("d", (section,))).read_text().splitlines()
    assert [line.split("\t")[-1] for line in lines[2:6]] == ["S-X", "B-X", "I-X", "E-X"]
    assert FORMATS["conll-bioes"].writer is BioesConllWriter


def test_a_word_is_cut_where_an_entity_begins_or_ends_and_touching_entities_stay_two(tmp_path):
    section = section_with("antiTNFs", ("gene", 4, 7), ("gene", 7, 8))
    path = write(tmp_path / "a.conll", Document("d", (section,)))
    assert [line.split("\t")[0] for line in path.read_text().splitlines()[2:5]] == ["anti", "TNF", "s"]
    assert read_one(path).sections == (section,)


def test_sentences_end_after_stops_and_empty_lines_but_never_in_an_entity(tmp_path):
    text = "Fig. 2 shows E. Coli. It grows? yes.\n\nNew, with\none break"
    path = write(tmp_path / "a.conll", Document("d", (section_with(text, ("species", 13, 20)),)))
    sentences = path.read_text().split("\n\n")[1:]
    words = [" ".join(line.split("\t")[0] for line in sentence.splitlines()) for sentence in sentences]
    assert words == ["Fig .", "2 shows E . Coli .", "It grows ? yes .", "New , with one break", ""]


@settings(max_examples=150, deadline=None)
@given(original=rich_documents(), ending=st.sampled_from(list(WRITERS)))
def test_what_conll_cannot_hold_is_counted_and_all_else_comes_back(original, ending, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("conll") / f"a{ending}", original, Document("next", ()))
    records = list(read_conll(path))
    assert [record.problems for record in records] == [(), ()]
    again = records[0].document
    assert records[1].document == Document("next", ())
    assert records[0].notes == {}
    losses = conll_losses(original)
    entities = [entity for section in original.sections for entity in section.entities]
    left_out = sum(count for loss, count in losses.items() if loss.endswith("(left out)"))
    assert len(found(again)) == len(entities) - left_out
    seen: Counter[str] = Counter()
    for before, after in zip(original.sections, again.sections, strict=True):
        for entity in after.entities:
            source, cut_off = next(same for one in before.entities if (same := _kept_as(entity, one, before.text)))
            seen[CUT_OFF] += cut_off
            seen[FACTS] += source.score is not None or bool(source.extra)
            seen[OWN_TEXTS] += source.match != before.text[source.start : source.end]
            seen[NAMESPACES] += source.namespace != entity.namespace
            assert entity.match == after.text[entity.start : entity.end]
    assert +seen == {loss: count for loss, count in losses.items() if not loss.endswith("(left out)")}
    assert _without_entities(again) == _without_entities(original)
    if not losses:
        assert _in_text_order(again) == _in_text_order(original)


def _kept_as(entity: Entity, source: Entity, text: str) -> tuple[Entity, bool] | None:
    """Returns whether a source became the entity, and whether white space at its ends was cut off."""
    start, end = source.spans[0]
    mention = text[start:end]
    trimmed = Span(start + len(mention) - len(mention.lstrip()), end - len(mention) + len(mention.rstrip()))
    if len(source.spans) > 1 or source.label != entity.label or trimmed != entity.spans[0]:
        return None
    return source, trimmed != source.spans[0]


def _without_entities(document: Document) -> dict:
    result = document_to_json(document)
    for section in result["sections"]:
        section.pop("entities", None)
    return result


def _in_text_order(document: Document) -> dict:
    result = document_to_json(document)
    for section in result["sections"]:
        section.get("entities", []).sort(key=lambda entity: entity["start"])
    return result


def test_of_overlapping_entities_the_longest_is_kept_then_the_first(tmp_path):
    text = "lung and liver cancer cells"
    kept = [("b", 0, 14), (" ends", 21, 27)]
    others = [("a", 9, 21), ("same", 0, 14), ("inside", 5, 8), ("space", 8, 9), ("c", 22, 27)]
    section = section_with(text, *kept, *others)
    parts = Entity("gene", (Span(0, 4), Span(15, 21)), "lung cancer", "gpt")
    document = Document("d", (Section("s", text, (*section.entities, parts)),))
    assert conll_losses(document) == {
        "discontinuous entities (left out)": 1,
        "entities of nothing but white space (left out)": 1,
        "further entities on the same characters (left out)": 2,
        "entities inside longer ones (left out)": 1,
        "entities that overlap others as long or longer in part (left out)": 1,
        CUT_OFF: 1,
    }
    assert found(read_one(write(tmp_path / "a.conll", document))) == [("b", "lung and liver"), (" ends", "cells")]


# Other readers


def test_spacy_reads_what_is_written(tmp_path):
    converters = pytest.importorskip("spacy.training.converters")
    section = section_with("We gave # aspirin\u2028to mice. Then IL-2.", ("drug", 10, 17), ("gene", 32, 36))
    path = write(tmp_path / "a.conll", Document("d\n1", (section, section)))
    docs = list(converters.conll_ner_to_docs(path.read_text(), no_print=True))
    words = [token.text for doc in docs for token in doc if token.text != "-DOCSTART-"]
    assert words == ["We", "gave", "#", "aspirin", "to", "mice", ".", "Then", "IL", "-", "2", "."] * 2
    ents = [(ent.label_, ent.text) for doc in docs for ent in doc.ents]
    assert ents == [("drug", "aspirin"), ("gene", "IL - 2")] * 2


@settings(max_examples=60, deadline=None)
@given(original=rich_documents(), ending=st.sampled_from(list(WRITERS)))
def test_a_reader_that_knows_only_the_first_and_the_last_column_gets_tokens_and_tags(
    original, ending, tmp_path_factory
):
    path = write(tmp_path_factory.mktemp("naive") / f"a{ending}", original)
    entities = 0
    words = ""
    for sentence in path.read_text().split("\n\n"):  # as `splitlines` and universal line ends would have it, too
        rows = [line.split() for line in sentence.splitlines() if not line.startswith("-DOCSTART-")]
        assert all(len(row) == 5 for row in rows)
        words += "".join(row[0] for row in rows)
        entities += sum(row[-1][0] in "BS" for row in rows)
    assert words == "".join("".join(section.text.split()) for section in original.sections)
    assert entities == len(found(read_one(path)))


# Files of others

SCHEMES = {
    "IOB1": "I-gene I-gene O I-drug B-drug I-gene",
    "IOB2": "B-gene I-gene O B-drug B-drug B-gene",
    "BIOES": "B-gene E-gene O S-drug S-drug S-gene",
    "BILOU": "B-gene L-gene O U-drug U-drug U-gene",
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("separator", ["\t", " ", "   ", " -X- _ ", "\t\t"])
def test_all_schemes_are_read_alike_whatever_is_between_the_columns(tmp_path, scheme, separator):
    rows = zip("IL 2 and aspirin ibuprofen TP53".split(), SCHEMES[scheme].split(), strict=True)  # noqa: SIM905
    (record,) = read_conll(foreign(tmp_path / "a.iob", "".join(f"{word}{separator}{tag}\n" for word, tag in rows)))
    assert record.document.id == "a-1"
    assert record.document.sections[0].text == "IL 2 and aspirin ibuprofen TP53"
    assert found(record.document) == [("gene", "IL 2"), ("drug", "aspirin"), ("drug", "ibuprofen"), ("gene", "TP53")]
    assert record.notes == {}
    assert {entity.namespace for entity in record.document.sections[0].entities} == {"conll"}


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.tuples(st.sampled_from(["", "x", "y-z"]), st.integers(1, 3)), max_size=6))
def test_tags_are_read_as_spacy_means_them(lengths):
    iob_utils = pytest.importorskip("spacy.training.iob_utils")
    tags: list[str] = []
    expected = []
    for label, length in lengths:
        if label:
            expected.append((label, len(tags), len(tags) + length))
            inner = [f"B-{label}", *[f"I-{label}"] * (length - 2), f"L-{label}"]
        tags += (inner if length > 1 else [f"U-{label}"]) if label else ["O"] * length
    assert [(label, first, last + 1) for label, first, last in iob_utils.tags_to_entities(tags)] == expected
    iob2 = iob_utils.biluo_to_iob(tags)
    bioes = [tag.replace("L-", "E-").replace("U-", "S-") for tag in tags]
    for written in (tags, iob2, bioes):
        parsed = [Tag.parse(tag) for tag in written]
        assert decode_tags(parsed) == expected
        assert count_irregular([parsed]) == 0


@pytest.mark.parametrize(
    ("tags", "irregular", "entities"),
    [
        ("B-x O I-x", 1, [("x", 0, 1), ("x", 2, 3)]),
        ("B-x I-y O B-x", 1, [("x", 0, 1), ("y", 1, 2), ("x", 3, 4)]),
        ("B-x I-x O S-y", 1, [("x", 0, 2), ("y", 3, 4)]),
        ("I-x E-x", 1, [("x", 0, 2)]),
        ("E-x O B-x L-x", 1, [("x", 0, 1), ("x", 2, 4)]),
        ("I-x I-x B-x", 0, [("x", 0, 2), ("x", 2, 3)]),
        ("B I O", 0, [("entity", 0, 2)]),
    ],
)
def test_tags_against_their_scheme_are_counted_and_lose_nothing(tmp_path, tags, irregular, entities):
    lines = [f"w{number}\t{tag}\n" for number, tag in enumerate(tags.split())]
    (record,) = read_conll(foreign(tmp_path / "a.conll", "".join(lines)))
    words = record.document.sections[0].text.split()
    assert found(record.document) == [(label, " ".join(words[first:end])) for label, first, end in entities]
    assert record.notes.get(IRREGULAR, 0) == irregular


def test_documents_begin_at_docstart_lines_and_sentences_become_lines_of_their_text(tmp_path):
    mark = "-DOCSTART- -X- O O\n\n"
    text = f"{mark}IL-2 NN B-NP B-gene\nbinds VB O O\n\n\nAspirin NN O I-drug\n\n{mark}x y O O\n"
    for changed in (text, "\ufeff" + text.replace("\n", "\r\n"), text.rstrip("\n")):
        first, second = [record.document for record in read_conll(foreign(tmp_path / "c.conll", changed))]
        assert (first.id, second.id) == ("c-1", "c-2")
        assert first.sections[0].text == "IL-2 binds\nAspirin"
        assert found(first) == [("gene", "IL-2"), ("drug", "Aspirin")]
        assert (second.sections[0].name, second.sections[0].text) == ("text", "x")


@pytest.mark.parametrize("token", ["-DOCSTART-s", "-DOCSTART-", "-DOCSTART--DOCSTART-"])
def test_a_token_that_begins_like_a_docstart_line_is_a_token(tmp_path, token):
    end = 4 + len(token)
    original = Document("d", (section_with(f"The {token} ends. Then", ("x", 4, end)), section_with(token)))
    assert document_to_json(read_one(write(tmp_path / "a.conll", original))) == document_to_json(original)
    if token != "-DOCSTART-":
        (record,) = read_conll(foreign(tmp_path / "b.conll", f"a\tO\n{token}\tB-x\nb\tO\n"))
        assert found(record.document) == [("x", token)]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends_of_other_systems_are_line_ends(tmp_path, end):
    lines = ["-DOCSTART-\tO", "", "IL-2\tB-gene", "binds\tO", "", "-DOCSTART-\tO", "", "mice\tB-x", "bad line\tZ"]
    first, second = read_conll(foreign(tmp_path / "a.conll", end.join(lines) + end))
    assert found(first.document) == [("gene", "IL-2")] and first.document.sections[0].text == "IL-2 binds"
    assert (second.place, problems_of(second)) == (
        f"{tmp_path}/a.conll:6", ["line 9: 'Z' is no tag: O, or B-, I-, E-, S-, L- or U- with a class"],
    )  # fmt: skip


def test_without_docstart_lines_each_sentence_is_a_document(tmp_path):
    records = list(read_conll(foreign(tmp_path / "a.bio", "\n \nIL-2\tB\n\n\n\u00a0\nTP53\tB\nx\tO\n\n")))
    assert [(record.document.id, record.document.sections[0].text) for record in records] == [
        ("a-1", "IL-2"),
        ("a-2", "TP53 x"),
    ]


def test_comments_are_told_from_tokens_by_their_tag(tmp_path):
    text = "# text = IL-2 # here\n###MEDLINE:95369245\n\nIL-2\tB-gene\n#\tO\n# \tO\n#5 O\n\n# the end\n"
    (record,) = read_conll(foreign(tmp_path / "a.conll", text))
    assert record.document.sections[0].text == "IL-2 # # #5"
    assert record.notes == {COMMENTS: 2}


def test_an_empty_file_or_one_of_comments_holds_no_documents(tmp_path):
    assert list(read_conll(foreign(tmp_path / "a.conll", ""))) == []
    assert list(read_conll(foreign(tmp_path / "a.conll", "\ufeff# nothing\n\n# here\n"))) == []


# What is wrong


def test_wrong_lines_are_all_named_and_the_other_documents_come_in(tmp_path):
    lines = [b"good\tO", b"", b"bad", b"\tO", b"caf\xe9\tO", b"x\tX-gene", b"y\tB_gene", b"", b"fine\tB-gene"]
    (tmp_path / "a.conll").write_bytes(b"\n".join(lines))
    first, bad, last = read_conll(tmp_path / "a.conll")
    assert (first.document.id, last.document.id) == ("a-1", "a-3")
    assert bad.place == f"{tmp_path}/a.conll:3"
    assert problems_of(bad) == [
        "line 3: a token and a tag expected",
        "line 4: a token and a tag expected",
        "line 5: not UTF-8: invalid continuation byte at byte 3",
        "line 6: 'X-gene' is no tag: O, or B-, I-, E-, S-, L- or U- with a class",
        "line 7: 'B_gene' is no tag: O, or B-, I-, E-, S-, L- or U- with a class",
    ]
    assert bad.raw == b"\n".join(lines[2:7])


PLACE = "the token is at {} of what was read so far, but the line says {}"
COLUMNS = "a token, its start and end, the white space after it, and a tag expected"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("-\t2\t3\tSpaceAfter=No\tI-gene\n", "", f"line 4: {PLACE.format('2–3', '3–4')}"),
        ("2\t3\t4\t_", "22\t3\t4\t_", f"line 5: {PLACE.format('3–5', '3–4')}"),
        ("2\t3\t4\t_", "2\t3\t4\tSpacesAfter=x", f"line 5: {COLUMNS}"),
        ("2\t3\t4\t_", "2\t3\t4\t\\s", f"line 5: {COLUMNS}"),
        ("2\t3\t4\t_\t", "2\t", f"line 5: {COLUMNS}"),
        ('"number":0', '"number":', "line 1: what it says of the document can't be read"),
        ('{"idx":"d"}', '{"idx":5.5}', "idx: must be a string, not a number"),
        ('{"name":"s"}', "{}", "sections[0].name: is missing"),
        ('{"name":"s"}', f'{{"name":"s","metadata":{"[" * 400 + "]" * 400}}}', "holds what can't be written again"),
    ],
)
def test_files_of_nertools_that_were_changed_badly_are_reported(tmp_path, old, new, reason):
    text = write(tmp_path / "a.conll", Document("d", (section_with("IL-2 x", ("gene", 0, 4)),)), Document("e", ()))
    changed = text.read_text().replace(old, new, 1)
    assert changed != text.read_text()
    bad, good = read_conll(foreign(tmp_path / "b.conll", changed))
    assert good.document == Document("e", ())
    assert bad.document is None
    assert any(problem.startswith(reason) for problem in problems_of(bad)), problems_of(bad)
    assert bad.raw.decode() in changed


def test_sections_belong_to_one_document_while_their_numbers_grow(tmp_path):
    sections = (section_with("IL-2"), Section("", ""), Section("n", " \n"), section_with("x y"))
    originals = [Document("a", sections), Document("b", sections[:1])]
    path = write(tmp_path / "a.conll", *originals)
    assert [record.document for record in read_conll(path)] == originals
    twice = foreign(tmp_path / "b.conll", path.read_text() * 2)
    assert [record.document for record in read_conll(twice)] == originals * 2  # so that the same id is seen twice


def test_all_endings_of_conll_are_known(tmp_path):
    for ending in (".conll", ".iob", ".IOB2", ".bio", ".bioes"):
        foreign(tmp_path / f"x{ending}", f"IL-2\tB-{ending}\n").rename(tmp_path / f"{ending[1:]}{ending}")
    report = ReadReport()
    classes = {entity[0] for document in read_documents(tmp_path, report) for entity in found(document)}
    assert classes == {".conll", ".iob", ".IOB2", ".bio", ".bioes"}
    assert report.ignored_files == []
