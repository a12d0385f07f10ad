"""Training and inference on a GPU: real tokens per second, and the share of the bf16 matmul peak measured beside them.

    nox -s bench -- gpu [--json FILE] [--device cuda]

MiniLM-L6 and BERT-base in size, random weights, full windows of 512 tokens, so nothing is padding; `torch.compile` with
the time that it takes. `--device cpu` with `--steps 1` only shows that the script runs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification

from nertool.batches import Batch
from nertool.checkpoints import Progress
from nertool.devices import autocast, choose_device, choose_precision
from nertool.losses import binary_cross_entropy
from nertool.settings import TrainSettings
from nertool.training import fit, make_optimizer, make_scaler

SIZES = {
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
TOKENS, CHANNELS, WARM_UP = 512, 18, 3


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
    rows = [
        measure(name, windows, device, arguments.steps, peak, compiled=compiled)
        for name in SIZES
        for windows in arguments.windows
        for compiled in ((False, True) if device.type == "cuda" else (False,))
    ]
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "matmul_peak_tflops": round(peak / 1e12, 1),
        "rows": rows,
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


def measure(name, windows, device, steps, peak, *, compiled):
    settings = TrainSettings(epochs=1, learning_rate=1e-4)
    torch.manual_seed(1)
    network = BertForTokenClassification(BertConfig(**SIZES[name], num_labels=CHANNELS)).to(device)
    precision = choose_precision("bf16", device)
    run = torch.compile(network) if compiled else network
    ids = torch.randint(5, 30000, (windows, TOKENS))
    batch = Batch(ids, torch.ones_like(ids), torch.zeros(windows, TOKENS, CHANNELS), torch.ones(windows, TOKENS))
    times: list[float] = []
    started = time.perf_counter()
    training = fit(
        Named(run), make_optimizer(network, settings), make_scaler(device, precision), Plan(windows, WARM_UP + steps),
        lambda _: batch, binary_cross_entropy, settings, Progress(), device, precision,
    )  # fmt: skip
    for number, _ in enumerate(training, start=1):
        if number == WARM_UP:
            wait(device)
            warm_up = time.perf_counter() - started
            started = time.perf_counter()
    wait(device)
    seconds = (time.perf_counter() - started) / steps
    network.eval()
    on_device = batch.to(device)
    for _ in range(WARM_UP + 5):
        wait(device)
        started = time.perf_counter()
        with torch.inference_mode(), autocast(device, precision):
            run(input_ids=on_device.ids, attention_mask=on_device.attention_mask).logits.float().cpu()
        times.append(time.perf_counter() - started)
    return {
        "model": name,
        "windows": windows,
        "compiled": compiled,
        "warm_up_seconds": round(warm_up, 1),
        "training_tokens_per_second": round(windows * TOKENS / seconds),
        "share_of_peak": round(operations(network, windows) / seconds / peak, 3),
        "inference_tokens_per_second": round(windows * TOKENS / statistics.median(times[WARM_UP:])),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
    }


class Named(torch.nn.Module):
    """Gives a network's output as transformers does, compiled or not."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> object:
        return self.network(**inputs)


class Plan:
    """As many steps of one batch as are wanted."""

    batches_of_step = 1

    def __init__(self, windows, steps):
        self.total_steps, self._windows, self._steps = steps, windows, steps

    def batches(self, _epoch):
        return [torch.arange(self._windows).numpy()] * self._steps

    def tokens(self, batches):
        return len(batches) * self._windows * TOKENS


def operations(network, windows):
    """Returns the floating-point operations of a training step: 6 per weight of a matrix and token, and attention's."""
    config = network.config
    weights = sum(
        module.weight.numel() for module in network.modules() if isinstance(module, torch.nn.Linear)
    )  # embeddings are looked up, not multiplied
    attention = 12 * config.num_hidden_layers * config.hidden_size * TOKENS
    return windows * TOKENS * (6 * weights + attention)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(result):
    lines = [
        f"{result['device']}, torch {result['torch']}, bf16 matmul peak {result['matmul_peak_tflops']} TFLOP/s\n",
        "| model | windows of 512 | compiled | training, tokens/s | share of peak | inference, tokens/s | memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        compiled = f"yes, {row['warm_up_seconds']} s" if row["compiled"] else "no"
        lines.append(
            f"| {row['model']} | {row['windows']} | {compiled} | {row['training_tokens_per_second']:,} "
            f"| {row['share_of_peak']:.0%} | {row['inference_tokens_per_second']:,} | {row['peak_memory_gb']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
