"""BRAT's standoff files: nertool's own, the reference library's and other people's."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bioc import brat as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.documents import Document, Entity, Section, Span, document_to_json
from nertool.files import safe_file_name
from nertool.formats import ReadReport, Record, read_documents
from nertool.formats.base import RELATIONS
from nertool.formats.brat import UNTIED, BratWriter, brat_losses, read_brat
from nertool.formats.offsets import UNITS, length, other_unit_note

from .document_strategies import rich_documents

TEXT = "é😀 IL-2 in lung\nand liver cancer\r\nIL-2"
LINE_BREAKS_ONLY = "entities of nothing but line breaks (left out)"


def read(folder: Path, ann: str | bytes, text: str | bytes | None = TEXT) -> Record:
    """Reads a document from the two files that it has in BRAT."""
    for name, content in (("a.ann", ann), ("a.txt", text)):
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (record,) = read_brat(folder / "a.ann")
    assert record.place == str(folder / "a.ann")
    return record


def entities(folder: Path, ann: str, text: str = TEXT) -> list[tuple[str, tuple[Span, ...], str]]:
    record = read(folder, ann, text)
    assert record.problems == ()
    (section,) = record.document.sections
    return [(entity.label, entity.spans, entity.match) for entity in section.entities]


def write(folder: Path, documents: Iterable[Document]) -> Path:
    with BratWriter(folder) as writer:
        for document in documents:
            writer.write(document)
    return folder


def one_section(text: str, *found: Entity, identifier: str = "a", **extra: Any) -> Document:
    return Document(identifier, (Section("text", text, found, extra),))


# What nertool writes


def what_brat_holds(document: Document) -> dict[str, Any]:
    """Returns the JSON of what is left of a document without what `brat_losses` counts."""
    text, found = "", []
    for number, section in enumerate(document.sections):
        text += "\n\n" if number else ""
        for entity in section.entities:
            if any(
                section.text[start:end].splitlines() != [""] * len(section.text[start:end].splitlines())
                for start, end in entity.spans
            ):
                found.append(
                    replace(
                        entity, spans=tuple(Span(start + len(text), end + len(text)) for start, end in entity.spans)
                    )
                )
        text += section.text
    return document_to_json(one_section(text, *found, identifier=safe_file_name(document.id)))


@settings(max_examples=80, deadline=None)
@given(document=rich_documents())
def test_whatever_documents_hold_comes_back_or_is_counted(document, tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("brat"), [document])
    (file,) = folder.glob("*.ann")
    (record,) = read_brat(file)
    assert (record.problems, record.notes) == ((), {})
    again, losses = record.document, brat_losses(document)
    assert document_to_json(again) == what_brat_holds(document)
    sections = document.sections
    all_entities = sum(len(section.entities) for section in sections)
    assert losses == +Counter({
        "documents whose sections became one text": len(sections) != len(again.sections),
        "section names": sum(section.name != "text" for section in sections),
        "metadata and other facts of documents and sections": bool(document.extra)
        + sum(bool(section.extra) for section in sections),
        "ids that are no file names": again.id != document.id,
        LINE_BREAKS_ONLY: all_entities - len(again.sections[0].entities),
    })  # fmt: skip
    if not losses:
        assert document_to_json(again) == document_to_json(document)


@settings(max_examples=60, deadline=None)
@given(document=rich_documents())
def test_brat_would_take_each_line(document, tmp_path_factory):
    """By the rules in its own parser: fragments apart, in one line each, with exactly their text, joined by spaces."""
    folder = write(tmp_path_factory.mktemp("brat"), [document])
    (file,) = folder.glob("*.ann")
    text = file.with_suffix(".txt").read_bytes().decode()
    lines = file.read_bytes().decode().splitlines()
    identifiers = [line.partition("\t")[0] for line in lines if line[0] in "T#N"]
    assert len(set(identifiers)) == len(identifiers)
    types = set(
        re.search(r"\[entities\]\n(.*)\[relations\]", (folder / "annotation.conf").read_text(), re.DOTALL)[1].split()
    )
    for line in lines:
        identifier, fields, tail = line.split("\t", 2)
        if identifier[0] == "T":
            label, _, offsets = fields.partition(" ")
            assert re.fullmatch("[A-Za-z0-9_-]+", label)
            assert label in types
            spans = [tuple(map(int, pair.split())) for pair in offsets.split(";")]
            assert all(one[1] < other[0] for one, other in pairwise(spans))
            assert tail == " ".join(text[start:end] for start, end in spans)
        elif identifier[0] == "N":
            assert re.fullmatch(r"Reference T\d+ [^\s:]+:\S+", fields)
        else:
            assert re.fullmatch(r"nertool T\d+", fields)
            assert tail.isascii()
            assert json.loads(tail)


def test_files_look_as_brat_documents_them(tmp_path):
    gene = Entity("gene", (Span(3, 7),), "IL-2", "brat", extra={"metadata": {"identifiers": "NCBI:3558,HGNC:6001"}})
    cancer = Entity("Cell line", (Span(11, 15), Span(26, 32)), "lung cancer", "brat", 0.5)
    over_two_lines = Entity("x", (Span(11, 19),), "lung\nand", "brat")
    document = one_section(TEXT, gene, cancer, over_two_lines)
    write(tmp_path, [document])
    assert (tmp_path / "a.txt").read_bytes() == TEXT.encode()
    assert (tmp_path / "a.ann").read_text().splitlines() == [
        "T1\tgene 3 7\tIL-2",
        "N1\tReference T1 NCBI:3558\tIL-2",
        "N2\tReference T1 HGNC:6001\tIL-2",
        "T2\tCell_line 11 15;26 32\tlung cancer",
        '#2\tnertool T2\t{"metadata": {"score": 0.5}, "entity_class": "Cell line"}',
        "T3\tx 11 15;16 19\tlung and",
    ]
    assert (tmp_path / "annotation.conf").read_text().split("[relations]")[0] == "[entities]\nCell_line\ngene\nx\n\n"
    (again,) = read_documents(tmp_path, ReadReport())
    expected = replace(cancer, extra={"metadata": {"score": 0.5}})
    assert document_to_json(again) == document_to_json(one_section(TEXT, gene, expected, over_two_lines))


def test_the_reference_library_reads_what_nertool_writes(tmp_path):
    text = "IL-2 in lung and liver cancer"
    found = [Entity("gene", (Span(0, 4),), "IL-2"), Entity("disease", (Span(8, 12), Span(23, 29)), "lung cancer")]
    write(tmp_path, [one_section(text, *found)])
    (document,) = reference.listdir(tmp_path)
    assert document.text == text
    assert [(entity.type, entity.text) for entity in document.entities] == [
        ("gene", "IL-2"),
        ("disease", "lung cancer"),
    ]
    assert [sorted((span.begin, span.end) for span in entity.locations) for entity in document.entities] == [
        [(0, 4)],
        [(8, 12), (23, 29)],
    ]
    assert [json.loads(note.text) for note in document.notes] == [{"namespace": "nertool"}] * 2


def test_changes_that_people_make_in_brat_count_more_than_the_notes(tmp_path):
    entity = Entity("Cell line", (Span(0, 2), Span(2, 4)), "IL-2", score=0.5)
    write(tmp_path, [one_section("IL-2 in", entity)])
    ann = (tmp_path / "a.ann").read_text()
    assert entities(tmp_path, ann, "IL-2 in") == [("Cell line", entity.spans, "IL-2")]
    changed = ann.replace("T1\tCell_line 0 4\tIL-2", "T1\tGene 0 7\tIL-2 in")
    assert entities(tmp_path, changed, "IL-2 in") == [("Gene", (Span(0, 7),), "IL-2 in")]


# What others write


def test_a_document_of_the_reference_library_is_read(tmp_path):
    document = reference.BratDocument()
    document.text = "IL-2 in lung and liver cancer"
    for number, spans in enumerate([[(0, 4)], [(23, 29), (8, 12)]], start=1):
        entity = reference.BratEntity()
        entity.id, entity.type = f"T{number}", "Thing"
        for span in spans:
            entity.add_span(*span)
        entity.text = " ".join(document.text[start:end] for start, end in sorted(spans))
        document.add_annotation(entity)
    with (tmp_path / "a.txt").open("w") as text, (tmp_path / "a.ann").open("w") as ann:
        reference.dump(document, text, ann)
    (record,) = read_brat(tmp_path / "a.ann")
    assert record.document.sections[0].entities == (
        Entity("Thing", (Span(0, 4),), "IL-2", "brat"),
        Entity("Thing", (Span(8, 12), Span(23, 29)), "lung cancer", "brat"),
    )


def test_all_kinds_of_lines_are_read_or_counted(tmp_path):
    ann = """T1	Gene 3 7	IL-2
