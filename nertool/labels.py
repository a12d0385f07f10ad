"""The label scheme: which classes there are, and which output channel of the model means what."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nertool.errors import NertoolError


@dataclass(frozen=True, slots=True)
class LabelScheme:
    """The classes in a fixed order, and the model's output channels.

    Channel `i` says "inside an entity of `labels[i]`". With `begin`, channel `len(labels) + i` says "an entity of
    `labels[i]` begins here", which keeps touching entities of one class apart.

    Args:
        labels: The classes, sorted, each once.
        begin: Whether there are begin channels.
    """

    labels: tuple[str, ...]
    begin: bool = False

    @property
    def channels(self) -> int:
        """How many outputs the model has for each token."""
        return len(self.labels) * (2 if self.begin else 1)

    def channel_names(self) -> dict[int, str]:
        """Returns channel → name, as `id2label` in the model's `config.json`."""
        names = [*self.labels, *(f"begin of {label}" for label in self.labels)] if self.begin else self.labels
        return dict(enumerate(names))

    def channels_in(self, other: "LabelScheme") -> list[int]:
        """Returns for each channel of this scheme the channel of another one, of at least its classes, that says it."""
        index = {label: i for i, label in enumerate(other.labels)}
        inside = [index[label] for label in self.labels]
        return [*inside, *(len(index) + i for i in inside if self.begin)]

    def to_json(self) -> dict[str, Any]:
        """Returns the scheme as it is kept in `nertool.json` and `cache.json`."""
        return {"labels": list(self.labels), "begin": self.begin}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LabelScheme":
        """Reads what `to_json` wrote."""
        return cls(tuple(value["labels"]), value["begin"])


def make_scheme(labels: Iterable[str], *, begin: bool = False) -> LabelScheme:
    """Makes the scheme for a set of classes; their order never depends on the order of documents.

    Raises:
        NertoolError: If there is no class at all.
    """
    unique = tuple(sorted(set(labels)))
    if not unique:
        raise NertoolError("the documents hold no entities, so there are no classes to learn", "annotate them first")
    return LabelScheme(unique, begin)
