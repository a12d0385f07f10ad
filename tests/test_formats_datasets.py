import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool import extras
from nertool.documents import Document, Entity, Section, Span, document_to_json
from nertool.errors import NertoolError
from nertool.formats import FORMATS, ReadReport, datasets_rows, read_documents
from nertool.formats.datasets_rows import OTHER_COLUMNS, DatasetsWriter, read_datasets
from nertool.formats.tagging import IRREGULAR
from tests.document_strategies import rich_documents

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ENDINGS = [".parquet", ".datasets.jsonl"]
TEXT = "IL-2 in lung and liver cancer"
DOCUMENTS = [
    Document(
        "pmid-1",
        (
            Section("title", "é😀"),
            Section(
                "abstract",
                TEXT,
                (
                    Entity("gene", (Span(0, 4),), "IL-2", "gpt", 0.5, {"metadata": {"identifiers": "1", "score": 0.5}}),
                    Entity("disease", (Span(8, 12), Span(23, 29)), "cancer of lung", "gpt", extra={"_id": "x"}),
                ),
            ),
        ),
        {"metadata": {"source": "example"}},
    ),
    Document("pmid-2", ()),
]  # fmt: skip
ROWS = [
    {"document": "pmid-1", "section": 0, "name": "title", "text": "é😀", "entities": [], "extra": "{}",
     "document_extra": '{"metadata":{"source":"example"}}'},
    {"document": "pmid-1", "section": 1, "name": "abstract", "text": TEXT, "entities": [
        {"label": "gene", "spans": [{"start": 0, "end": 4}], "text": "IL-2", "namespace": "gpt", "score": 0.5,
         "extra": '{"metadata":{"identifiers":"1"}}'},
        {"label": "disease", "spans": [{"start": 8, "end": 12}, {"start": 23, "end": 29}], "text": "lung cancer",
         "namespace": "gpt", "score": None, "extra": '{"_id":"x","match":"cancer of lung"}'},
     ], "extra": "{}", "document_extra": '{"metadata":{"source":"example"}}'},
    {"document": "pmid-2", "section": None, "name": None, "text": "", "entities": [], "extra": "{}",
     "document_extra": "{}"},
]  # fmt: skip


def write(path: Path, written: list[Document]) -> Path:
    with DatasetsWriter(path) as writer:
        for document in written:
            writer.write(document)
    return path


def write_rows(path: Path, rows: list, schema=None) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
    else:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def load(path: Path):
    datasets = pytest.importorskip("datasets")
    kind = "parquet" if path.suffix == ".parquet" else "json"
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))


def found(document: Document) -> list[tuple[str, str]]:
    return [(entity.label, entity.match) for section in document.sections for entity in section.entities]


