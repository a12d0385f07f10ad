"""Tokens and windows."""

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.errors import NertoolError
from nertool.windows import SectionTokenizer, Tokens, plan_windows

TEXTS = st.lists(
    st.text(st.sampled_from(list("aB1 -(),.βé\u0301\u00a0\u2009\n\t😀/İß漢")), max_size=80), min_size=1, max_size=4
)


def make_tokens(lengths: list[int], word_length: int = 1) -> Tokens:
    total = sum(lengths)
    positions = np.concatenate([np.arange(n) for n in lengths] or [np.zeros(0)]).astype(np.int32)
    return Tokens(
        np.arange(total, dtype=np.int32),
        positions,
        positions + 1,
        positions % word_length == 0,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_tokens_lie_in_order_inside_their_text_and_never_hold_white_space(
    tokenizer: SectionTokenizer, texts: list[str]
) -> None:
    tokens = tokenizer.tokenize(texts)
    assert tokens.section_bounds[-1] == len(tokens.ids) == len(tokens.starts) == len(tokens.ends)
    for i, text in enumerate(texts):
        first, last = tokens.section_bounds[i : i + 2]
        starts, ends = tokens.starts[first:last], tokens.ends[first:last]
        assert (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
        assert ((starts >= 0) & (ends <= len(text)) & (starts <= ends)).all()
        assert all(text[a:b] == text[a:b].strip() for a, b in zip(starts, ends, strict=True))
        if first < last:
            assert tokens.word_starts[first]


def test_a_word_is_a_run_of_letters_and_digits_or_one_other_character(tokenizer: SectionTokenizer) -> None:
    text = "kinase (ERK1) Na+/K+ IL-2 e\u0301t"
    tokens = tokenizer.tokenize([text])
    firsts = tokens.starts[tokens.word_starts].tolist()
    bounds = [*firsts, len(text)]
    words = [text[a:b].strip() for a, b in itertools.pairwise(bounds)]
    assert words == ["kinase", "(", "ERK1", ")", "Na", "+", "/", "K", "+", "IL", "-", "2", "e\u0301t"]


def test_a_special_token_spelled_out_in_a_text_stays_text(tokenizer: SectionTokenizer) -> None:
    special = {tokenizer.backend.token_to_id(f"[{name}]") for name in ("PAD", "CLS", "SEP", "MASK")}
    tokens = tokenizer.tokenize(["before [SEP] after"])
    assert not special & set(tokens.ids.tolist())


@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=5),
    st.integers(4, 40),
    st.integers(0, 20),
    st.integers(1, 7),
)
@settings(max_examples=300, deadline=None)
def test_every_token_is_owned_by_exactly_one_window_of_its_section(
    lengths: list[int], size: int, overlap: int, word_length: int
) -> None:
    tokens = make_tokens(lengths, word_length)
    if overlap >= size:
        with pytest.raises(NertoolError, match="overlap_tokens"):
            plan_windows(tokens, size, overlap)
        return
    windows = plan_windows(tokens, size, overlap)
    owned = np.concatenate(
        [np.arange(a, b) for a, b in zip(windows.owned_starts, windows.owned_ends, strict=True)] or [[]]
    )
    assert owned.tolist() == list(range(sum(lengths)))
    assert (windows.lengths <= size).all() and (windows.lengths > 0).all()
    assert ((windows.starts <= windows.owned_starts) & (windows.owned_ends <= windows.ends)).all()
    section = np.searchsorted(tokens.section_bounds, windows.starts, side="right")
    assert (section == np.searchsorted(tokens.section_bounds, windows.ends - 1, side="right")).all()


def test_windows_of_a_long_section_share_tokens_and_begin_at_words() -> None:
    tokens = make_tokens([1000], word_length=3)
    windows = plan_windows(tokens, 128, 32)
    assert ((windows.ends[:-1] - windows.starts[1:]) >= 32).all()
    assert tokens.word_starts[windows.starts].all()  # KAZU trains windows that start inside a word as word starts
    assert tokens.word_starts[windows.owned_starts].all()
    assert windows.lengths.min() > 100  # no crumb of a window at the end


def test_a_short_section_is_one_window_and_an_empty_one_is_none() -> None:
    windows = plan_windows(make_tokens([5, 0, 7]), 10, 2)
    assert windows.starts.tolist() == [0, 5]
    assert windows.ends.tolist() == [5, 12]


def test_a_slow_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from nertool.model import load_tokenizer

    class Slow:
        is_fast = False

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda _, **__: Slow())
    with pytest.raises(NertoolError, match="not a fast one"):
        load_tokenizer("some-model")


@given(TEXTS, st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_groups_of_texts_give_the_same_tokens_as_all_at_once(
    tokenizer: SectionTokenizer, texts: list[str], size: int
) -> None:
    whole = tokenizer.tokenize(texts)
    with mock.patch("nertool.windows._CHARACTERS_AT_ONCE", size):
        parts = tokenizer.tokenize(texts)
    for name in ("ids", "starts", "ends", "word_starts", "section_bounds"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
        assert getattr(parts, name).dtype == getattr(whole, name).dtype
    assert len(tokenizer.tokenize([]).section_bounds) == 1
