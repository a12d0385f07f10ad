"""Reading documents from a file or a folder, whatever formats are in it, with every problem collected."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nertool.console import counted, say
from nertool.document_parsing import Problem
from nertool.documents import Document, dump_document
from nertool.errors import NertoolError, nearest_name
from nertool.files import write_json_lines
from nertool.formats.base import MOST_REJECTED_KEPT, Format, ReadReport, Record, Rejected, file_name_key, is_side_file
from nertool.formats.bioc_format import read_bioc
from nertool.formats.bioc_writer import BiocWriter
from nertool.formats.brat import CONFIGURATION_FILES, BratWriter, brat_losses, read_brat, text_file
from nertool.formats.conll import BioesConllWriter, ConllWriter, conll_losses, read_conll
from nertool.formats.datasets_rows import ENDINGS as DATASETS_ENDINGS
from nertool.formats.datasets_rows import DatasetsWriter, read_datasets
from nertool.formats.jsonl import JsonlWriter, read_jsonl, read_raw_lines
from nertool.formats.kazu import KazuWriter, read_kazu
from nertool.formats.label_studio_json import LabelStudioWriter, label_studio_losses, read_label_studio
from nertool.formats.pubtator import PubtatorWriter, clean_id, pubtator_losses, read_pubtator
from nertool.formats.spacy_docbin import SpacyWriter, read_spacy
from nertool.formats.text import TextWriter, read_text, text_losses

FORMATS = {
    "pubtator": Format((".pubtator", ".pubtator.txt"), read_pubtator, PubtatorWriter, pubtator_losses, id_key=clean_id),
    "labelstudio": Format((".labelstudio.json",), read_label_studio, LabelStudioWriter, label_studio_losses),
    "bioc": Format((".bioc.xml", ".bioc.json", ".xml"), read_bioc, BiocWriter),
    "brat": Format((".ann",), read_brat, BratWriter, brat_losses, folder=True, id_key=file_name_key),
    "conll": Format((".conll", ".iob", ".iob2", ".bio"), read_conll, ConllWriter, conll_losses),
    "conll-bioes": Format((".bioes",), read_conll, BioesConllWriter, conll_losses),
    "spacy": Format((".spacy",), read_spacy, SpacyWriter),
    "datasets": Format(DATASETS_ENDINGS, read_datasets, DatasetsWriter),
    # Below the formats whose endings end in theirs.
    "jsonl": Format((".jsonl", ".jsonl.gz", ".jsonl.zst"), read_jsonl, JsonlWriter, read_raw=read_raw_lines),
    "kazu": Format((".json",), read_kazu, KazuWriter, folder=True),
    "text": Format((".txt",), read_text, TextWriter, text_losses, folder=True, id_key=file_name_key),
}

_PROBLEMS_SHOWN_PER_DOCUMENT = 5
_REST = "from there on it was not read"


def read_documents(
    path: Path,
    report: ReadReport,
    *,
    format_name: str | None = None,
    skip_invalid: bool = False,
    texts: bool = False,
    on_rejected: Callable[[Rejected], object] | None = None,
) -> Iterator[Document]:
    """Reads documents one at a time, in the order of file names; only their ids stay in memory.

    Args:
        path: A file, or a folder whose files are read (not its subfolders; hidden files are ignored).
        report: Filled on the way.
        format_name: A name from `FORMATS`; by default each file's ending decides.
        skip_invalid: Collect invalid documents in `report.rejected` instead of failing at the end.
        texts: Take plain texts (`.txt`), too.
        on_rejected: Gets the invalid documents as they are found; then `report` doesn't keep them all.

    Yields:
        The valid documents.

    Raises:
        NertoolError: If there is nothing to read; at the end, if documents were invalid (with all of them).
    """
    seen: dict[str, str] = {}
    for file, file_format in list_files(path, format_name, texts=texts, report=report):
        try:
            for found in read_records(file, file_format):
                record = _refuse_known_id(found, seen)
                report.notes.update(record.notes)
                if record.document is None:
                    item = Rejected(record.place, record.problems, record.raw)
                    if on_rejected is not None:
                        on_rejected(item)
                    if on_rejected is None and skip_invalid:
                        report.rejected.append(item)  # all of them, for `write_rejected`
                    else:
                        report.reject(item)
                    continue
                count_document(record.document, report)
                yield record.document
        except OSError as error:
            raise NertoolError(f"cannot read {file}: {error.strerror or error}") from error
    if report.rejected and not skip_invalid:
        raise invalid_documents(report)
    if not report.documents and not report.rejected:
        raise NertoolError(f"{path} holds no documents")


def read_records(file: Path, file_format: Format) -> Iterator[Record]:
    """Reads a file in a format; what no reader can hold in its hands is a problem, too."""
    try:
        yield from file_format.read(file)
    except RecursionError:
        yield Record(str(file), None, (Problem("", f"holds what is nested too deeply; {_REST}"),))
    except OverflowError as error:
        yield Record(str(file), None, (Problem("", f"holds a number that is too large ({error}); {_REST}"),))


def count_document(document: Document, report: ReadReport) -> None:
    """Adds a document to the counts of a report."""
    report.documents += 1
    report.sections += len(document.sections)
    report.entities += sum(len(section.entities) for section in document.sections)


def repeated_id(identifier: str, first: str) -> Problem:
    """Returns what is wrong with a document whose id an earlier one has, at the place `first`."""
    return Problem("idx", f"the id {identifier!r} is already used by {first}")


def choose_format(name: str) -> Format:
    """Returns the format of a name.

    Raises:
        NertoolError: If there is none.
    """
    if name not in FORMATS:
        raise NertoolError(f"unknown format {name!r}{nearest_name(name, FORMATS)}", f"known: {', '.join(FORMATS)}")
    return FORMATS[name]


def format_to_write(output: Path, name: str | None) -> tuple[str, Format]:
    """Returns the format of an output, and its name: the one that is named, or as its ending tells, or else kazu.

    Raises:
        NertoolError: If the format's name is unknown, or the output's name would make it look like another format's.
    """
    by_ending = next((known for known, its in FORMATS.items() if output.name.lower().endswith(its.endings)), None)
    if name is None:
        if by_ending is not None and FORMATS[by_ending].folder:
            raise NertoolError(f"{output} looks like a file, and {by_ending} makes a folder", "name a folder, and --to")
        name = by_ending or "kazu"
    file_format = choose_format(name)
    rows = name == "datasets" and output.suffix.lower() == ".jsonl"  # lines of JSON, too
    if by_ending == "jsonl" and name != "jsonl" and not rows:
        raise NertoolError(f"{output} ends like jsonl, and is going to be {name}", "choose another name")
    return name, file_format


def invalid_documents(report: ReadReport) -> NertoolError:
    """Returns the error that names the invalid documents."""
    return NertoolError(
        describe_rejected(report.rejected, report.more_rejected),
        "mend them, or use --skip-invalid to set them aside in rejected.jsonl and go on with the rest",
    )


def count_files(path: Path) -> int | None:
    """Returns how many documents a folder holds that has a file for each; None where only reading tells."""
    if not path.is_dir():
        return None
    names = [entry.name for entry in os.scandir(path) if not entry.name.startswith(".")]
    documents = [name for name in names if not is_side_file(name) and _by_ending(Path(name), texts=False)]
    one_each = all(_by_ending(Path(name), texts=False) is FORMATS["kazu"] for name in documents)
    return len(documents) if one_each else None


def describe_rejected(rejected: list[Rejected], more: int = 0) -> str:
    """Returns a message that names the invalid documents and what is wrong with them."""
    lines = [f"{counted(len(rejected) + more, 'invalid document')}:"]
    for item in rejected:
        for problem in item.problems[:_PROBLEMS_SHOWN_PER_DOCUMENT]:
            lines.append(f"  {item.place}: {problem}")
        if (others := len(item.problems) - _PROBLEMS_SHOWN_PER_DOCUMENT) > 0:
            lines.append(f"  {item.place}: and {others} more")
    if more:
        lines.append(f"  and {more:,} more")
    return "\n".join(lines)


def _refuse_known_id(record: Record, seen: dict[str, str]) -> Record:
    if record.document is None:
        return record
    first = seen.setdefault(record.document.id, record.place)
    if first is record.place:
        return record
    problem = repeated_id(record.document.id, first)
    return Record(record.place, None, (problem,), record.raw or dump_document(record.document))


def list_files(
    path: Path, format_name: str | None, *, texts: bool, report: ReadReport
) -> Iterator[tuple[Path, Format]]:
    """Yields the files that are to be read, each with its format; the arguments are those of `read_documents`."""
    if not path.exists():
        beside = "" if path.is_absolute() else f"; the working folder is {Path.cwd()}"
        raise NertoolError(f"{path} does not exist", f"check the path{beside}")
    if path.is_file():
        file_format = choose_format(format_name) if format_name else _by_ending(path, texts=True)
        if file_format is None:
            raise NertoolError(
                f"{path}: the ending tells no format (known: {_endings(texts=True)})",
                "name the format: nertool convert IN OUT --from FORMAT --to kazu",
            )
        yield path, file_format
        return
    files = sorted(file for file in path.iterdir() if not (file.name.startswith(".") or is_side_file(file.name)))
    subfolders = [file.name for file in files if file.is_dir()]
    chosen = _choose_files([file for file in files if not file.is_dir()], format_name, texts)
    report.ignored_files.extend(file.name for file, file_format in chosen if file_format is None)
    found = False
    for file, file_format in chosen:
        if file_format is not None:
            found = True
            yield file, file_format
    if not found and not subfolders and any(_by_ending(file, texts=True) for file in files):
        raise NertoolError(
            f"{path} holds no documents, only texts",
            "entities must be marked first: nertool annotate (by an LLM) or nertool predict (by a model)",
        )
    if not found:
        inside = f"; it has the folders {', '.join(subfolders[:5])}" if subfolders else ""
        raise NertoolError(
            f"{path} holds no documents{inside}",
            "name the folder that holds them" if subfolders else f"files of documents end in {_endings(texts)}",
        )
    report.ignored_files.extend(f"{name}/" for name in subfolders)


def _choose_files(files: list[Path], format_name: str | None, texts: bool) -> list[tuple[Path, Format | None]]:
    """Returns the format of each file of a folder; None where it isn't to be read.

    Of a format that was named, only the files with its endings are read, if there are any.
    """
    if format_name in (None, "brat"):
        files = _without_companions(files)
    if format_name is None:
        return [(file, _by_ending(file, texts)) for file in files]
    named = choose_format(format_name)
    fits = [file.name.lower().endswith(named.endings) for file in files]
    return [(file, named if fit or not any(fits) else None) for file, fit in zip(files, fits, strict=True)]


def _without_companions(files: list[Path]) -> list[Path]:
    """Leaves out the files that belong to BRAT's annotation files: their texts, and the folder's configuration."""
    annotations = [file for file in files if file.name.lower().endswith(FORMATS["brat"].endings)]
    companions = {text_file(file).name for file in annotations} | (CONFIGURATION_FILES if annotations else set())
    return [file for file in files if file.name not in companions]


def _endings(texts: bool) -> str:
    formats = (known for name, known in FORMATS.items() if texts or name != "text")
    return ", ".join(ending for known in formats for ending in known.endings)


def holds_documents(file: Path) -> bool:
    """Tells by its ending whether a file holds documents; plain texts do not count."""
    return _by_ending(file, texts=False) is not None


def _by_ending(file: Path, texts: bool) -> Format | None:
    name = file.name.lower()
    for format_name, file_format in FORMATS.items():
        if format_name == "text" and not texts:
            continue
        if name.endswith(file_format.endings):
            return file_format
    return None


def write_rejected(report: ReadReport, path: Path) -> None:
    """Writes the invalid documents that were set aside, with their reasons, one per line; no file if there are none."""
    path.unlink(missing_ok=True)  # of an earlier run
    if report.rejected:
        write_json_lines(path, (item.to_json() for item in report.rejected))


def report_reading(report: ReadReport) -> None:
    """Tells people what didn't come in, and what was changed on the way."""
    for item in report.rejected[:MOST_REJECTED_KEPT]:
        say(f"set aside: {item.place}: {item.problems[0]}")
    if report.rejected:
        number = len(report.rejected) + report.more_rejected
        say(counted(number, "invalid document was set aside", "invalid documents were set aside"))
    for note, count in report.notes.items():
        say(f"note: {count:,} {note}")
    if report.ignored_files:
        shown = ", ".join(report.ignored_files[:5]) + (", …" if len(report.ignored_files) > 5 else "")
        number = len(report.ignored_files)
        what = counted(number, "other file or folder was not read", "other files or folders were not read")
        say(f"note: {what} ({shown})")
