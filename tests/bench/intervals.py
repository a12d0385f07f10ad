"""How often 95 % intervals of F1 hold the truth, by how they are made and how many documents there are.

nox -s bench -- intervals [DRAWS]

Collections are drawn from a process whose F1 is known: how long a document is, how hard it is and how many entities of
each class it has are random, so that the entities of a document depend on each other as they do in texts.
"""

import sys
import time
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nertool.metrics import CONFIDENCE_LEVEL, Scores, confidence_intervals

NORMAL = NormalDist()
SAMPLES = 1000


@dataclass(frozen=True)
class Process:
    """Makes counts of documents.

    Args:
        entities: Mean gold entities of each class in a document.
        recall: Of each class.
        precision: Of each class.
    """

    entities: tuple[float, ...]
    recall: tuple[float, ...]
    precision: tuple[float, ...]

    @property
    def expected(self) -> NDArray[np.float64]:
        """Found, wrong and missed entities of a document, on average, `(classes, 3)`."""
        entities, recall, precision = map(np.array, (self.entities, self.recall, self.precision))
        found = entities * recall
        return np.stack([found, found * (1 - precision) / precision, entities - found], axis=-1)

    @property
    def truth(self) -> dict[str, float]:
        """The F1 of endless documents."""
        of_classes = f1(self.expected)
        values = {f"class{number}_f1": float(value) for number, value in enumerate(of_classes)}
        return {"micro_f1": float(f1(self.expected.sum(axis=0))), "mean_f1": float(of_classes.mean()), **values}

    def draw(self, rng: np.random.Generator, documents: int) -> NDArray[np.int64]:
        """Returns counts `(documents, classes, 3)`."""
        length = rng.gamma(2.0, 0.5, (documents, 1))  # mean 1: a short one has few entities of every class
        of_class = rng.gamma(1.0, 1.0, (documents, len(self.entities)))  # mean 1: what the document is about
        gold = rng.poisson(length * of_class * self.entities)
        recall = np.array(self.recall)
        found = rng.binomial(gold, rng.beta(8 * recall, 8 * (1 - recall), (documents, len(recall))))
        wrong = rng.poisson(length * rng.gamma(1.0, 1.0, length.shape) * self.expected[:, 1])
        return np.stack([found, wrong, gold - found], axis=-1)


PROCESS = Process((12.0, 5.0, 1.0), (0.85, 0.75, 0.6), (0.85, 0.8, 0.75))


def scores_of(counts: NDArray[np.int64]) -> Scores:
    """Returns them as if they had been counted."""
    labels = tuple(f"class{number}" for number in range(counts.shape[1]))
    return Scores("strict", frozenset(labels), labels, counts)


def f1(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the F1 of found, wrong, missed `(..., 3)`."""
    found, wrong, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = 2 * found / (2 * found + wrong + missed)
    return result


def bias_corrected(counts: NDArray[np.int64], rng: np.random.Generator) -> tuple[float, float]:
    """BCa, of counts `(documents, 3)`. Source: Efron and Tibshirani (1993), section 14.3."""
    documents = len(counts)
    weights = rng.multinomial(documents, np.full(documents, 1 / documents), size=SAMPLES).astype(float)
    drawn, value = f1(weights @ counts), f1(counts.sum(axis=0))
    drawn = drawn[~np.isnan(drawn)]
    left_out = f1(counts.sum(axis=0) - counts)
    away = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    spread = (away**2).sum() ** 1.5
    bend = (away**3).sum() / (6 * spread) if spread else 0.0
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    if not 0 < below < 1:
        return float(drawn.min()), float(drawn.max())
    shift = NORMAL.inv_cdf(below)
    tails = [shift + NORMAL.inv_cdf(tail) for tail in ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)]
    low, high = np.quantile(drawn, [NORMAL.cdf(shift + z / (1 - bend * z)) for z in tails]).tolist()
    return low, high


def t_interval(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Of the ratio 2·found / (2·found + wrong + missed), with its linearised variance over documents."""
    documents = len(counts)
    below = 2 * counts[:, 0] + counts[:, 1] + counts[:, 2]
    value = 2 * counts[:, 0].sum() / below.sum()
    residuals = 2 * counts[:, 0] - value * below
    error = np.sqrt(documents / (documents - 1) * (residuals**2).sum()) / below.sum()
    z, freedom = NORMAL.inv_cdf((1 + CONFIDENCE_LEVEL) / 2), documents - 1
    quantile = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(value - quantile * error), float(value + quantile * error)


def coverage(process: Process, documents: int, draws: int, seed: int = 0) -> dict[str, float]:
    """Returns the share of draws in which the interval of `confidence_intervals` holds the truth, for each number."""
    rng = np.random.default_rng(seed)
    hits = dict.fromkeys(process.truth, 0)
    for draw in range(draws):
        intervals = confidence_intervals(scores_of(process.draw(rng, documents)), SAMPLES, seed=draw)
        for name, value in process.truth.items():
            interval = intervals[name]
            hits[name] += interval is not None and interval["low"] <= value <= interval["high"]
    return {name: count / draws for name, count in hits.items()}


def main() -> None:
    """Prints a table in Markdown."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print("| documents | number | percentile | BCa | t | mean width of the percentile one |")
    print("|---|---|---|---|---|---|")
    for documents in (20, 30, 50, 100):
        begun = time.monotonic()
        columns = {"micro": slice(None), **{f"class{i}": slice(i, i + 1) for i in range(len(PROCESS.entities))}}
        hits = {name: np.zeros(3) for name in columns}
        widths, defined = dict.fromkeys(columns, 0.0), dict.fromkeys(columns, 0)
        rng = np.random.default_rng(documents)
        for draw in range(draws):
            counts = PROCESS.draw(rng, documents)
            intervals = confidence_intervals(scores_of(counts), SAMPLES, seed=draw)
            for name, column in columns.items():
                truth, own = PROCESS.truth[f"{name}_f1"], counts[:, column].sum(axis=1)
                if np.isnan(f1(own.sum(axis=0))):
                    continue
                interval = intervals[f"{name}_f1"] or {}
                made = ((interval["low"], interval["high"]), bias_corrected(own, rng), t_interval(own))
                hits[name] += [low <= truth <= high for low, high in made]
                widths[name] += interval["high"] - interval["low"]
                defined[name] += 1
        for name in columns:
            shares = " | ".join(f"{100 * share:.1f} %" for share in hits[name] / defined[name])
            print(f"| {documents} | {name}_f1 | {shares} | {widths[name] / defined[name]:.3f} |", flush=True)
        print(f"{documents} documents: {time.monotonic() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
