"""Logits → spans."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.decoding import decode
from nertool.documents import Entity, Section, Span
from nertool.labels import make_scheme
from nertool.representation import represent
from nertool.targets import locate, paint
from nertool.windows import SectionTokenizer, Tokens

SCHEME = make_scheme(["disease", "gene"])


def spans_of(tokens: Tokens, logits: np.ndarray, scheme=SCHEME, threshold: float = 0.5, cost: float = 0.0):  # type: ignore[no-untyped-def]
    found = decode(logits.astype(np.float32), tokens, scheme, [threshold] * len(scheme.labels), cost)
    return list(
        zip(found.section.tolist(), found.label.tolist(), found.start.tolist(), found.end.tolist(), strict=True)
    ), found.score


def best_by_trying_all(gains: list[float], cost: float) -> tuple[bool, ...]:
    def value(states: tuple[bool, ...]) -> float:
        changes = sum(a != b for a, b in itertools.pairwise(states))
        return sum(gain for gain, on in zip(gains, states, strict=True) if on) - cost * changes

    # Of equally good ones the last that is inside, as `decode` breaks ties.
    return max(itertools.product([False, True], repeat=len(gains)), key=lambda s: (value(s), s[::-1]))


def decode_slowly(tokens: Tokens, logits: np.ndarray, threshold: float, cost: float) -> list[tuple[int, int, int, int]]:
    cut = np.log(threshold / (1 - threshold))
    result = []
    for section in range(len(tokens.section_bounds) - 1):
        words: list[list[int]] = []
        for token in range(tokens.section_bounds[section], tokens.section_bounds[section + 1]):
            if tokens.word_starts[token]:
                words.append([])
            words[-1].append(token)
        for label in range(logits.shape[1]):
            chunks: list[list[list[int]]] = []
            for word in words:
                if not chunks or tokens.starts[word[0]] > max(tokens.ends[chunks[-1][-1]]):
                    chunks.append([])
                chunks[-1].append(word)
            states = [
                on
                for chunk in chunks
                for on in best_by_trying_all([float(logits[word, label].mean()) - cut for word in chunk], cost)
            ]
            run: list[list[int]] = []
            for word, on in [*zip(words, states, strict=True), (None, False)]:
                if on and word is not None:
                    run.append(word)
                    continue
                if run and tokens.starts[run[0][0]] < max(tokens.ends[run[-1]]):
                    result.append((section, label, int(tokens.starts[run[0][0]]), int(max(tokens.ends[run[-1]]))))
                run = []
    return sorted(result, key=lambda item: (item[0], item[2], item[3], item[1]))


@given(
    st.lists(st.text(st.sampled_from(list("ab1 -(é ")), max_size=20), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.3, 0.5, 0.8]),
    st.sampled_from([0.0, 0.7, 3.0]),
)
@settings(max_examples=200, deadline=None)
def test_decoding_equals_trying_every_sequence(
    tokenizer: SectionTokenizer, texts: list[str], seed: int, threshold: float, cost: float
) -> None:
    texts = [re.sub(r"(\S{8})", r"\1 ", text) for text in texts]  # 2^8 sequences are enough to try
    tokens = tokenizer.tokenize(texts)
    logits = np.random.default_rng(seed).normal(0, 2, (len(tokens.ids), 2))
    assert spans_of(tokens, logits, threshold=threshold, cost=cost)[0] == decode_slowly(tokens, logits, threshold, cost)


def test_a_word_is_decided_by_the_mean_of_its_tokens(tokenizer: SectionTokenizer) -> None:
    tokens = tokenizer.tokenize(["hepatitis"])
    assert len(tokens.ids) == 2
    assert spans_of(tokens, np.array([[3.0, -9], [-1.0, -9]]))[0] == [(0, 0, 0, 9)]
    assert spans_of(tokens, np.array([[1.0, -9], [-3.0, -9]]))[0] == []


def test_brackets_stay_outside_a_mention(tokenizer: SectionTokenizer) -> None:
    """KAZU decodes the gene in `kinase (ERK` as `kinase (`."""
    text = "kinase (ERK)"
    tokens = tokenizer.tokenize([text])
    inside = np.array([text[a:b] not in "()" for a, b in zip(tokens.starts, tokens.ends, strict=True)])
    logits = np.stack([np.full(len(inside), -9), np.where(inside, 9, -9)], axis=1)
    found, _ = spans_of(tokens, logits)
    assert [text[start:end] for _, _, start, end in found] == ["kinase", "ERK"]


def test_a_run_never_continues_into_the_next_section(tokenizer: SectionTokenizer) -> None:
    tokens = tokenizer.tokenize(["lung", "cancer"])
    found, _ = spans_of(tokens, np.tile([9.0, -9], (len(tokens.ids), 1)))
    assert found == [(0, 0, 0, 4), (1, 0, 0, 6)]


def test_a_border_where_there_is_no_space_has_to_be_worth_its_cost(tokenizer: SectionTokenizer) -> None:
    text = "lung-a b"
    tokens = tokenizer.tokenize([text])
    gains = {"lung": 2.0, "-": -0.3, "a": 2.0, "b": -0.3}
    logits = np.array([[gains[text[a:b]], -9] for a, b in zip(tokens.starts, tokens.ends, strict=True)])
    assert [(start, end) for *_, start, end in spans_of(tokens, logits)[0]] == [(0, 4), (5, 6)]
    assert [(start, end) for *_, start, end in spans_of(tokens, logits, cost=0.5)[0]] == [(0, 6)]


def test_begin_channels_cut_a_run_where_a_word_begins_an_entity(tokenizer: SectionTokenizer) -> None:
    scheme = make_scheme(["gene"], begin=True)
    tokens = tokenizer.tokenize(["BRCA1 BRCA2"])
    starts = tokens.starts.tolist()
    begin = np.where([start in (0, 6) for start in starts], 9, -9)
    logits = np.stack([np.full(len(starts), 9), begin], axis=1)
    assert spans_of(tokens, logits, scheme)[0] == [(0, 0, 0, 5), (0, 0, 6, 11)]


def test_the_score_is_the_mean_probability_of_the_words(tokenizer: SectionTokenizer) -> None:
    tokens = tokenizer.tokenize(["lung cancer"])
    _, scores = spans_of(tokens, np.array([[0.0, -9], [2.0, -9]]))
    np.testing.assert_allclose(scores, [(0.5 + 1 / (1 + np.exp(-2))) / 2])


def test_nothing_in_gives_nothing_out(tokenizer: SectionTokenizer) -> None:
    tokens = tokenizer.tokenize(["", " "])
    assert spans_of(tokens, np.zeros((len(tokens.ids), 2)))[0] == []


@pytest.fixture(scope="module")
def byte_level() -> SectionTokenizer:
    """A byte-level tokenizer, as RoBERTa and ModernBERT have: line breaks and double blanks are tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate([*alphabet, "<pad>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return SectionTokenizer.wrap(backend, pad_id=len(alphabet))


@pytest.mark.parametrize("gap", [" ", "\n", "  ", " \n\n "])
def test_white_space_tokens_have_no_say_in_the_word_before_them(byte_level: SectionTokenizer, gap: str) -> None:
    text = f"p53{gap}gene"
    tokens = byte_level.tokenize([text])
    inside = np.array([start < 3 and end > start for start, end in zip(tokens.starts, tokens.ends, strict=True)])
    logits = np.stack([np.full(len(inside), -9), np.where(inside, 1.0, -9)], axis=1)
    assert spans_of(tokens, logits)[0] == [(0, 1, 0, 3)]
    sections = [Section("s", text, (Entity("gene", (Span(0, 3),), "p53"),))]
    spans = locate(sections, tokens, SCHEME)
    assert spans.exact.all()
    assert represent(sections, tokens, spans, paint(spans, len(tokens.ids), SCHEME), SCHEME).kept == 1
