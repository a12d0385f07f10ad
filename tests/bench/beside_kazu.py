"""nertool beside KAZU 2.4.0's own code: the same documents, in the same run, in turns. See docs/explanation/speed.md.

    nox -s bench_kazu -- TRAIN.PubTator TEST.PubTator [--rounds 3] [--epochs 1] [--json FILE] [--markdown FILE]

Every ratio is of medians over the rounds, and above 1 where nertool is better. Without corpora it takes the sample
documents, which are few. `--rounds 0` leaves out the speeds, `--epochs 0` the F1.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from nertool.commands.demo import sample_data
from nertool.console import counted
from nertool.documents import Document
from nertool.formats import ReadReport, read_documents
from nertool.formats.kazu import KazuWriter
from nertool.model import backbone_path

DOCUMENTS_TO_TRAIN = 48
DOCUMENTS_TO_EVALUATE = 24
HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, nargs="?")
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--kazu", required=True, help="the Python of an environment with KAZU 2.4.0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="for the F1 after equal epochs; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if arguments.train and not arguments.test:
        parser.error("name a corpus to test on, too")
    train, test = read(arguments.train, arguments.test) if arguments.test else sample()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = [
            stack.enter_context(Side([python, str(HERE / script)]))
            for python, script in ((sys.executable, "our_side.py"), (arguments.kazu, "kazu_side.py"))
        ]
        rounds = compare(sides, train, folder, arguments.rounds)
        f1 = f1_after_epochs(sides, train, test, folder, arguments.epochs) if arguments.epochs else None
    result = summary(rounds, f1) if rounds else {"figures": {}, "f1": f1, "rounds": [], "machine": machine()}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(table(result) + "\n")
    print(table(result))


def read(*paths):
    return [list(read_documents(path, ReadReport())) for path in paths]


def sample():
    """Returns the sample documents, every fourth to test on."""
    (documents,) = read(sample_data() / "documents")
    return [document for i, document in enumerate(documents) if i % 4], documents[::4]


class Side:
    """A process that does one side's work."""

    def __init__(self, command):
        self._command = command

    def __enter__(self):
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()

    def __call__(self, name, **arguments):
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def compare(sides, documents, folder, rounds):
    """Does every kind of work on both sides, in turns, and returns the figures of each round."""
    everything = write(folder / "all", documents)
    predicted = write(folder / "predicted", [half_wrong(document) for document in documents])
    common = {"model": str(backbone_path("minilm")), "labels": labels_of(documents)}
    evaluated = write(folder / "eval", documents[-DOCUMENTS_TO_EVALUATE:])
    results = []
    for number in range(rounds):
        first = number * DOCUMENTS_TO_TRAIN % max(1, len(documents) - DOCUMENTS_TO_TRAIN + 1)
        part = documents[first : first + DOCUMENTS_TO_TRAIN]
        chunk = write(folder / f"part-{number}", part)
        found = {}
        # Who goes first changes, as the second finds files in memory.
        order = sides if number % 2 == 0 else sides[::-1]

        def ask(name, number=number, order=order, found=found, **arguments):
            for side in order:
                index = sides.index(side)
                if name == "infer":
                    arguments["output"] = str(empty(folder / f"found-{number}-{index}"))
                found.setdefault(name, [None, None])[index] = side(name, **arguments)
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)

        ask("cache", folder=str(everything), **common)
        ask("score", gold=str(everything), predicted=str(predicted), labels=common["labels"])
        ask("train", folder=str(chunk), eval_folder=str(evaluated), epochs=1, **common)
        ask("validate")
        ask("infer", folder=str(evaluated))
        found["infer"][1]["tokens"] = found["infer"][0]["tokens"]  # of the same texts, by the same tokenizer
        results.append(found)
    return results


def f1_after_epochs(sides, train, test, folder, epochs):
    """Trains both on all documents for equal epochs, and scores both by both scorers on the test documents."""
    common = {"model": str(backbone_path("minilm")), "labels": labels_of(train)}
    trained, gold = folder / "all", write(folder / "test", test)
    results = []
    for number, side in enumerate(sides):
        training = side("train", folder=str(trained), eval_folder=str(gold), epochs=epochs, **common)
        output = empty(folder / f"test-{number}")
        side("infer", folder=str(gold), output=str(output))
        asked = {"gold": str(gold), "predicted": str(output), "labels": common["labels"]}
        strict = sides[0]("score", scheme="strict", **asked)
        results.append(
            {
                "kazu_mean_f1": sides[1]("score", **asked)["mean_f1"],
                "kazu_micro_f1": sides[0]("score", scheme="kazu", **asked)["micro_f1"],
                "strict_micro_f1": strict["micro_f1"],
                "strict_mean_f1": strict["mean_f1"],
                "cpu_seconds": training["cpu_seconds"],
                "peak_mb": training["peak_mb"],
            }
        )
        print(f"{epochs} epochs: {results[-1]}", file=sys.stderr, flush=True)
    return {"epochs": epochs, "documents": len(train), "sides": results}


