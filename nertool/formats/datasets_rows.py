"""Rows for Hugging Face's `datasets`: a section per row, always with the same columns, in Parquet or JSON lines.

`datasets.load_dataset("parquet", data_files=…)` loads the one, `load_dataset("json", …)` the other. What has no column
is JSON in a string, so that the types don't depend on the documents.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from nertool.document_parsing import Problem
from nertool.documents import Document, Entity, match_text
from nertool.extras import require
from nertool.formats.base import BombError, Record, check_unpacked
from nertool.formats.building import build_record, id_from, json_text
from nertool.formats.tagging import IRREGULAR, Tag, count_irregular, decode_tags

ENDINGS = (".parquet", ".datasets.jsonl")
_NAMESPACE = "datasets"
_SECTION = "text"
# A row group is kept in memory until it is full.
_ROWS_PER_GROUP = 1000
_CHARS_PER_GROUP = 8_000_000
_ROWS_AT_ONCE = 100
_BYTES_PER_ROW = 1000  # as objects in memory, even where all rows are the same

OTHER_COLUMNS = "values of columns that nertool does not use"


def _load(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a string that holds a JSON object")
    return orjson.loads(value)


_JsonObject = Annotated[dict[str, Any], BeforeValidator(_load)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True)


class _SpanRow(_Model):
    start: int
    end: int


class _EntityRow(_Model):
    """An entity in a row; only label and spans are needed, or `start` and `end` for a single one."""

    label: str
    spans: list[_SpanRow] = []
    start: int | None = None
    end: int | None = None
    text: str | None = None
    namespace: str | None = None
    score: float | None = None
    extra: _JsonObject | None = None


class _SectionRow(_Model):
    """A section in a row; only text and entities are needed."""

    document: str | None = None
    section: int | None = None
    name: str | None = None
    text: str
    entities: list[_EntityRow]
    extra: _JsonObject | None = None
    document_extra: _JsonObject | None = None


class _TokensRow(_Model):
    """A sentence in a row, as other data sets for NER have it."""

    tokens: list[str]
    ner_tags: list[str | int]


_COLUMNS = {*_SectionRow.model_fields, *_TokensRow.model_fields}


# Writing


class DatasetsWriter:
    """Writes Parquet, or JSON lines if the path ends in `.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._chars = 0

    def __enter__(self) -> Self:
        as_json = self.path.name.lower().endswith(".jsonl")
        if not as_json:
            require("pyarrow")
        self._stack = ExitStack()
        self._file = self._stack.enter_context(self.path.open("wb"))
        self._parquet: Any = None
        if not as_json:
            from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

            self._parquet = self._stack.enter_context(ParquetWriter(self._file, _schema(), compression="zstd"))
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            self._flush()

    def write(self, document: Document) -> None:
        """Writes a row for each section, or an empty one for a document without sections."""
        for row in _rows_of(document):
            self._rows.append(row)
            self._chars += len(row["text"])
            if len(self._rows) == _ROWS_PER_GROUP or self._chars >= _CHARS_PER_GROUP:
                self._flush()

    def _flush(self) -> None:
        if self._rows and self._parquet is not None:
            import pyarrow  # noqa: PLC0415

            self._parquet.write_table(pyarrow.Table.from_pylist(self._rows, _schema()))
        else:
            self._file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in self._rows)
        self._rows = []
        self._chars = 0


def _schema() -> Any:
    import pyarrow  # noqa: PLC0415

    string, number = pyarrow.string(), pyarrow.int64()
    span = pyarrow.struct([("start", number), ("end", number)])
    entity = [("label", string), ("spans", pyarrow.list_(span)), ("text", string), ("namespace", string)]
    entity += [("score", pyarrow.float64()), ("extra", string)]
    columns = [("document", string), ("section", number), ("name", string), ("text", string)]
    columns += [("entities", pyarrow.list_(pyarrow.struct(entity))), ("extra", string), ("document_extra", string)]
    return pyarrow.schema(columns)


def _rows_of(document: Document) -> Iterator[dict[str, Any]]:
    about = {"document": document.id}
    document_extra = json_text(document.extra)
    if not document.sections:
        yield {**about, "section": None, "name": None, "text": "", "entities": [], "extra": "{}",
               "document_extra": document_extra}  # fmt: skip
    for number, section in enumerate(document.sections):
        yield {
            **about, "section": number, "name": section.name, "text": section.text,
            "entities": [_entity_row(entity, section.text) for entity in section.entities],
            "extra": json_text(section.extra), "document_extra": document_extra,
        }  # fmt: skip


def _entity_row(entity: Entity, text: str) -> dict[str, Any]:
    mention = match_text(text, entity.spans)
    extra = dict(entity.extra)
    if entity.score is not None and "metadata" in extra:  # it has a column of its own
        extra["metadata"] = {key: value for key, value in extra["metadata"].items() if key != "score"}
    if entity.match != mention:
        extra["match"] = entity.match
    return {
        "label": entity.label, "spans": [{"start": start, "end": end} for start, end in entity.spans], "text": mention,
        "namespace": entity.namespace, "score": entity.score, "extra": json_text(extra),
    }  # fmt: skip


# Reading


class _Row(NamedTuple):
    """A row as it came from the file.

    Args:
        number: Which one, counted from 1; in JSON lines the line.
        value: What it holds, or None if that can't be read.
        reason: Why not.
        raw: The bytes of a line.
    """

    number: int
    value: dict[str, Any] | None
    reason: str = ""
    raw: bytes = b""


def read_datasets(file: Path) -> Iterator[Record]:
    """Reads rows; successive ones with the same `document` and growing `section` are sections of one document.

    Rows of other data sets may have just `text` and `entities` (with `label`, `start` and `end`), or `tokens` and
    `ner_tags`; each is a document.
    """
    with file.open("rb") as data:
        is_parquet = data.read(4) == b"PAR1"
    if is_parquet or file.name.lower().endswith(".parquet"):
        require("pyarrow")
        rows = _parquet_rows(file)
    else:
        rows = _json_rows(file)
    for group in _group(rows):
        yield _parse(file, group)


def _json_rows(file: Path) -> Iterator[_Row]:
    with file.open("rb") as lines:
        for number, raw_line in enumerate(lines, start=1):
            line = raw_line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip(b"\r\n")
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield _Row(number, None, f"not valid JSON: {error}", line)
            else:
                known = isinstance(value, dict)
                yield _Row(number, value if known else None, "" if known else "a row must be a JSON object", line)


def _parquet_rows(file: Path) -> Iterator[_Row]:
    from pyarrow import ArrowException  # noqa: PLC0415
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    number = 0
    with file.open("rb") as data:
        try:
            table = ParquetFile(data)
            columns = table.schema_arrow.names
            if reason := _missing_columns(columns):
                yield _Row(1, None, reason)
                return
            groups = (table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups))
            check_unpacked(max(_BYTES_PER_ROW * table.metadata.num_rows, sum(groups)), file.stat().st_size)
            tag_names = _tag_names(table.schema_arrow.metadata or {})
            # Of columns that aren't used no value is read: there are dates and times that Python doesn't know.
            others = dict.fromkeys(name for name in columns if name not in _COLUMNS)
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[name for name in columns if name in _COLUMNS]):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        (value,) = batch.slice(index, 1).to_pylist()
                    except UnicodeDecodeError as error:
                        yield _Row(number, None, f"not UTF-8: {error.reason}")
                        continue
                    except OverflowError as error:
                        yield _Row(number, None, f"holds what Python can't: {error}")
                        continue
                    if isinstance(tags := value.get("ner_tags"), list):
                        value["ner_tags"] = [tag_names.get(tag, tag) if type(tag) is int else tag for tag in tags]
                    yield _Row(number, {**others, **value})
        except BombError as error:
            yield _Row(1, None, str(error))
        except (ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the file's
            yield _Row(number + 1, None, f"the Parquet file is broken: {error}")


def _missing_columns(names: Iterable[str]) -> str:
    """Returns what is wrong with the columns of a data set, if anything."""
    for needed in ({"text", "entities"}, {"tokens", "ner_tags"}):
        if needed <= set(names):
            return ""
    return f"the columns text and entities expected, or tokens and ner_tags; found {', '.join(names) or 'none'}"


def _tag_names(metadata: Mapping[bytes, bytes]) -> dict[int, str]:
    """Returns what the numbers in `ner_tags` mean, by what `datasets` writes into the schema of a Parquet file."""
    try:
        column = json.loads(metadata[b"huggingface"])["info"]["features"]["ner_tags"]
        return dict(enumerate(column["feature"]["names"]))
    except (KeyError, TypeError, ValueError):
        return {}


def _group(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Gives the rows of one document at a time."""
    group: list[_Row] = []
    for row in rows:
        if group and not _goes_on(group[-1].value or {}, row.value or {}):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _goes_on(before: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    sections = [before.get("section"), row.get("section")]
    one, other = (section if type(section) is int else None for section in sections)
    if one is None or other is None or row.get("document") is None:
        return False
    return bool(row["document"] == before.get("document") and other > one)


def _parse(file: Path, rows: Sequence[_Row]) -> Record:
    place = f"{file}:{rows[0].number}"
    raw = b"\n".join(row.raw or orjson.dumps(row.value, default=str) for row in rows)
    problems: list[Problem] = []
    notes: Counter[str] = Counter()
    sections: list[_SectionRow] = []
    for row in rows:
        try:
            sections.append(_read_row(row, notes))
        except ValidationError as error:
            for wrong in error.errors():
                where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in wrong["loc"])
                problems.append(Problem(f"row {row.number}: {where.lstrip('.')}", wrong["msg"]))
        except ValueError as error:
            problems.append(Problem(f"row {row.number}", str(error)))
    if problems:
        return Record(place, None, tuple(problems), raw)
    first = sections[0]
    identifier = first.document if first.document is not None else f"{id_from(file, *ENDINGS)}-{rows[0].number}"
    has_sections = first.document is None or first.section is not None or first.name is not None or first.text != ""
    document = {
        **(first.document_extra or {}), "idx": identifier,
        "sections": [_section_json(section) for section in sections] if has_sections else [],
    }  # fmt: skip
    record = build_record(place, document, raw, +notes)
    problems = _wrong_texts(record.document, rows, sections)
    return Record(place, None, tuple(problems), raw) if problems else record


def _read_row(row: _Row, notes: Counter[str]) -> _SectionRow:
    """Checks a row.

    Raises:
        ValueError: With what is wrong.
    """
    if row.value is None:
        raise ValueError(row.reason)
    if reason := _missing_columns(row.value):
        raise ValueError(reason)
    model = _SectionRow if "text" in row.value and "entities" in row.value else _TokensRow
    notes[OTHER_COLUMNS] += len(row.value.keys() - model.model_fields.keys())
    found = model.model_validate(row.value)
    return found if isinstance(found, _SectionRow) else _join(found, notes)


def _join(row: _TokensRow, notes: Counter[str]) -> _SectionRow:
    """Makes a text of tokens, with a space between them, and entities of their tags."""
    if len(row.tokens) != len(row.ner_tags):
        raise ValueError(f"{len(row.tokens)} tokens, but {len(row.ner_tags)} tags")
    tags = []
    for name in row.ner_tags:
        tag = Tag.parse(name) if isinstance(name, str) else None
        if tag is None:
            raise ValueError(
                f"{name!r} is no tag: O, or B-, I-, E-, S-, L- or U- with a class; of numbers, the schema must "
                "hold the names, as datasets writes it to Parquet"
            )
        tags.append(tag)
    notes[IRREGULAR] += count_irregular([tags])
    starts = [0, *accumulate(len(token) + 1 for token in row.tokens)]
    entities = [
        _EntityRow(label=label, start=starts[first], end=starts[end] - 1) for label, first, end in decode_tags(tags)
    ]
    return _SectionRow(text=" ".join(row.tokens), entities=entities)


def _section_json(row: _SectionRow) -> dict[str, Any]:
    name = _SECTION if row.name is None else row.name
    entities = [_entity_json(entity, row.text) for entity in row.entities]
    return {**(row.extra or {}), "name": name, "text": row.text, "entities": entities}


def _entity_json(row: _EntityRow, text: str) -> dict[str, Any]:
    spans = [span.model_dump() for span in row.spans]
    if not spans and row.start is not None:
        spans = [{"start": row.start, "end": row.end}]
    mention = " ".join(text[span["start"] : span["end"]] for span in spans)
    result = {
        "match": mention, **(row.extra or {}), "entity_class": row.label, "spans": spans,
        "namespace": _NAMESPACE if row.namespace is None else row.namespace,
    }  # fmt: skip
    metadata = result.get("metadata", {})
    if row.score is not None and math.isfinite(row.score) and isinstance(metadata, dict):
        result["metadata"] = {**metadata, "score": row.score}
    return result


def _wrong_texts(document: Document | None, rows: Sequence[_Row], sections: Sequence[_SectionRow]) -> list[Problem]:
    """Returns where the text that a row says an entity has is not what stands at its offsets."""
    problems = []
    for row, section, read in zip(rows, document.sections if document else (), sections, strict=False):
        for index, (entity, said) in enumerate(zip(section.entities, read.entities, strict=True)):
            mention = match_text(section.text, entity.spans)
            if said.text not in (None, mention):
                reason = f"the spans hold {mention!r}, but the row says {said.text!r}"
                problems.append(Problem(f"row {row.number}: entities[{index}]", reason))
    return problems
