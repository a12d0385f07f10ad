"""The classes that an LLM is asked for, and what it may call them."""

import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nertool.errors import NertoolError
from nertool.settings import read_toml

Wording = Annotated[str, Field(pattern=r"[^\W_]")]  # with a letter or digit at least

DEFAULT_CLASSES = Path(__file__).with_name("annotation_defaults") / "classes.toml"


class EntityClass(BaseModel):
    """One class: its name, what it means, examples, and other wordings for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Wording
    description: str = ""
    examples: tuple[str, ...] = ()
    aliases: tuple[Wording, ...] = ()


class ClassList(BaseModel):
    """All classes, in the order of the file."""

    model_config = ConfigDict(extra="forbid")

    classes: tuple[EntityClass, ...] = Field(alias="class", min_length=1)

    @property
    def names(self) -> list[str]:
        """The names."""
        return [one.name for one in self.classes]

    def resolve(self, wording: str) -> str | None:
        """Returns the class that a wording means, or None.

        The first rule that fits: the name or an alias, whatever the case, dashes, underscores or punctuation around
        it; their singular or plural; one of the words that a name joins (`disease, disorder, phenotype or trait`,
        `gene or gene product`) if only one class has it, in the singular or plural.
        """
        plain = _plain(wording)
        for rule in self._rules:
            for form in _numbers(plain):
                if form in rule:
                    return rule[form]
        return None

    def is_wording(self, text: str) -> bool:
        """Tells whether a string means a class."""
        return self.resolve(text) is not None

    @cached_property
    def _rules(self) -> tuple[dict[str, str], ...]:
        exact: dict[str, str] = {}
        joined: dict[str, set[str]] = {}
        for one in self.classes:
            for alias in one.aliases:
                exact.setdefault(_plain(alias), one.name)
            for word in re.split(r",\s*|/|\bor\b", one.name):
                for form in _numbers(_plain(word)):
                    joined.setdefault(form, set()).add(one.name)
        exact |= {_plain(one.name): one.name for one in self.classes}
        unique = {word: names.pop() for word, names in joined.items() if word and len(names) == 1}
        numbers = {form: name for word, name in exact.items() for form in _numbers(word)}
        return exact, numbers | exact, unique


def load_classes(path: Path | None) -> ClassList:
    """Reads a TOML file of classes; by default the 18 of KAZU's published model.

    Raises:
        NertoolError: With everything that is wrong with the file.
    """
    path = path or DEFAULT_CLASSES
    try:
        classes = ClassList.model_validate(read_toml(path))
    except OSError as error:
        raise NertoolError(f"cannot read the classes {path}: {error.strerror or error}", "check the path") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        hint = 'each class is [[class]] with name = "…", and if you like description, examples, aliases'
        raise NertoolError("\n".join(lines), hint) from error
    seen: dict[str, str] = {}
    for one in classes.classes:
        for wording in (one.name, *one.aliases):
            first = seen.setdefault(_plain(wording), one.name)
            if first != one.name:
                raise NertoolError(f"{path}: {wording!r} stands for two classes, {first!r} and {one.name!r}")
    if len(set(classes.names)) < len(classes.names):
        raise NertoolError(f"{path} has two classes of one name")
    return classes


def _plain(wording: str) -> str:
    plain = unicodedata.normalize("NFKC", wording).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", plain).split())


def _numbers(plain: str) -> Iterator[str]:
    """Yields a wording, and what may be its singular."""
    if plain:
        yield plain
    if len(plain) < 4:
        return
    if plain.endswith("ies"):
        yield f"{plain[:-3]}y"
    if plain.endswith("es"):
        yield plain[:-2]
        yield f"{plain[:-2]}is"
    if plain.endswith("s"):
        yield plain[:-1]
