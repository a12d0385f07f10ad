import gzip
import hashlib
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.commands.convert import run_convert
from nertool.documents import Document, Entity, Section, Span, document_to_json, dump_document
from nertool.errors import NertoolError
from nertool.formats import FORMATS, Format, ReadReport, Record, read_documents
from nertool.formats.base import RELATIONS
from nertool.formats.jsonl import JsonlWriter, read_jsonl
from nertool.formats.kazu import KazuWriter
from nertool.formats.pubtator import PubtatorWriter, pubtator_losses, read_pubtator
from nertool.formats.reading import format_to_write, read_records, write_rejected
from nertool.formats.text import TextWriter, text_losses
from nertool.settings import DataSettings, Settings
from tests.document_strategies import documents

BIORED = Path(__file__).parents[2] / "shared/data/biored"
SKIPPING = Settings(data=DataSettings(skip_invalid=True))
JSONL_ENDINGS = [".jsonl", ".jsonl.gz", ".jsonl.zst"]


def make_document(identifier: str, text: str = "IL-2 binds") -> Document:
    return Document(identifier, (Section("s", text, (Entity("gene", (Span(0, 4),), text[:4]),)),))


def write(writer_type, path: Path, documents) -> Path:
    with writer_type(path) as writer:
        for document in documents:
            writer.write(document)
    return path


def read(path: Path, **options) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    return list(read_documents(path, report, **options)), report


def error_of(path: Path, **options) -> NertoolError:
    with pytest.raises(NertoolError) as error:
        read(path, **options)
    return error.value


def rejected_in(path: Path) -> dict[str, str]:
    """Returns place → first reason of what a file of documents is rejected for."""
    _, report = read(path, skip_invalid=True)
    return {item.place.removeprefix(f"{path}"): str(item.problems[0]) for item in report.rejected}


# Folders


def test_documents_of_a_folder_come_in_the_order_of_file_names(tmp_path):
    for name in ("b", "10", "2", "a", "B"):
        (tmp_path / f"{name}.json").write_bytes(dump_document(make_document(name)))
    (tmp_path / "aa.jsonl").write_bytes(dump_document(make_document("x")) + b"\n" + dump_document(make_document("w")))
    documents, report = read(tmp_path)
    assert [document.id for document in documents] == ["10", "2", "B", "a", "x", "w", "b"]
    assert (report.documents, report.sections, report.entities) == (7, 7, 7)


def test_hidden_files_and_nertools_side_files_are_no_documents(tmp_path):
    """KAZU breaks on a .DS_Store."""
    write(KazuWriter, tmp_path, [make_document("a")])
    for name in (".DS_Store", ".a.json.tmp", ".nertool.json", "split.json", "rejected.jsonl"):
        (tmp_path / name).write_bytes(b"\x00\x00")
    documents, report = read(tmp_path)
    assert [document.id for document in documents] == ["a"]
    assert report.ignored_files == []


def test_subfolders_and_files_of_other_endings_are_reported_as_ignored(tmp_path):
    """KAZU crashes on a subfolder."""
    write(KazuWriter, tmp_path, [make_document("a")])
    (tmp_path / "sub.json").mkdir()
    write(KazuWriter, tmp_path / "sub", [make_document("b")])
    for name in ("notes.txt", "README.md", "data.csv", "json"):
        (tmp_path / name).write_text("not a document")
    documents, report = read(tmp_path)
    assert [document.id for document in documents] == ["a"]
    assert report.ignored_files == ["README.md", "data.csv", "json", "notes.txt", "sub/", "sub.json/"]
    assert report.to_json()["ignored_files"] == report.ignored_files


def test_a_folder_without_documents_is_an_error_that_names_its_subfolders(tmp_path):
    assert "holds no documents" in error_of(tmp_path).message
    (tmp_path / "train").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    error = error_of(tmp_path)
    assert "it has the folders train" in error.message
    assert error.hint == "name the folder that holds them"


def test_a_path_that_does_not_exist_is_an_error_that_names_it(tmp_path):
    assert error_of(tmp_path / "nowhere").message == f"{tmp_path / 'nowhere'} does not exist"


