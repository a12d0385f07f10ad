"""Splitting documents into train, eval and test by content: stratified over all classes, duplicates kept together.

`summarise` turns each document into a small summary, `plan_split` assigns the summaries to sides; the texts
themselves are never held, so a caller streams the documents twice: once to plan, once to write.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from nertool.documents import Document, content_digest, match_text
from nertool.duplicates import join_similar, minhash_signature
from nertool.errors import NertoolError
from nertool.stratification import Counts, stratify

SIDES = ("train", "eval", "test")


@dataclass(frozen=True, slots=True)
class DocumentSummary:
    """What planning a split needs to know of a document: about a kilobyte, whatever the length of the text.

    Args:
        id: The document's id.
        digest: SHA-256 of texts and entities; decides on the order, so that ids and files don't.
        text_digest: SHA-256 of the texts alone; equal in exact duplicates, whatever their entities.
        signature: MinHash of the set of five-word sequences, 128 uint32 as bytes; empty if there are no words.
        mentions: Label → the 8-byte hashes of the case-folded texts of its entities, one for each entity.
    """

    id: str
    digest: bytes
    text_digest: bytes
    signature: bytes
    mentions: tuple[tuple[str, bytes], ...]

    @property
    def label_counts(self) -> dict[str, int]:
        """Label → number of entities."""
        return {label: len(hashes) // 8 for label, hashes in self.mentions}


class DuplicateGroup(NamedTuple):
    """Documents that stay on one side; `exact` if their texts are equal, else `near`."""

    kind: str
    ids: tuple[str, ...]


class Unseen(NamedTuple):
    """How many of the entities of a side have a label and case-folded text that train holds nowhere."""

    entities: int
    unseen: int


class _Overall(BaseModel):
    entities: int
    unseen: int
    share: float | None


class _SideFile(BaseModel):
    overall: _Overall


class _ClassFile(BaseModel):
    counts: dict[str, int]


class _GroupFile(BaseModel):
    kind: Literal["exact", "near"]
    ids: list[str]


class _CountsFile(BaseModel):
    documents: dict[Literal["train", "eval", "test"], int] = Field(min_length=len(SIDES))


class SplitFile(BaseModel):
    """What `split.json` has of what training notes in the model."""

    seed: int
    counts: _CountsFile
    classes: dict[str, _ClassFile]
    duplicate_groups: list[_GroupFile]
    unseen_mentions: dict[Literal["eval", "test"], _SideFile]


@dataclass(frozen=True)
class SplitPlan:
    """Which document goes to which side, and what is worth knowing about it.

    Args:
        assignment: Document id → `train`, `eval` or `test`.
        seed: The seed.
        fractions: Side → share that was asked for.
        entities: Label → side → number of entities.
        duplicate_groups: All groups of two documents or more.
        single_classes: Class that occurs in one document (or one group of duplicates) only → its side: train, unless
            another side would have stayed empty.
        unseen: Side → label → entities never seen in train.
    """

    assignment: dict[str, str]
    seed: int
    fractions: dict[str, float]
    entities: dict[str, dict[str, int]]
    duplicate_groups: tuple[DuplicateGroup, ...]
    single_classes: dict[str, str]
    unseen: dict[str, dict[str, Unseen]]

    def report(self) -> dict[str, Any]:
        """Returns the content of `split.json`; a share of nothing is None."""
        ids: dict[str, list[str]] = {side: [] for side in SIDES}
        for identifier, side in self.assignment.items():
            ids[side].append(identifier)
        documents = {side: len(ids[side]) for side in SIDES}
        entities = {side: sum(counts[side] for counts in self.entities.values()) for side in SIDES}
        unseen = {
            side: {
                "overall": _unseen_to_json(
                    Unseen(sum(n.entities for n in by_label.values()), sum(n.unseen for n in by_label.values()))
                ),
                "classes": {label: _unseen_to_json(counts) for label, counts in by_label.items()},
            }
            for side, by_label in self.unseen.items()
        }
        return {
            "seed": self.seed,
            "fractions": {"asked": self.fractions, "documents": _shares(documents), "entities": _shares(entities)},
            "counts": {"documents": documents, "entities": entities},
            "classes": {label: {"counts": row, "shares": _shares(row)} for label, row in self.entities.items()},
            "duplicate_groups": [{"kind": group.kind, "ids": list(group.ids)} for group in self.duplicate_groups],
            "classes_in_a_single_document": self.single_classes,
            "unseen_mentions": unseen,
            "documents": {side: sorted(ids[side]) for side in SIDES},
        }


def summarise(document: Document) -> DocumentSummary:
    """Keeps of a document what planning a split needs; the mentions' texts are taken from their spans."""
    texts = [section.text for section in document.sections]
    mentions: defaultdict[str, list[bytes]] = defaultdict(list)
    for section in document.sections:
        for entity in section.entities:
            mention = match_text(section.text, entity.spans).casefold()
            mentions[entity.label].append(hashlib.blake2b(mention.encode(), digest_size=8).digest())
    return DocumentSummary(
        id=document.id,
        digest=bytes.fromhex(content_digest(document)),
        text_digest=hashlib.sha256(orjson.dumps(texts)).digest(),
        signature=minhash_signature(texts),
        mentions=tuple((label, b"".join(sorted(mentions[label]))) for label in sorted(mentions)),
    )


