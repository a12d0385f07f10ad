"""The loss against torch's own, and its independence of padding and neighbours."""

import torch

from nertool.batches import Batch
from nertool.losses import binary_cross_entropy, prior_bias


def make_batch(rows: int, tokens: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tokens, channels, generator=generator)
    targets = (torch.rand(rows, tokens, channels, generator=generator) < 0.3).float()
    mask = (torch.rand(rows, tokens, generator=generator) < 0.7).float()
    return logits, Batch(torch.zeros(rows, tokens), torch.ones(rows, tokens), targets, mask)


def test_the_loss_equals_torch_over_the_tokens_that_count() -> None:
    logits, batch = make_batch(3, 7, 4)
    chosen = batch.loss_mask.bool()
    expected = torch.nn.BCEWithLogitsLoss(reduction="sum")(logits[chosen], batch.targets[chosen])
    torch.testing.assert_close(binary_cross_entropy(logits, batch), expected)


def test_padding_and_tokens_of_other_windows_change_nothing() -> None:
    logits, batch = make_batch(2, 5, 3)
    loud = logits + 100 * (1 - batch.loss_mask)[..., None]
    torch.testing.assert_close(binary_cross_entropy(loud, batch), binary_cross_entropy(logits, batch))


def test_an_empty_batch_is_no_nan() -> None:
    """KAZU's loss is NaN for one empty section alone in a batch."""
    logits, batch = make_batch(1, 3, 2)
    empty = Batch(batch.ids, batch.attention_mask, batch.targets, torch.zeros_like(batch.loss_mask))
    assert binary_cross_entropy(logits, empty) == 0


def test_the_prior_says_how_rare_a_channel_is() -> None:
    bias = prior_bias(torch.tensor([100.0, 0.0, 1000.0]), 1000)
    torch.testing.assert_close(torch.sigmoid(bias), torch.tensor([0.1004, 0.001, 0.999]), atol=1e-3, rtol=0)
