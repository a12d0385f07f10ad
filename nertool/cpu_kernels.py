"""Layers of transformers that torch's own CPU code makes slow: attention in bf16, and dropout.

Measured beside torch's (docs/log.md): attention forward and backward takes half the time, dropout less than half.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "nertool_cpu"
_FAMILIES = {"bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta"}
# Beyond that, the matrices of weights would take gigabytes; torch's kernel needs none.
_LONGEST_WINDOW = 1024


def use_cpu_kernels(network: "PreTrainedModel") -> None:
    """Replaces a network's dropout and, if it is of a family for which that is tested, its attention.

    Others may have attention of their own (DeBERTa), look back only (GPT) or add to scores (T5): they keep torch's.
    """
    if network.config.model_type in _FAMILIES and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(_ATTENTION)
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is torch.nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


class Dropout(torch.nn.Dropout):
    """Dropout with one random number of 64 bits for four elements; torch draws one for each element, on one core.

    The probability is rounded to 1/65,536.
    """

    def forward(self, units: Tensor) -> Tensor:
        """Returns the units with some elements 0 and the others scaled up, while training."""
        if not self.training or not self.p or units.device.type != "cpu":
            return super().forward(units)
        count, dropped = units.numel(), round(self.p * 2**16)
        if dropped == 2**16:
            return units * 0.0
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = drawn.view(torch.int16)[:count].view(units.shape) >= dropped - 2**15
        # A product with a tensor of the same type is what is fast; torch differentiates it.
        return units * kept.to(units.dtype).mul_(2**16 / (2**16 - dropped))


class _Attention(torch.autograd.Function):
    """softmax(queries · keysᵀ · scaling) · values, `(batch, heads, tokens, units)`, as plain matrix products.

    Scores are rounded to the inputs' type, as in transformers' `eager` attention. The matrix of weights is kept for the
    backward pass, so memory grows with the square of the tokens.
    """

    @staticmethod
    def forward(
        context: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        queries = queries * scaling
        scores = queries @ keys.transpose(-1, -2)
        if mask is not None:
            _mask_out(scores, mask)
        weights = torch.softmax(scores, dim=-1)
        context.save_for_backward(queries, keys, values, weights)
        context.scaling = scaling
        return weights @ values

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (of_output,) = gradients
        queries, keys, values, weights = context.saved_tensors
        of_values = weights.transpose(-1, -2) @ of_output
        of_weights = of_output @ values.transpose(-1, -2)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        return (of_scores @ keys) * context.scaling, of_scores.transpose(-1, -2) @ queries, of_values, None, None


def _mask_out(scores: Tensor, mask: Tensor) -> None:
    """Sets the scores where the mask is False to the least number, in place.

    Windows of a batch differ little in length, so most columns have nothing to mask: they are left alone.
    """
    first = int(mask.all(dim=-2).all(dim=0).all(dim=0).to(torch.uint8).argmin())
    scores[..., first:].masked_fill_(mask[..., first:].logical_not(), torch.finfo(scores.dtype).min)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    if query.dtype != torch.bfloat16 or dropout or query.shape[-2] > _LONGEST_WINDOW:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _Attention.apply(query, key, value, attention_mask, scaling)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
