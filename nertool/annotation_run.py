"""A run of `annotate`: texts → answers of an LLM → documents."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import orjson

from nertool.annotation import annotate_document, choose_answers, is_usable
from nertool.console import progress
from nertool.documents import Document
from nertool.entity_classes import ClassList
from nertool.errors import NertoolError
from nertool.files import write_json
from nertool.formats import ReadReport, read_documents
from nertool.formats.output import DocumentOutput, is_document_file, new_documents
from nertool.formats.reading import report_reading, write_rejected
from nertool.prompts import Piece, Prompt, pieces
from nertool.reconciliation import Ledger
from nertool.request_planning import plan
from nertool.responses import Answer, ResponseFile
from nertool.settings import Settings

_TEXTS_NAMED = 10


@dataclass(frozen=True)
class AnnotationRun:
    """What a run is about.

    Args:
        source: Documents or texts.
        output: A folder, or a `.jsonl` file, compressed or not.
        settings: The settings.
        classes: The classes that are asked for.
    """

    source: Path
    output: Path
    settings: Settings
    classes: ClassList

    @property
    def answers_file(self) -> Path:
        """Where the answers are kept, beside the output, so that replacing the output never costs an answer."""
        name = self.output.name
        if is_document_file(self.output):
            name = name[: name.lower().index(".jsonl")]
        return self.output.with_name(f"{name}.responses.jsonl")

    def documents(self, report: ReadReport) -> Iterator[Document]:
        """Reads the documents."""
        return read_documents(self.source, report, skip_invalid=self.settings.data.skip_invalid, texts=True)

    def pieces(self) -> Iterator[Piece]:
        """Reads the documents and cuts them into what is asked for."""
        for document in self.documents(ReadReport()):
            yield from self.pieces_of(document)

    def pieces_of(self, document: Document) -> Iterator[Piece]:
        """Cuts a document into what is asked for."""
        annotate = self.settings.annotate
        return pieces(document, max_tokens=annotate.max_text_tokens, join_sections=annotate.join_sections)


def plan_requests(run: AnnotationRun, prompt: Prompt, *, retry_failed: bool) -> dict[str, Any]:
    """Returns what asking would take; reads everything, asks and writes nothing."""
    report = ReadReport()
    with ExitStack() as stack:
        advance = stack.enter_context(progress("reading", None, "documents"))
        responses = stack.enter_context(ResponseFile(run.answers_file)) if run.answers_file.exists() else None
        total = 0

        def all_pieces() -> Iterator[Piece]:
            nonlocal total
            for document in run.documents(report):
                for piece in run.pieces_of(document):
                    total += 1
                    yield piece
                advance(report.documents)

        usage = plan(all_pieces(), prompt, responses, _must_ask(responses, run.classes, retry_failed=retry_failed))
    report_reading(report)
    planned = {"documents": report.documents, "texts": total, **usage.to_json(run.settings.annotate)}
    return {**planned, "answers_at_hand": len(responses) if responses is not None else 0}


def ask_and_write(run: AnnotationRun, prompt: Prompt, *, retry_failed: bool, force: bool) -> dict[str, Any]:
    """Asks for what is missing, then writes the documents.

    Returns:
        The counts that `--json` prints.

    Raises:
        NertoolError: If texts are still without an answer (all answers are kept), or the endpoint can't be used.
    """
    from nertool.asking import ask  # noqa: PLC0415 (needs the extra llm, which replaying does not)

    with progress("reading", None, "documents") as advance:  # what is wrong with them shows before anything is paid
        report = ReadReport()
        total = 0
        for document in run.documents(report):
            total += sum(1 for _ in run.pieces_of(document))
            advance(report.documents)
    with ResponseFile(run.answers_file, append=True) as responses:
        must_ask = _must_ask(responses, run.classes, retry_failed=retry_failed)
        annotate = run.settings.annotate
        asked = ask(run.pieces(), total, prompt, annotate, run.classes, responses, must_ask)
        if asked.stopped or asked.failed:
            raise NertoolError(
                _unfinished(asked.stopped, asked.failed),
                f"{len(responses):,} answers are kept in {run.answers_file}: the same command asks for the rest; "
                f"--responses {run.answers_file} makes documents of what is there",
            )

        def answers(document: Document) -> list[Answer]:
            own = ((piece, responses.with_key(prompt.key(piece.text))) for piece in run.pieces_of(document))
            return [
                replace(answer, document=piece.document, sections=piece.sections, start=piece.start, end=piece.end)
                for piece, answer in own
            ]

        result = write_annotated(run, answers, force=force)
    used = asked.used.to_json(annotate)
    facts = {
        "kept": asked.kept,
        "unusable": asked.unusable,
        "retries": asked.retries,
        "seconds": round(asked.seconds, 2),
    }
    return {**result, "asked": {**used, **facts}}


def replay_and_write(run: AnnotationRun, recorded: Path, *, force: bool) -> dict[str, Any]:
    """Writes the documents with recorded answers; texts without any are set aside.

    Raises:
        NertoolError: If no answer is about a text of the documents.
    """
    with ResponseFile(recorded) as responses:
        return write_annotated(
            run, lambda document: choose_answers(document, responses, run.classes), force=force, recorded=recorded
        )


def write_annotated(
    run: AnnotationRun, answers: Callable[[Document], list[Answer]], *, force: bool, recorded: Path | None = None
) -> dict[str, Any]:
    """Makes documents of answers and writes them, with what was set aside and the reconciliation beside them.

    Args:
        run: The run.
        answers: Gives the answers about a document.
        force: Replace an older output.
        recorded: The file of the answers, if they were given.

    Raises:
        NertoolError: If there is no answer at all, or the output can't be made.
    """
    report = ReadReport()
    ledger = Ledger()
    documents = entities = 0
    with (
        new_documents(run.output, "annotate", force=force, source=run.source) as output,
        _Quarantine(output) as quarantine,
        progress("finding the mentions", None, "documents") as advance,
    ):
        for document in run.documents(report):
            annotated = annotate_document(
                document, answers(document), run.classes, run.settings.annotate.fuzzy_similarity
            )
            ledger.add(annotated.ledger)
            quarantine.add(annotated.set_aside)
            if annotated.document is not None:
                output.documents.write(annotated.document)
                documents += 1
                entities += sum(len(section.entities) for section in annotated.document.sections)
            advance(report.documents)
        if (
            recorded is not None
            and ledger.pieces["missing"]
            and not ledger.pieces["answered"] + ledger.pieces["unusable"]
        ):
            raise NertoolError(
                f"no answer in {recorded} is about a text in {run.source}",
                "answers name the document's id and sections",
            )
        write_json(output.folder / "reconciliation.json", ledger.to_json())
        write_rejected(report, output.folder / "rejected.jsonl")
    report_reading(report)
    return {
        "documents": documents,
        "documents_set_aside": report.documents - documents,
        "entities": entities,
        "set_aside": quarantine.lines,
        "reconciliation": ledger.to_json(),
        "read": report.to_json(),
    }


class _Quarantine:
    """Writes `quarantine.jsonl`, if there is anything to write."""

    def __init__(self, output: DocumentOutput) -> None:
        self.lines = 0
        self._path = output.folder / "quarantine.jsonl"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "_Quarantine":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Appends lines."""
        if lines and self._file is None:
            self._file = self._path.open("wb")
        for line in lines:
            assert self._file is not None
            self._file.write(orjson.dumps(line) + b"\n")
        self.lines += len(lines)


def _must_ask(responses: ResponseFile | None, classes: ClassList, *, retry_failed: bool) -> Callable[[str], bool]:
    """Returns what tells by a request's key whether it must be asked: it has no answer, or no usable one."""

    def must_ask(key: str) -> bool:
        if responses is None or key not in responses:
            return True
        return retry_failed and not is_usable(responses.with_key(key), classes)

    return must_ask


def _unfinished(stopped: str | None, failed: list[tuple[Piece, str]]) -> str:
    lines = [f"asking stopped: {stopped}"] if stopped else []
    if failed:
        lines.append(f"{len(failed):,} texts got no answer:")
        for piece, reason in failed[:_TEXTS_NAMED]:
            lines.append(f"  {piece.document}, section {', '.join(map(str, piece.sections))}: {reason}")
        if len(failed) > _TEXTS_NAMED:
            lines.append(f"  and {len(failed) - _TEXTS_NAMED:,} more")
    return "\n".join(lines)