def test_a_single_file_is_read_by_its_ending_or_by_the_format_that_is_named(tmp_path):
    (tmp_path / "A.JSON").write_bytes(dump_document(make_document("a")))
    assert read(tmp_path / "A.JSON")[0] == [make_document("a")]
    (tmp_path / "corpus.dat").write_bytes(dump_document(make_document("a")))
    error = error_of(tmp_path / "corpus.dat")
    assert "the ending tells no format" in error.message
    assert "--from" in error.hint
    assert read(tmp_path / "corpus.dat", format_name="jsonl")[0] == [make_document("a")]


def test_an_unreadable_file_is_reported_not_skipped(tmp_path):
    """KAZU prints its name and goes on without it."""
    write(KazuWriter, tmp_path, [make_document("a")])
    (tmp_path / "b.json").symlink_to(tmp_path / "gone")
    for skip_invalid in (False, True):
        assert error_of(tmp_path, skip_invalid=skip_invalid).message.startswith(f"cannot read {tmp_path / 'b.json'}: ")


def test_an_id_that_is_used_twice_is_reported_with_both_places(tmp_path):
    write(KazuWriter, tmp_path, [make_document("a")])
    write(JsonlWriter, tmp_path / "b.jsonl", [make_document("b"), make_document("a", "IL-2 again")])
    message = error_of(tmp_path).message
    assert f"{tmp_path / 'b.jsonl'}:2: idx: the id 'a' is already used by {tmp_path / 'a.json'}" in message
    documents, report = read(tmp_path, skip_invalid=True)
    assert [document.id for document in documents] == ["a", "b"]
    assert orjson.loads(report.rejected[0].raw) == document_to_json(make_document("a", "IL-2 again"))


# Invalid documents


def make_invalid(number: int = 1) -> bytes:
    entity = {"match": "x", "entity_class": "gene", "namespace": "n", "spans": [{"start": 0, "end": 1000}] * number}
    return json.dumps({"idx": "bad", "sections": [{"name": "s", "text": "x", "entities": [entity]}]}).encode()


def test_every_invalid_document_is_named_with_file_and_line_and_place_in_one_message(tmp_path):
    good = dump_document(make_document("a"))
    (tmp_path / "a.jsonl").write_bytes(good + b"\n\n" + make_invalid() + b"\nnot json\n" + make_invalid(8))
    (tmp_path / "b.json").write_bytes(b"[]")
    report = ReadReport()
    documents = read_documents(tmp_path, report)
    assert next(documents) == make_document("a")
    with pytest.raises(NertoolError) as error:
        list(documents)
    lines = error.value.message.splitlines()
    assert lines[0] == "4 invalid documents:"
    assert lines[1].startswith(f"  {tmp_path}/a.jsonl:3: sections[0].entities[0].spans[0]: [0, 1000) ends past the end")
    assert lines[2].startswith(f"  {tmp_path}/a.jsonl:4: not valid JSON")
    assert [line.partition(": ")[0] for line in lines[3:9]] == [f"  {tmp_path}/a.jsonl:5"] * 6
    assert lines[8].endswith("and 3 more")
    assert lines[9] == f"  {tmp_path}/b.json: a document must be a JSON object, not a list"
    assert "--skip-invalid" in error.value.hint
    assert len(report.rejected) == 4


def test_with_skip_invalid_the_bad_ones_are_set_aside_with_their_reasons_and_bytes(tmp_path):
    broken = b'{"idx": "\xff"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([make_invalid(), dump_document(make_document("a")), broken]))
    documents, report = read(tmp_path, skip_invalid=True)
    assert documents == [make_document("a")]
    assert (report.documents, report.to_json()["rejected"]) == (1, 2)
    write_rejected(report, tmp_path / "rejected.jsonl")
    first, second = map(orjson.loads, (tmp_path / "rejected.jsonl").read_bytes().splitlines())
    assert first["place"] == f"{tmp_path}/a.jsonl:1"
    assert first["problems"][0]["place"] == "sections[0].entities[0].spans[0]"
    assert first["raw"].encode().rstrip() == make_invalid()
    assert second["problems"] == [{"place": "", "reason": "not UTF-8: invalid start byte at byte 9"}]


def test_a_file_of_rejected_documents_is_only_made_if_there_are_any(tmp_path):
    write_rejected(ReadReport(), tmp_path / "rejected.jsonl")
    assert not (tmp_path / "rejected.jsonl").exists()


