"""Logits → spans."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.decoding import decode
from nertool.labels import make_scheme
from nertool.windows import SectionTokenizer, Tokens

SCHEME = make_scheme(["disease", "gene"])


def spans_of(tokens: Tokens, logits: np.ndarray, scheme=SCHEME, threshold: float = 0.5):  # type: ignore[no-untyped-def]
    found = decode(logits.astype(np.float32), tokens, scheme, threshold)
    return list(
        zip(found.section.tolist(), found.label.tolist(), found.start.tolist(), found.end.tolist(), strict=True)
    ), found.score


def decode_slowly(tokens: Tokens, logits: np.ndarray, threshold: float) -> list[tuple[int, int, int, int]]:
    cut = np.log(threshold / (1 - threshold))
    result = []
    for section in range(len(tokens.section_bounds) - 1):
        words: list[list[int]] = []
        for token in range(tokens.section_bounds[section], tokens.section_bounds[section + 1]):
            if tokens.word_starts[token]:
                words.append([])
            words[-1].append(token)
        for label in range(logits.shape[1]):
            run: list[list[int]] = []
            for word in [*words, None]:
                if word is not None and np.float32(logits[word, label].astype(np.float32).mean(dtype=np.float32)) >= cut:
                    run.append(word)
                    continue
                if run and tokens.starts[run[0][0]] < max(tokens.ends[run[-1]]):
                    result.append((section, label, int(tokens.starts[run[0][0]]), int(max(tokens.ends[run[-1]]))))
                run = []
    return sorted(result, key=lambda item: (item[0], item[2], item[3], item[1]))


@given(
    st.lists(st.text(st.sampled_from(list("ab1 -(é ")), max_size=30), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.3, 0.5, 0.8]),
)
@settings(max_examples=200, deadline=None)
def test_decoding_equals_a_loop_over_words(tokenizer: SectionTokenizer, texts: list[str], seed: int, threshold: float) -> None:
    tokens = tokenizer.tokenize(texts)
    # Halves, so that means of logits are exact and never sit on the threshold by rounding.
    logits = np.random.default_rng(seed).integers(-3, 4, (len(tokens.ids), 2)) + 0.25
    assert spans_of(tokens, logits, threshold=threshold)[0] == decode_slowly(tokens, logits, threshold)


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