def labels_of(documents):
    return sorted({entity.label for document in documents for s in document.sections for entity in s.entities})


def empty(folder):
    folder.mkdir()
    return folder


def write(folder, documents):
    with KazuWriter(folder) as writer:
        for document in documents:
            writer.write(document)
    return folder


def half_wrong(document):
    """Returns predictions with every third entity missing and every fifth of another class."""
    labels = ["Gene", "Disease", "Chemical"]

    def change(section):
        kept = [entity for number, entity in enumerate(section.entities) if number % 3]
        return [type(e)(labels[i % 3] if i % 5 == 0 else e.label, e.spans, e.match) for i, e in enumerate(kept)]

    sections = tuple(type(s)(s.name, s.text, tuple(change(s))) for s in document.sections)
    return Document(document.id, sections)


# name → kind of work, the figure, whether more is better, decimals
FIGURES = {
    "training, real tokens per CPU-second": ("train", lambda one: one["tokens"] / one["cpu_seconds"], True),
    "training, real tokens per second": ("train", lambda one: one["tokens"] / one["wall_seconds"], True),
    "training, peak memory in MB": ("train", lambda one: one["peak_mb"], False),
    "cache, seconds": ("cache", lambda one: one["wall_seconds"], False),
    "cache, CPU-seconds": ("cache", lambda one: one["cpu_seconds"], False),
    "cache, bytes": ("cache", lambda one: one["bytes"], False),
    "cache, bytes per window": ("cache", lambda one: one["bytes"] / one["windows"], False),
    "cache, files": ("cache", lambda one: one["files"], False),
    "validation of 24 abstracts, seconds": ("validate", lambda one: one["wall_seconds"], False),
    "scoring of 500 abstracts, seconds": ("score", lambda one: one["wall_seconds"], False),
    "inference, real tokens per CPU-second": ("infer", lambda one: one["tokens"] / one["cpu_seconds"], True),
    "inference, real tokens per second": ("infer", lambda one: one["tokens"] / one["wall_seconds"], True),
}
RATIOS = {
    "train_tokens_ratio": "training, real tokens per CPU-second",
    "cache_time_ratio": "cache, seconds",
    "cache_bytes_ratio": "cache, bytes",
    "validation_time_ratio": "validation of 24 abstracts, seconds",
    "score_time_ratio": "scoring of 500 abstracts, seconds",
    "inference_tokens_ratio": "inference, real tokens per second",
}


def summary(rounds, f1):
    figures = {
        name: [statistics.median(figure(one[kind][side]) for one in rounds) for side in (0, 1)]
        for name, (kind, figure, _) in FIGURES.items()
    }
    ratios = {name: ours / theirs if FIGURES[name][2] else theirs / ours for name, (ours, theirs) in figures.items()}
    return {
        **{key: ratios[name] for key, name in RATIOS.items()},
        "figures": figures,
        "ratios": ratios,
        "f1": f1,
        "rounds": rounds,
        "machine": machine(),
    }


def machine():
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch_version()}


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def torch_version():
    import torch

    return torch.__version__


def table(result):
    lines = ["| | nertool | KAZU 2.4.0 | ratio |", "|---|--:|--:|--:|"]
    for name, (ours, theirs) in result["figures"].items():
        lines.append(f"| {name} | {number(ours)} | {number(theirs)} | {result['ratios'][name]:.1f} |")
    notes = [f"{counted(len(result['rounds']), 'round')} for the speeds"] if result["rounds"] else []
    if result["f1"]:
        for key, name in (
            ("kazu_mean_f1", "mean F1 by KAZU's scorer"),
            ("kazu_micro_f1", "micro F1 of KAZU's counts"),
            ("strict_micro_f1", "strict micro F1"),
            ("strict_mean_f1", "strict mean F1"),
        ):
            ours, theirs = (side[key] for side in result["f1"]["sides"])
            lines.append(f"| {name} | {ours:.4f} | {theirs:.4f} | |")
        epochs, documents = counted(result["f1"]["epochs"], "epoch"), counted(result["f1"]["documents"], "document")
        notes.append(f"F1 after {epochs} on {documents}")
    known = result["machine"]
    notes.append(f"{known['cores']} cores, {known['cpu']}, torch {known['torch']}")
    return "\n".join([*lines, "", "; ".join(notes) + "."])


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
