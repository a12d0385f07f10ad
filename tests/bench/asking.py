"""How full `annotate` keeps its concurrency, against a server on this machine that answers after 200 ms.

    python -m tests.bench.asking [--texts 10000] [--concurrency 16 64]

The ceiling is concurrency / latency. The server shares the machine with the command.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SENTENCE = "Patients with rheumatoid arthritis received methotrexate, prednisolone or adalimumab for {} weeks. "


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    arguments = parser.parse_args()
    print("| concurrency | texts | ceiling, answers/s | reached | share | CPU, s | memory, MB | all, s |")
    print("|---|---|---|---|---|---|---|---|")
    for concurrency in arguments.concurrency:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), arguments.texts, arguments.latency, concurrency)


def measure(folder, texts, latency, concurrency):
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(texts):
            text = "".join(SENTENCE.format(number + line) for line in range(15))
            file.write(json.dumps({"idx": str(number), "sections": [{"name": "s", "text": text}]}) + "\n")
    stub = [sys.executable, "-m", "tests.llm_stub", "--latency", str(latency)]
    with subprocess.Popen(stub, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        command = ["annotate", folder / "texts.jsonl", folder / "out.jsonl", "--llm", "stub", "--base-url", url]
        command += ["--json", "--set", f"annotate.concurrency={concurrency}"]
        begun = time.monotonic()
        before = os.times()
        run = subprocess.run([sys.executable, "-m", "nertool", *command], stdout=subprocess.PIPE, check=True)
        seconds, after = time.monotonic() - begun, os.times()
        server.communicate()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    asked = json.loads(run.stdout)["asked"]
    ceiling, reached = concurrency / latency, asked["calls"] / asked["seconds"]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    print(
        f"| {concurrency} | {texts:,} | {ceiling:.0f} | {reached:.0f} | {reached / ceiling:.0%} "
        f"| {cpu:.0f} | {memory:.0f} | {seconds:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
