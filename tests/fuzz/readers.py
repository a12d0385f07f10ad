"""Every reader of nertool, with valid inputs to begin with and what must hold whatever it is given.

A reader either takes an input or says what is wrong with it: `NertoolError`, or a `Problem` with a reason. What it takes
must be valid, and must not make what comes after it fail: checks, writers of every format, counts for a split.
"""

import hashlib
import json
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson

from nertool.annotation import annotate_document, choose_answers
from nertool.answer_parsing import parse_answer
from nertool.artefacts import NERTOOL_FILE, Decisions, check_files, read_facts
from nertool.cache_building import _resume, scan
from nertool.document_parsing import parse_document
from nertool.documents import Document, dump_document
from nertool.entity_classes import ClassList, load_classes
from nertool.errors import NertoolError
from nertool.files import MANIFEST_NAME, check_own
from nertool.formats import FORMATS, ReadReport, Record, Rejected
from nertool.formats.brat import text_file
from nertool.formats.jsonl import compress
from nertool.formats.reading import describe_rejected, read_records
from nertool.labelling_spool import read_spool
from nertool.labelling_tasks import Item, make_items
from nertool.labels import LabelScheme
from nertool.model_card import model_card
from nertool.prediction_output import PredictionOutput, check_parts
from nertool.provenance import section_annotators
from nertool.responses import Answer, ResponseFile
from nertool.reviews import sent_before_review
from nertool.run_folder import RUN_FILE, check_run_folder, is_finished_audit, open_run
from nertool.settings import Settings, load_settings
from nertool.settings_file import as_toml
from nertool.sources import Source
from nertool.splitting import summarise
from nertool.tracking import read_history
from nertool.window_cache import CACHE_FILE, WINDOW_DTYPE, open_cache

from . import seeds
from .mutation import mutate

Check = Callable[[bytes, Path], bool]
Damage = Callable[[bytes, random.Random, list[bytes]], bytes]
# They take ten times as long as the others, and so get fewer documents.
_SLOW_WRITERS = ("spacy", "datasets", "bioc")


@dataclass(frozen=True)
class Reader:
    """A reader and how to damage its inputs.

    Args:
        name: What the table calls it.
        seeds: Gives valid inputs; may use a folder.
        check: Reads an input, in a folder of its own; tells whether it was taken. Raises what must not happen.
        damage: Makes a damaged input of a valid one.
    """

    name: str
    seeds: Callable[[Path], list[bytes]]
    check: Check
    damage: Damage = mutate


# Documents


def check_documents(name: str, ending: str) -> Check:
    """Returns the check of a format's reader."""
    file_format = FORMATS[name]

    def check(data: bytes, folder: Path) -> bool:
        file = folder / f"in{ending}"
        if name == "brat":
            data, _, text = data.partition(seeds.BRAT_SEPARATOR)
            text_file(file).write_bytes(text)
        file.write_bytes(data)
        records = list(read_records(file, file_format))
        if file_format.folder and len(records) != 1:
            raise AssertionError(f"{len(records)} records of a file that holds one document")
        for record in records:
            check_record(record, folder)
        return any(record.document for record in records)

    return check


def check_record(record: Record, folder: Path) -> None:
    """Makes sure that a record is a valid document, or tells what is wrong in a way that can be shown and written."""
    if record.document is not None:
        if record.problems:
            raise AssertionError("a document, and problems with it")
        check_document(record.document, folder)
    else:
        if not record.problems or not all(problem.reason for problem in record.problems):
            raise AssertionError("neither a document nor a reason")
        rejected = Rejected(record.place, record.problems, record.raw)
        orjson.dumps(rejected.to_json())
        describe_rejected([rejected]).encode()
    orjson.dumps(dict(record.notes))


