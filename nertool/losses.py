"""Loss functions: `loss(logits, batch) -> summed loss`; the loop alone divides it, by the tokens that count."""

from collections.abc import Callable

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


def binary_cross_entropy_where_known(logits: Tensor, batch: Batch) -> Tensor:
    """Returns what `binary_cross_entropy` does, without the targets below 0, of which nothing is known."""
    known = batch.targets >= 0
    losses = binary_cross_entropy_with_logits(logits.float(), batch.targets.clamp(min=0.0), reduction="none") * known
    return (losses.sum(dim=-1) * batch.loss_mask).sum()


def distillation_loss(
    hard_weight: float, temperature: float, hidden_weight: float = 0.0
) -> Callable[[Tensor, Batch], Tensor]:
    """Returns the loss of a student: its teacher's probabilities for every token, and the gold where that is known.

    Each channel is a decision of its own, so what is matched is the probability of each, not one distribution over all.
    Probabilities are taken from logits divided by the temperature, and the loss is multiplied by its square, so that
    gradients stay as large.

    Args:
        hard_weight: The share of the gold in the loss of windows that have it, in [0, 1].
        temperature: At least 1; above it, the student also learns how certain its teacher is of what it rules out.
        hidden_weight: Weight of the mean squared difference to the teacher's hidden states; if it isn't 0, these are
            expected behind the logits, and in the batch.

    Returns:
        A loss like `binary_cross_entropy`, for batches with `teacher_logits` and `labelled`.

    Source: Hinton et al. 2015, Distilling the Knowledge in a Neural Network, section 2, for independent channels.
    """

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        assert batch.teacher_logits is not None and batch.labelled is not None
        channels = batch.targets.shape[-1]
        logits, hidden = logits[..., :channels].float(), logits[..., channels:]
        soft_targets = torch.sigmoid(batch.teacher_logits / temperature)
        soft = binary_cross_entropy_with_logits(logits / temperature, soft_targets, reduction="none").sum(dim=-1)
        hard = binary_cross_entropy_with_logits(logits, batch.targets, reduction="none").sum(dim=-1)
        share = hard_weight * batch.labelled[:, None]
        losses = soft * temperature**2 * (1 - share) + hard * share
        if batch.teacher_hidden is not None:
            losses = losses + hidden_weight * (hidden.float() - batch.teacher_hidden).square().mean(dim=-1)
        return (losses * batch.loss_mask).sum()

    return loss


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
