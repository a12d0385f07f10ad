"""Which windows go into which batch, and what the tensors hold."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nertool.batches import epoch_batches, training_batch
from nertool.packing import pack_by_length, pad_ids, padded_batches
from nertool.windows import SectionTokenizer
from tests.conftest import make_corpus
from tests.test_window_cache import build

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=200).map(lambda values: np.array(values, np.int64))


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_has_every_window_once_and_keeps_the_budget(
    lengths: np.ndarray, budget: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, budget, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)


def test_epochs_differ_and_are_reproducible() -> None:
    lengths = np.arange(1, 300, dtype=np.int64)
    first, again, second = (epoch_batches(lengths, 500, 1, epoch) for epoch in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]


def test_little_is_padded() -> None:
    lengths = np.random.default_rng(0).integers(5, 512, 5000)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in epoch_batches(lengths, 4096, 0, 0))
    assert lengths.sum() / padded > 0.95


def test_a_window_longer_than_the_budget_is_a_batch_alone() -> None:
    batches = pack_by_length(np.array([3, 100, 4]), np.arange(3), 10)
    assert [batch.tolist() for batch in batches] == [[0], [1], [2]]


def test_special_tokens_and_padding_are_where_they_belong(tokenizer: SectionTokenizer) -> None:
    ids, mask = pad_ids([np.array([7, 8, 9]), np.array([7])], tokenizer)
    cls, sep, pad = tokenizer.prefix[0], tokenizer.suffix[0], tokenizer.pad_id
    assert ids.tolist() == [[cls, 7, 8, 9, sep], [cls, 7, sep, pad, pad]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 62), min_size=1, max_size=120).map(np.array), st.integers(20, 64), st.integers(16, 400))
def test_batches_for_prediction_hold_every_window_and_have_few_shapes(
    tokenizer: SectionTokenizer, lengths: np.ndarray, max_tokens: int, budget: int
) -> None:
    lengths = np.minimum(lengths, max_tokens - 2)
    starts = np.cumsum(lengths) - lengths
    tokens = np.arange(lengths.sum()) + 5
    seen = []
    for batch, ids, mask in padded_batches(tokens, starts, lengths, tokenizer, max_tokens, budget):
        rows, longest = ids.shape
        assert longest % 16 == 0 or longest == max_tokens
        assert rows >= len(batch) and (rows * longest <= budget or rows == 1)
        assert rows == budget // longest or rows == 1 or rows & (rows - 1) == 0
        assert mask.sum() == (lengths[batch] + 2).sum() + 2 * (rows - len(batch))
        for row, window in enumerate(batch):
            expected = tokens[starts[window] : starts[window] + lengths[window]]
            assert ids[row, 1 : 1 + lengths[window]].tolist() == expected.tolist()
        seen += batch.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_only_owned_tokens_count_and_each_counts_once(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    cache = build(tmp_path / "cache", make_corpus(6), tokenizer)
    channels = cache.scheme.channels
    indices = np.arange(len(cache.windows))
    batch = training_batch(cache, indices, tokenizer, np.arange(channels), channels)
    assert batch.loss_mask.sum() == len(cache.tokens)
    assert (batch.loss_mask <= batch.attention_mask).all()
    bits = np.unpackbits(cache.targets, axis=1, count=channels)
    counted = (batch.targets * batch.loss_mask[..., None]).sum(dim=(0, 1))
    np.testing.assert_array_equal(counted.numpy(), bits.sum(axis=0))


def test_a_class_that_only_eval_has_gets_a_channel_that_is_never_on(
    tmp_path: Path, tokenizer: SectionTokenizer
) -> None:
    cache = build(tmp_path / "cache", make_corpus(2), tokenizer)
    columns = np.array([1, 2, 3, 4])  # the model's channel 0 is unknown to the cache
    wide = training_batch(cache, np.arange(3), tokenizer, columns, 5)
    plain = training_batch(cache, np.arange(3), tokenizer, np.arange(4), 4)
    assert not wide.targets[..., 0].any()
    torch.testing.assert_close(wide.targets[..., 1:], plain.targets)
