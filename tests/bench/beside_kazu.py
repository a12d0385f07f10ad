"""nertool beside KAZU 2.4.0's own code, in one run, on the same documents, in turns.

    python -m tests.bench.beside_kazu CORPUS.PubTator --kazu PYTHON [--rounds 3] [--json FILE]

Each figure is of one kind of work: building the training cache, training (real tokens per CPU-second), scoring. Ratios
above 1 mean that nertool is better; they are of medians.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nertool.batches import training_batch
from nertool.cache_building import build_cache, scan
from nertool.checkpoints import Progress
from nertool.devices import choose_precision, keep_freed_memory
from nertool.documents import Document
from nertool.formats.kazu import KazuWriter
from nertool.formats.pubtator import read_pubtator
from nertool.labels import make_scheme
from nertool.losses import binary_cross_entropy
from nertool.matching import SectionPair
from nertool.metrics import evaluation_report
from nertool.model import backbone_path, new_model
from nertool.runs import channel_columns, set_prior_bias
from nertool.settings import Settings, TrainSettings
from nertool.training import BatchPlan, fit, make_optimizer, make_scaler

DOCUMENTS_PER_ROUND = 24


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--kazu", required=True, help="the Python of an environment with KAZU 2.4.0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    documents = [record.document for record in read_pubtator(arguments.corpus) if record.document]
    labels = sorted(scan(documents).labels)
    model = str(backbone_path("minilm"))
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        everything = write(folder / "all", documents)
        predicted = write(folder / "predicted", [half_wrong(document) for document in documents])
        command = [arguments.kazu, str(Path(__file__).with_name("kazu_side.py"))]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as kazu:

            def ask(name, **values):
                kazu.stdin.write(json.dumps([name, values]) + "\n")
                kazu.stdin.flush()
                return json.loads(kazu.stdout.readline())

            for number in range(arguments.rounds):
                part = documents[number * DOCUMENTS_PER_ROUND : (number + 1) * DOCUMENTS_PER_ROUND]
                chunk = write(folder / f"part-{number}", part)
                common = {"model": model, "labels": labels}
                whole = {"folder": str(everything), **common}
                part_of_it = {"folder": str(chunk), "learning_rate": 3e-4, **common}
                both = {"gold": str(everything), "predicted": str(predicted), "labels": labels}
                rounds.append(
                    {
                        "cache": (our_cache(documents, folder / "cache"), ask("cache", **whole)),
                        "train": (our_training(part, folder / "run"), ask("train", **part_of_it)),
                        "score": (our_scoring(documents, labels), ask("score", **both)),
                    }
                )
                print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr, flush=True)
            kazu.stdin.close()
    result = summary(rounds, documents)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))
    print(table(result))


def write(folder, documents):
    folder.mkdir()
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


def measured(work):
    wall, cpu = time.perf_counter(), os.times()
    result = work()
    after = os.times()
    used = after.user + after.system - cpu.user - cpu.system
    return {**result, "wall_seconds": time.perf_counter() - wall, "cpu_seconds": used}


def our_cache(documents, folder, settings=None):
    settings = settings or Settings(model={"name": "minilm"})
    scanned = scan(documents)
    scheme = make_scheme(scanned.labels)
    tokenizer = new_model(settings.model, settings.windows, scheme).tokenizer
    shutil.rmtree(folder, ignore_errors=True)

    def work():
        cache = build_cache(folder, lambda: documents, tokenizer, settings.windows, scanned=scanned, scheme=scheme)
        files = [file for file in folder.iterdir() if file.is_file()]
        return {"windows": len(cache.windows), "bytes": sum(file.stat().st_size for file in files), "files": len(files)}

    return measured(work)


def our_training(documents, folder):
    """Trains one epoch on documents with the defaults; the making of the data isn't counted."""
    keep_freed_memory()
    settings = Settings(model={"name": "minilm"}, train=TrainSettings(epochs=1))
    scanned = scan(documents)
    scheme = make_scheme(scanned.labels)
    model = new_model(settings.model, settings.windows, scheme)
    shutil.rmtree(folder, ignore_errors=True)
    cache = build_cache(folder, lambda: documents, model.tokenizer, settings.windows, scanned=scanned, scheme=scheme)
    columns = channel_columns(cache, model)
    set_prior_bias(model, cache, columns)
    device = torch.device("cpu")
    precision = choose_precision(settings.train.precision, device)
    plan = BatchPlan(cache.windows["length"].astype(np.int64) + model.tokenizer.special_tokens, settings.train)
    optimizer = make_optimizer(model.network, settings.train)

    def work():
        steps = fit(
            model.network, optimizer, make_scaler(device, precision), plan,
            lambda indices: training_batch(cache, indices, model.tokenizer, columns, model.scheme.channels),
            binary_cross_entropy, settings.train, Progress(), device, precision,
        )  # fmt: skip
        return {"tokens": sum(step.tokens for step in steps), "windows": len(cache.windows)}

    return measured(work)


def our_scoring(documents, labels):
    pairs = [
        SectionPair(number, gold.entities, found.entities)
        for number, document in enumerate(documents)
        for gold, found in zip(document.sections, half_wrong(document).sections, strict=True)
    ]

    def work():
        report = evaluation_report(pairs, labels, scheme="kazu", bootstrap_samples=0)
        return {"mean_f1": report["schemes"]["kazu"]["mean_f1"]}

    return measured(work)


def summary(rounds, documents):
    def median(kind, side, value):
        return statistics.median(value(one[kind][side]) for one in rounds)

    def rate(one):
        return one["tokens"] / one["cpu_seconds"]

    figures = {
        "training, real tokens per CPU-second": [median("train", side, rate) for side in (0, 1)],
        "training, real tokens per second": [
            median("train", side, lambda one: one["tokens"] / one["wall_seconds"]) for side in (0, 1)
        ],
        "cache, CPU-seconds": [median("cache", side, lambda one: one["cpu_seconds"]) for side in (0, 1)],
        "cache, bytes": [median("cache", side, lambda one: one["bytes"]) for side in (0, 1)],
        "cache, files": [median("cache", side, lambda one: one["files"]) for side in (0, 1)],
        "scoring, seconds": [median("score", side, lambda one: one["wall_seconds"]) for side in (0, 1)],
    }
    more_is_better = {name: name.startswith("training") for name in figures}
    ratios = {
        name: (ours / theirs if more_is_better[name] else theirs / ours) for name, (ours, theirs) in figures.items()
    }
    return {
        "train_tokens_ratio": ratios["training, real tokens per CPU-second"],
        "cache_time_ratio": ratios["cache, CPU-seconds"],
        "cache_bytes_ratio": ratios["cache, bytes"],
        "score_time_ratio": ratios["scoring, seconds"],
        "figures": figures,
        "ratios": ratios,
        "documents": len(documents),
        "rounds": rounds,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__},
    }


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(result):
    lines = ["| | nertool | KAZU 2.4.0 | ratio |", "|---|---|---|---|"]
    for name, (ours, theirs) in result["figures"].items():
        lines.append(f"| {name} | {ours:,.3g} | {theirs:,.3g} | {result['ratios'][name]:.1f} |")
    machine = result["machine"]
    lines.append(
        f"\n{machine['cores']} cores, {machine['cpu']}, torch {machine['torch']}; ratios above 1: nertool is better."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