@pytest.mark.parametrize("to", ["jsonl", "kazu"])
def test_many_invalid_documents_fill_neither_memory_nor_the_screen(to, tmp_path, capsys):
    size, count = 100_000, 300
    with (tmp_path / "a.jsonl").open("wb") as file:
        for number in range(count):
            file.write(b'{"number": %d, "sections": "%s"}\n' % (number, b"x" * size))
        file.write(dump_document(make_document("good")))
    output = tmp_path / ("out.jsonl" if to == "jsonl" else "out")
    tracemalloc.start()
    result = run_convert(tmp_path / "a.jsonl", output, SKIPPING, to_format=to)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000 < size * count
    assert (result["written"], result["read"]["rejected"]) == (1, count)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) < 120 and f"{count} invalid documents were set aside" in shown
    beside = output / "rejected.jsonl" if to == "kazu" else tmp_path / "out.jsonl.rejected.jsonl"
    with beside.open("rb") as lines:
        assert [orjson.loads(orjson.loads(line)["raw"])["number"] for line in lines] == list(range(count))
    with pytest.raises(NertoolError) as error:
        run_convert(tmp_path / "a.jsonl", tmp_path / "again", Settings(), to_format="kazu")
    assert error.value.message.startswith(f"{count} invalid documents:") and "\n  and 200 more" in error.value.message
    assert error.value.message.count("\n") < 220
    (tmp_path / "good.jsonl").write_bytes(dump_document(make_document("good")))
    run_convert(tmp_path / "good.jsonl", output, SKIPPING, to_format=to, force=True)
    assert not beside.exists()


def test_metadata_that_is_too_deep_to_be_written_is_a_problem_of_its_line(tmp_path):
    deep: dict[str, object] = {}
    for _ in range(250):
        deep = {"x": deep}
    document = Document("d", (Section("s", "x"),), {"metadata": deep})
    (tmp_path / "a.jsonl").write_bytes(dump_document(document))
    with pytest.raises(NertoolError) as error:
        run_convert(tmp_path / "a.jsonl", tmp_path / "a.labelstudio.json", Settings())
    assert "a.jsonl:1: holds what can't be written again" in error.value.message


def test_if_all_documents_are_invalid_skip_invalid_gives_none_and_counts_them(tmp_path):
    (tmp_path / "a.json").write_bytes(make_invalid())
    documents, report = read(tmp_path, skip_invalid=True)
    assert documents == []
    assert len(report.rejected) == 1


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from("good bad same blank json".split()), min_size=1, max_size=12))  # noqa: SIM905
def test_nothing_is_dropped_silently(kinds, tmp_path_factory):
    lines = {"bad": make_invalid(), "same": dump_document(make_document("same")), "blank": b" \t", "json": b"{}"}
    file = tmp_path_factory.mktemp("mixed") / "a.jsonl"
    content = [
        dump_document(make_document(str(number))) if kind == "good" else lines[kind]
        for number, kind in enumerate(kinds)
    ]
    file.write_bytes(b"\r\n".join(content))
    if set(kinds) == {"blank"}:
        assert error_of(file).message == f"{file} holds no documents"
        return
    documents, report = read(file, skip_invalid=True)
    expected = kinds.count("good") + bool(kinds.count("same")) + bool(kinds.count("json"))
    assert len(documents) == report.documents == expected
    assert report.documents + len(report.rejected) == len(kinds) - kinds.count("blank")


def test_nan_is_noted_with_a_count(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"idx": "a", "metadata": {"x": [NaN, NaN]}}\n{"idx": "b", "metadata": {"x": NaN}}'
    )
    assert read(tmp_path)[1].to_json()["notes"] == {"NaN or infinite numbers, read as null": 3}


# JSONL


def make_many(count: int = 300) -> list[Document]:
    """Returns documents that hardly compress, so that cutting a file anywhere cuts through them."""
    return [
        make_document(f"d{number}", f"IL-2 {hashlib.sha256(b'%d' % number).hexdigest()} é😀") for number in range(count)
    ]


@pytest.mark.parametrize("ending", JSONL_ENDINGS)
def test_what_is_written_as_jsonl_is_read_back_and_the_bytes_are_the_same_each_time(tmp_path, ending):
    first = write(JsonlWriter, tmp_path / f"a{ending}", make_many())
    second = write(JsonlWriter, tmp_path / f".b{ending}", make_many())
    assert read(first)[0] == make_many()
    assert first.read_bytes() == second.read_bytes()
    second.rename(tmp_path / f"B{ending.upper()}")
    assert read(tmp_path / f"B{ending.upper()}")[0] == make_many()