def check_document(document: Document, folder: Path, *, all_writers: bool = False) -> None:
    """Makes sure that a document is what the rest of nertool expects one to be."""
    document.id.encode()
    for section in document.sections:
        section.name.encode()
        section.text.encode()
        for entity in section.entities:
            if not entity.spans or list(entity.spans) != sorted(entity.spans) or not entity.label:
                raise AssertionError(f"no proper entity: {entity!r}")
            if not all(0 <= start < end <= len(section.text) for start, end in entity.spans):
                raise AssertionError(f"{entity.spans} in a text of {len(section.text)} characters")
        with suppress(NertoolError):
            sent_before_review(section)
    data = dump_document(document)
    if dump_document(parse_document(data).document) != data:
        raise AssertionError("reads as another document when it is written")
    number = zlib.crc32(data)
    if all_writers or number % 4 == 0:
        scan([document])
        section_annotators(document)
        summarise(document)
        make_items(document, has_gold=True)
    for at, (name, file_format) in enumerate(FORMATS.items()):
        if file_format.losses is not None:
            file_format.losses(document)
        if all_writers or (number % len(FORMATS) == at and (name not in _SLOW_WRITERS or number % 7 == 0)):
            with file_format.writer(folder / f"out{'' if file_format.folder else file_format.endings[0]}") as writer:
                writer.write(document)


_MOST_INSIDE = 65_536  # bytes, as the inputs of other readers