def plan_split(
    summaries: Iterable[DocumentSummary],
    fractions: Sequence[float],
    seed: int,
    duplicate_similarity: float,
) -> SplitPlan:
    """Assigns every document to a side; the seed and the contents decide, never the order or the ids.

    Args:
        summaries: One for each document, each with another id.
        fractions: Shares of train, eval and test; they add up to 1, and train's is above 0.
        seed: Another seed gives another split.
        duplicate_similarity: Estimated Jaccard similarity, in (0, 1], from which documents stay together.

    Raises:
        NertoolError: If the fractions don't fit, or there are fewer independent documents than sides.

    Source: Sechidis, Tsoumakas & Vlahavas (2011), On the stratification of multi-label data, algorithm 1. Different
        here: entities are counted, not documents that hold a class; duplicates are assigned as one; the number of
        documents is stratified like a class.
    """
    asked = _check_fractions(fractions)
    groups = _group_duplicates(summaries, duplicate_similarity)
    _shuffle(groups, seed)
    sides = [side for side in SIDES if asked[side] > 0]
    if len(groups) < len(sides):
        raise NertoolError(
            f"{sum(map(len, groups))} documents, {len(groups)} if duplicates count once, are too few for "
            f"{' and '.join(sides)}",
            "give more documents, or fractions with a 0",
        )
    side_of_group, single = stratify([_count(group) for group in groups], {side: asked[side] for side in sides})
    members: dict[str, list[DocumentSummary]] = {side: [] for side in SIDES}
    for group, side in zip(groups, side_of_group, strict=True):
        members[side] += group
    totals = {side: _count(members[side]) for side in SIDES}
    labels = sorted({label for counts in totals.values() for label in counts if label is not None})
    return SplitPlan(
        assignment={document.id: side for side in SIDES for document in members[side]},
        seed=seed,
        fractions=asked,
        entities={label: {side: totals[side].get(label, 0) for side in SIDES} for label in labels},
        duplicate_groups=_describe_groups(groups),
        single_classes={label: side_of_group[index] for label, index in sorted(single.items())},
        unseen={side: _count_unseen(members[side], members["train"]) for side in SIDES[1:]},
    )


def plan_folds(
    summaries: Iterable[DocumentSummary], folds: int, seed: int, duplicate_similarity: float
) -> dict[str, int]:
    """Assigns every document to a fold for cross-fitting; folds are as alike as the sides of a split.

    Args:
        summaries: One for each document, each with another id.
        folds: How many, at least 2.
        seed: Another seed gives other folds.
        duplicate_similarity: Estimated Jaccard similarity, in (0, 1], from which documents stay in one fold.

    Returns:
        Document id → fold, from 0.

    Raises:
        NertoolError: If there are fewer independent documents than folds.
    """
    groups = _group_duplicates(summaries, duplicate_similarity)
    if len(groups) < folds:
        raise NertoolError(
            f"{sum(map(len, groups))} documents, {len(groups)} if duplicates count once, are too few for {folds} folds",
            "give more documents, or ask for fewer folds",
        )
    _shuffle(groups, seed)
    numbers = {str(fold): fold for fold in range(folds)}
    sides, _ = stratify([_count(group) for group in groups], dict.fromkeys(numbers, 1 / folds), home=None)
    return {document.id: numbers[side] for group, side in zip(groups, sides, strict=True) for document in group}


