"""Networks → OpenVINO models in fp32, bf16 and int8. The only module that writes them."""

import errno
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nertool.engines import Longs
from nertool.extras import require
from nertool.onnx_export import Logits, silenced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_openvino(
    network: "PreTrainedModel",
    path: Path,
    precision: str,
    calibration: Sequence[tuple[Longs, Longs]] = (),
    keep: Collection[str] = (),
) -> None:
    """Writes a network, for batches and windows of any size.

    Args:
        network: The network, on the CPU, as `load_model` gives it.
        path: The `.xml` file; the weights go beside it, with the ending `.bin`.
        precision: `fp32`; `bf16`, with weights in fp16, which the processor computes with in bf16; or `int8`.
        calibration: For int8, ids and masks of real windows, `(batch, tokens)` each, which show how large activations
            get.
        keep: For int8, linear layers whose activations stay in bf16, by their names in the network.

    Raises:
        NertoolError: If the extra isn't installed.
    """
    require("openvino")
    import openvino  # noqa: PLC0415 (an optional package)

    ids = torch.ones((2, 16), dtype=torch.int64)
    mask = ids.clone()
    mask[1, 12:] = 0
    shape = openvino.PartialShape([-1, -1])
    with silenced():
        model = openvino.convert_model(
            Logits(network).eval(),
            example_input={"input_ids": ids, "attention_mask": mask},
            input=[(name, shape, openvino.Type.i64) for name in ("input_ids", "attention_mask")],
        )
        model.outputs[0].get_tensor().set_names({"logits"})
        if precision == "int8":
            model = _quantised(model, calibration, keep)
        try:
            openvino.save_model(model, str(path), compress_to_fp16=precision != "fp32")
        except RuntimeError as error:  # how it reports a full disk
            raise OSError(errno.EIO, f"{path.name} can't be written: {error}") from error


def _quantised(model: Any, calibration: Sequence[tuple[Longs, Longs]], keep: Collection[str]) -> Any:
    """Returns a model with int8 weights and, but for the layers to keep, int8 activations.

    Source: NNCF's post-training quantisation for transformers, with SmoothQuant (Xiao et al. 2023).
    """
    require("nncf")
    import nncf  # noqa: PLC0415 (an optional package)

    windows = nncf.Dataset(calibration, lambda pair: {"input_ids": pair[0], "attention_mask": pair[1]})
    patterns = [f".*{re.escape(name)}/.*" for name in keep]
    quantised = nncf.quantize(
        model,
        windows,
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False),
    )
    # What was left out still has its weights in int8, one scale per row, and so its size.
    return nncf.compress_weights(quantised, mode=nncf.CompressWeightsMode.INT8_ASYM) if keep else quantised