def damage_inside(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]) -> Damage:
    """Returns what damages mostly what is inside a wrapping, or else the wrapping."""

    def damage(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
        try:
            if rng.random() < 0.8:
                return pack(mutate(unpack(data), rng, [unpack(rng.choice(others))])[:_MOST_INSIDE])
        except Exception:  # noqa: BLE001 (what was damaged before can't be unwrapped)
            pass
        return mutate(data, rng, others)

    return damage


def _unzst(data: bytes) -> bytes:
    import zstandard

    inside = b""
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        inside += frame.decompress(data)
        data = frame.unused_data
    return inside


def _ungz(data: bytes) -> bytes:
    return zlib.decompress(data, 31)


def _parquet_rows(data: bytes) -> bytes:
    import pyarrow
    from pyarrow.parquet import read_table

    rows = read_table(pyarrow.BufferReader(data)).to_pylist()
    return b"\n".join(json.dumps(row, default=str).encode() for row in rows)


def _parquet(data: bytes) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    sink = pyarrow.BufferOutputStream()
    write_table(pyarrow.Table.from_pylist([json.loads(line) for line in data.split(b"\n") if line.strip()]), sink)
    return bytes(sink.getvalue())


# Answers of LLMs


@cache
def _classes() -> ClassList:
    return load_classes(None)


def check_answer(data: bytes, folder: Path) -> bool:
    """Reads an answer, and takes what it says up into a document."""
    parsed = parse_answer(data.decode(errors="surrogateescape"), _classes().is_wording)
    for item in parsed.items:
        orjson.dumps([item.mention.text, item.mention.parts, item.mention.context, item.classes])
    orjson.dumps([parsed.malformed, parsed.failure])
    if parsed.failure is not None and parsed.items:
        raise AssertionError("a failure, and entries")
    document = seeds.DOCUMENTS[0]
    answer = Answer(document.id, (0,), data.decode(errors="replace"))
    annotated = annotate_document(document, [answer], [], _classes(), 0.85)
    orjson.dumps(annotated.set_aside)
    if annotated.document is not None:
        check_document(annotated.document, folder)
    return bool(parsed.items)


# Settings


def check_settings(settings: Settings) -> None:
    """Makes sure that settings can be saved and shown."""
    orjson.dumps(settings.model_dump(mode="json"))
    for _, part in settings:
        as_toml(part.model_dump(mode="json", exclude_none=True))


def check_settings_file(data: bytes, folder: Path) -> bool:
    """Reads a settings file."""
    path = folder / "nertool.toml"
    path.write_bytes(data)
    check_settings(load_settings(path, environment={}))
    return True


def check_assignments(data: bytes, _: Path) -> bool:
    """Reads values of `--set`, one per line, and the same from the environment."""
    lines = data.decode(errors="surrogateescape").replace("\0", "").split("\n")  # no argument holds a NUL character
    named = [line.partition("=") for line in lines]
    taken = True
    try:
        check_settings(load_settings(environment={}, assignments=lines))
    except NertoolError:
        taken = False
    environment = {f"NERTOOL_{name.replace('.', '__').upper()}": value for name, _, value in named}
    check_settings(load_settings(environment=environment))
    return taken


def check_classes(data: bytes, folder: Path) -> bool:
    """Reads a file of classes, and asks it for some wordings."""
    path = folder / "classes.toml"
    path.write_bytes(data)
    classes = load_classes(path)
    for wording in ("genes", "Diseases or x", "\u0130", ""):
        classes.resolve(wording)
    orjson.dumps(classes.names)
    return True


# What nertool wrote itself


def check_cache(data: bytes, folder: Path) -> bool:
    """Opens a training cache with files of the right sizes."""
    for name, size in (("tokens.bin", 20), ("targets.bin", 10), ("windows.bin", 2 * WINDOW_DTYPE.itemsize)):
        if not (folder / name).exists():
            (folder / name).write_bytes(bytes(size))
    (folder / CACHE_FILE).write_bytes(data)
    opened = open_cache(folder)
    source = Source(folder, Settings(), ReadReport())
    orjson.dumps(source.scan(lambda _: None).to_json("x"))
    tokenizer: Any = SimpleNamespace(digest="t")
    with suppress(NertoolError):
        source.open_cache(tokenizer, LabelScheme(("gene",), False))
    return opened.tokens.shape == (10,)


def check_growing_cache(data: bytes, folder: Path) -> bool:
    """Goes on with a cache that was being built."""
    begun, _, journal = data.partition(b"\n")
    partial = folder / "partial"
    partial.mkdir(exist_ok=True)
    (partial / "begun.json").write_bytes(begun)
    (partial / "journal.jsonl").write_bytes(journal)
    for name in ("tokens.bin", "targets.local", "windows.bin", "documents.jsonl.zst"):
        (partial / name).write_bytes(bytes(100))
    return bool(_resume(partial, seeds.CACHE["fingerprint"]))


def check_model(data: bytes, folder: Path) -> bool:
    """Reads what a model folder says of itself, and makes its model card."""
    from nertool.inference import choose_engine

    (folder / NERTOOL_FILE).write_bytes(data)
    facts = read_facts(folder)
    decisions = Decisions.from_json(facts)
    decisions.logit_thresholds.tolist()
    decisions.scheme.channel_names()
    model_card(facts).encode()
    with suppress(NertoolError):
        check_files(folder, facts)
    if (exported := facts.get("export")) is not None and exported["format"] in ("onnx", "openvino"):
        with suppress(NertoolError):
            choose_engine(folder, exported, "auto")
    return True


def check_split(data: bytes, folder: Path) -> bool:
    """Looks for what a split found out about the documents of a training."""
    from nertool.commands.together import _split_facts

    (folder / MANIFEST_NAME).write_bytes(orjson.dumps(seeds.MANIFEST))
    (folder / "split.json").write_bytes(data)
    scanned = scan(document for document in seeds.DOCUMENTS)
    facts = _split_facts((folder / "train", scanned), (folder / "eval", scanned))
    orjson.dumps(facts)
    model_card({**seeds.MODEL_FACTS, **({"split": facts} if facts else {})})
    return facts is not None


def check_run(data: bytes, folder: Path) -> bool:
    """Looks whether a training run may go on."""
    (folder / MANIFEST_NAME).write_bytes(orjson.dumps({"command": "train", "files": [RUN_FILE]}))
    (folder / RUN_FILE).write_bytes(data)
    with suppress(NertoolError):
        check_run_folder(folder, resume=False, force=False)
    open_run(folder, Settings(), {"train": "a", "eval": "b"}, resume=True, force=False)
    return True


def check_audit(data: bytes, folder: Path) -> bool:
    """Looks whether an audit is finished."""
    (folder / "audit.json").write_bytes(data)
    return is_finished_audit(folder, Settings(), {"documents": "a"}, force=False)


def check_fold(data: bytes, folder: Path) -> bool:
    """Takes up the suspects of a fold that is done."""
    from nertool.files import read_json
    from nertool.suspects import SuspectFile, suspect_from_json, suspect_to_json

    (folder / "1.json").write_bytes(data)
    orjson.dumps([suspect_to_json(suspect_from_json(one)) for one in read_json(folder / "1.json", list[SuspectFile])])
    return True


def check_manifest(data: bytes, folder: Path) -> bool:
    """Looks whether a folder holds nothing but nertool's own files."""
    (folder / MANIFEST_NAME).write_bytes(data)
    (folder / "train").mkdir(exist_ok=True)
    for name in ("split.json", "train/a.json"):
        (folder / name).touch()
    check_own(folder)
    return True


def check_responses(data: bytes, folder: Path) -> bool:
    """Opens recorded answers, and takes them up into documents."""
    path = folder / "x.responses.jsonl"
    path.write_bytes(data)
    taken = 0
    with ResponseFile(path) as responses:
        taken = len(responses)
        for document in seeds.DOCUMENTS[:2]:
            answers = choose_answers(document, responses, _classes())
            annotated = annotate_document(document, answers, [], _classes(), 0.85)
            orjson.dumps(annotated.set_aside)
            if annotated.document is not None:
                check_document(annotated.document, folder)
    path.write_bytes(data)
    with ResponseFile(path, append=True) as responses:
        responses.add(Answer("2", (0,), "[]"))
    return taken > 0


def check_job(data: bytes, folder: Path) -> bool:
    """Goes on with a prediction that was cut off."""
    return _resume_prediction(folder, data, b'"onnxruntime"', compress(seeds.lines(), "x.zst"))


def check_predicted(data: bytes, folder: Path) -> bool:
    """Puts predicted chunks together."""
    return _resume_prediction(folder, orjson.dumps(seeds.JOB), b'"onnxruntime"', data)


def _resume_prediction(folder: Path, job: bytes, runs_on: bytes, chunk: bytes) -> bool:
    partial = folder / ".out.partial"
    partial.mkdir(exist_ok=True)
    (partial / "job.json").write_bytes(job)
    (partial / "runs_on.json").write_bytes(runs_on)
    digest = hashlib.sha256(_chunk(seeds.lines())).hexdigest()[:16]
    (partial / f"chunk-00000000-00000000.3.6.{digest}.done").write_bytes(chunk)
    with PredictionOutput(folder / "out") as output:
        output.resume(seeds.JOB)
        taken = bool(output.done)
        output.finish()
    return taken


def _chunk(lines: bytes) -> bytes:
    return compress(lines, ".zst")


def check_shards(data: bytes, folder: Path) -> bool:
    """Looks whether parts of a prediction fit together."""
    (folder / ".nertool-parts.json").write_bytes(data)
    check_parts(folder, {**seeds.JOB, "runs_on": None}, force=False)
    return True


def check_queue(data: bytes, folder: Path) -> bool:
    """Reads a list of sections to look at."""
    from nertool.commands.ls_push import _read_queue

    path = folder / "queue.txt"
    path.write_bytes(data)
    items: dict[str, Item] = {item.key: item for one in seeds.DOCUMENTS for item in make_items(one, has_gold=True)}
    return bool(_read_queue(path, items))


def check_spool(data: bytes, folder: Path) -> bool:
    """Reads what is to be sent to Label Studio."""
    from nertool.labelling_tasks import make_task

    path = folder / "x.spool.jsonl"
    path.write_bytes(data)
    spooled = read_spool(path)
    for item in spooled.items:
        orjson.dumps(make_task(item))
    return True


def check_history(data: bytes, folder: Path) -> bool:
    """Reads the measurements of a run."""
    (folder / "metrics.jsonl").write_bytes(data)
    return bool(read_history(folder))


def _formats() -> Iterator[Reader]:
    def make(name: str, title: str, ending: str, more: list[bytes], damage: Damage = mutate) -> Reader:
        return Reader(
            title,
            lambda folder: [*seeds.document_seeds(name, ending, folder), *more],
            check_documents(name, ending),
            damage,
        )

    yield make("kazu", "KAZU JSON", ".json", seeds.KAZU)
    yield make("jsonl", "JSON lines", ".jsonl", [seeds.lines()])
    yield make("jsonl", "JSON lines, gzip", ".jsonl.gz", [], damage_inside(_ungz, seeds.gz))
    yield make("jsonl", "JSON lines, zstd", ".jsonl.zst", [seeds.zst(seeds.lines())], damage_inside(_unzst, seeds.zst))
    yield make("pubtator", "PubTator", ".pubtator", seeds.PUBTATOR)
    yield make("bioc", "BioC XML", ".bioc.xml", seeds.BIOC[:1])
    yield make("bioc", "BioC JSON", ".bioc.json", seeds.BIOC[1:])
    yield make("brat", "brat", ".ann", seeds.BRAT)
    yield make("conll", "CoNLL", ".conll", seeds.CONLL)
    yield make("conll-bioes", "CoNLL, BIOES", ".bioes", seeds.CONLL)
    yield make("labelstudio", "Label Studio JSON", ".labelstudio.json", seeds.LABEL_STUDIO)
    yield make("spacy", "spaCy DocBin", ".spacy", [], damage_inside(zlib.decompress, zlib.compress))
    yield make(
        "datasets",
        "datasets, Parquet",
        ".parquet",
        [*map(_parquet, seeds.PARQUET)],
        damage_inside(_parquet_rows, _parquet),
    )
    yield make("datasets", "datasets, JSON lines", ".datasets.jsonl", seeds.DATASETS)
    yield make("text", "plain text", ".txt", [])


def _others() -> Iterator[Reader]:
    def make(name: str, some: list[bytes], check: Check) -> Reader:
        return Reader(name, lambda _: some, check)

    yield Reader("LLM answers", lambda _: seeds.answer_seeds(), check_answer)
    yield make("recorded answers", seeds.RESPONSES, check_responses)
    yield make("classes (TOML)", seeds.CLASSES, check_classes)
    yield make("settings (TOML)", seeds.SETTINGS, check_settings_file)
    yield make("--set, environment", seeds.ASSIGNMENTS, check_assignments)
    yield make("split.json", [orjson.dumps(seeds.SPLIT)], check_split)
    yield make("cache.json", [orjson.dumps(seeds.CACHE)], check_cache)
    yield make("a cache's journal", [seeds.JOURNAL], check_growing_cache)
    yield make("nertool.json", seeds.MODEL_SEEDS, check_model)
    yield make("run.json", [seeds.run_facts("train")], check_run)
    yield make("metrics.jsonl", seeds.HISTORY, check_history)
    yield make("audit.json", [seeds.run_facts("audit")], check_audit)
    yield make("suspects of a fold", [orjson.dumps([seeds.SUSPECT])], check_fold)
    yield make("manifests (.nertool.json)", [orjson.dumps(seeds.MANIFEST)], check_manifest)
    yield make("prediction: job", [orjson.dumps(seeds.JOB)], check_job)
    yield make("prediction: parts", [orjson.dumps(seeds.JOB)], check_shards)
    yield Reader(
        "prediction: chunks", lambda _: [_chunk(seeds.lines())], check_predicted, damage_inside(_unzst, _chunk)
    )
    yield make("queues", seeds.QUEUE, check_queue)
    yield make("spools", seeds.SPOOL, check_spool)


READERS = {reader.name: reader for reader in (*_formats(), *_others())}