def test_compressed_files_are_what_other_tools_read(tmp_path):
    plain = write(JsonlWriter, tmp_path / "a.jsonl", make_many()).read_bytes()
    assert gzip.decompress(write(JsonlWriter, tmp_path / "a.jsonl.gz", make_many()).read_bytes()) == plain
    with zstandard.open(write(JsonlWriter, tmp_path / "a.jsonl.zst", make_many()), "rb") as file:
        assert file.read() == plain


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_compressed_file_is_reported_wherever_it_is_cut(tmp_path, ending):
    data = write(JsonlWriter, tmp_path / f"whole{ending}", make_many()).read_bytes()
    file = tmp_path / f"cut{ending}"
    for length in (1, 5, 12, len(data) // 2, len(data) - 10, len(data) - 4, len(data) - 1):
        file.write_bytes(data[:length])
        documents, report = read(file, skip_invalid=True)
        assert documents == make_many()[: len(documents)]
        (rejected,) = report.rejected
        assert rejected.place == f"{file}:{len(documents) + 1}"
        assert str(rejected.problems[0]).startswith("the compressed file is broken: ")
        assert "the compressed file is broken" in error_of(file).message


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_damaged_compressed_file_is_reported(tmp_path, ending):
    data = write(JsonlWriter, tmp_path / f"whole{ending}", make_many()).read_bytes()
    file = tmp_path / f"damaged{ending}"
    for position in (0, 4, 10, 11, len(data) // 2, len(data) - 6):
        file.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        if read(file, skip_invalid=True)[0] != make_many():  # a header byte may be without meaning
            error_of(file)
    file.write_bytes(b"plain text\n")
    assert list(rejected_in(file)) == [":1"]


def test_several_frames_and_frames_to_skip_are_read_as_one_file(tmp_path):
    """So pzstd and `cat a.zst b.zst` write them."""
    lines = [dump_document(document) + b"\n" for document in make_many(6)]
    frames = [zstandard.compress(b"".join(part)) for part in (lines[:2], lines[2:4], lines[4:])]
    to_skip = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"size"
    (tmp_path / "a.jsonl.zst").write_bytes(to_skip.join([b"", *frames]))
    assert read(tmp_path / "a.jsonl.zst")[0] == make_many(6)
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))
    assert read(tmp_path / "a.jsonl.gz")[0] == make_many(6)


@pytest.mark.parametrize("ending", JSONL_ENDINGS)
def test_windows_line_ends_blank_lines_and_a_missing_last_line_end_are_fine(tmp_path, ending):
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(ending.removeprefix(".jsonl"), bytes)
    lines = [b"\xef\xbb\xbf" + dump_document(make_document("a")), b"", b"   ", dump_document(make_document("b"))]
    (tmp_path / f"a{ending}").write_bytes(compress(b"\r\n".join(lines)))
    assert read(tmp_path)[0] == [make_document("a"), make_document("b")]
    assert [record.place for record in read_jsonl(tmp_path / f"a{ending}")] == [
        f"{tmp_path}/a{ending}:1",
        f"{tmp_path}/a{ending}:4",
    ]


def test_a_line_longer_than_any_buffer_is_read_whole(tmp_path):
    document = make_document("long", "IL-2 " + "x" * 3_000_000)
    for ending in JSONL_ENDINGS:
        assert read(write(JsonlWriter, tmp_path / f"a{ending}", [document, make_document("b")]))[0][0] == document


@pytest.mark.parametrize("ending", JSONL_ENDINGS)
def test_an_empty_file_holds_no_documents(tmp_path, ending):
    write(JsonlWriter, tmp_path / f"a{ending}", [])
    assert "holds no documents" in error_of(tmp_path / f"a{ending}").message


# KAZU folders


def test_ids_decide_on_file_names_only_after_they_were_made_safe(tmp_path):
    identifiers = ["../../x", "a/b", "a%2Fb", "", ".hidden", "x" * 300, "case", "CASE", "Case", "é", "split.json"]
    documents = [make_document(identifier) for identifier in identifiers]
    write(KazuWriter, tmp_path / "out", documents)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len({name.casefold() for name in names}) == len(names) == len(identifiers)
    again, report = read(tmp_path / "out")
    assert sorted(again, key=lambda document: document.id) == sorted(documents, key=lambda document: document.id)
    assert report.rejected == report.ignored_files == []


