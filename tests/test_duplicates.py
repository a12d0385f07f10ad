import random

import numpy as np
import pytest

from nertool.duplicates import HASHES, join_similar, minhash_signature


def text_with_similarity(words: list[str], similarity: float, seed: int) -> tuple[str, float]:
    """Returns a variant of a text with other words at its end, and its true Jaccard similarity."""
    sequences = len(words) - 4
    kept = round(sequences * 2 * similarity / (1 + similarity)) + 4
    variant = [*words[:kept], *(f"new{seed}_{number}" for number in range(len(words) - kept))]
    first, second = ({tuple(text[start : start + 5]) for start in range(sequences)} for text in (words, variant))
    return " ".join(variant), len(first & second) / len(first | second)


def words_of(seed: int, count: int = 300) -> list[str]:
    return [f"w{number}" for number in random.Random(seed).choices(range(5000), k=count)]


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.9, 1.0])
def test_pairs_clearly_above_the_threshold_are_joined_and_pairs_clearly_below_are_not(similarity):
    for seed in range(20):
        words = words_of(seed)
        above, true_above = text_with_similarity(words, similarity + (1 - similarity) * 0.8, seed)
        below, true_below = text_with_similarity(words, similarity * 0.6, seed)
        signatures = [minhash_signature([text]) for text in (" ".join(words), above, below)]
        assert true_above >= similarity > true_below
        roots = join_similar(signatures, similarity)
        assert roots[2] == 2
        if similarity < 1:
            assert roots[:2] == [0, 0]


def test_the_signature_estimates_the_jaccard_similarity_within_its_standard_error():
    errors = []
    for seed in range(100):
        words = words_of(seed)
        variant, similarity = text_with_similarity(words, 0.8, seed)
        first, second = (np.frombuffer(minhash_signature([text]), "<u4") for text in (" ".join(words), variant))
        errors.append(np.mean(first == second) - similarity)
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 1.5 * (0.8 * 0.2 / HASHES) ** 0.5


def test_a_signature_ignores_case_punctuation_and_section_limits():
    assert minhash_signature(["One two three", "four five six."]) == minhash_signature(["one TWO three; four-five six"])


def test_a_text_shorter_than_five_words_is_one_sequence():
    signatures = [minhash_signature([text]) for text in ("lung cancer", "Lung cancer.", "liver cancer")]
    assert join_similar(signatures, 0.8) == [0, 0, 2]


def test_no_words_have_no_signature_and_no_signatures_no_groups():
    assert minhash_signature([]) == minhash_signature(["", " … "]) == b""
    assert join_similar([], 0.8) == []


def test_signatures_are_the_same_in_every_process_and_release():
    """Splits must not change under people's feet: if this fails, say so in the changelog."""
    signature = np.frombuffer(minhash_signature(["the quick brown fox jumps over the lazy dog"]), "<u4")
    assert signature[:4].tolist() == [3416961315, 3346357008, 3274915766, 3288578002]


def test_five_thousand_near_copies_are_one_group_without_comparing_all_pairs():
    words = words_of(0)
    signatures = [minhash_signature([" ".join([*words, str(number)])]) for number in range(5000)]
    assert set(join_similar(signatures, 0.8)) == {0}


def test_groups_do_not_depend_on_the_order():
    texts = []
    for seed in range(30):
        words = words_of(seed)
        texts += [
            " ".join(words),
            text_with_similarity(words, 0.8, seed)[0],
            text_with_similarity(words, 0.78, -seed)[0],
        ]
    signatures = [minhash_signature([text]) for text in texts]
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)

    def groups(roots, names):
        return {frozenset(name for name, root in zip(names, roots, strict=True) if root == wanted) for wanted in roots}

    shuffled = join_similar([signatures[index] for index in order], 0.8)
    assert groups(join_similar(signatures, 0.8), range(len(texts))) == groups(shuffled, order)
