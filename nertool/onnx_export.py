"""Networks → ONNX files in fp32, fp16 and int8. The only module that writes ONNX; reading is onnxruntime's."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nertool.engines import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Logits(torch.nn.Module):
    def __init__(self, network: "PreTrainedModel") -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_onnx(network: "PreTrainedModel", path: Path) -> None:
    """Writes a network in fp32, for batches and windows of any size.

    Args:
        network: The network, on the CPU, in evaluation mode.
        path: The file.

    Raises:
        NertoolError: If the extra isn't installed.
    """
    require("onnx")
    ids = torch.ones((2, 16), dtype=torch.int64)
    mask = ids.clone()
    mask[1, 12:] = 0
    shapes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(network).eval(),
            (ids, mask),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            opset_version=20,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": shapes, "attention_mask": shapes},
        )
