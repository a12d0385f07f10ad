"""The state of a training run on disk: everything that makes a resumed run go on as if nothing had happened.

Tensors are kept as safetensors, the rest as JSON; never as pickles.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nertool.distributed import ALONE, World
from nertool.errors import NertoolError
from nertool.files import file_digest, publish_folder, read_json, write_json

STATE_FILE = "state.json"


@dataclass
class Progress:
    """Where a training run is.

    Args:
        step: Optimizer steps done.
        epoch: The epoch that the next batch is from.
        batch: Batches of that epoch done.
        evaluated_step: The last step after which the eval split was scored; -1 before the first time.
        best_step: The step of the best model; -1 if there is none yet.
        best_value: Its value of the metric.
        evaluations_without_gain: How many evaluations in a row were not better.
        metrics_lines: Lines of metrics.jsonl that belong to this state.
        train_seconds: Seconds spent so far, over all resumptions.
        tokens_per_batch: What was chosen in the beginning, which makes the batches; 0 before that.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    evaluated_step: int = -1
    best_step: int = -1
    best_value: float = float("-inf")
    evaluations_without_gain: int = 0
    metrics_lines: int = 0
    train_seconds: float = 0.0
    tokens_per_batch: int = 0


def save_checkpoint(
    folder: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: "torch.amp.GradScaler",
    progress: Progress,
    randoms: Sequence[dict[str, Tensor]],
) -> Path:
    """Writes `folder/step-N`, whole or not at all, and then removes the older ones.

    Args:
        folder: The folder of the checkpoints.
        network: The network in training.
        optimizer: Its optimizer.
        scaler: For fp16.
        progress: Where training is.
        randoms: What `random_states` gave in each process.

    Raises:
        OSError: If the disk is full; older checkpoints are untouched then.
    """
    folder.mkdir(exist_ok=True)
    # A second save after the same step, after its evaluation or a signal: the first one stays until it is whole.
    same_step = sorted(path.name for path in folder.glob(f"step-{progress.step:08d}*"))
    final = folder / (f"{same_step[-1]}b" if same_step else f"step-{progress.step:08d}")
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in _own_tensors(network).items()}, partial / "model.safetensors"
        )
        tensors, facts = _flatten(optimizer.state_dict())
        save_file(tensors, partial / "optimizer.safetensors")
        states = {f"{rank}.{name}": state for rank, own in enumerate(randoms) for name, state in own.items()}
        save_file(states, partial / "random.safetensors")
        state = {**asdict(progress), "best_value": _finite(progress.best_value)}
        write_json(
            partial / STATE_FILE,
            {
                "progress": state,
                "optimizer": facts,
                "scaler": scaler.state_dict(),
                "processes": len(randoms),
                "files": {path.name: file_digest(path) for path in partial.iterdir()},
            },
        )
        publish_folder(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):  # it reports a full disk as an error of its own
            raise OSError(str(error)) from error
        raise
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint, if there is one."""
    found = sorted(path for path in folder.glob("step-*") if (path / STATE_FILE).is_file())
    return found[-1] if found else None


def load_checkpoint(
    path: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: "torch.amp.GradScaler",
    world: World = ALONE,
) -> Progress:
    """Restores a run's state in place.

    Raises:
        NertoolError: If the checkpoint is damaged, of another model, or of another number of processes.
    """
    state = read_json(path / STATE_FILE)
    if state["processes"] != world.size:
        raise NertoolError(
            f"the run was begun by {state['processes']} processes, not {world.size}: its batches would not be the same",
            f"resume it with torchrun --nproc-per-node {state['processes']}, or --force to start afresh",
        )
    try:
        for name, digest in state.get("files", {}).items():  # an older nertool's has none
            if file_digest(path / name) != digest:
                raise OSError(f"{name} is not what was saved")
        weights = load_file(path / "model.safetensors")
        if different := set(_own_tensors(network)) ^ set(weights):
            raise NertoolError(f"the checkpoint {path} is of another model: {sorted(different)[0]}")
        network.load_state_dict(weights, strict=False)
        optimizer.load_state_dict(_unflatten(load_file(path / "optimizer.safetensors"), state["optimizer"]))
        randoms = load_file(path / "random.safetensors")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise NertoolError(
            f"the checkpoint {path} is damaged: {error}", "remove it, or --force to start afresh"
        ) from error
    if state["scaler"] and scaler.is_enabled():  # a run may go on in another precision, on another device
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(randoms[f"{world.rank}.cpu"])
    device = _device(network)
    if device.type != "cpu" and (own := randoms.get(f"{world.rank}.{device.type}")) is not None:
        if device.type == "cuda":
            torch.cuda.set_rng_state(own, device)
        else:
            torch.mps.set_rng_state(own)
    values = state["progress"]
    if values["best_value"] is None:
        values["best_value"] = float("-inf")
    return Progress(**values)


def _own_tensors(network: torch.nn.Module) -> dict[str, Tensor]:
    """Returns the state without second names of shared tensors, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            result[name] = tensor
            seen.add(tensor.data_ptr())
    return result


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {
        f"{index}.{key}": value.contiguous()
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    groups = [
        {key: value for key, value in group.items() if not isinstance(value, Tensor)} for group in state["param_groups"]
    ]
    return tensors, {"param_groups": groups}


def _unflatten(tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": facts["param_groups"]}


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Returns the states of the generators that training draws from: torch's, for dropout; batches need none."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _device(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
