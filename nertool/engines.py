"""What runs a network: one function from token ids to logits, whatever is behind it.

torch's engine is in `model.py`; the ones here need neither torch nor transformers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from nertool.artefacts import Decisions
from nertool.decoding import Floats
from nertool.errors import NertoolError
from nertool.extras import require
from nertool.windows import Longs, SectionTokenizer
from nertool.workers import usable_cores

__all__ = ["Engine", "Floats", "Longs", "Tagger"]


class Engine(Protocol):
    """Runs a network."""

    def __call__(self, ids: Longs, mask: Longs) -> Floats:
        """Returns the logits of a batch.

        Args:
            ids: Token ids, `(batch, tokens)` int64.
            mask: 1 where there is a token, 0 for padding, `(batch, tokens)` int64.

        Returns:
            `(batch, tokens, channels)` float32.
        """
        ...


@dataclass(frozen=True, slots=True)
class Tagger:
    """All that finds entities in sections.

    Args:
        engine: Runs the network.
        tokenizer: Makes its tokens.
        decisions: What its logits mean.
        runs_on: The engine, the device and the precision, in words.
        tokens_per_batch: Most tokens of a batch, padding included.
    """

    engine: Engine
    tokenizer: SectionTokenizer
    decisions: Decisions
    runs_on: str
    tokens_per_batch: int

    @property
    def window_tokens(self) -> int:
        """Longest window without special tokens."""
        return self.decisions.windows.max_tokens - self.tokenizer.special_tokens


def choose_tokens_per_batch(wanted: int | Literal["auto"], device: str) -> int:
    """Returns how many tokens a batch has on a kind of device; the one for CPUs is measured (docs/log.md)."""
    if wanted != "auto":
        return wanted
    return 1024 if device == "cpu" else 8192


class OnnxRuntimeEngine:
    """Runs an ONNX model on the CPU.

    Args:
        path: The model.
        threads: How many to compute with.

    Raises:
        NertoolError: If onnxruntime isn't installed, or can't read the model.
    """

    def __init__(self, path: Path, threads: int) -> None:
        require("onnxruntime")
        import onnxruntime  # noqa: PLC0415 (an optional package)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the CPU from tokenising and decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise NertoolError(f"onnxruntime can't load {path}: {_first_line(error)}", "export it again") from error

    def __call__(self, ids: Longs, mask: Longs) -> Floats:
        """Returns logits; see `Engine`."""
        found: Floats = self._session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        return found.astype(np.float32, copy=False)


class OpenVinoEngine:
    """Runs an OpenVINO or an ONNX model on the CPU.

    Args:
        path: The model.
        precision: `fp32` or `bf16`, in which it computes what the model doesn't say to compute in int8.
        threads: How many to compute with.

    Raises:
        NertoolError: If openvino isn't installed, or can't read the model.
    """

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        require("openvino")
        import openvino  # noqa: PLC0415 (an optional package)

        core = openvino.Core()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # A process that has a share of the cores would pin its threads to the same ones as all others.
            "ENABLE_CPU_PINNING": threads >= usable_cores(),
        }
        try:
            self._request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise NertoolError(f"OpenVINO can't load {path}: {_first_line(error)}", "export it again") from error

    def __call__(self, ids: Longs, mask: Longs) -> Floats:
        """Returns logits; see `Engine`."""
        self._request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)
        return np.array(self._request.get_tensor("logits").data, np.float32)  # a copy: the next batch overwrites it


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
