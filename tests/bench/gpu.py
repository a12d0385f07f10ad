"""Training and inference on a GPU: real tokens per second, and the share of the bf16 matmul peak measured beside them.

    nox -s bench -- gpu [--json FILE] [--device cuda]

MiniLM-L6 and BERT-base in size, random weights. Full windows of 512 tokens (but for one token of padding, as most
batches have some), eager and with `torch.compile`, whose time is told; batches of windows as long as titles and
abstracts; and where the time of a step goes. `--device cpu --steps 1 --windows 1` only shows that the script runs.
"""

import argparse
import json
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForTokenClassification

from nertool.batches import Batch, epoch_batches
from nertool.checkpoints import Progress
from nertool.devices import autocast, choose_device, choose_precision
from nertool.losses import binary_cross_entropy
from nertool.model import to_device
from nertool.settings import TrainSettings
from nertool.training import fit, make_optimizer, make_scaler

SIZES = {
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
TOKENS, CHANNELS, WARM_UP = 512, 18, 3
BUDGETS = [2048, 16384]  # tokens per batch of windows of all lengths
PROFILED_STEPS, OPERATIONS_SHOWN = 3, 12


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here, so nothing was measured")
        return
    device = choose_device(arguments.device)
    peak = matmul_peak(device, 8192 if device.type == "cuda" else 512)
    compiling = (False, True) if device.type == "cuda" else (False,)
    plans = [(f"{windows} of 512", full_windows(windows), compiled) for windows in arguments.windows
             for compiled in compiling]  # fmt: skip
    abstracts = 500 if device.type == "cuda" else 2
    plans += [(f"of all lengths, {budget:,} tokens", windows_of_all_lengths(budget, abstracts), False)
              for budget in BUDGETS]  # fmt: skip
    rows, profiles = [], {}
    for name in SIZES:
        for what, batches, compiled in plans:
            row = measure(name, what, batches, device, arguments.steps, peak, compiled=compiled)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
        profiles[name] = profile_of(name, full_windows(arguments.windows[-1]), device)
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "matmul_peak_tflops": round(peak / 1e12, 1),
        "rows": rows,
        "profiles": profiles,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def matmul_peak(device, size):
    """Returns the most floating-point operations per second of a square bf16 product, over a few tries."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            left @ right
        wait(device)
        best = min(best, (time.perf_counter() - started) / 10)
    return 2 * size**3 / best


def full_windows(count):
    """Returns one batch of windows of 512 tokens, of which one is padding."""
    return [make_batch([TOKENS - 1] + [TOKENS] * (count - 1), TOKENS)]


def windows_of_all_lengths(budget, abstracts):
    """Returns the batches of an epoch of so many abstracts and their titles."""
    chance = np.random.default_rng(1)
    lengths = np.concatenate([chance.integers(10, 40, abstracts), chance.integers(120, TOKENS, abstracts)])
    return [make_batch(lengths[rows], int(lengths[rows].max())) for rows in epoch_batches(lengths, budget, 1, 0)]


def make_batch(lengths, tokens):
    ids = torch.randint(5, 30000, (len(lengths), tokens))
    mask = (torch.arange(tokens) < torch.as_tensor(lengths)[:, None]).long()
    return Batch(ids, mask, torch.zeros(*ids.shape, CHANNELS), mask.float())


def training(name, batches, device, steps, *, compiled=False):
    """Returns the steps of a training, and the network."""
    settings = TrainSettings(epochs=1, learning_rate=1e-4)
    torch.manual_seed(1)
    network = BertForTokenClassification(BertConfig(**SIZES[name], num_labels=CHANNELS))
    to_device(network, device)
    precision = choose_precision("bf16", device)
    torch.compiler.reset()
    run = torch.compile(network, dynamic=False) if compiled else network
    plan = Plan(batches, steps)
    return run, network, plan, fit(
        Named(run), make_optimizer(network, settings), make_scaler(device, precision), plan,
        lambda numbers: batches[numbers[0]], binary_cross_entropy, settings, Progress(), device, precision,
    )  # fmt: skip


def measure(name, what, batches, device, steps, peak, *, compiled):
    """Measures one row; one that doesn't fit into the memory is empty."""
    row = {"model": name, "batches": what, "compiled": compiled}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps = max(steps, len(batches))  # each shape comes once at least
    run, network, plan, reports = training(name, batches, device, WARM_UP + steps, compiled=compiled)
    try:
        started = time.perf_counter()
        for _ in islice(reports, WARM_UP):
            pass
        wait(device)
        warm_up = time.perf_counter() - started
        started = time.perf_counter()
        tokens = sum(report.tokens for report in reports)
        wait(device)
        seconds = time.perf_counter() - started
        times, seen = infer(run, batches, device)
    except torch.OutOfMemoryError:
        return row
    return {
        **row,
        "warm_up_seconds": round(warm_up, 1),
        "training_tokens_per_second": round(tokens / seconds),
        "share_of_peak": round(plan.operations(network) / seconds / peak, 3),
        "inference_tokens_per_second": round(seen / times),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
    }


def infer(run, batches, device):
    """Returns the seconds of one pass over the batches, the median of five, and their real tokens."""
    run.eval()
    there = [batch.to(device, TOKENS) for batch in batches]
    times = []
    for _ in range(WARM_UP + 5):
        wait(device)
        started = time.perf_counter()
        with torch.inference_mode(), autocast(device, choose_precision("bf16", device)):
            for batch in there:
                run(input_ids=batch.ids, attention_mask=batch.attention_mask).logits.float().cpu()
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:]), int(sum(batch.attention_mask.sum() for batch in batches))


