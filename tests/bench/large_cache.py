"""A cache of the published size: how long it takes, how much memory and disk, and how fast windows are read at random.

    python -m tests.bench.large_cache CORPUS.PubTator [--windows 295822] [--workers 2] [--json FILE]

Full texts are put together from the corpus and the sample documents: eight sections of several abstracts each.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from nertool.batches import training_batch
from nertool.commands.demo import sample_data
from nertool.documents import Document, Entity, Section, Span
from nertool.formats import ReadReport, read_documents
from nertool.formats.jsonl import JsonlWriter
from nertool.model import load_tokenizer
from nertool.window_cache import open_cache

SECTIONS_PER_DOCUMENT, TEXTS_PER_SECTION = 8, 10
WINDOWS_PER_DOCUMENT = 37  # about


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--windows", type=int, default=295_822)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        documents = write_documents(folder / "documents.jsonl.zst", arguments.corpus, arguments.windows)
        result = {"documents": documents, **build(folder, arguments.workers), **read(folder / "cache")}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def write_documents(path, corpus, windows):
    """Writes about as many full texts as give that many windows; returns how many."""
    pieces = [
        section
        for source in (corpus, sample_data() / "documents")
        for document in read_documents(source, ReadReport())
        for section in document.sections
        if section.text.strip()
    ]
    chance = random.Random(1)
    count = -(-windows // WINDOWS_PER_DOCUMENT)
    with JsonlWriter(path) as writer:
        for number in range(count):
            sections = tuple(
                join(f"section {i}", chance.choices(pieces, k=TEXTS_PER_SECTION)) for i in range(SECTIONS_PER_DOCUMENT)
            )
            writer.write(Document(f"document-{number:07d}", sections))
    return count


def join(name, sections):
    """Returns one section of several, its entities moved along."""
    texts, entities, shift = [], [], 0
    for section in sections:
        for entity in section.entities:
            spans = tuple(Span(start + shift, end + shift) for start, end in entity.spans)
            entities.append(Entity(entity.label, spans, entity.match))
        texts.append(section.text)
        shift += len(section.text) + 1
    return Section(name, "\n".join(texts), tuple(entities))


def build(folder, workers):
    """Runs `nertool cache`, watching the memory of all its processes."""
    command = [
        sys.executable, "-m", "nertool", "cache", str(folder / "documents.jsonl.zst"), str(folder / "cache"),
        "--model", "minilm", "--set", f"data.workers={workers}", "--json",
    ]  # fmt: skip
    started, used = time.perf_counter(), os.times()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    seconds, after = time.perf_counter() - started, os.times()
    counts = json.loads(out)["counts"]
    size = sum(file.stat().st_size for file in (folder / "cache").iterdir())
    return {
        "workers": workers,
        "windows": counts["windows"],
        "tokens": counts["tokens"],
        "entities": sum(counts["labels"].values()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.children_user + after.children_system - used.children_user - used.children_system),
        "windows_per_second": round(counts["windows"] / seconds),
        "peak_mb_of_all_processes": round(peak[0]),
        "bytes": size,
        "bytes_per_window": round(size / counts["windows"]),
        "bytes_per_window_without_documents": round(
            (size - (folder / "cache/documents.jsonl.zst").stat().st_size) / counts["windows"]
        ),
    }


def watch(process, peak):
    """Adds up the memory of a process and its children; pages that they share count in each."""
    while process.poll() is None:
        processes = [process.pid, *children(process.pid)]
        peak[0] = max(peak[0], sum(map(memory, processes)))
        time.sleep(0.1)


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def memory(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    except OSError:
        return 0.0


def read(path):
    """Reads windows at random: alone, and as batches for training."""
    cache = open_cache(path)
    tokenizer = load_tokenizer("minilm")
    columns = np.arange(cache.scheme.channels)
    order = np.random.default_rng(1).permutation(len(cache.windows))
    started = time.perf_counter()
    for index in order[:50_000].tolist():
        window = cache.windows[index]
        cache.tokens[window["start"] : window["start"] + window["length"]].sum()
    alone = 50_000 / (time.perf_counter() - started)
    started = time.perf_counter()
    batches = [training_batch(cache, part, tokenizer, columns, len(columns)) for part in np.split(order[:8_000], 1000)]
    rate = len(batches) * 8 / (time.perf_counter() - started)
    return {"windows_read_per_second": round(alone), "windows_per_second_as_batches": round(rate)}


if __name__ == "__main__":
    main()
