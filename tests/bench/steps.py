"""Variants of a training step on this machine: real tokens per CPU-second, in turns, medians.

    nox -s bench -- steps [CORPUS.PubTator] [--rounds 3] [--tokens 24000]

Without a corpus, on the sample documents.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch is imported

import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from nertool.batches import training_batch
from nertool.cache_building import build_cache
from nertool.checkpoints import Progress
from nertool.commands.demo import sample_data
from nertool.devices import choose_precision, keep_freed_memory, seed_everything
from nertool.formats import ReadReport, read_documents
from nertool.losses import binary_cross_entropy
from nertool.model import load_tokenizer, new_model
from nertool.settings import ModelSettings, Settings, TrainSettings
from nertool.training import BatchPlan, fit, make_optimizer, make_scaler
from tests.bench.side import measured

VARIANTS = {
    "defaults": {},
    "torch's own attention and dropout": {"kernels": False},
    "fp32": {"train": {"precision": "fp32"}},
    "attention dropout 0.1": {"model": {"attention_dropout": 0.1}},
    "no dropout": {"model": {"dropout": 0.0}},
    "batches of 1,024 tokens": {"train": {"tokens_per_batch": 1024}},
    "batches of 4,096 tokens": {"train": {"tokens_per_batch": 4096}},
    "batches of 8,192 tokens": {"train": {"tokens_per_batch": 8192}},
}
DOCUMENTS = 96


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, nargs="?", default=sample_data() / "documents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24_000, help="about how many tokens to train on in each round")
    arguments = parser.parse_args()
    keep_freed_memory()
    documents = list(read_documents(arguments.corpus, ReadReport()))[:DOCUMENTS]
    with tempfile.TemporaryDirectory() as folder:
        windows = Settings().windows
        cache = build_cache(Path(folder) / "cache", lambda: documents, load_tokenizer("minilm"), windows)
        steps = {name: training(cache, variant) for name, variant in VARIANTS.items()}
        for work in steps.values():
            work(2_000)  # memory is taken, and torch warms up
        rounds = [{name: rate(measured(lambda work=work: work(arguments.tokens))) for name, work in steps.items()}
                  for _ in range(arguments.rounds)]  # fmt: skip
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| variant | real tokens per CPU-second | of the defaults |\n|---|---|---|")
    base = statistics.median(one["defaults"] for one in rounds)
    for name in VARIANTS:
        found = statistics.median(one[name] for one in rounds)
        print(f"| {name} | {found:,.0f} | {found / base:.2f} |")


def training(cache, variant):
    """Returns a function that trains on about so many tokens, beginning anew at the end of the epoch."""
    settings = Settings(
        model=ModelSettings(name="minilm", **variant.get("model", {})),
        train=TrainSettings(epochs=1, **variant.get("train", {})),
    )
    seed_everything(1)
    model = new_model(settings.model, settings.windows, cache.scheme)
    device = torch.device("cpu")
    precision = choose_precision(settings.train.precision, device)
    with mock.patch("nertool.cpu_kernels.use_cpu_kernels") if not variant.get("kernels", True) else nullcontext():
        network = model.to(device)
    optimizer = make_optimizer(network, settings.train)
    plan = BatchPlan(
        cache.windows["length"].astype(np.int64) + model.tokenizer.special_tokens,
        cache.windows["owned_length"].astype(np.int64), settings.train, settings.train.tokens_per_batch,
    )  # fmt: skip
    columns = np.arange(model.scheme.channels)

    def work(wanted):
        tokens = 0
        while tokens < wanted:
            for step in fit(
                network, optimizer, make_scaler(device, precision), plan,
                lambda indices: training_batch(cache, indices, model.tokenizer, columns, model.scheme.channels),
                binary_cross_entropy, settings.train, Progress(), device, precision,
            ):  # fmt: skip
                tokens += step.tokens
                if tokens >= wanted:
                    break
        return {"tokens": tokens}

    return work


def rate(result):
    return result["tokens"] / result["cpu_seconds"]


if __name__ == "__main__":
    main()