def test_a_document_named_like_a_side_file_is_not_taken_for_one(tmp_path):
    write(KazuWriter, tmp_path / "out", [make_document("split"), make_document("rejected")])
    assert {document.id for document in read(tmp_path / "out")[0]} == {"split", "rejected"}


# Texts


def test_plain_texts_are_documents_where_texts_are_wanted(tmp_path):
    (tmp_path / "a.b.txt").write_bytes("\ufeffIL-2 é😀\r\nx".encode())
    (tmp_path / "empty.txt").write_bytes(b"")
    documents, _ = read(tmp_path, texts=True)
    assert documents == [
        Document("a.b", (Section("text", "IL-2 é😀\r\nx"),)),
        Document("empty", (Section("text", ""),)),
    ]
    assert read(tmp_path / "a.b.txt")[0] == documents[:1]
    assert "holds no documents, only texts" in error_of(tmp_path).message
    assert "nertool annotate" in error_of(tmp_path).hint


def test_texts_are_written_and_what_they_cannot_hold_is_counted(tmp_path):
    documents = [
        Document("a.b", (Section("text", "\ufeffIL-2 é😀\r\nx"),)),
        Document("c/d", (Section("title", "IL-2"), *make_document("", "TP53 é").sections), {"metadata": {"pmid": 1}}),
    ]
    write(TextWriter, tmp_path / "out", documents)
    assert read(tmp_path / "out", texts=True)[0] == [
        documents[0],
        Document("c%2Fd", (Section("text", "IL-2\n\nTP53 é"),)),
    ]
    assert not text_losses(documents[0])
    assert text_losses(documents[1]) == {
        "entities": 1,
        "documents whose sections became one text": 1,
        "section names": 2,
        "metadata and other facts of documents and sections": 1,
        "ids that are no file names": 1,
    }


@pytest.mark.parametrize(
    ("name", "ids", "clashes"),
    [
        ("text", ["Case", "case", "CASE", "é", "É", "a"], 2),
        ("brat", ["Case", "case", "CASE", "é", "É", "a"], 2),
        ("pubtator", ["a|b", "a_b", "a\tb", "A_b", "c"], 2),
        ("kazu", ["Case", "case"], 0),
        ("conll", ["a|b", "a_b"], 0),
    ],
)
def test_ids_that_become_equal_in_a_format_are_told_apart_and_counted(name, ids, clashes, tmp_path):
    write(JsonlWriter, tmp_path / "in.jsonl", [make_document(one) for one in ids])
    output = tmp_path / ("out" if FORMATS[name].folder else f"out.{name}")
    result = run_convert(tmp_path / "in.jsonl", output, Settings(), to_format=name)
    assert result["losses"].get("ids that are like another one's here, which got longer ones", 0) == clashes
    again, _ = read(output, texts=True)
    assert len({document.id.casefold() if name in ("text", "brat") else document.id for document in again}) == len(ids)


def test_an_id_that_would_make_a_text_something_else_is_counted(tmp_path):
    document = Document("x.pubtator", (Section("text", "IL-2"),))
    write(TextWriter, tmp_path / "out", [document])
    ((again,), _) = read(tmp_path / "out", texts=True)
    assert again.id != document.id and text_losses(document) == {"ids that are no file names": 1}