def _shuffle(groups: list[list[DocumentSummary]], seed: int) -> None:
    groups.sort(key=lambda group: hashlib.sha256(b"%d %b" % (seed, min(doc.digest for doc in group))).digest())


def _check_fractions(fractions: Sequence[float]) -> dict[str, float]:
    shown = ", ".join(f"{fraction:g}" for fraction in fractions)
    hint = "write the shares of train, eval and test, such as 0.8,0.1,0.1"
    if len(fractions) != len(SIDES) or not all(0.0 <= fraction <= 1.0 for fraction in fractions):
        raise NertoolError(f"the split needs three fractions from 0 to 1, not {shown}", hint)
    if abs(sum(fractions) - 1.0) > 1e-6:
        raise NertoolError(f"the split fractions {shown} add up to {sum(fractions):g}, not 1", hint)
    if fractions[0] == 0.0:
        raise NertoolError(f"the split fractions {shown} leave nothing for train", hint)
    return dict(zip(SIDES, map(float, fractions), strict=True))


def _group_duplicates(documents: Iterable[DocumentSummary], similarity: float) -> list[list[DocumentSummary]]:
    """Returns the documents that belong together, one list for each group or single document."""
    same_text: defaultdict[bytes, list[DocumentSummary]] = defaultdict(list)
    for document in documents:
        same_text[document.text_digest].append(document)
    # Only one of each set of equal texts is compared: a thousand copies would be a million pairs.
    with_words = [members for members in same_text.values() if members[0].signature]
    groups: defaultdict[int, list[DocumentSummary]] = defaultdict(list)
    roots = join_similar([members[0].signature for members in with_words], similarity)
    for root, members in zip(roots, with_words, strict=True):
        groups[root] += members
    return [*groups.values(), *(members for members in same_text.values() if not members[0].signature)]


def _describe_groups(groups: list[list[DocumentSummary]]) -> tuple[DuplicateGroup, ...]:
    described = [
        DuplicateGroup(
            "exact" if len({document.text_digest for document in group}) == 1 else "near",
            tuple(sorted(document.id for document in group)),
        )
        for group in groups
        if len(group) > 1
    ]
    return tuple(sorted(described, key=lambda group: group.ids))


def _count(group: Sequence[DocumentSummary]) -> Counts:
    counts: Counter[str] = Counter()
    for document in group:
        counts.update(document.label_counts)
    return {**dict(sorted(counts.items())), None: len(group)}


def _count_unseen(side: Iterable[DocumentSummary], train: Iterable[DocumentSummary]) -> dict[str, Unseen]:
    """Counts, for each class, the entities of a side whose text no entity of that class in train has."""
    hashes, known = _hashes_by_label(side), _hashes_by_label(train)
    return {
        label: Unseen(len(found), int(np.sum(~np.isin(found, known[label])) if label in known else len(found)))
        for label, found in hashes.items()
    }


def _hashes_by_label(documents: Iterable[DocumentSummary]) -> dict[str, NDArray[np.uint64]]:
    parts: defaultdict[str, list[bytes]] = defaultdict(list)
    for document in documents:
        for label, hashes in document.mentions:
            parts[label].append(hashes)
    return {label: np.frombuffer(b"".join(parts[label]), dtype=np.uint64) for label in sorted(parts)}


def _shares(counts: dict[str, int]) -> dict[str, float | None]:
    total = sum(counts.values())
    return {side: count / total if total else None for side, count in counts.items()}


def _unseen_to_json(unseen: Unseen) -> dict[str, Any]:
    return {**unseen._asdict(), "share": unseen.unseen / unseen.entities if unseen.entities else None}
