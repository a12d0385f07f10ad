"""Attention on CUDA: without torch's cuDNN kernel, and without waiting for the GPU at every step.

Nothing of it changes results; docs/decisions/0016 has the reasons.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "nertool_gpu"


def use_gpu_kernels(network: "PreTrainedModel") -> None:
    """Chooses attention that is fast where every batch has another shape.

    cuDNN's, which torch prefers on some GPUs, prepares itself for each shape, for tens or hundreds of milliseconds.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if network.config._attn_implementation == "sdpa":  # others, such as DeBERTa, have attention of their own
        network.set_attn_implementation(_ATTENTION)


def _mask(**options: Any) -> Tensor | None:
    """Returns transformers' mask; where there is one, without asking the GPU whether it could be left out."""
    if options["attention_mask"] is not None:
        options["allow_is_bidirectional_skip"] = False
    mask: Tensor | None = sdpa_mask(**options)
    return mask


AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
AttentionMaskInterface.register(_ATTENTION, _mask)