def test_of_a_format_that_is_named_only_files_with_its_endings_are_read_if_there_are_any(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b").write_text("y")
    documents, report = read(tmp_path, format_name="text")
    assert ([document.id for document in documents], report.ignored_files) == (["a"], ["b"])
    (tmp_path / "a.txt").unlink()
    assert [document.id for document in read(tmp_path, format_name="text")[0]] == ["b"]


def test_a_text_that_is_not_utf_8_is_reported_with_its_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert rejected_in(tmp_path / "a.txt") == {"": "not UTF-8: unexpected end of data at byte 3"}
    assert read(tmp_path / "a.txt", skip_invalid=True)[1].rejected[0].raw == b"caf\xe9"


def test_a_text_whose_name_cannot_be_an_id_is_reported(tmp_path):
    try:
        Path(tmp_path, "caf\udce9.txt").write_text("x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (tmp_path / "a.txt").write_text("x")
    documents, report = read(tmp_path, texts=True, skip_invalid=True)
    assert [document.id for document in documents] == ["a"]
    assert "not UTF-8" in str(report.rejected[0].problems[0])
    write_rejected(report, tmp_path / "rejected.jsonl")


# PubTator

PUBTATOR = """10|t|IL-2 and é😀 cancer
10|a|IL-2 again.
10\t0\t4\tIL-2\tGene\t3558
10\t9\t18\té😀 cancer\tDisease\tD009369
10\t19\t23\tIL-2\tGene
10\tAssociation\t3558\tD009369\tNovel

20|t|No abstract
20|a|
"""


def pubtator(folder: Path, text: str) -> Path:
    (folder / "a.pubtator").write_bytes(text.encode())
    return folder / "a.pubtator"


def test_pubtator_offsets_run_over_title_and_abstract_and_count_code_points(tmp_path):
    documents, report = read(pubtator(tmp_path, PUBTATOR))
    title, abstract = documents[0].sections
    assert (title.name, abstract.name) == ("title", "abstract")
    assert [entity.match for entity in title.entities + abstract.entities] == ["IL-2", "é😀 cancer", "IL-2"]
    assert [entity.spans for entity in title.entities + abstract.entities] == [((0, 4),), ((9, 18),), ((0, 4),)]
    assert [entity.extra for entity in title.entities] == [
        {"metadata": {"identifiers": "3558"}},
        {"metadata": {"identifiers": "D009369"}},
    ]
    assert documents[1] == Document("20", (Section("title", "No abstract"), Section("abstract", "")))
    assert report.notes == {RELATIONS: 1}


def test_windows_line_ends_a_byte_order_mark_and_further_blank_lines_are_fine_in_pubtator(tmp_path):
    text = "\ufeff\n\n" + PUBTATOR.replace("\n\n", "\n \n\n")
    assert read(pubtator(tmp_path, text.replace("\n", "\r\n")))[0] == read(pubtator(tmp_path, PUBTATOR))[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("10\t0\t3\tIL-2\tGene\t3558", "line 3: 0–3 is 'IL-' in the text, but the line says 'IL-2'"),
        ("10\t1\t5\tIL-2\tGene\t3558", "line 3: 1–5 is 'L-2 ' in the text, but the line says 'IL-2'"),
        ("10\t4\t4\t\tGene\t3558", "line 3: 4–4 is not a span inside the title"),
        ("10\t8\t4\tIL-2\tGene\t3558", "line 3: 8–4 is not a span inside the title"),
        ("10\t9\t20\té😀 cancer I\tGene\t3558", "line 3: 9–20 is not a span inside the title"),
        ("10\t18\t19\t \tGene\t3558", "line 3: 18–19 is not a span inside the title"),
        ("10\t19\t99\tIL-2\tGene\t3558", "line 3: 19–99 is not a span inside the abstract"),
        ("10\t999\t1000\tx\tGene\t3558", "line 3: 999–1000 is not a span inside the abstract"),
        ("10\t-4\t4\tIL-2\tGene\t3558", "line 3: neither a text line"),
        ("10\t0\tfour\tIL-2\tGene\t3558", "line 3: neither a text line"),
        ("10\t\t4\tIL-2\tGene\t3558", "line 3: neither a text line"),
        ("10\tx0\t4\tIL-2\tGene\t3558", "line 3: neither a text line"),
        ("10\t0.5\t4\tIL-2\tGene\t3558", "line 3: neither a text line"),
        ("10\t" + "9" * 5000 + "\t4\tIL-2\tGene\t3558", "line 3: neither a text line"),
        ("10\t0\t4\tIL-2\t\t3558", "line 3: neither a text line"),
        ("10\t0\t4\tIL-2", "line 3: neither a text line"),
        ("10\t0", "line 3: neither a text line"),
        ("what is this", "line 3: neither a text line"),
        ("10|t|Another title", "line 3: a second title line"),
        ("11\t0\t4\tIL-2\tGene\t3558", "one id expected before a blank line, found 10, 11"),
    ],
)
def test_a_wrong_pubtator_line_is_reported_with_its_number_and_the_rest_goes_on(tmp_path, line, reason):
    lines = PUBTATOR.splitlines()
    file = pubtator(tmp_path, "\n".join([*lines[:2], line, *lines[2:]]))
    problems = rejected_in(file)
    assert list(problems) == [":1"]
    assert problems[":1"].startswith(reason)
    assert [document.id for document in read(file, skip_invalid=True)[0]] == ["20"]


def test_a_pubtator_block_without_title_or_in_another_encoding_is_reported(tmp_path):
    assert rejected_in(pubtator(tmp_path, "10|a|Only an abstract")) == {":1": "the title line (ID|t|…) is missing"}
    (tmp_path / "b.pubtator").write_bytes(b"10|t|caf\xe9\n\n11|t|fine\n")
    assert rejected_in(tmp_path / "b.pubtator") == {":1": "not UTF-8"}


def test_an_annotation_in_a_missing_abstract_is_reported(tmp_path):
    file = pubtator(tmp_path, "10|t|IL-2\n10\t5\t9\tIL-2\tGene\n")
    assert rejected_in(file) == {":1": "line 2: 5–9 is not a span inside the abstract"}


line_texts = st.text(st.characters(exclude_characters="\r\n\t", exclude_categories=["Cs"]), max_size=30)


@st.composite
def pubtator_documents(draw):
    sections = []
    for name in ("title", "abstract"):
        text = draw(line_texts)
        ends = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4)) if text else []
        entities = []
        for one, other in ends:
            start, end = sorted((min(one, len(text) - 1), min(other, len(text))))
            end = max(end, start + 1)
            label = draw(line_texts.filter(bool))
            identifiers = draw(line_texts)
            extra = {"metadata": {"identifiers": identifiers}} if identifiers else {}
            entities.append(Entity(label, (Span(start, end),), text[start:end], "pubtator", extra=extra))
        sections.append(Section(name, text, tuple(entities)))
    return Document(str(draw(st.integers(0, 10**8))), tuple(sections))


