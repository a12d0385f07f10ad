"""Networks → ONNX files in fp32, fp16 and int8. The only module that writes ONNX; `engines.py` runs it.

In int8, weights have one scale per column (or row, in embedding tables), activations one per token, taken while the
model runs. onnxruntime gives them one per batch, which a single large value spoils for all tokens, and which makes a
text's result depend on its neighbours; so every token is divided by its largest value before a product, and the result
multiplied by it again. Measured in docs/log.md.
"""

import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nertool.extras import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OPSET = 20
# Smaller tables (positions, token types) are not worth an operation more.
_LEAST_TABLE_ELEMENTS = 1_000_000


class Logits(torch.nn.Module):
    """A network that gives its logits and nothing else, as exporters want it.

    Args:
        network: The network.
    """

    def __init__(self, network: "PreTrainedModel") -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns the logits, `(batch, tokens, channels)`."""
        logits: torch.Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_onnx(network: "PreTrainedModel", path: Path) -> None:
    """Writes a network in fp32, for batches and windows of any size; its linear layers keep their names.

    Args:
        network: The network, on the CPU, as `load_model` gives it.
        path: The file.

    Raises:
        NertoolError: If the extra isn't installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    import onnx  # noqa: PLC0415 (an optional package)

    ids = torch.ones((2, 16), dtype=torch.int64)
    mask = ids.clone()
    mask[1, 12:] = 0
    shapes = {0: "batch", 1: "tokens"}
    with silenced(), _plain_attention(network):
        torch.onnx.export(
            Logits(network).eval(),
            (ids, mask),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": shapes, "attention_mask": shapes},
        )
    model = onnx.load(path)
    for node in _linear_nodes(model.graph):
        scopes = next((one.value for one in node.metadata_props if one.key == "pkg.torch.onnx.name_scopes"), "")
        names = [part.strip(" '[]") for part in scopes.split(",")]
        if len(names) > 1:
            node.name = names[-2].removeprefix("network.")
    for node in model.graph.node:  # where in the source it comes from: a megabyte
        del node.metadata_props[:]
    onnx.save(model, path)


def linear_layers(path: Path) -> list[str]:
    """Returns the names of a model's linear layers, in their order."""
    import onnx  # noqa: PLC0415

    return [node.name for node in _linear_nodes(onnx.load(path).graph)]


def to_fp16(source: Path, target: Path) -> None:
    """Writes a model with its weights and sums in fp16; inputs and outputs stay as they are."""
    import onnx  # noqa: PLC0415
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

    with silenced():
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def to_int8(source: Path, target: Path, keep: Collection[str] = ()) -> None:
    """Writes a model with its linear layers and its vocabulary table in int8.

    Args:
        source: The model in fp32.
        target: The file to write.
        keep: Linear layers that stay in fp32, by the names of `linear_layers`.
    """
    import onnx  # noqa: PLC0415
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    model = onnx.load(source)
    _scale_tokens(model.graph, keep)
    _pack_tables(model.graph)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, silenced():
        scaled = Path(folder) / "scaled.onnx"
        onnx.save(model, scaled)
        quantize_dynamic(
            scaled,
            target,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=list(keep),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    model = onnx.load(target)
    _fix_scales(model.graph)
    onnx.save(model, target)


def _linear_nodes(graph: Any) -> list[Any]:
    """Returns the products with a constant matrix of weights; there are also products of token numbers."""
    from onnx import TensorProto  # noqa: PLC0415

    constants = {one.name for one in graph.initializer if one.data_type == TensorProto.FLOAT and len(one.dims) == 2}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def _scale_tokens(graph: Any, keep: Collection[str]) -> None:
    """Puts x → x / max|x| before the linear layers and · max|x| behind them, for each token."""
    from onnx import helper, numpy_helper  # noqa: PLC0415

    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1], np.int64), "token_axis"),
            numpy_helper.from_array(np.array(1e-6, np.float32), "token_least"),
        ]
    )
    linear = {node.output[0] for node in _linear_nodes(graph) if node.name not in keep}
    nodes: list[Any] = []
    scaled: set[str] = set()
    for node in graph.node:
        if node.output[0] not in linear:
            nodes.append(node)
            continue
        given, result = node.input[0], node.output[0]
        if given not in scaled:
            scaled.add(given)
            nodes += [
                helper.make_node("Abs", [given], [f"{given}_abs"]),
                helper.make_node("ReduceMax", [f"{given}_abs", "token_axis"], [f"{given}_max"], keepdims=1),
                helper.make_node("Max", [f"{given}_max", "token_least"], [f"{given}_scale"]),
                helper.make_node("Div", [given, f"{given}_scale"], [f"{given}_scaled"]),
            ]
        node.input[0], node.output[0] = f"{given}_scaled", f"{result}_unscaled_product"
        nodes += [node, helper.make_node("Mul", [f"{result}_unscaled_product", f"{given}_scale"], [result])]
    del graph.node[:]
    graph.node.extend(nodes)


