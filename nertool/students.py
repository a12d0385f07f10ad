"""Students for distillation: smaller networks, made of a teacher's layers or of another backbone."""

import copy
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nertool.errors import NertoolError
from nertool.model import NerModel, new_model, set_dropout
from nertool.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def student_of_backbone(teacher: NerModel, settings: ModelSettings) -> NerModel:
    """Loads a backbone as a student, with the teacher's classes, windows and thresholds.

    Args:
        teacher: The teacher.
        settings: Name the backbone.

    Raises:
        NertoolError: If the backbone can't be loaded, or makes other tokens than the teacher's.
    """
    student = new_model(settings, teacher.decisions.windows, teacher.scheme)
    if student.tokenizer.digest != teacher.tokenizer.digest:
        raise NertoolError(
            f"the tokenizer of {settings.name} is not the teacher's, so their logits belong to different tokens",
            "use a backbone with the teacher's vocabulary, or --student-layers",
        )
    return NerModel(student.network, teacher.tokenizer, teacher.hub_tokenizer, teacher.decisions)


def student_of_layers(
    teacher: NerModel, count: int, settings: ModelSettings, intermediate_size: int | None = None
) -> NerModel:
    """Makes a student of some of the teacher's layers, evenly chosen, the last one included; the rest is copied whole.

    Args:
        teacher: The teacher.
        count: How many layers.
        settings: The dropout.
        intermediate_size: How many units of each feed-forward layer to keep, those with the largest product of the
            norms of what goes in and what goes out. None: all.

    Raises:
        NertoolError: If the teacher has no more layers or units than that.

    Source: Sanh et al. 2019, DistilBERT, section 2: a student that begins with every second layer of its teacher.
    """
    config = copy.deepcopy(teacher.network.config)
    total: int = config.num_hidden_layers
    if not 1 <= count < total:
        raise NertoolError(f"a student of {count} layers: the teacher has {total}", f"choose 1 to {total - 1}")
    name, _ = _stack(teacher.network, total)
    chosen = layers_for_student(teacher.network, count)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):  # ModernBERT looks near in some layers and far in others
        config.layer_types = [config.layer_types[i] for i in chosen]
    set_dropout(config, settings)
    units_key = "intermediate_size" if hasattr(config, "intermediate_size") else "hidden_dim"
    units: int = getattr(config, units_key)
    if intermediate_size is not None:
        if units == config.hidden_size:
            raise NertoolError("the teacher's feed-forward layers are as wide as its hidden states", "leave them so")
        if intermediate_size >= units:
            raise NertoolError(
                f"distill.student_intermediate_size is {intermediate_size}: the teacher has {units}", "choose fewer"
            )
        setattr(config, units_key, intermediate_size)
    network: PreTrainedModel = type(teacher.network)(config)
    new_number = {old: new for new, old in enumerate(chosen)}
    weights = {}
    for key, tensor in teacher.network.state_dict().items():
        match = re.fullmatch(rf"{re.escape(name)}\.(\d+)\.(.*)", key)
        if match is None:
            weights[key] = tensor
        elif int(match[1]) in new_number:
            weights[f"{name}.{new_number[int(match[1])]}.{match[2]}"] = tensor
    if intermediate_size is not None:
        of_layers = {key: tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}
        weights |= _with_fewer_units(of_layers, units, intermediate_size)
    network.load_state_dict(weights)
    return NerModel(network, teacher.tokenizer, teacher.hub_tokenizer, teacher.decisions)