T2	Binding 16 19	and
E1	Binding:T2 Theme:T1
R1	Part Arg1:T1 Arg2:T2
*	Equiv T1 T2
A1	Negated E1
A2	Sure T1 high
M1	Speculation E1
N1	Reference T1 NCBI:3558	interleukin 2
N2	Reference E1 GO:1	binding
#1	AnnotatorNotes T1	is this right?
#2	nertool T9	{}

"""
    record = read(tmp_path, ann)
    (gene, trigger) = record.document.sections[0].entities
    assert (gene.extra, trigger.label, trigger.extra) == ({"metadata": {"identifiers": "NCBI:3558"}}, "Binding", {})
    assert record.notes == {
        "attributes, which nertool does not use": 3,
        "events, which nertool does not use": 1,
        "notes, which nertool does not use": 1,
        RELATIONS: 2,
        UNTIED: 2,
    }


@pytest.mark.parametrize(
    "ann",
    [
        "T1\tX 11 15;16 25\tlung and liver",  # as brat writes it
        "T1\tX 11 25\tlung and liver",
        "T1\tX 11 25\tlung  and liver\r\n",
        "\ufeffT1\tX 16 25;11 15\tlung and liver",
        "T1\tX 11 25",
    ],
)
def test_an_entity_over_two_lines_is_one_span_however_it_is_written(tmp_path, ann):
    assert entities(tmp_path, ann) == [("X", (Span(11, 25),), "lung\nand liver")]


def test_line_ends_of_the_text_are_kept_and_counted(tmp_path):
    found = entities(tmp_path, "T1\tX 34 38\tIL-2\r\nT2\tX 26 32;34 38\tcancer IL-2")
    assert found == [("X", (Span(34, 38),), "IL-2"), ("X", (Span(26, 38),), "cancer\r\nIL-2")]
    assert read(tmp_path, "", "a\r\n\rb\n").document.sections[0].text == "a\r\n\rb\n"


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("mark", [True, False])
def test_other_units_and_byte_order_marks_are_read_where_all_mentions_show_it(tmp_path, unit, mark):
    text = f"😀{TEXT}"
    ends = [(length(text[:start], unit), length(text[:end], unit)) for start, end in ((4, 8), (21, 26))]
    lines = [
        f"T{number}\tX {start} {end}\t{mention}"
        for number, ((start, end), mention) in enumerate(zip(ends, ("IL-2", "liver"), strict=True))
    ]
    record = read(tmp_path, "\n".join(lines), f"\ufeff{text}" if mark else text)
    assert [entity.match for entity in record.document.sections[0].entities] == ["IL-2", "liver"]
    assert record.document.sections[0].text == text
    assert record.notes == ({} if unit == UNITS[0] else {other_unit_note(unit): 1})
    record = read(tmp_path, "\n".join([*lines, "T9\tX 17 20\tnonsense"]), text)
    assert "but the line says 'nonsense'" in str(record.problems[-1])


# Files and folders


def test_texts_and_configuration_are_part_of_the_annotations(tmp_path):
    write(tmp_path, [one_section(TEXT, identifier="b.c"), one_section("x", identifier="a.pubtator")])
    (tmp_path / "visual.conf").write_text("[labels]")
    (tmp_path / "other.txt").write_text("other")
    for texts, name, expected, ignored in (
        (False, None, ["a.pubtator", "b.c"], ["other.txt"]),
        (True, None, ["a.pubtator", "b.c", "other"], []),
        (False, "brat", ["a.pubtator", "b.c"], ["other.txt"]),
        (
            False,
            "text",
            ["a.pubtator", "b.c", "other"],
            ["a.pubtator.ann", "annotation.conf", "b.c.ann", "visual.conf"],
        ),
    ):
        report = ReadReport()
        documents = read_documents(tmp_path, report, texts=texts, format_name=name)
        assert [document.id for document in documents] == expected
        assert report.ignored_files == ignored


def test_ids_that_are_no_file_names_stay_in_the_folder(tmp_path):
    documents = [one_section("x", identifier=identifier) for identifier in ("../a", "A", "a", "x" * 300, "annotation")]
    write(tmp_path / "out", documents)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    report = ReadReport()
    assert len(list(read_documents(tmp_path / "out", report))) == 5
    assert report.ignored_files == []
    assert [sum(brat_losses(document).values()) for document in documents] == [1, 0, 0, 1, 0]


# What is wrong


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("T2\tGene 3 6\tIL-2", "line 2: 3–6 is 'IL-' in the text, but the line says 'IL-2'"),
        ("T2\tGene 3 7;11 15\tlung IL-3", "line 2: 3–7, 11–15 is 'IL-2 lung' in the text, but the line says"),
        ("T2\tGene 34 39\tIL-2 ", "line 2: 34–39 is not a place in the text"),
        ("T2\tGene 7 3\tIL-2", "line 2: 7–3 is not a place in the text"),
        ("T2\tGene 3 3\t", "line 2: 3–3 is not a place in the text"),
        ("T2\tGene 3 7;90 91\tIL-2 x", "line 2: 3–7, 90–91 is not a place in the text"),
        (f"T2\tGene {'9' * 5000} 7\tIL-2", "line 2: neither an entity"),
        ("T2\tGene -3 7\tIL-2", "line 2: neither an entity"),
        ("T2\tGene 3 x\tIL-2", "line 2: neither an entity"),
        ("T2 Gene 3 7 IL-2", "line 2: neither an entity"),
        ("T2\t3 7\tIL-2", "line 2: neither an entity"),
        ("N2\tReference T1", "line 2: neither an entity"),
        ("Gene\t3\t7", "line 2: neither an entity"),
        ("T1\tGene 3 7\tIL-2", "line 2: a second T1"),
        ("#1\tnertool T1\t[", "line 2: the note 'nertool' is not what nertool writes"),
        ("#1\tnertool T1\t[]", "line 2: the note 'nertool' is not what nertool writes"),
        ('#1\tnertool T1\t{"metadata": []}', "line 2: the note 'nertool' is not what nertool writes"),
        ('#1\tnertool T1\t{"mapping": 1}', "sections[0].entities[0]: unknown key 'mapping'"),
        ('#1\tnertool T1\t{"_id": "\\ud83d"}', "holds what can't be written again"),
    ],
)
def test_a_wrong_line_is_reported_with_its_number(tmp_path, line, problem):
    record = read(tmp_path, f"T1\tGene 3 7\tIL-2\n{line}\n")
    assert record.document is None
    assert str(record.problems[0]).startswith(problem)
    assert record.raw == (tmp_path / "a.ann").read_bytes()


@pytest.mark.parametrize("spans", [1, [1], [{"start": 0}], [{"start": "0", "end": "4"}], [{"start": -9, "end": 9}], []])
def test_spans_in_a_note_that_do_not_fit_are_passed_over(tmp_path, spans):
    note = json.dumps({"spans": spans})
    assert entities(tmp_path, f"T1\tX 3 7\tIL-2\n#1\tnertool T1\t{note}") == [("X", (Span(3, 7),), "IL-2")]


def test_classes_and_notes_may_be_called_anything(tmp_path):
    ann = 'T1\tNone 3 7\tIL-2\nT2\tnull 3 7\tIL-2\n#1\tnertool T1\t{"metadata": {"x": NaN}}\n'
    assert [label for label, _, _ in entities(tmp_path, ann)] == ["None", "null"]
    assert read(tmp_path, ann).notes == {"NaN or infinite numbers, read as null": 1}


def test_all_wrong_lines_are_reported(tmp_path):
    record = read(tmp_path, "T1\tGene 0 4\tIL-2\n?\nT2\tGene 0 99\tIL-2\nT3\tGene 3 7\tIL-2")
    assert sorted(problem.place for problem in record.problems) == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize(
    ("ann", "text", "problem"),
    [
        ("", None, "its text is missing: a.txt must be beside it"),
        (b"\xff", "x", "a.ann is not UTF-8: invalid start byte at byte 0"),
        ("", b"caf\xe9", "a.txt is not UTF-8: unexpected end of data at byte 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_and_the_others_go_on(tmp_path, ann, text, problem):
    write(tmp_path, [one_section("x", identifier="b")])
    record = read(tmp_path, ann, text)
    assert (record.document, str(record.problems[0])) == (None, problem)
    assert [document.id for document in read_documents(tmp_path, ReadReport(), skip_invalid=True)] == ["b"]


def test_a_name_that_cannot_be_an_id_is_reported(tmp_path):
    try:
        for ending in ("ann", "txt"):
            (tmp_path / f"caf\udce9.{ending}").write_text("")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (record,) = read_brat(tmp_path / "caf\udce9.ann")
    assert "not UTF-8" in str(record.problems[0])


@settings(max_examples=120, deadline=None)
@given(lines=st.lists(st.text(st.sampled_from("T1N#AR*\t 05;{}:a\r\x0b"), max_size=15), max_size=4))
def test_nothing_in_a_file_makes_reading_fail(lines, tmp_path_factory):
    record = read(tmp_path_factory.mktemp("brat"), "\n".join(lines), "a 0;5")
    assert (record.document is None) == bool(record.problems)