@settings(max_examples=80, deadline=None)
@given(documents=st.lists(pubtator_documents(), min_size=1, max_size=3, unique_by=lambda document: document.id))
def test_titles_and_abstracts_survive_pubtator_without_loss(documents, tmp_path_factory):
    file = tmp_path_factory.mktemp("pubtator") / "a.pubtator"
    with PubtatorWriter(file) as writer:
        for document in documents:
            writer.write(document)
    assert not sum(map(pubtator_losses, documents), Counter())
    again = [record.document for record in read_pubtator(file)]
    assert list(map(document_to_json, again)) == list(map(document_to_json, documents))


@pytest.mark.parametrize("name", ["pubtator", "text"])
@settings(max_examples=60, deadline=None)
@given(document=documents())
def test_a_document_comes_back_as_it_was_unless_losses_are_counted(document, name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trip")
    path = write(FORMATS[name].writer, folder / ("out" if FORMATS[name].folder else "out.pubtator"), [document])
    (after,) = read(path, format_name=name)[0]
    assert (document_to_json(after) == document_to_json(document)) == (not FORMATS[name].losses(document))


def test_what_pubtator_cannot_hold_is_counted_and_the_rest_has_right_offsets(tmp_path):
    text = "IL-2 and\nlung\tcancer"
    entities = (
        Entity("gene\tx", (Span(0, 4),), "IL-2", score=0.5),
        Entity("disease", (Span(9, 20),), "lung\tcancer", extra={"mappings": [1], "match_norm": "LUNG CANCER"}),
        Entity("disease", (Span(0, 2), Span(9, 13)), "IL lung"),
        Entity("disease", (Span(14, 20),), "cancer", extra={"metadata": {"identifiers": "a\nb", "other": 1}}),
    )
    sections = (
        Section("title", "T\r\nitle"),
        Section("body", text, entities, {"sentence_spans": [{"start": 0, "end": 20}], "metadata": {"a": 1}}),
        Section("end", "IL-2", (Entity("gene", (Span(0, 4),), "IL-2"),)),
    )
    documents = [Document("a|b", sections, {"metadata": {"pmid": 1}}), Document("empty", ())]
    with PubtatorWriter(tmp_path / "a.pubtator") as writer:
        for document in documents:
            writer.write(document)
    assert sum(map(pubtator_losses, documents), Counter()) == {
        "discontinuous entities (left out)": 1,
        "scores, mappings and other facts of entities": 3,
        "namespaces of entities": 5,
        "documents without title or abstract, which got empty ones": 1,
        "documents whose sections beyond the title became one abstract": 1,
        "section names": 1,
        "metadata and sentence spans of documents and sections": 3,
        "texts whose line breaks or tabs became spaces": 2,
        "ids and classes whose separators were replaced": 2,
    }
    first, second = read(tmp_path / "a.pubtator")[0]
    assert (first.id, second.id) == ("a_b", "empty")
    assert [section.text for section in first.sections] == ["T  itle", "IL-2 and lung cancer IL-2"]
    assert [(entity.label, entity.match) for entity in first.sections[1].entities] == [
        ("gene x", "IL-2"),
        ("disease", "lung cancer"),
        ("disease", "cancer"),
        ("gene", "IL-2"),
    ]


# Real data


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "documents", "entities"), [("BioRED_TrainDev.PubTator", 500, 16_884), ("BioRED_Test.PubTator", 100, 3_535)]
)
def test_biored_is_read_whole_and_survives_every_format(tmp_path, name, documents, entities):
    if not (BIORED / name).is_file():
        pytest.skip(f"{BIORED / name} is not there")
    original, report = read(BIORED / name)
    assert (report.documents, report.entities, report.rejected) == (documents, entities, [])
    assert not report.notes
    expected = {document.id: document_to_json(document) for document in original}
    for to_format, path in (("pubtator", "a.pubtator"), ("jsonl", "a.jsonl.zst"), ("kazu", "folder")):
        with FORMATS[to_format].writer(tmp_path / path) as writer:
            for document in original:
                writer.write(document)
        assert not any(map(FORMATS[to_format].losses or (lambda _: None), original))
        assert {document.id: document_to_json(document) for document in read(tmp_path / path)[0]} == expected