def _fix_scales(graph: Any) -> None:
    """Gives scaled tokens, which lie in [-1, 1], one scale for good in the place of the one that each batch has."""
    from onnx import helper, numpy_helper  # noqa: PLC0415

    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / 127, np.float32), "unit_scale"),
            numpy_helper.from_array(np.array(128, np.uint8), "unit_zero"),
        ]
    )
    nodes: list[Any] = []
    fixed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear" and node.input[0].endswith("_scaled"):
            fixed |= {node.output[1]: "unit_scale", node.output[2]: "unit_zero"}
            nodes.append(
                helper.make_node("QuantizeLinear", [node.input[0], "unit_scale", "unit_zero"], [node.output[0]])
            )
        else:
            nodes.append(node)
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = fixed.get(name, name)
    del graph.node[:]
    graph.node.extend(nodes)


def _pack_tables(graph: Any) -> None:
    """Turns large embedding tables into int8 with one scale per row; onnxruntime's own way has one for all rows."""
    import onnx  # noqa: PLC0415
    from onnx import helper, numpy_helper  # noqa: PLC0415

    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    packed: set[str] = set()
    for table in list(graph.initializer):
        large = table.data_type == onnx.TensorProto.FLOAT and len(table.dims) == 2
        if not large or int(np.prod(table.dims)) < _LEAST_TABLE_ELEMENTS:
            continue
        if not all(node.op_type == "Gather" and _axis(node) == 0 for node in users.get(table.name, [])):
            continue
        weights = numpy_helper.to_array(table)
        scales = np.maximum(np.abs(weights).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        rows = np.rint(weights / scales).astype(np.int8)
        graph.initializer.remove(table)
        graph.initializer.extend(
            [
                numpy_helper.from_array(rows, f"{table.name}_rows"),
                numpy_helper.from_array(scales, f"{table.name}_row_scales"),
            ]
        )
        packed.add(table.name)
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in packed:
            nodes.append(node)
            continue
        (table_name, ids), result = node.input, node.output[0]
        nodes += [
            helper.make_node("Gather", [f"{table_name}_rows", ids], [f"{result}_int8"], axis=0),
            helper.make_node("Cast", [f"{result}_int8"], [f"{result}_unscaled"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table_name}_row_scales", ids], [f"{result}_row_scale"], axis=0),
            helper.make_node("Mul", [f"{result}_unscaled", f"{result}_row_scale"], [result]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _axis(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


@contextmanager
def _plain_attention(network: "PreTrainedModel") -> Iterator[None]:
    """Has a network compute attention by plain products meanwhile, which makes the smallest graph."""
    before = network.config._attn_implementation
    if before != "eager":
        network.set_attn_implementation("eager")
    try:
        yield
    finally:
        if before != "eager":
            network.set_attn_implementation(before)


@contextmanager
def silenced() -> Iterator[None]:
    """Keeps the talk of exporters and quantisers off the terminal; some of it goes to stdout."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
