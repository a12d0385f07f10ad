"""Finding documents with nearly the same text: MinHash signatures, compared through locality-sensitive hashing.

Source: Broder (1997), On the resemblance and containment of documents; Leskovec, Rajaraman & Ullman, Mining of Massive
Datasets, section 3.4 (banding).
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

# The standard error of an estimated similarity s is sqrt(s * (1 - s) / 128): 0.035 at 0.8, 0.027 at 0.9.
HASHES = 128

_WORD = re.compile(r"\w+")
_WORDS_PER_SHINGLE = 5
_SEED = 42
_RECALL_AT_THRESHOLD = 0.999


def minhash_signature(texts: Sequence[str]) -> bytes:
    """Returns the MinHash of the set of five-word sequences of the lower-cased texts, taken as one.

    Args:
        texts: The texts of a document's sections.

    Returns:
        `HASHES` uint32, little-endian; nothing if there are no words. A text of fewer than five words is one sequence.
    """
    words = [word for text in texts for word in _WORD.findall(text.lower())]
    if not words:
        return b""
    width = min(_WORDS_PER_SHINGLE, len(words))
    minhash = RMinHash(num_perm=HASHES, seed=_SEED)
    minhash.update(list(map(" ".join, zip(*(words[start:] for start in range(width)), strict=False))))
    return np.array(minhash.digest(), dtype="<u4").tobytes()


def join_similar(signatures: Sequence[bytes], similarity: float) -> list[int]:
    """Joins all documents that are linked by pairs of at least the given estimated Jaccard similarity.

    Pairs are candidates if they agree on a whole band of their signatures. The bands are sorted here, not put into
    rensa's index: that takes five times the memory, and what it answers about a text with ten thousand near copies
    would be a hundred million pairs.

    Args:
        signatures: From `minhash_signature`, none of them empty.
        similarity: In (0, 1].

    Returns:
        For each document the index of the first one of its group.
    """
    if not signatures:
        return []
    matrix = np.frombuffer(b"".join(signatures), dtype="<u4").reshape(-1, HASHES)
    parent = list(range(len(matrix)))
    width = _rows_per_band(similarity)
    # Each band becomes one number; that two unequal bands may collide costs a comparison, nothing else.
    factors = np.random.default_rng(_SEED).integers(2**63, size=width, dtype=np.uint64) | np.uint64(1)
    for start in range(0, HASHES, width):
        keys = (matrix[:, start : start + width] * factors).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]], append=~keys[order[-1:]]))
        for bucket in np.flatnonzero(np.diff(edges) > 1):
            _join_bucket(order[edges[bucket] : edges[bucket + 1]], matrix, similarity, parent)
    return [_root(row, parent) for row in range(len(matrix))]


def _join_bucket(rows: NDArray[np.int64], matrix: NDArray[np.uint32], similarity: float, parent: list[int]) -> None:
    """Compares the rows of one bucket, except those that are in one group already."""
    roots = np.array([_root(row, parent) for row in rows])
    for position, row in enumerate(rows[:-1]):
        apart = np.flatnonzero(roots != roots[position])
        if not len(apart):
            return
        later = rows[apart[apart > position]]
        similar = later[np.mean(matrix[later] == matrix[row], axis=1) >= similarity]
        for other in similar:
            first, second = sorted((_root(row, parent), _root(other, parent)))
            parent[second] = first
        if len(similar):
            roots = np.array([_root(row, parent) for row in rows])


def _root(row: int, parent: list[int]) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return int(row)


def _rows_per_band(similarity: float) -> int:
    """Returns the widest band with which a pair at the threshold is still found with 99.9 % probability."""
    widths = [1 << power for power in range(HASHES.bit_length())]
    return max(
        width
        for width in widths
        if width == 1 or 1 - (1 - similarity**width) ** (HASHES // width) >= _RECALL_AT_THRESHOLD
    )
