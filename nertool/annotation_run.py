"""A run of `annotate`: texts → answers of an LLM → documents."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nertool.annotation import annotate_document, choose_answers, is_whole
from nertool.chunks import WHOLE, Shard
from nertool.console import counted, progress
from nertool.documents import Document
from nertool.entity_classes import ClassList
from nertool.errors import NertoolError
from nertool.files import json_lines, write_json, write_json_lines
from nertool.formats import ReadReport, read_documents
from nertool.formats.output import is_document_file, new_documents
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
        shard: Which of the documents are annotated: one after the other goes to the next part.
    """

    source: Path
    output: Path
    settings: Settings
    classes: ClassList
    shard: Shard = WHOLE

    @property
    def answers_file(self) -> Path:
        """Where the answers are kept, beside the output, so that replacing the output never costs an answer."""
        name = self.output.name
        if is_document_file(self.output):
            name = name[: name.lower().index(".jsonl")]
        return self.output.with_name(f"{name}.responses.jsonl")

    def documents(self, report: ReadReport) -> Iterator[Document]:
        """Reads the documents."""
        every = read_documents(self.source, report, skip_invalid=self.settings.data.skip_invalid, texts=True)
        return (document for number, document in enumerate(every) if self.shard.has(number, 0))

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
        recorded = prompt.model and run.answers_file.exists()
        responses = stack.enter_context(ResponseFile(run.answers_file)) if recorded else None
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

    annotate = run.settings.annotate
    failed_file = run.answers_file.with_name(run.answers_file.name.replace(".responses.jsonl", ".failed.jsonl"))
    with ResponseFile(run.answers_file, append=True) as responses:
        must_ask = _must_ask(responses, run.classes, retry_failed=retry_failed)
        report = ReadReport()
        keys: set[str] = set()
        with progress("reading", None, "documents") as advance:  # what is wrong shows before anything is paid
            for document in run.documents(report):
                own = (prompt.key(piece.text) for piece in run.pieces_of(document))
                keys.update(key for key in own if key not in keys and must_ask(key))
                advance(report.documents)
        to_ask = len(keys)
        keys.clear()
        asked = ask(run.pieces(), to_ask, prompt, annotate, run.classes, responses, must_ask)
        if asked.failed:
            write_json_lines(failed_file, ({**piece.to_json(), "reason": reason} for piece, reason in asked.failed))
        else:
            failed_file.unlink(missing_ok=True)
        if asked.stopped or asked.failed:
            raise NertoolError(
                _unfinished(asked.stopped, asked.failed, failed_file),
                f"{len(responses):,} answers are kept in {run.answers_file}: the same command asks for the rest; "
                f"--responses {run.answers_file} makes documents of what is there",
            )

        def answers(document: Document) -> list[Answer]:
            found = []
            for piece in run.pieces_of(document):
                key = prompt.key(piece.text)
                if key not in responses:
                    raise NertoolError(
                        f"the text of {piece.document} was changed while the LLM was asked",
                        "the same command asks for what is new",
                    )
                answer = responses.with_key(key)
                found.append(
                    replace(answer, document=piece.document, sections=piece.sections, start=piece.start, end=piece.end)
                )
            return found

        result = write_annotated(run, answers, force=force)
    facts = {
        "kept": asked.kept,
        "unusable": asked.unusable,
        "retries": asked.retries,
        "seconds": round(asked.seconds, 2),
    }
    return {**result, "asked": {**asked.used.to_json(annotate), **facts}}


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
    given = documents = entities = set_aside = 0
    annotate = run.settings.annotate
    with (
        new_documents(run.output, "annotate", force=force, source=run.source) as output,
        json_lines(output.folder / "quarantine.jsonl") as quarantine,
        json_lines(output.folder / "reconciliation.jsonl") as by_document,
        progress("finding the mentions", None, "documents") as advance,
    ):
        for document in run.documents(report):
            given += 1
            expected = list(run.pieces_of(document))
            done = annotate_document(document, answers(document), expected, run.classes, annotate.fuzzy_similarity)
            done.ledger.check()
            ledger.add(done.ledger)
            set_aside += len(done.set_aside)
            for line in done.set_aside:
                quarantine(line)
            pieces_of_it = {name: count for name, count in done.ledger.piece_counts().items() if count}
            by_document(
                {
                    "document": document.id,
                    "written": done.document is not None,
                    "pieces": pieces_of_it,
                    "counts": done.ledger.counts(),
                }
            )
            if done.document is not None:
                output.documents.write(done.document)
                documents += 1
                entities += sum(len(section.entities) for section in done.document.sections)
            advance(report.documents)
        missing = ledger.pieces["missing"]
        if recorded is not None and missing and missing == ledger.pieces["given"]:
            raise NertoolError(
                f"no answer in {recorded} is about a text in {run.source}",
                "answers name the document's id and sections",
            )
        settings = annotate.model_dump(mode="json", exclude={"api_key"})
        write_json(output.folder / "reconciliation.json", {**ledger.to_json(), "settings": settings})
        write_rejected(report, output.folder / "rejected.jsonl")
    report_reading(report)
    return {
        "output": str(run.output),
        "documents": documents,
        "documents_set_aside": given - documents,
        "entities": entities,
        "set_aside": set_aside,
        "reconciliation": ledger.to_json(),
        "read": report.to_json(),
    }


def _must_ask(responses: ResponseFile | None, classes: ClassList, *, retry_failed: bool) -> Callable[[str], bool]:
    """Returns what tells by a request's key whether it must be asked: it has no answer, or no usable and whole one."""

    def must_ask(key: str) -> bool:
        if responses is None or key not in responses:
            return True
        return retry_failed and not is_whole(responses.with_key(key), classes)

    return must_ask


def _unfinished(stopped: str | None, failed: list[tuple[Piece, str]], failed_file: Path) -> str:
    lines = [f"asking stopped: {stopped}"] if stopped else []
    if failed:
        lines.append(f"{counted(len(failed), 'text')} got no answer:")
        for piece, reason in failed[:_TEXTS_NAMED]:
            lines.append(f"  {piece.document}, section {', '.join(map(str, piece.sections))}: {reason}")
        if len(failed) > _TEXTS_NAMED:
            lines.append(f"  and {len(failed) - _TEXTS_NAMED:,} more; all are in {failed_file}")
    return "\n".join(lines)