def problems_of(records) -> list[str]:
    return [str(problem) for record in records for problem in record.problems]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_have_the_same_columns_whatever_a_document_has(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", DOCUMENTS)
    if ending == ".parquet":
        assert parquet.read_table(path).to_pylist() == ROWS
        empty = write(tmp_path / f"b{ending}", [])
        assert parquet.read_schema(empty) == parquet.read_schema(path)
    else:
        assert list(map(json.loads, path.read_text().splitlines())) == ROWS


@settings(max_examples=80, deadline=None)
@given(
    originals=st.lists(rich_documents(), min_size=1, max_size=4, unique_by=lambda document: document.id),
    ending=st.sampled_from(ENDINGS),
)
def test_nothing_of_any_document_is_lost(originals, ending, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("datasets") / f"a{ending}", originals)
    records = list(read_datasets(path))
    assert problems_of(records) == []
    assert [dict(record.notes) for record in records] == [{}] * len(originals)
    assert [document_to_json(record.document) for record in records] == list(map(document_to_json, originals))


@pytest.mark.parametrize("ending", ENDINGS)
def test_datasets_loads_what_is_written_and_what_it_writes_is_read(tmp_path, ending):
    dataset = load(write(tmp_path / f"a{ending}", DOCUMENTS))
    assert dataset.to_list() == ROWS
    kinds = {name: getattr(feature, "dtype", None) for name, feature in dataset.features.items()}
    assert {name: kind for name, kind in kinds.items() if name != "entities"} == {
        "document": "string", "section": "int64", "name": "string", "text": "string", "extra": "string",
        "document_extra": "string",
    }  # fmt: skip
    entity = dataset.features["entities"].feature
    assert (entity["score"].dtype, entity["spans"].feature["end"].dtype) == ("float64", "int64")
    dataset.to_parquet(tmp_path / "again.parquet")
    dataset.to_json(tmp_path / "again.datasets.jsonl")
    for name in ("again.parquet", "again.datasets.jsonl"):
        again = [record.document for record in read_datasets(tmp_path / name)]
        assert list(map(document_to_json, again)) == list(map(document_to_json, DOCUMENTS))
    chosen = dataset.filter(lambda row: row["name"] == "abstract")
    chosen.to_parquet(tmp_path / "some.parquet")
    (record,) = read_datasets(tmp_path / "some.parquet")
    assert document_to_json(record.document) == {
        **document_to_json(DOCUMENTS[0]),
        "sections": document_to_json(DOCUMENTS[0])["sections"][1:],
    }


def test_row_groups_are_written_as_they_fill_up(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_rows, "_ROWS_PER_GROUP", 4)
    monkeypatch.setattr(datasets_rows, "_CHARS_PER_GROUP", 100)
    monkeypatch.setattr(datasets_rows, "_ROWS_AT_ONCE", 3)
    texts = ["x"] * 6 + ["x" * 60] * 4
    originals = [Document(f"d{number}", (Section("a", text), Section("b", ""))) for number, text in enumerate(texts)]
    path = write(tmp_path / "a.parquet", originals)
    table = parquet.ParquetFile(path)
    rows = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
    assert rows == [4, 4, 4, 3, 4, 1]
    assert [record.document for record in read_datasets(path)] == originals


def test_a_name_decides_and_datasets_jsonl_is_not_taken_for_documents(tmp_path):
    for ending in ENDINGS:
        write(tmp_path / f"x{ending}", [Document(f"id of {ending}", (Section("s", "x"),))])
    write(tmp_path / ".y.datasets.jsonl", DOCUMENTS).rename(tmp_path / "y.DATASETS.JSONL")
    report = ReadReport()
    assert [document.id for document in read_documents(tmp_path, report)] == [
        "id of .datasets.jsonl", "id of .parquet", "pmid-1", "pmid-2",
    ]  # fmt: skip
    assert report.ignored_files == []
    write(tmp_path / "data", DOCUMENTS)  # Parquet
    assert len(list(read_documents(tmp_path / "data", ReadReport(), format_name="datasets"))) == 2
    assert FORMATS["datasets"].losses is None


# Rows of others


@pytest.mark.parametrize("ending", ENDINGS)
def test_plain_rows_with_texts_and_entities_are_documents(tmp_path, ending):
    rows = [
        {"text": "IL-2 x", "entities": [{"label": "gene", "start": 0, "end": 4, "score": 1}], "url": "y", "split": 1},
        {"text": "", "entities": [], "url": "z", "split": 1},
    ]
    first, second = read_datasets(write_rows(tmp_path / f"n.t{ending}", rows))
    gene = Entity("gene", (Span(0, 4),), "IL-2", "datasets", 1.0)
    assert first.document == Document("n.t-1", (Section("text", "IL-2 x", (gene,)),))
    assert second.document == Document("n.t-2", (Section("text", ""),))
    assert first.notes == {OTHER_COLUMNS: 2}


def test_tokens_with_the_class_labels_of_datasets_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-gene", "I-gene", "B-drug"]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    rows = [
        {"id": "0", "tokens": ["é😀", "IL", "2", "TP53"], "ner_tags": [0, 1, 2, 1]},
        {"id": "1", "tokens": ["x", "aspirin"], "ner_tags": [2, 3]},
        {"id": "2", "tokens": [], "ner_tags": []},
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    first, second, third = read_datasets(tmp_path / "train.parquet")
    assert [record.document.id for record in (first, second, third)] == ["train-1", "train-2", "train-3"]
    assert first.document.sections[0].text == "é😀 IL 2 TP53"
    assert found(first.document) == [("gene", "IL 2"), ("gene", "TP53")]
    assert found(second.document) == [("gene", "x"), ("drug", "aspirin")]
    assert second.notes == {OTHER_COLUMNS: 1, IRREGULAR: 1}
    assert third.document.sections == (Section("text", ""),)


@pytest.mark.parametrize("ending", ENDINGS)
def test_tokens_with_written_tags_are_read_and_wrong_ones_reported(tmp_path, ending):
    rows = [
        {"tokens": ["IL", "2"], "ner_tags": ["B-gene", "E-gene"]},
        {"tokens": ["IL", "2"], "ner_tags": ["B-gene"]},
        {"tokens": ["IL"], "ner_tags": ["gene"]},
    ]
    good, *bad = read_datasets(write_rows(tmp_path / f"a{ending}", rows))
    assert found(good.document) == [("gene", "IL 2")]
    assert problems_of(bad)[0] == "row 2: 2 tokens, but 1 tags"
    assert problems_of(bad)[1].startswith("row 3: 'gene' is no tag")
    numbers = write_rows(tmp_path / f"b{ending}", [{"tokens": ["IL"], "ner_tags": [1]}])
    assert "of numbers, the schema must hold the names" in problems_of(read_datasets(numbers))[0]


# What is wrong


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"text": "IL-3"}, "row 2: entities[0]: the spans hold 'IL-2', but the row says 'IL-3'"),
        ({"spans": [{"start": 1, "end": 5}]}, "row 2: entities[0]: the spans hold 'L-2 ', but the row says 'IL-2'"),
        ({"spans": [{"start": 26, "end": 30}]}, "sections[1].entities[0].spans[0]: [26, 30) ends past the end"),
        ({"spans": [{"start": -1, "end": 4}]}, "sections[1].entities[0].spans[0]: [-1, 4) is not a span"),
        ({"spans": []}, "sections[1].entities[0].spans: must be a list with at least one span"),
        ({"spans": None}, "row 2: entities[0].spans: Input should be a valid list"),
        ({"label": ""}, "sections[1].entities[0].entity_class: must not be empty"),
        ({"label": None}, "row 2: entities[0].label: Input should be a valid string"),
        ({"extra": "{"}, "row 2: entities[0].extra: "),
        ({"extra": "[]"}, "row 2: entities[0].extra: Input should be a valid dictionary"),
        ({"extra": '{"metadata": 1}'}, "sections[1].entities[0].metadata: must be an object, not a number"),
        ({"extra": '{"words": 1}'}, "sections[1].entities[0]: unknown key 'words'"),
        ({"extra": f'{{"metadata": {"[" * 400 + "]" * 400}}}'}, "holds what can't be written again"),
    ],
)
def test_wrong_rows_are_reported_and_the_other_documents_come_in(tmp_path, ending, change, problem):
    rows = json.loads(json.dumps(ROWS))
    rows[1]["entities"][0].update(change)
    schema = parquet.read_schema(write(tmp_path / "schema.parquet", []))
    bad, good = read_datasets(write_rows(tmp_path / f"a{ending}", rows, schema))
    assert good.document == DOCUMENTS[1]
    assert (bad.document, bad.place) == (None, f"{tmp_path}/a{ending}:1")
    assert problems_of([bad])[0].startswith(problem)
    assert list(map(json.loads, bad.raw.splitlines())) == rows[:2]


