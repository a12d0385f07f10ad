"""Chunks: each document in exactly one, in order; shards part them; what can't be used is found as reading finds it."""

from collections import Counter
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool import chunks
from nertool.chunks import WHOLE, Check, Shard, check_chunk, list_sources, read_chunks
from nertool.documents import Document, Section, dump_document
from nertool.formats import ReadReport, Rejected, base, read_documents
from nertool.formats.standard_input import spool

PUBTATOR = "7|t|BRCA1\n7|a|x\n7\t0\t5\tBRCA1\tgene\n\n8|t|y\n\n"


def line(identifier: str, text: str = "x") -> bytes:
    return dump_document(Document(identifier, (Section("s", text),)))


def keys_and_ids(path: Path, size: int, shard: Shard = WHOLE) -> list[tuple[str, list[str]]]:
    found = read_chunks(list_sources(path, ReadReport(), size), size, shard)
    return [(chunk.key, [document.id for document in chunk.parse().documents]) for chunk in found]


def checked(path: Path, size: int = 3) -> tuple[Check, list[Rejected], list[str]]:
    """Returns what `predict` finds out first, what it sets aside, and the ids of what it predicts then."""
    rejected: list[Rejected] = []
    check = Check(rejected.extend)

    def read() -> list[chunks.Chunk]:
        return list(read_chunks(list_sources(path, ReadReport(), size), size))

    for chunk in read():
        check.add(check_chunk(chunk))
    left_out = check.repeated_ids(lambda keys: (chunk for chunk in read() if chunk.key in keys))
    predicted = [
        document.id
        for chunk in read()
        for document in chunk.without(left_out.get(chunk.key, frozenset())).parse().documents
    ]
    return check, rejected, predicted


