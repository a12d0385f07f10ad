"""What distillation brings: plain fine-tuning of a small model beside distillation with and without unlabelled texts.

    python -m tests.bench.distilling TRAIN.PubTator TEST.PubTator ABSTRACTS.jsonl FOLDER [--layers 3] [--seeds 3]

Every step is a `nertool` command whose output stays in FOLDER; what is there already is not made again, so a killed
measurement goes on. ABSTRACTS.jsonl has `pmid`, `title` and `abstract` in each line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import orjson

from nertool.documents import Document, Section
from nertool.formats.jsonl import JsonlWriter

PLAIN, DISTILLED, UNLABELLED = "plain fine-tuning", "distilled", "distilled, unlabelled texts too"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("unlabelled", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="without more texts")
    parser.add_argument("--unlabelled-epochs", type=int, default=2, help="with them")
    parser.add_argument("--set", action="append", default=[], help="settings of the distillations")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "split").exists():
        nertool("convert", arguments.train, folder / "documents", "--from", "pubtator", "--to", "kazu")
        nertool("split", folder / "documents", folder / "split", "--fractions", "0.9,0.1,0")
    if not (folder / "test").exists():
        nertool("convert", arguments.test, folder / "test", "--from", "pubtator", "--to", "kazu")
    if not (folder / "more.jsonl").exists():
        write_texts(arguments.unlabelled, folder / "more.jsonl")
    teacher = folder / "teacher"
    data = ["--train", folder / "split/train", "--eval", folder / "split/eval", "--resume"]
    train("train", *data, "--output", teacher, "--model", "minilm")
    score(teacher, folder / "test")
    backbone = cut_backbone(folder / f"backbone-{arguments.layers}", arguments.layers)
    rows = {PLAIN: [], DISTILLED: [], UNLABELLED: []}
    for seed in range(1, arguments.seeds + 1):
        for what, found in rows.items():
            run = folder / f"{what.replace(' ', '-').replace(',', '')}-{arguments.layers}-layers-seed-{seed}"
            epochs = arguments.unlabelled_epochs if what == UNLABELLED else arguments.epochs
            common = [*data, "--output", run, "--set", f"train.seed={seed}", "--set", f"train.epochs={epochs}"]
            if what == PLAIN:
                train("train", *common, "--model", backbone)
            else:
                more = ["--unlabelled", folder / "more.jsonl"] if what == UNLABELLED else []
                changes = [part for change in arguments.set for part in ("--set", change)]
                train(
                    "distill", teacher / "model", *common, *more, *changes, "--student-layers", arguments.layers,
                    "--logits", folder / "logits",
                )  # fmt: skip
            found.append(score(run, folder / "test"))
            print(f"{what}, seed {seed}: {found[-1]:.4f}", file=sys.stderr, flush=True)
    print(table(score(teacher, folder / "test"), rows))


def nertool(*arguments):
    subprocess.run([sys.executable, "-m", "nertool", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def train(command, *arguments):
    begun = time.perf_counter()
    nertool(command, *arguments)
    print(f"{command}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


def score(run, test):
    """Scores a run's model on the test documents, once."""
    path = run / "test.json"
    if not path.exists():
        done = subprocess.run(
            [sys.executable, "-m", "nertool", "evaluate", str(run / "model"), str(test), "--json"],
            check=True, capture_output=True,
        )  # fmt: skip
        path.write_bytes(done.stdout)
    return json.loads(path.read_bytes())["micro_f1"]


def write_texts(source, target):
    """Writes abstracts as documents without entities."""
    with JsonlWriter(target) as writer:
        for line in source.read_bytes().splitlines():
            one = orjson.loads(line)
            sections = tuple(Section(name, one[name]) for name in ("title", "abstract") if one[name])
            writer.write(Document(one["pmid"], sections))


def cut_backbone(folder, layers):
    """Writes MiniLM with only some of its layers, the same ones that a distilled student begins with."""
    if not folder.exists():
        from transformers import AutoModel, AutoTokenizer

        from nertool.model import backbone_path
        from nertool.students import chosen_layers

        network = AutoModel.from_pretrained(backbone_path("minilm"))
        stack = network.encoder.layer
        network.encoder.layer = type(stack)(stack[i] for i in chosen_layers(len(stack), layers))
        network.config.num_hidden_layers = layers
        network.save_pretrained(folder)
        AutoTokenizer.from_pretrained(backbone_path("minilm")).save_pretrained(folder)
    return folder


def table(teacher, rows):
    lines = [
        f"| student | strict micro F1, mean of the seeds | lowest to highest | of the teacher's {teacher:.4f} |",
        "|---|---|---|---|",
    ]
    for what, found in rows.items():
        mean = statistics.mean(found)
        lines.append(f"| {what} | {mean:.4f} | {min(found):.4f}–{max(found):.4f} | {mean / teacher:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