def test_wrong_json_lines_are_reported_with_their_numbers(tmp_path):
    lines = [
        b"\xef\xbb\xbf" + orjson.dumps({"text": "x", "entities": []}), b"", b"{", b"[]", b'{"text": "caf\xe9"}',
        b'{"text": "\\ud800", "entities": []}', b'{"text": 5, "entities": [7]}',
        b'{"text": "x", "entities": [], "extra": {}}', b'{"idx": "a", "sections": []}',
        b'{"text": "x", "entities": []}',
    ]  # fmt: skip
    (tmp_path / "a.datasets.jsonl").write_bytes(b"\r\n".join(lines))
    first, *bad, last = read_datasets(tmp_path / "a.datasets.jsonl")
    assert (first.document.id, last.document.id) == ("a-1", "a-10")
    assert [record.place.rpartition(":")[2] for record in bad] == ["3", "4", "5", "6", "7", "8", "9"]
    assert [record.raw for record in bad] == lines[2:9]
    problems = problems_of(bad)
    assert problems[0].startswith("row 3: not valid JSON: ")
    assert problems[1] == "row 4: a row must be a JSON object"
    assert problems[4:6] == [
        "row 7: text: Input should be a valid string",
        "row 7: entities[0]: Input should be a valid dictionary or instance of _EntityRow",
    ]
    assert problems[6] == "row 8: extra: Value error, must be a string that holds a JSON object"
    assert problems[7].endswith("text and entities expected, or tokens and ner_tags; found idx, sections")


