"""Strict micro F1 on BioRED's test documents of variants of the training recipe, over seeds.

    python -m tests.bench.ablations TRAIN.PubTator TEST.PubTator RESULTS.jsonl [--epochs 4] [--variants NAME…]

Every variant changes one thing of the defaults; the model after the last epoch is scored, so nothing is chosen by the
test set. A result that stands in RESULTS.jsonl is not computed again, so the command can be interrupted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from nertool.batches import training_batch
from nertool.cache_building import build_cache, scan
from nertool.checkpoints import Progress
from nertool.devices import choose_precision, keep_freed_memory, seed_everything
from nertool.formats.pubtator import read_pubtator
from nertool.labels import make_scheme
from nertool.losses import binary_cross_entropy
from nertool.model import new_model
from nertool.runs import channel_columns, evaluate_split, prepare_eval, set_prior_bias
from nertool.settings import ModelSettings, Settings, TrainSettings
from nertool.training import BatchPlan, fit, make_optimizer, make_scaler


def smoothed(amount):
    """Label smoothing: targets of 0 and 1 become `amount / 2` and `1 - amount / 2`."""
    return lambda logits, batch: binary_cross_entropy(
        logits, replace(batch, targets=batch.targets * (1 - amount) + amount / 2)
    )


def weighted(logits, batch, *, positives):
    """Rare classes weigh more: the square root of negatives per positive, at most 10."""
    weight = ((1 - positives) / positives.clamp(min=1e-6)).sqrt().clamp(max=10.0)
    losses = binary_cross_entropy_with_logits(logits.float(), batch.targets, pos_weight=weight, reduction="none")
    return (losses.sum(dim=-1) * batch.loss_mask).sum()


def layer_decay(optimizer, network, factor):
    """Lowers the learning rate by `factor` for each layer further from the output."""
    layers = network.config.num_hidden_layers
    depth = {}
    for name, parameter in network.named_parameters():
        number = next((int(part) + 1 for part in name.split(".") if part.isdigit()), 0)
        depth[parameter] = 0 if name.startswith("classifier") else layers + 1 - number
    groups = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rate = group["peak_learning_rate"] * factor ** max(0, depth[parameter] - 1)
            groups.append({**group, "params": [parameter], "peak_learning_rate": rate})
    return torch.optim.AdamW(groups, lr=1e-4, fused=True)


VARIANTS = {
    "defaults": {},
    "attention dropout 0.1": {"model": {"attention_dropout": 0.1}},
    "dropout 0": {"model": {"dropout": 0.0}},
    "begin channels": {"model": {"begin_channels": True}},
    "learning rate 3e-4": {"train": {"learning_rate": 3e-4}},
    "learning rate 1.2e-3": {"train": {"learning_rate": 1.2e-3}},
    "cosine": {"train": {"schedule": "cosine"}},
    "constant": {"train": {"schedule": "constant"}},
    "output layer × 1": {"train": {"head_learning_rate_factor": 1.0}},
    "no prior bias": {"prior": False},
    "batches of 4,096": {"train": {"tokens_per_batch": 4096}},
    "batches of 1,024": {"train": {"tokens_per_batch": 1024}},
    "fp32": {"train": {"precision": "fp32"}},
    "torch's own attention and dropout": {"kernels": False},
    "layer-wise decay 0.8": {"layer_decay": 0.8},
    "label smoothing 0.02": {"smoothing": 0.02},
    "positive weights": {"weights": True},
    "moving average 0.99": {"average": 0.99},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results = [json.loads(line) for line in arguments.results.open()] if arguments.results.exists() else []
    done = {(one["variant"], one["seed"], one["epochs"]) for one in results}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(1, arguments.seeds + 1):
            for name in arguments.variants:
                if (name, seed, arguments.epochs) in done:
                    continue
                result = run(arguments, name, seed, Path(temporary))
                with arguments.results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                results.append(result)
                print(f"{name}, seed {seed}: {result['micro_f1']:.4f}", file=sys.stderr, flush=True)
    print(table([one for one in results if one["epochs"] == arguments.epochs]))


def run(arguments, name, seed, folder):
    """Trains one variant and scores it."""
    keep_freed_memory()
    variant = VARIANTS[name]
    settings = Settings(
        model=ModelSettings(name="minilm", **variant.get("model", {})),
        train=TrainSettings(epochs=arguments.epochs, seed=seed, **variant.get("train", {})),
    )
    seed_everything(seed)
    documents, test = (
        [record.document for record in read_pubtator(path) if record.document]
        for path in (arguments.train, arguments.test)
    )
    scanned = scan(documents)
    scheme = make_scheme(scanned.labels, begin=settings.model.begin_channels)
    model = new_model(settings.model, settings.windows, scheme)
    cache = build_cache(
        folder / f"{name}-{seed}".replace(" ", "-"), lambda: documents, model.tokenizer, settings.windows,
        begin=settings.model.begin_channels,
    )  # fmt: skip
    device = torch.device("cpu")
    precision = choose_precision(settings.train.precision, device)
    with mock.patch("nertool.cpu_kernels.use_cpu_kernels") if not variant.get("kernels", True) else nullcontext():
        network = model.to(device)
    columns = channel_columns(cache, model)
    if variant.get("prior", True):
        set_prior_bias(model, cache, columns)
    optimizer = make_optimizer(network, settings.train)
    if "layer_decay" in variant:
        optimizer = layer_decay(optimizer, network, variant["layer_decay"])
    loss = smoothed(variant["smoothing"]) if "smoothing" in variant else binary_cross_entropy
    if "weights" in variant:
        bits = np.unpackbits(cache.targets, axis=1, count=cache.scheme.channels).mean(axis=0)
        positives = torch.from_numpy(bits[np.argsort(columns)]).float()
        loss = lambda logits, batch: weighted(logits, batch, positives=positives)  # noqa: E731
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(variant["average"])
    ) if "average" in variant else None  # fmt: skip
    plan = BatchPlan(
        cache.windows["length"].astype(np.int64) + model.tokenizer.special_tokens,
        cache.windows["owned_length"].astype(np.int64), settings.train,
        settings.train.tokens_per_batch,
    )  # fmt: skip
    started = time.process_time()
    for _ in fit(
        network, optimizer, make_scaler(device, precision), plan,
        lambda indices: training_batch(cache, indices, model.tokenizer, columns, model.scheme.channels),
        loss, settings.train, Progress(), device, precision,
    ):  # fmt: skip
        if average:
            average.update_parameters(network)
    seconds = time.process_time() - started
    if average:
        model = replace(model, network=average.module)
    tagger = model.tagger(device, precision)
    metrics = evaluate_split(tagger, prepare_eval(test, tagger), settings)
    return {
        "variant": name, "seed": seed, "epochs": arguments.epochs, "micro_f1": metrics["micro_f1"],
        "mean_f1": metrics["mean_f1"], "cpu_seconds": round(seconds, 1), "threads": torch.get_num_threads(),
    }  # fmt: skip


def table(results):
    """Returns the mean and the spread over seeds of each variant, and its difference to the defaults seed by seed."""
    base = {one["seed"]: one["micro_f1"] for one in results if one["variant"] == "defaults"}
    lines = [
        "| variant | seeds | micro F1 | lowest to highest | mean F1 | against the defaults |",
        "|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        rows = [one for one in results if one["variant"] == name]
        if rows:
            micro = [one["micro_f1"] for one in rows]
            differences = [one["micro_f1"] - base[one["seed"]] for one in rows if one["seed"] in base]
            lines.append(
                f"| {name} | {len(rows)} | {statistics.mean(micro):.4f} | {min(micro):.4f}–{max(micro):.4f} "
                f"| {statistics.mean(one['mean_f1'] for one in rows):.4f} | {statistics.mean(differences):+.4f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