# A file is (kind, the ids of its documents); "bad" is a document that can't be used.
files = st.lists(
    st.tuples(
        st.sampled_from(["jsonl", "json", "txt"]),
        st.lists(st.sampled_from(["a", "b", "c", "d", "bad", "blank"]), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=7,
)


def write(folder: Path, drawn: list[tuple[str, list[str]]]) -> Path:
    for number, (kind, ids) in enumerate(drawn):
        if kind == "jsonl":
            lines = [b"{}}" if one == "bad" else b"" if one == "blank" else line(one) for one in ids]
            (folder / f"{number}.jsonl").write_bytes(b"\n".join(lines))
        elif kind == "json":
            (folder / f"{number}.json").write_bytes(b"[]" if ids[0] == "bad" else line(ids[0]))
        else:
            (folder / f"{number}.txt").write_bytes(b"caf\xe9" if ids[0] == "bad" else b"text")
    return folder


@settings(max_examples=60, deadline=None)
@given(drawn=files, size=st.integers(1, 4), parts=st.integers(1, 4))
def test_each_document_is_in_one_chunk_in_order_and_in_one_shard(
    drawn: list[tuple[str, list[str]]], size: int, parts: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("in"), drawn)
    whole = keys_and_ids(folder, size)
    assert [key for key, _ in whole] == sorted({key for key, _ in whole})
    expected = [
        record.document.id
        for file in sorted(folder.iterdir())
        for record in chunks.list_sources(file, ReadReport(), 1).__next__().file_format.read(file)
        if record.document is not None
    ]
    assert [one for _, ids in whole for one in ids] == expected
    shards = [keys_and_ids(folder, size, Shard(number, parts)) for number in range(1, parts + 1)]
    assert sorted(chunk for shard in shards for chunk in shard) == whole


@settings(max_examples=60, deadline=None)
@given(drawn=files, size=st.integers(1, 4))
def test_what_can_not_be_used_is_found_as_reading_finds_it(
    drawn: list[tuple[str, list[str]]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("in"), drawn)
    oracle = ReadReport()
    documents = (
        [document.id for document in read_documents(folder, oracle, skip_invalid=True, texts=True)]
        if any(ids != ["blank"] * len(ids) or kind != "jsonl" for kind, ids in drawn)
        else []
    )
    check, rejected, predicted = checked(folder, size)
    assert predicted == documents
    assert (check.report.documents, check.report.sections) == (oracle.documents, oracle.sections)
    assert Counter((item.place, str(item.problems[0])) for item in rejected) == Counter(
        (item.place, str(item.problems[0])) for item in oracle.rejected
    )
    assert Counter(item.raw.strip() for item in rejected) == Counter(item.raw.strip() for item in oracle.rejected)


def test_what_is_in_other_formats_is_in_chunks_with_its_notes_and_problems(tmp_path: Path) -> None:
    (tmp_path / "a.pubtator").write_text(PUBTATOR + "9|a|no title\n\n7\t1\n")
    _, rejected, predicted = checked(tmp_path)
    assert predicted == ["7", "8"] and len(rejected) == 2
    assert rejected[0].place.endswith("a.pubtator:7") and b"no title" in rejected[0].raw


def test_long_documents_make_a_chunk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line(str(n), "x" * 1000) for n in range(5)))
    for n in range(5):
        (tmp_path / f"{n}.txt").write_text("x" * 1000)
    monkeypatch.setattr(chunks, "_BYTES_PER_CHUNK", 2500)
    assert [len(ids) for _, ids in keys_and_ids(tmp_path, 100)] == [2, 2, 1, 2, 2, 1]


def test_the_digest_tells_any_other_input(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(line("a") + b"\n" + line("b"))
    digest = checked(tmp_path)[0].digest
    assert checked(tmp_path)[0].digest == digest != checked(tmp_path, size=1)[0].digest
    file.write_bytes(line("a") + b"\n" + line("c"))
    assert checked(tmp_path)[0].digest != digest


def test_of_many_documents_that_can_not_be_used_few_are_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MOST_REJECTED_KEPT", 4)
    (tmp_path / "a.jsonl").write_bytes(b"{}}\n" * 10)
    check, rejected, _ = checked(tmp_path)
    assert len(rejected) == 10 and all(item.raw for item in rejected)
    assert (len(check.report.rejected), check.report.more_rejected) == (4, 6)
    assert not any(item.raw for item in check.report.rejected)
    assert check.report.to_json()["rejected"] == 10


@pytest.mark.parametrize(
    ("data", "format_name", "expected"),
    [
        (b"BRCA1 in\r\n\n  caf\xc3\xa9 \xf0\x9f\x98\x80", None, [("line-1", "BRCA1 in"), ("line-3", "  café 😀")]),
        (b"\xef\xbb\xbfx\n", None, [("line-1", "x")]),
        (b'{"not": "a document"}\n', "text", [("line-1", '{"not": "a document"}')]),
        (b"\xef\xbb\xbf" + line("a") + b"\n\n" + line("b"), None, [("a", "x"), ("b", "x")]),
        (b"", None, []),
    ],
)
def test_lines_on_stdin_are_texts_or_documents(
    data: bytes, format_name: str | None, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(data)
    with (tmp_path / "given").open("rb") as lines:
        file = spool(lines, tmp_path, format_name)
    read = [orjson.loads(one.removeprefix(b"\xef\xbb\xbf")) for one in file.read_bytes().splitlines() if one]
    assert [(document["idx"], document["sections"][0]["text"]) for document in read] == expected


def test_a_line_on_stdin_that_is_not_utf_8_is_reported_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"fine\ncaf\xe9\n\nfine, too")
    (tmp_path / "in").mkdir()
    with (tmp_path / "given").open("rb") as lines:
        spool(lines, tmp_path / "in")
    _, rejected, predicted = checked(tmp_path / "in")
    assert predicted == ["line-1", "line-4"]
    assert rejected[0].place.endswith("stdin.jsonl:2") and rejected[0].raw == b"caf\xe9\n"