def test_parquet_without_the_columns_is_reported_once(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [{"sentence": "x", "label": 1}] * 5)
    assert problems_of(read_datasets(path)) == [
        "row 1: the columns text and entities expected, or tokens and ner_tags; found sentence, label"
    ]


def test_a_text_that_is_not_utf_8_does_not_hide_the_other_rows(tmp_path):
    texts = pyarrow.StringArray.from_buffers(
        3, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffb")
    )
    entities = pyarrow.array(
        [[], [], []], parquet.read_schema(write(tmp_path / "s.parquet", [])).field("entities").type
    )
    parquet.write_table(pyarrow.table({"text": texts, "entities": entities}), tmp_path / "a.parquet")
    first, bad, last = read_datasets(tmp_path / "a.parquet")
    assert (first.document.sections[0].text, last.document.sections[0].text) == ("a", "b")
    assert problems_of([bad]) == ["row 2: not UTF-8: invalid start byte"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_broken_parquet_is_reported_and_never_an_exception(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    whole = write(folder / "a.parquet", DOCUMENTS).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    damaged = whole[:position] if cut else whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
    (folder / "b.parquet").write_bytes(damaged)
    records = list(read_datasets(folder / "b.parquet"))
    for record in records:
        assert (record.document is None) == bool(record.problems)
    if cut:
        assert "the Parquet file is broken" in problems_of(records)[0]


def test_sections_of_one_document_in_different_places_are_not_merged_silently(tmp_path):
    other = Document("b", (Section("s", "x"),))
    path = write(tmp_path / "a.datasets.jsonl", [DOCUMENTS[0], other])
    rows = list(map(json.loads, path.read_bytes().splitlines()))
    write_rows(tmp_path / "b.datasets.jsonl", [rows[1], rows[2], rows[0]])
    write_rows(tmp_path / "c.datasets.jsonl", [rows[1], rows[0]])
    for name in ("b", "c"):
        report = ReadReport()
        list(read_documents(tmp_path / f"{name}.datasets.jsonl", report, skip_invalid=True))
        assert "the id 'pmid-1' is already used" in str(report.rejected[0].problems[0])


def test_without_pyarrow_the_extra_is_named_and_json_lines_work(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", DOCUMENTS)
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "pyarrow")
    for use in (lambda: list(read_datasets(path)), DatasetsWriter(tmp_path / "b.parquet").__enter__):
        with pytest.raises(NertoolError) as error:
            use()
        assert error.value.hint == "pip install 'nertool[formats]'"
    assert len(list(read_datasets(write(tmp_path / "a.datasets.jsonl", DOCUMENTS)))) == 2