def profile_of(name, batches, device):
    """Returns on what the device spends its time in a few steps: operation → share."""
    _, _, _, reports = training(name, batches, device, WARM_UP + PROFILED_STEPS)
    for _ in islice(reports, WARM_UP):
        pass
    wait(device)
    on_gpu = device.type == "cuda"
    try:
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
            for _ in reports:
                pass
            wait(device)
    except torch.OutOfMemoryError:
        return {}
    spent = {one.key: one.self_device_time_total if on_gpu else one.self_cpu_time_total
             for one in profiler.key_averages()}  # fmt: skip
    total = sum(spent.values())
    return {key: round(spent[key] / total, 3) for key in sorted(spent, key=lambda key: -spent[key])[:OPERATIONS_SHOWN]}


class Named(torch.nn.Module):
    """Gives a network's output as transformers does, compiled or not."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> object:
        return self.network(**inputs)


class Plan:
    """As many steps as are wanted, each with the next batch."""

    batches_of_step, longest = 1, TOKENS

    def __init__(self, batches, steps):
        self.total_steps, self._batches = steps, batches

    def batches(self, _epoch):
        return [np.array([step % len(self._batches)]) for step in range(self.total_steps)]

    def tokens(self, numbers):
        return int(sum(self._batches[number].attention_mask.sum() for (number,) in numbers))

    def operations(self, network):
        """Returns the floating-point operations of the measured steps, without those on padding.

        6 for each weight of a matrix and token, and in attention 12 for each unit, layer and pair of tokens.
        """
        config = network.config
        weights = sum(
            module.weight.numel() for module in network.modules() if isinstance(module, torch.nn.Linear)
        )  # embeddings are looked up, not multiplied
        attention = 12 * config.num_hidden_layers * config.hidden_size
        total = 0
        for (number,) in self.batches(0)[WARM_UP:]:
            lengths = self._batches[number].attention_mask.sum(dim=1)
            total += int(6 * weights * lengths.sum() + attention * (lengths * lengths).sum())
        return total


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(result):
    lines = [
        f"{result['device']}, torch {result['torch']}, bf16 matmul peak {result['matmul_peak_tflops']} TFLOP/s\n",
        "| model | windows | compiled | training, tokens/s | share of peak | inference, tokens/s | memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        start = f"| {row['model']} | {row['batches']} | "
        if "share_of_peak" not in row:
            lines.append(f"{start} | does not fit | | | |")
            continue
        compiled = f"yes, {row['warm_up_seconds']} s" if row["compiled"] else "no"
        lines.append(
            f"{start}{compiled} | {row['training_tokens_per_second']:,} | {row['share_of_peak']:.0%} "
            f"| {row['inference_tokens_per_second']:,} | {row['peak_memory_gb'] or ''} |"
        )
    for name, shares in result["profiles"].items():
        lines.append(f"\nWhere a step of {name} spends its time:\n")
        lines += [f"- {share:.0%} `{key[:90]}`" for key, share in shares.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
