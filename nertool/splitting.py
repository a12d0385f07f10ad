"""Splitting documents into train, eval and test by content: stratified over all classes, duplicates kept together.

`summarise` turns each document into a small summary, `plan_split` assigns the summaries to sides; the texts
themselves are never held, so a caller streams the documents twice: once to plan, once to write.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from rensa import RMinHash

from nertool.documents import Document, content_digest, match_text
from nertool.errors import NertoolError

SIDES = ("train", "eval", "test")

_WORD = re.compile(r"\w+")
_WORDS_PER_SHINGLE = 5
# The standard error of an estimated similarity s is sqrt(s * (1 - s) / 128): 0.035 at 0.8, 0.027 at 0.9.
_HASHES = 128
_MINHASH_SEED = 42
_RECALL_AT_THRESHOLD = 0.999


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
        return {
            "seed": self.seed,
            "fractions": {
                "asked": self.fractions,
                "documents": _shares(documents),
                "entities": _shares(entities),
            },
            "counts": {"documents": documents, "entities": entities},
            "classes": {
                label: {"counts": counts, "shares": _shares(counts)} for label, counts in sorted(self.entities.items())
            },
            "duplicate_groups": [{"kind": group.kind, "ids": list(group.ids)} for group in self.duplicate_groups],
            "classes_in_a_single_document": dict(sorted(self.single_classes.items())),
            "unseen_mentions": {
                side: {
                    "overall": _unseen_to_json(
                        Unseen(*map(sum, zip(*by_label.values(), strict=True))) if by_label else Unseen(0, 0)
                    ),
                    "classes": {label: _unseen_to_json(unseen) for label, unseen in sorted(by_label.items())},
                }
                for side, by_label in self.unseen.items()
            },
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
        signature=_signature(texts),
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
    documents = sorted(summaries, key=lambda summary: (summary.digest, summary.id))
    groups = _group_duplicates(documents, duplicate_similarity)
    groups.sort(key=lambda group: hashlib.sha256(b"%d %b" % (seed, documents[group[0]].digest)).digest())
    sides = [side for side in SIDES if asked[side] > 0]
    if len(groups) < len(sides):
        raise NertoolError(
            f"{len(documents)} documents, of which {len(groups)} remain when duplicates count once, "
            f"are too few for {' and '.join(sides)}",
            "give more documents, or fractions with a 0",
        )
    counts = [_count([documents[index] for index in group]) for group in groups]
    side_of_group, single = _stratify(counts, {side: asked[side] for side in sides})
    side_of = {index: side for group, side in zip(groups, side_of_group, strict=True) for index in group}
    entities: dict[str, dict[str, int]] = {}
    for index, side in side_of.items():
        for label, count in documents[index].label_counts.items():
            entities.setdefault(label, dict.fromkeys(SIDES, 0))[side] += count
    return SplitPlan(
        assignment={documents[index].id: side_of[index] for index in range(len(documents))},
        seed=seed,
        fractions=asked,
        entities=entities,
        duplicate_groups=_describe_groups([[documents[index] for index in group] for group in groups]),
        single_classes={label: side_of_group[group] for label, group in single.items()},
        unseen=_count_unseen(documents, side_of),
    )


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


# Duplicates


def _signature(texts: Sequence[str]) -> bytes:
    words = [word for text in texts for word in _WORD.findall(text.lower())]
    if not words:
        return b""
    width = min(_WORDS_PER_SHINGLE, len(words))  # a shorter text is one sequence
    minhash = RMinHash(num_perm=_HASHES, seed=_MINHASH_SEED)
    minhash.update(list(map(" ".join, zip(*(words[start:] for start in range(width)), strict=False))))
    return np.array(minhash.digest(), dtype="<u4").tobytes()


def _group_duplicates(documents: Sequence[DocumentSummary], similarity: float) -> list[list[int]]:
    """Returns the indices of documents that belong together, one list for each group or single document."""
    same_text: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, document in enumerate(documents):
        same_text[document.text_digest].append(index)
    # Only one of each set of equal texts is compared: a thousand copies would be a million pairs.
    with_words = [members for members in same_text.values() if documents[members[0]].signature]
    joined: defaultdict[int, list[int]] = defaultdict(list)
    if with_words:
        buffer = b"".join(documents[members[0]].signature for members in with_words)
        roots = _join_similar(np.frombuffer(buffer, dtype="<u4").reshape(-1, _HASHES), similarity)
        for root, members in zip(roots, with_words, strict=True):
            joined[root] += members
    without_words = [members for members in same_text.values() if not documents[members[0]].signature]
    return [sorted(members) for members in [*joined.values(), *without_words]]


def _join_similar(signatures: NDArray[np.uint32], similarity: float) -> list[int]:
    """Joins all rows that are linked by pairs of at least this estimated similarity (LSH finds the pairs).

    The bands are sorted here, not put into rensa's index: that takes five times the memory, and its answers about a
    text with ten thousand near copies would be a hundred million pairs.

    Args:
        signatures: (documents, 128) uint32.
        similarity: In (0, 1].

    Returns:
        For each row the first row of its group.
    """
    parent = list(range(len(signatures)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join_bucket(rows: NDArray[np.int64]) -> None:
        roots = np.array([root(row) for row in rows])
        for position in range(len(rows) - 1):
            others = np.flatnonzero(roots != roots[position])
            if not len(others):
                return
            others = others[others > position]
            equal = np.mean(signatures[rows[others]] == signatures[rows[position]], axis=1)
            similar = others[equal >= similarity]
            for other in similar:
                first, second = sorted((root(int(rows[position])), root(int(rows[other]))))
                parent[second] = first
            if len(similar):
                roots = np.array([root(row) for row in rows])

    width = _rows_per_band(similarity)
    # Each band becomes one number; that two unequal bands may collide costs a comparison, nothing else.
    factors = np.random.default_rng(_MINHASH_SEED).integers(2**63, size=width, dtype=np.uint64) | np.uint64(1)
    for start in range(0, _HASHES, width):
        keys = (signatures[:, start : start + width] * factors).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]], append=~keys[order[-1:]]))
        for bucket in np.flatnonzero(np.diff(edges) > 1):
            join_bucket(order[edges[bucket] : edges[bucket + 1]])
    return [root(row) for row in range(len(signatures))]


def _rows_per_band(similarity: float) -> int:
    """Returns the widest band with which a pair at the threshold is still found with 99.9 % probability."""
    widths = [2**power for power in range(_HASHES.bit_length())]
    found = [1 - (1 - similarity**width) ** (_HASHES // width) for width in widths]
    return max(
        (width for width, chance in zip(widths, found, strict=True) if chance >= _RECALL_AT_THRESHOLD), default=1
    )


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


# Stratification

# Label → entities, and None → documents, which are stratified like a class.
Counts = dict[str | None, int]


def _count(group: Sequence[DocumentSummary]) -> Counts:
    counts: Counter[str] = Counter()
    for document in group:
        counts.update(document.label_counts)
    return {**dict(sorted(counts.items())), None: len(group)}


def _stratify(groups: Sequence[Counts], fractions: dict[str, float]) -> tuple[list[str], dict[str, int]]:
    """Assigns groups to sides, one after the other, the rarest class first; then moves what sits badly.

    Returns:
        The side of each group, and the classes that occur in one group only with the index of that group.
    """
    total: Counter[str | None] = Counter()
    holders: defaultdict[str | None, list[int]] = defaultdict(list)
    for index, counts in enumerate(groups):
        total.update(counts)
        for label in counts:
            holders[label].append(index)
    lacking = {
        side: {label: fraction * count for label, count in total.items()} for side, fraction in fractions.items()
    }
    remaining = Counter(total)
    side_of: dict[int, str] = {}

    def place(index: int, side: str) -> None:
        side_of[index] = side
        for label, count in groups[index].items():
            lacking[side][label] -= count
            remaining[label] -= count

    single = {label: indices[0] for label, indices in holders.items() if label is not None and len(indices) == 1}
    singles_in = Counter(single.values())
    for index in sorted(singles_in):
        place(index, "train")
    unfinished = set(total)
    while unfinished:
        # The number of documents comes last: by then, only documents without entities are left.
        rarest = min(unfinished, key=lambda label: (label is None, remaining[label], label or ""))
        unfinished.remove(rarest)
        for index in holders[rarest]:
            if index not in side_of:
                place(index, max(fractions, key=lambda side: (lacking[side][rarest], lacking[side][None])))
    _improve(groups, side_of, lacking, total, singles_in)
    return [side_of[index] for index in range(len(groups))], single


def _improve(
    groups: Sequence[Counts],
    side_of: dict[int, str],
    lacking: dict[str, dict[str | None, float]],
    total: Counter[str | None],
    singles_in: Counter[int],
    passes: int = 5,
) -> None:
    """Fills empty sides, then moves groups while that brings the shares of the classes nearer to the asked ones.

    The iterative assignment can't foresee that a document with many entities overshoots; on BioRED, these passes
    bring the mean deviation of a class's share from 0.9 to 0.15 percentage points.
    """
    size = Counter(side_of.values())

    def cost(index: int, side: str) -> float:
        """The growth of the sum of squared deviations of shares if the group moved."""
        here, there = lacking[side_of[index]], lacking[side]
        return sum(
            count * (here[label] - there[label] + count) / total[label] ** 2 for label, count in groups[index].items()
        )

    def move(index: int, side: str) -> None:
        for label, count in groups[index].items():
            lacking[side_of[index]][label] += count
            lacking[side][label] -= count
        size.update({side_of[index]: -1, side: 1})
        side_of[index] = side

    for side in lacking:
        if not size[side]:
            movable = [index for index in range(len(groups)) if size[side_of[index]] > 1]
            move(min(movable, key=lambda index: (singles_in[index], cost(index, side))), side)
    for _ in range(passes):
        moved = False
        for index in range(len(groups)):
            if singles_in[index] or size[side_of[index]] == 1:
                continue
            best = min(lacking, key=lambda side: cost(index, side) if side != side_of[index] else 0.0)
            if best != side_of[index] and cost(index, best) < -1e-12:
                move(index, best)
                moved = True
        if not moved:
            break


# The report


def _count_unseen(documents: Sequence[DocumentSummary], side_of: dict[int, str]) -> dict[str, dict[str, Unseen]]:
    """Counts, for each class, the entities of eval and test whose text no entity of that class in train has."""
    hashes: dict[str, defaultdict[str, list[bytes]]] = {side: defaultdict(list) for side in SIDES}
    for index, side in side_of.items():
        for label, mentions in documents[index].mentions:
            hashes[side][label].append(mentions)
    result: dict[str, dict[str, Unseen]] = {}
    for side in SIDES[1:]:
        result[side] = {}
        for label, parts in hashes[side].items():
            mentions = np.frombuffer(b"".join(parts), dtype=np.uint64)
            seen = np.frombuffer(b"".join(hashes["train"].get(label, [])), dtype=np.uint64)
            result[side][label] = Unseen(len(mentions), int(np.sum(~np.isin(mentions, seen))))
    return result


def _shares(counts: dict[str, int]) -> dict[str, float | None]:
    total = sum(counts.values())
    return {side: count / total if total else None for side, count in counts.items()}


def _unseen_to_json(unseen: Unseen) -> dict[str, Any]:
    return {**unseen._asdict(), "share": unseen.unseen / unseen.entities if unseen.entities else None}
