"""Loss functions: `loss(logits, batch) -> summed loss`; the loop alone divides it, by the tokens that count."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from nertool.batches import Batch


def binary_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy of every channel, over the tokens that the windows own.

    Args:
        logits: `(batch, tokens, channels)`.
        batch: The targets and which tokens count.

    Returns:
        The sum over tokens of the sum over channels, a scalar.

    Source: KAZU's `BertForMultiLabelTokenClassification` takes the mean over a padded batch, so a window's weight
        depends on its neighbours; here each token weighs the same.
    """
    losses = binary_cross_entropy_with_logits(logits.float(), batch.targets, reduction="none").sum(dim=-1)
    return (losses * batch.loss_mask).sum()


def prior_bias(positives: Tensor, total: float) -> Tensor:
    """Returns the biases with which untrained outputs already say how rare each channel is.

    Without it the first epochs of training are spent on learning that most tokens are outside.

    Args:
        positives: In how many tokens each channel is on, `(channels,)`.
        total: Of how many tokens.

    Returns:
        The log-odds, `(channels,)` float32, between ±7.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 3.3.
    """
    share = ((positives.double() + 0.5) / (total + 1.0)).clamp(1e-3, 1 - 1e-3)
    return torch.logit(share).float()
