"""Inputs that once made a reader fail, and others like them; tests/fuzz looks for more."""

import gzip
import json
import os
import random
import re
import resource
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
import zstandard
from pyarrow.parquet import write_table

from nertool.documents import Document, Entity, Section, Span
from nertool.errors import NertoolError
from nertool.formats import FORMATS, Rejected
from nertool.formats.reading import read_records
from nertool.formats.spacy_docbin import SpacyWriter
from tests.fuzz import readers
from tests.fuzz.readers import READERS, Reader

NASTY = Path(__file__).with_name("nasty")
FOLDERS = {re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"): name for name in READERS}
# Files that nertool itself wrote: one JSON value each.
OWN_FILES = [
    "split.json", "cache.json", "nertool.json", "run.json", "audit.json", "suspects of a fold",
    "manifests (.nertool.json)", "prediction: job", "prediction: parts",
]  # fmt: skip
ODD_VALUES: list[Any] = [None, [], {}, "x", True, -1, 1.5, 10**25, [None], {"x": None}]
MEGABYTE = 1_000_000
MOST_SECONDS = 5.0


def check(reader: Reader, data: bytes, folder: Path) -> None:
    """Raises what no input may raise."""
    folder.mkdir(exist_ok=True)
    with suppress(NertoolError):
        reader.check(data, folder)


@pytest.mark.parametrize("file", sorted(NASTY.glob("*/*")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_once_made_a_reader_fail_is_taken_or_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "check_document", partial(readers.check_document, all_writers=True))
    check(READERS[FOLDERS[file.parent.name]], file.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_valid_inputs_are_taken_and_damaged_ones_are_taken_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    rng = random.Random(7)
    seeds = reader.seeds(tmp_path)
    taken = 0
    for number, data in enumerate(seeds[:10]):
        (tmp_path / f"valid {number}").mkdir()
        with suppress(NertoolError):
            taken += reader.check(data, tmp_path / f"valid {number}")
    assert taken
    for number in range(25):
        check(reader, reader.damage(rng.choice(seeds), rng, seeds), tmp_path / f"damaged {number}")


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_wrong_value_anywhere_in_a_file_of_ours_is_taken_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    refused = 0
    for seed in reader.seeds(tmp_path):
        for number, changed in enumerate(with_one_wrong_value(json.loads(seed))):
            folder = tmp_path / str(number)
            folder.mkdir(exist_ok=True)
            try:
                reader.check(json.dumps(changed).encode(), folder)
            except NertoolError as error:
                assert error.message
                refused += 1
    assert refused > 3


def with_one_wrong_value(value: Any) -> Iterator[Any]:
    """Yields JSON with one value replaced or one key missing, for every value and key in it."""
    yield from ODD_VALUES
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children):
        for changed in with_one_wrong_value(child):
            if isinstance(value, dict):
                yield {**value, key: changed}
            else:
                yield [*value[:key], changed, *value[key + 1 :]]
        if isinstance(value, dict):
            yield {name: one for name, one in value.items() if name != key}


def nulls_in_parquet(rows: int) -> bytes:
    sink = pyarrow.BufferOutputStream()
    nulls = pyarrow.nulls(rows, pyarrow.string())
    entities = pyarrow.nulls(rows, pyarrow.list_(pyarrow.struct([("label", pyarrow.string())])))
    write_table(pyarrow.table({"text": nulls, "entities": entities}), sink, compression="zstd")
    return bytes(sink.getvalue())


def zeros_in_zstd(length: int) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(bytes(2**20)) for _ in range(length // 2**20)) + compressor.flush()


@pytest.mark.parametrize("circle", ['"a":', "{]", "{mention: aspirin, class: drlass: drug}]\n[", "}.{]", "[", '"a" '])
def test_an_answer_of_an_llm_that_goes_round_in_circles_takes_no_time(circle: str, tmp_path: Path) -> None:
    began = time.process_time()
    check(READERS["LLM answers"], f'[{{"class": ["drug {circle * (60_000 // len(circle))}'.encode(), tmp_path)
    assert time.process_time() - began < MOST_SECONDS


@pytest.mark.parametrize("line", [b"a." * 30_000 + b"a = 1", b"train." + b"a." * 25_000 + b"a = 1"])
def test_a_key_of_thirty_thousand_parts_takes_no_time(line: bytes, tmp_path: Path) -> None:
    began = time.process_time()
    check(READERS["settings (TOML)"], line, tmp_path)
    assert time.process_time() - began < MOST_SECONDS


BOMBS = {
    "a line of a gigabyte": ("jsonl", ".jsonl.zst", lambda: zeros_in_zstd(2**30)),
    "250 million lines": ("jsonl", ".jsonl.zst", lambda: zstandard.ZstdCompressor().compress(b"\n" * 250_000_000)),
    "60 MB of zeros": ("jsonl", ".jsonl.gz", lambda: gzip.compress(bytes(60 * MEGABYTE), 9)),
    "5 million rows": ("datasets", ".parquet", lambda: nulls_in_parquet(5 * MEGABYTE)),
    "60 MB of nothing": (
        "spacy", ".spacy", lambda: zlib.compress(b"\xdd" + (60 * MEGABYTE).to_bytes(4, "big") + b"\xc0" * 60 * MEGABYTE)
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_compression_bombs_are_refused_before_they_fill_the_memory(bomb: str, tmp_path: Path) -> None:
    name, ending, make = BOMBS[bomb]
    file = tmp_path / f"bomb{ending}"
    file.write_bytes(make())
    assert file.stat().st_size < 65_536
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kilobytes: what was there at most so far
    (*earlier, last) = read_records(file, FORMATS[name])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "made to fill the memory" in str(last.problems[0])
    assert not [record for record in earlier if record.document]
    assert grown < 400_000


def test_a_problem_of_a_file_whose_name_is_not_unicode_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    file.write_bytes(b"[]")
    (record,) = read_records(file, FORMATS["jsonl"])
    place = Rejected(record.place, record.problems, record.raw).to_json()["place"]
    orjson.dumps(place)
    assert place.endswith("caf\\udce9.jsonl:1")


def test_rows_of_brackets_are_no_trouble_for_the_tokenizer_of_spacy(tmp_path: Path) -> None:
    text = ">" * 20_000 + " end " + "a." * 5_000
    began = time.process_time()
    with SpacyWriter(tmp_path / "a.spacy") as writer:
        writer.write(Document("1", (Section("text", text, (Entity("x", (Span(299, 301),), ">>"),)),)))
    assert time.process_time() - began < 2 * MOST_SECONDS  # spaCy is loaded, too
    (record,) = read_records(tmp_path / "a.spacy", FORMATS["spacy"])
    assert record.document is not None
    assert record.document.sections[0].text == text
    assert record.document.sections[0].entities[0].spans == (Span(299, 301),)
