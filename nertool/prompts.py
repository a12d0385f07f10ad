"""What an LLM is asked: a document's texts in pieces of a fitting size, and the request for each."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

import orjson

from nertool.documents import Document
from nertool.entity_classes import ClassList
from nertool.errors import NertoolError
from nertool.settings import AnnotateSettings

DEFAULT_PROMPT = Path(__file__).with_name("annotation_defaults") / "prompt.txt"
CHARS_PER_TOKEN = 4  # a rule of thumb for English, to plan with; what is paid, the endpoint says
SECTION_SEPARATOR = "\n\n"


# Sections, and where in the section it begins and ends if it is a part of one (else 0 and None).
Place = tuple[tuple[int, ...], int, int | None]


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that is asked for at once: a section, sections joined, or a part of a long section.

    Args:
        document: The document's id.
        sections: The indices of the sections in it.
        text: Their texts, joined by a blank line.
        start: Where the text begins in the section, if it is only a part of it.
        end: Where it ends there; None for whole sections.
    """

    document: str
    sections: tuple[int, ...]
    text: str
    start: int = 0
    end: int | None = None

    @property
    def place(self) -> Place:
        """What of the document it is."""
        return self.sections, self.start, self.end

    def to_json(self) -> dict[str, Any]:
        """Returns what of which document it is."""
        part = {} if self.end is None else {"start": self.start, "end": self.end}
        return {"document": self.document, "sections": list(self.sections), **part}

    @property
    def digest(self) -> str:
        """A SHA-256 prefix of the text, to recognise it by."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def overlap(one: Place, other: Place) -> bool:
    """Tells whether two pieces of one document have text in common."""
    (sections, start, end), (others, other_start, other_end) = one, other
    return bool(set(sections) & set(others)) and (
        end is None or other_end is None or (start < other_end and other_start < end)
    )


def pieces(document: Document, *, max_tokens: int, join_sections: bool) -> Iterator[Piece]:
    """Cuts a document into the pieces that are asked for; sections without text are left out.

    Args:
        document: The document.
        max_tokens: The longest text of a piece, in estimated tokens; a longer section is cut, if possible at the end
            of a paragraph or sentence.
        join_sections: Put neighbouring sections together as long as they fit.
    """
    limit = max_tokens * CHARS_PER_TOKEN
    waiting: list[int] = []

    def joined() -> Piece:
        text = SECTION_SEPARATOR.join(document.sections[index].text for index in waiting)
        return Piece(document.id, tuple(waiting), text)

    length = 0
    for index, section in enumerate(document.sections):
        if not section.text.strip():
            continue
        length += len(SECTION_SEPARATOR) + len(section.text)
        if waiting and (not join_sections or length - len(SECTION_SEPARATOR) > limit):
            yield joined()
            waiting.clear()
        if not waiting:
            length = len(section.text)
        if len(section.text) <= limit:
            waiting.append(index)
            continue
        for start, end in _parts(section.text, limit):
            yield Piece(document.id, (index,), section.text[start:end], start, end)
    if waiting:
        yield joined()


def _parts(text: str, limit: int) -> Iterator[tuple[int, int]]:
    """Cuts a text at the latest paragraph, sentence or word end within each `limit` characters."""
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        for pattern in (r"\n\s*", r"[.!?]\s+", r"\s+"):
            ends = [match.end() for match in re.finditer(pattern, window) if match.end() > limit // 2]
            if ends:
                break
        end = start + (ends[-1] if ends else limit)
        yield start, end
        start = end
    yield start, len(text)


@dataclass(frozen=True)
class Prompt:
    """The template with the classes filled in, and the parameters of each request.

    Args:
        template: What is asked, with `$text` left to fill in.
        model: The model's name.
        parameters: What else the request's body holds.
        settings: The settings behind that, to be noted with each answer.
    """

    template: str
    model: str
    parameters: dict[str, Any]
    settings: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """A SHA-256 prefix of the prompt, classes included."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16]

    def body(self, text: str) -> dict[str, Any]:
        """Returns the body of the request for a text."""
        content = self.template.replace("$text", text)
        return {"model": self.model, "messages": [{"role": "user", "content": content}], **self.parameters}

    def key(self, text: str) -> str:
        """Returns what identifies the request: a digest of everything in it, so of model, prompt, settings and text."""
        return hashlib.sha256(orjson.dumps(self.body(text), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def make_prompt(settings: AnnotateSettings, classes: ClassList) -> Prompt:
    """Reads the template, fills in the classes and collects the parameters.

    Raises:
        NertoolError: If the template can't be read or lacks `$text`.
    """
    path = settings.prompt or DEFAULT_PROMPT
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NertoolError(f"cannot read the prompt {path}: {error}", "check the path") from error
    if "$text" not in template:
        raise NertoolError(f"{path}: the prompt lacks $text, where the text goes", "put $text at its end")
    lines = [
        f"- {one.name}: {one.description}{' For example: ' + ', '.join(one.examples) + '.' if one.examples else ''}"
        for one in classes.classes
    ]
    template = Template(template).safe_substitute(classes="\n".join(lines))
    parameters: dict[str, Any] = {"temperature": settings.temperature}
    if settings.seed is not None:
        parameters["seed"] = settings.seed
    if settings.max_answer_tokens is not None:
        parameters["max_completion_tokens"] = settings.max_answer_tokens
    if settings.answer_format == "json_schema":
        schema = {"name": "entities", "strict": True, "schema": answer_schema(classes.names)}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif settings.answer_format == "json_object":
        parameters["response_format"] = {"type": "json_object"}
    names = {"temperature", "seed", "answer_format", "max_answer_tokens", "extra_body"}
    noted = {
        name: value
        for name, value in settings.model_dump(mode="json", include=names).items()
        if value not in (None, {})
    }
    return Prompt(template, settings.model, parameters | settings.extra_body, noted)


def answer_schema(names: list[str]) -> dict[str, Any]:
    """Returns the JSON schema of an answer, in the form that strict structured output asks for."""
    entry = {
        "type": "object",
        "properties": {
            "entity_match": {"type": "string"},
            "entity_class": {"type": "array", "items": {"type": "string", "enum": names}},
            "parts": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["entity_match", "entity_class", "parts"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"entities": {"type": "array", "items": entry}},
        "required": ["entities"],
        "additionalProperties": False,
    }