def chosen_layers(total: int, count: int, *, keep_first: bool = False) -> list[int]:
    """Returns which of a teacher's layers a student gets, evenly spread, the last one always (but for a single first).

    Args:
        total: How many the teacher has.
        count: How many the student gets.
        keep_first: Whether the first one must be among them.
    """
    if keep_first:
        return [0, *(layer + 1 for layer in chosen_layers(total - 1, count - 1))]
    return [(i + 1) * total // count - 1 for i in range(count)]


def layers_for_student(teacher: "PreTrainedModel", count: int) -> list[int]:
    """Returns which of a teacher's layers a student of so many layers begins with, or is matched with."""
    total: int = teacher.config.num_hidden_layers
    _, stack = _stack(teacher, total)
    # ModernBERT's first layer lacks a norm that all others have, so only a first layer can be first.
    keep_first = stack[0].state_dict().keys() != stack[-1].state_dict().keys()
    return chosen_layers(total, count, keep_first=keep_first)


def _with_fewer_units(weights: dict[str, Tensor], units: int, kept: int) -> dict[str, Tensor]:
    """Returns the weights of layers with only the most important units of their feed-forward parts.

    Such a part is a matrix `(units, hidden)`, or `(2 · units, hidden)` where the second half are gates, and the one
    after it, `(hidden, units)`.
    """
    result = dict(weights)
    pending: tuple[str, Tensor] | None = None
    for name, tensor in weights.items():
        if tensor.ndim != 2 or units not in (*tensor.shape, tensor.shape[0] // 2):
            continue
        if tensor.shape[1] != units:  # the first matrix; its bias and the second one follow
            pending = (name, tensor)
            continue
        assert pending is not None
        first, into = pending
        halves = into.reshape(-1, units, into.shape[1])
        importance = halves.norm(dim=2).prod(dim=0) * tensor.norm(dim=0)
        best = importance.topk(kept).indices.sort().values
        result[first] = halves[:, best].reshape(-1, into.shape[1])
        result[name] = tensor[:, best]
        bias = first.removesuffix("weight") + "bias"
        if bias in weights:
            result[bias] = weights[bias].reshape(-1, units)[:, best].reshape(-1)
        pending = None
    return result


def _stack(network: torch.nn.Module, total: int) -> tuple[str, torch.nn.ModuleList]:
    """Finds the layers of a network, and their name in it."""
    found = [
        (name, part)
        for name, part in network.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == total and len({type(one) for one in part}) == 1
    ]
    if len(found) != 1:
        raise NertoolError(f"{type(network).__name__} has no single stack of layers to choose from", "use --student")
    return found[0]


class MatchedStudent(torch.nn.Module):
    """A student whose hidden states are projected to its teacher's, so that they can be matched.

    Each student layer is matched with the teacher's layer at the same share of the way up.

    Args:
        student: The student's network.
        teacher: The teacher's network.

    Source: Jiao et al. 2020, TinyBERT, equation 8: a learned projection per layer, mean squared difference.
    """

    def __init__(self, student: "PreTrainedModel", teacher: "PreTrainedModel") -> None:
        super().__init__()
        self.network = student
        count, width = student.config.num_hidden_layers, student.config.hidden_size
        self.layers = layers_for_student(teacher, count)
        wanted = teacher.config.hidden_size
        projections = [torch.nn.Linear(width, wanted, bias=False) for _ in self.layers]
        for projection in projections if width == wanted else []:
            torch.nn.init.eye_(projection.weight)
        self.projections = torch.nn.ModuleList(projections)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> SimpleNamespace:
        """Returns as `logits` the logits and, behind them, the projected states of all layers.

        Args:
            input_ids: `(batch, tokens)` int64.
            attention_mask: `(batch, tokens)` int64; None where nothing is padding.

        Returns:
            `(batch, tokens, channels + layers · teacher's units)`.
        """
        output = self.network(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states = output.hidden_states[1:]
        projected = [projection(state) for projection, state in zip(self.projections, states, strict=True)]
        return SimpleNamespace(logits=torch.cat([output.logits, *projected], dim=-1))


def hidden_states(teacher: "PreTrainedModel", layers: list[int], ids: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the hidden states of some of a teacher's layers, `(batch, tokens, layers · units)` float32."""
    teacher.eval()
    with torch.no_grad():
        states = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return torch.cat([states[layer + 1] for layer in layers], dim=-1).float()