@pytest.mark.parametrize(
    ("output", "name", "expected"),
    [
        ("out", None, "kazu"),
        ("out.bioc.json", None, "bioc"),
        ("out.json", "bioc", "bioc"),
        ("out.jsonl.gz", None, "jsonl"),
        ("rows.jsonl", "datasets", "datasets"),
        ("tasks.json", "labelstudio", "labelstudio"),
        ("a.ann", None, "a.ann looks like a file, and brat makes a folder"),
        ("a.json", None, "a.json looks like a file, and kazu makes a folder"),
        ("a.jsonl.gz", "datasets", "a.jsonl.gz ends like jsonl, and is going to be datasets"),
        ("a.jsonl", "conll", "a.jsonl ends like jsonl, and is going to be conll"),
    ],
)
def test_what_an_output_is_going_to_be(output, name, expected):
    if expected in FORMATS:
        assert format_to_write(Path(output), name)[0] == expected
    else:
        with pytest.raises(NertoolError, match=expected):
            format_to_write(Path(output), name)


def foreign_task(number, start=0, score=0.5):
    region = {"type": "labels", "value": {"start": start, "end": 1, "labels": ["x"]}}
    return {"id": number, "data": {"text": "x"}, "predictions": [{"score": score, "result": [region]}]}


@pytest.mark.parametrize("bad", [foreign_task(2, score=10**400), foreign_task(2, start=[])])
def test_tasks_behind_one_that_can_not_be_read_are_read(tmp_path, bad):
    file = tmp_path / "a.labelstudio.json"
    file.write_text(json.dumps([foreign_task(1), bad, foreign_task(3)]))
    documents, report = read(file, skip_invalid=True)
    assert [document.id for document in documents] == ["1", "3"]
    assert len(report.rejected) == 1 and report.rejected[0].raw


def test_documents_behind_one_that_is_nested_too_deeply_are_read(tmp_path):
    file = tmp_path / "a.bioc.xml"
    deep = f"{'<a>' * 990}{'</a>' * 990}"
    wrong = f"<document><id>2</id>{deep}<passage><offset>x</offset><text>y</text></passage></document>"
    right = "<document><id>{}</id><passage><offset>0</offset><text>y</text></passage></document>"
    file.write_text(f"<collection>{right.format(1)}{wrong}{right.format(3)}</collection>")
    documents, report = read(file, skip_invalid=True)
    assert [document.id for document in documents] == ["1", "3"] and len(report.rejected) == 1


def test_what_no_reader_can_hold_is_a_problem_of_its_file(tmp_path):
    def read_deep(file):
        yield Record(str(file), make_document("a"))
        raise RecursionError

    records = list(read_records(tmp_path / "a", Format((".a",), read_deep, KazuWriter)))
    assert [record.document is None for record in records] == [False, True]
    assert "from there on it was not read" in str(records[1].problems[0])
