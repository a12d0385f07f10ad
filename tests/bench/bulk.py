"""Bulk prediction beside the engine's own ceiling: speed, and memory however many documents there are.

    python -m tests.bench.bulk MODEL CORPUS.PubTator ABSTRACTS.jsonl [--documents 10000 100000] [--json FILE]

The corpus and the abstracts are repeated, with new ids, until there are so many documents. The ceiling is what the same
number of processes reach that do nothing but run the engine on the windows of a sample of them, tokenised before.
Memory is that of all processes together, the pages that they share counted once (PSS), looked at twice a second.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path

import orjson
import psutil

from nertool.documents import Document, Section
from nertool.formats import ReadReport, read_documents
from nertool.formats.jsonl import JsonlWriter
from nertool.inference import load_tagger, prepare, token_logits
from nertool.settings import PredictSettings
from tests.bench.beside_kazu import cpu_name

CHUNK = 256
SAMPLE_CHUNKS = 12


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("abstracts", type=Path)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    originals = [*read_documents(arguments.corpus, ReadReport()), *read_abstracts(arguments.abstracts)]
    machine = {"cpu": cpu_name(), "cores": os.cpu_count()}
    results = {"machine": machine, "model": arguments.model.name, "workers": arguments.workers, "runs": []}
    for number in arguments.documents:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            multiply(originals, number, folder / "documents.jsonl")
            before = ceiling(arguments.model, folder / "documents.jsonl", arguments.workers)
            run = predict(arguments.model, folder / "documents.jsonl", folder / "out.jsonl.zst", arguments.workers)
            after = ceiling(arguments.model, folder / "documents.jsonl", arguments.workers)
            run["ceiling_tokens_per_second"] = (before["wall"] + after["wall"]) / 2
            run["ceiling_tokens_per_cpu_second"] = (before["cpu"] + after["cpu"]) / 2
            run["share_of_ceiling"] = run["tokens_per_second"] / run["ceiling_tokens_per_second"]
            run["share_of_ceiling_cpu"] = run["tokens_per_cpu_second"] / run["ceiling_tokens_per_cpu_second"]
            results["runs"].append(run)
            print(json.dumps(run), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(table(results))


def table(results):
    """Returns the results as a Markdown table, and what one core does in an hour."""
    rows = {
        "documents per second": lambda run: f"{run['documents_per_second']:.1f}",
        "tokens per second": lambda run: f"{run['tokens_per_second']:,.0f}",
        "of the engine's ceiling": lambda run: f"{run['share_of_ceiling']:.1%}",
        "of the ceiling, per CPU-second": lambda run: f"{run['share_of_ceiling_cpu']:.1%}",
        "most memory, all processes, MB": lambda run: f"{run['peak_memory_megabytes']:,.0f}",
        "documents per core-hour": lambda run: f"{run['documents'] / run['cpu_seconds'] * 3600:,.0f}",
    }
    runs = results["runs"]
    lines = [
        "| documents | " + " | ".join(f"{run['documents']:,}" for run in runs) + " |",
        "|---|" + "---|" * len(runs),
    ]
    lines += [f"| {name} | " + " | ".join(map(show, runs)) + " |" for name, show in rows.items()]
    machine = results["machine"]
    lines.append(
        f"\n{results['workers']} processes on {machine['cores']} cores, {machine['cpu']}; {runs[0]['runs_on']}; "
        f"{runs[-1]['tokens'] / runs[-1]['documents']:.0f} tokens per document."
    )
    return "\n".join(lines) + "\n"


def read_abstracts(path):
    for line in path.read_bytes().splitlines():
        row = orjson.loads(line)
        yield Document(str(row["pmid"]), (Section("title", row["title"]), Section("abstract", row["abstract"])))


def multiply(originals, number, path):
    bare = [
        replace(document, sections=tuple(replace(section, entities=()) for section in document.sections))
        for document in originals
    ]
    copies = (replace(document, id=f"{document.id}-{copy}") for copy in count() for document in bare)
    with JsonlWriter(path) as writer:
        for document in islice(copies, number):
            writer.write(document)


def predict(model, source, output, workers):
    """Runs the command, and watches it and its processes."""
    command = [sys.executable, "-m", "nertool", "predict", model, source, output, "--workers", str(workers), "--json"]
    start = time.perf_counter()
    used = os.times()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = [0]
        watcher = threading.Thread(target=watch, args=(process.pid, peak), daemon=True)
        watcher.start()
        stdout, stderr = process.communicate()
    if process.returncode:
        sys.exit(stderr)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - used.children_user - used.children_system
    result = json.loads(stdout)
    tagger_tokens = tokens_of(model, source)
    return {
        "documents": result["documents"],
        "entities": result["entities"],
        "runs_on": result["runs_on"],
        "tokens": tagger_tokens,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "documents_per_second": result["documents"] / seconds,
        "tokens_per_second": tagger_tokens / seconds,
        "tokens_per_cpu_second": tagger_tokens / cpu,
        "peak_memory_megabytes": peak[0] / 1e6,
        "input_megabytes": source.stat().st_size / 1e6,
    }


def watch(pid, peak):
    process = psutil.Process(pid)
    while True:
        memory = 0
        try:
            for one in chain([process], process.children(recursive=True)):
                memory += one.memory_full_info().pss
        except psutil.Error:
            if not process.is_running():
                return
        peak[0] = max(peak[0], memory)
        time.sleep(0.5)


def tokens_of(model, source):
    """Counts the tokens of all documents."""
    tagger = load_tagger(model, PredictSettings(), 1)
    documents = read_documents(source, ReadReport())
    total = 0
    while chunk := list(islice(documents, CHUNK)):
        texts = [section.text for document in chunk for section in document.sections]
        total += len(tagger.tokenizer.tokenize(texts).ids)
    return total


def ceiling(model, source, workers):
    """Returns the tokens per second, and per CPU-second, of processes that run the engine and nothing else."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.Queue()
    arguments = (model, source, workers, barrier, results)
    processes = [context.Process(target=run_engine, args=(number, *arguments)) for number in range(workers)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "wall": sum(tokens / wall for tokens, wall, _ in found),
        "cpu": sum(tokens for tokens, _, _ in found) / sum(cpu for _, _, cpu in found),
    }


def run_engine(number, model, source, workers, barrier, results):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tagger = load_tagger(model, PredictSettings(), max(1, os.cpu_count() // workers))
    documents = read_documents(source, ReadReport())
    chunks = [list(islice(documents, CHUNK)) for _ in range(SAMPLE_CHUNKS)]
    mine = [
        prepare([section for document in chunk for section in document.sections], tagger)
        for chunk in chunks[number::workers]
        if chunk
    ]
    token_logits(tagger, mine[0])
    barrier.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for prepared in mine:
        token_logits(tagger, prepared)
    tokens = sum(len(prepared.tokens.ids) for prepared in mine)
    results.put((tokens, time.perf_counter() - wall, time.process_time() - cpu))


if __name__ == "__main__":
    main()
