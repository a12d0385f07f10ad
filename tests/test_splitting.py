import json
import pickle
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.errors import NertoolError
from nertool.formats.pubtator import read_pubtator
from nertool.splitting import SIDES, SplitPlan, plan_folds, plan_split, summarise
from tests.cli_helpers import in_an_empty_folder, refuse  # noqa: F401
from tests.conftest import make_corpus as tiny_corpus
from tests.conftest import write_documents

BIORED = Path(__file__).parents[2] / "shared/data/biored/BioRED_TrainDev.PubTator"
VOCABULARY = [f"word{number}" for number in range(3000)]
USUAL = (0.8, 0.1, 0.1)


def make_words(seed: int, count: int) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def make_document(identifier: str, words: list[str], labels: tuple[str, ...] = ()) -> Document:
    """Returns a document whose first words carry the given labels, one each."""
    entities, position = [], 0
    for label, word in zip(labels, words, strict=False):
        entities.append(Entity(label, (Span(position, position + len(word)),), word))
        position += len(word) + 1
    return Document(identifier, (Section("text", " ".join(words), tuple(entities)),))


def edited(words: list[str], position: int) -> list[str]:
    return [*words[:position], "edited", *words[position + 1 :]]


def split(documents, fractions=USUAL, seed=42, similarity=0.8) -> SplitPlan:
    return plan_split(map(summarise, documents), fractions, seed, similarity)


def sides_of(plan: SplitPlan, *ids: str) -> set[str]:
    return {plan.assignment[identifier] for identifier in ids}


def skewed_corpus(seed: int, documents: int = 400, labels: int = 18) -> list[Document]:
    chance = random.Random(seed)
    corpus = []
    for number in range(documents):
        carried = []
        for label in range(labels):
            if chance.random() < 0.9 * 0.8**label:
                carried += [f"class{label:02d}"] * (1 + int(chance.expovariate(1 / (1 + 10 * 0.8**label))))
        corpus.append(make_document(f"{number}", make_words(number + 10**6 * seed, len(carried) + 8), tuple(carried)))
    return corpus


# A document is (seed of its words, its labels, index of the document that it copies with one word changed, or None).
recipes = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.lists(st.sampled_from("abcdefgh"), max_size=6).map(tuple),
        st.none() | st.integers(0, 30),
    ),
    min_size=3,
    max_size=25,
    unique_by=lambda recipe: recipe[0],
)


def make_corpus(recipe) -> list[Document]:
    all_words: list[list[str]] = []
    for seed, _, copied in recipe:
        is_copy = copied is not None and copied < len(all_words)
        all_words.append(edited(all_words[copied], 50) if is_copy else make_words(seed, 120))
    return [
        make_document(f"doc{number}", words, labels)
        for number, (words, (_, labels, _)) in enumerate(zip(all_words, recipe, strict=True))
    ]


def independent(documents: list[Document]) -> int:
    """Counts the documents, near copies once: copies of copies differ from their origin in the same one word."""
    return len({document.sections[0].text[:60] for document in documents})


@settings(max_examples=40, deadline=None)
@given(recipe=recipes, seed=st.integers(0, 100), data=st.data())
def test_every_document_is_on_one_side_whatever_the_order_and_the_ids(recipe, seed, data):
    documents = make_corpus(recipe)
    if independent(documents) < 3:
        with pytest.raises(NertoolError, match="too few"):
            split(documents, seed=seed)
        return
    plan = split(documents, seed=seed)
    assert plan.assignment.keys() == {document.id for document in documents}
    assert set(plan.assignment.values()) == set(SIDES)
    shuffled = data.draw(st.permutations(documents))
    again = split(shuffled, seed=seed)
    assert again == plan
    assert again.report() == plan.report()
    renamed = split([replace(document, id=f"zz{document.id}"[::-1]) for document in documents], seed=seed)
    assert renamed.assignment == {f"zz{name}"[::-1]: side for name, side in plan.assignment.items()}


@settings(max_examples=40, deadline=None)
@given(recipe=recipes, fractions=st.sampled_from([USUAL, (0.9, 0.1, 0.0), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]))
def test_copies_stay_together_and_classes_of_one_document_go_to_train(recipe, fractions):
    documents = make_corpus(recipe)
    wanted = [side for side, fraction in zip(SIDES, fractions, strict=True) if fraction]
    if independent(documents) < len(wanted):
        return
    plan = split(documents, fractions)
    assert set(plan.assignment.values()) == set(wanted)
    by_start: dict[str, set[str]] = {}
    holders: dict[str, set[str]] = {}
    for document in documents:
        start = document.sections[0].text[:60]
        by_start.setdefault(start, set()).add(plan.assignment[document.id])
        for entity in document.sections[0].entities:
            holders.setdefault(entity.label, set()).add(start)
    assert all(len(sides) == 1 for sides in by_start.values())
    assert plan.single_classes.keys() == {label for label, starts in holders.items() if len(starts) == 1}
    of_single = {start for label in plan.single_classes for start in holders[label]}
    if len(by_start) - len(of_single) >= len(wanted) - 1:  # else a side would stay empty
        assert set(plan.single_classes.values()) <= {"train"}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=20, max_size=40),
    fractions=st.sampled_from([USUAL, (0.6, 0.2, 0.2), (0.9, 0.1, 0.0)]),
    seed=st.integers(0, 1000),
)
def test_fractions_are_reached_to_within_one_group_of_duplicates(sizes, fractions, seed):
    documents = [
        make_document(f"{number}-{copy}", make_words(number, 12))
        for number, size in enumerate(sizes)
        for copy in range(size)
    ]
    counts = Counter(split(documents, fractions, seed).assignment.values())
    for side, fraction in zip(SIDES, fractions, strict=True):
        assert abs(counts[side] - fraction * len(documents)) <= max(sizes)


@settings(max_examples=40, deadline=None)
@given(recipe=recipes)
def test_the_share_of_unseen_mentions_is_what_a_plain_count_gives(recipe):
    documents = [
        Document(document.id, (Section("s", document.sections[0].text.upper(), document.sections[0].entities),))
        if number % 2
        else document
        for number, document in enumerate(make_corpus([(seed % 40, *rest) for seed, *rest in recipe]))
    ]
    try:
        plan = split(documents)
    except NertoolError:
        return  # too few that differ
    mentions: dict[str, list[tuple[str, str]]] = {side: [] for side in SIDES}
    for document in documents:
        for section in document.sections:
            for entity in section.entities:
                pair = (entity.label, match_text(section.text, entity.spans).casefold())
                mentions[plan.assignment[document.id]].append(pair)
    known = set(mentions["train"])
    reported = plan.report()["unseen_mentions"]
    for side in ("eval", "test"):
        unseen = [pair for pair in mentions[side] if pair not in known]
        overall = reported[side]["overall"]
        assert (overall["entities"], overall["unseen"]) == (len(mentions[side]), len(unseen))
        assert overall["share"] == (len(unseen) / len(mentions[side]) if mentions[side] else None)
        classes = {label: row["unseen"] for label, row in reported[side]["classes"].items()}
        assert classes == {label: sum(pair[0] == label for pair in unseen) for label, _ in mentions[side]}


def test_another_seed_gives_another_split():
    documents = skewed_corpus(0, documents=60)
    assert split(documents, seed=1).assignment != split(documents, seed=2).assignment


def test_shares_of_18_skewed_classes_are_nearer_to_the_asked_ones_than_with_a_random_split():
    documents = skewed_corpus(1)
    labels = {document.id: Counter(entity.label for entity in document.sections[0].entities) for document in documents}

    def deviation(assignment):
        shares = []
        for label in set().union(*labels.values()):
            total = sum(counts[label] for counts in labels.values())
            for side, fraction in zip(SIDES, USUAL, strict=True):
                found = sum(counts[label] for name, counts in labels.items() if assignment[name] == side)
                shares.append(abs(found / total - fraction))
        return sum(shares) / len(shares)

    for seed in range(3):
        chance = random.Random(seed)
        at_random = {document.id: chance.choices(SIDES, USUAL)[0] for document in documents}
        planned = deviation(split(documents, seed=seed).assignment)
        assert planned < 0.02
        assert planned < deviation(at_random) / 2


def test_near_copies_are_never_parted_even_when_a_chain_links_them():
    words = make_words(0, 300)
    chain = [words]
    for step in range(1, 8):
        chain.append(edited(chain[-1], 40 * step))
    documents = [make_document(f"chain{number}", words) for number, words in enumerate(chain)]
    documents += [make_document(f"other{number}", make_words(number + 1, 300)) for number in range(40)]
    for seed in range(5):
        plan = split(documents, (0.4, 0.3, 0.3), seed)
        assert len(sides_of(plan, *(f"chain{number}" for number in range(8)))) == 1
        assert [(group.kind, group.ids) for group in plan.duplicate_groups] == [
            ("near", tuple(f"chain{number}" for number in range(8)))
        ]


def test_equal_texts_with_other_entities_or_section_names_are_exact_duplicates():
    words = make_words(0, 60)
    twin = make_document("b", words, ("drug",))
    documents = [make_document("a", words, ("gene",)), replace(twin, sections=(replace(twin.sections[0], name="x"),))]
    documents += [make_document(f"other{number}", make_words(number + 1, 60), ("gene",)) for number in range(9)]
    report = split(documents).report()
    assert report["duplicate_groups"] == [{"kind": "exact", "ids": ["a", "b"]}]
    assert report["classes_in_a_single_document"] == {"drug": "train"}


def test_upper_case_and_other_punctuation_make_a_near_duplicate():
    words = make_words(0, 60)
    loud = Document("b", (Section("title", " ".join(words[:9]).upper()), Section("rest", ", ".join(words[9:]) + ".")))
    others = [make_document(f"other{number}", make_words(number + 1, 60)) for number in range(9)]
    report = split([make_document("a", words), loud, *others]).report()
    assert report["duplicate_groups"] == [{"kind": "near", "ids": ["a", "b"]}]


def test_texts_without_words_are_duplicates_only_if_they_are_equal():
    documents = [Document(f"{number}", (Section("s", text),)) for number, text in enumerate(["", "…", "?!", "…"])]
    assert split(documents).report()["duplicate_groups"] == [{"kind": "exact", "ids": ["1", "3"]}]


def test_a_class_in_one_group_of_duplicates_goes_to_train_and_is_reported():
    rare = make_words(0, 60)
    documents = [make_document("rare", rare, ("rare",)), make_document("rare copy", edited(rare, 30), ("rare",))]
    documents += [make_document(f"{number}", make_words(number + 1, 60), ("gene",)) for number in range(20)]
    for seed in range(5):
        plan = split(documents, (0.2, 0.4, 0.4), seed)
        assert plan.single_classes == {"rare": "train"}
        assert sides_of(plan, "rare", "rare copy") == {"train"}


def test_no_wanted_side_stays_empty_even_if_every_document_has_a_class_of_its_own():
    documents = [make_document(f"{number}", make_words(number, 20), (f"class{number}",)) for number in range(3)]
    plan = split(documents)
    assert sorted(plan.assignment.values()) == ["eval", "test", "train"]
    assert sorted(plan.single_classes.values()) == ["eval", "test", "train"]


def test_documents_without_entities_are_shared_out_too():
    documents = [make_document(f"{number}", make_words(number, 20), ("gene",) * (number % 2)) for number in range(100)]
    plan = split(documents)
    silent = Counter(plan.assignment[document.id] for document in documents if not document.sections[0].entities)
    assert Counter(plan.assignment.values()) == {"train": 80, "eval": 10, "test": 10}
    assert silent == {"train": 40, "eval": 5, "test": 5}


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.8, 0.1, 0.2), "add up to 1.1"),
        ((0.8, 0.1), "three fractions"),
        ((1.2, -0.1, -0.1), "from 0 to 1"),
        ((0.0, 0.5, 0.5), "nothing for train"),
        ((float("nan"), 0.5, 0.5), "from 0 to 1"),
    ],
)
def test_fractions_that_do_not_fit_are_refused(fractions, message):
    with pytest.raises(NertoolError, match=message):
        split(skewed_corpus(0, documents=5), fractions)


def test_fractions_may_miss_1_by_rounding_and_leave_sides_empty():
    documents = skewed_corpus(0, documents=30)
    assert Counter(split(documents, (0.7, 0.1, 0.2)).assignment.values()).keys() == set(SIDES)  # 0.9999999999999999
    report = split(documents, (0.9, 0.1, 0.0)).report()
    assert report["documents"]["test"] == []
    assert report["fractions"]["documents"] == pytest.approx({"train": 0.9, "eval": 0.1, "test": 0.0}, abs=0.05)
    assert report["unseen_mentions"]["test"] == {"overall": {"entities": 0, "unseen": 0, "share": None}, "classes": {}}


@pytest.mark.parametrize("copies", [0, 5])
def test_too_few_documents_are_an_error_that_counts_duplicates_once(copies):
    words = make_words(0, 40)
    documents = [make_document("a", words), make_document("b", make_words(1, 40))]
    documents += [make_document(f"copy{number}", words) for number in range(copies)]
    with pytest.raises(
        NertoolError, match=f"^{2 + copies} documents, 2 if duplicates count once, are too few"
    ) as error:
        split(documents)
    assert error.value.hint
    assert set(split(documents, (0.5, 0.5, 0.0)).assignment.values()) == {"train", "eval"}


@given(recipe=recipes, folds=st.integers(2, 5), seed=st.integers(0, 100), data=st.data())
def test_folds_hold_every_document_once_copies_together_whatever_the_order(recipe, folds, seed, data):
    corpus = make_corpus(recipe)
    if independent(corpus) < folds:
        with pytest.raises(NertoolError, match=f"too few for {folds} folds"):
            plan_folds(map(summarise, corpus), folds, seed, 0.8)
        return
    plan = plan_folds(map(summarise, corpus), folds, seed, 0.8)
    assert plan.keys() == {document.id for document in corpus}
    assert set(plan.values()) == set(range(folds))
    texts = {}
    for document in corpus:
        assert texts.setdefault(document.sections[0].text, plan[document.id]) == plan[document.id]
    shuffled = data.draw(st.permutations(corpus))
    assert plan_folds(map(summarise, shuffled), folds, seed, 0.8) == plan


def test_folds_are_alike_in_classes_and_documents():
    corpus = skewed_corpus(3)
    plan = plan_folds(map(summarise, corpus), 5, 42, 0.8)
    sizes = Counter(plan.values())
    assert max(sizes.values()) - min(sizes.values()) <= 4
    total = Counter(entity.label for document in corpus for entity in document.sections[0].entities)
    for fold in range(5):
        counts = Counter(e.label for d in corpus if plan[d.id] == fold for e in d.sections[0].entities)
        assert all(abs(counts[label] / total[label] - 0.2) < 0.03 for label in total if total[label] >= 50)


def test_the_report_adds_up_and_is_plain_json():
    documents = skewed_corpus(2, documents=50)
    report = split(documents, seed=7).report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["seed"] == 7
    assert report["fractions"]["asked"] == {"train": 0.8, "eval": 0.1, "test": 0.1}
    entities = Counter(entity.label for document in documents for entity in document.sections[0].entities)
    assert {label: sum(row["counts"].values()) for label, row in report["classes"].items()} == dict(entities)
    for side in SIDES:
        assert report["documents"][side] == sorted(report["documents"][side])
        assert report["counts"]["documents"][side] == len(report["documents"][side])
        assert report["counts"]["entities"][side] == sum(row["counts"][side] for row in report["classes"].values())
        assert report["fractions"]["documents"][side] == len(report["documents"][side]) / 50
        assert report["classes"]["class00"]["shares"][side] == pytest.approx(
            report["classes"]["class00"]["counts"][side] / entities["class00"]
        )


def test_a_summary_stays_small_however_long_the_text():
    words = make_words(0, 6000)
    summary = summarise(make_document("long", words, ("gene", "drug") * 50))
    assert len(" ".join(words)) > 40_000
    assert len(pickle.dumps(summary)) < 2000
    assert summary.label_counts == {"gene": 50, "drug": 50}


@pytest.mark.real_data
def test_class_shares_of_biored_are_within_2_points_of_the_asked_ones():
    if not BIORED.is_file():
        pytest.skip(f"{BIORED} is not there")
    documents = [record.document for record in read_pubtator(BIORED)]
    report = split(documents).report()
    assert sum(report["counts"]["documents"].values()) == 500
    for row in report["classes"].values():
        if sum(row["counts"].values()) >= 100:
            for side, fraction in report["fractions"]["asked"].items():
                assert row["shares"][side] == pytest.approx(fraction, abs=0.02)


@pytest.mark.parametrize("change", ["removed", "other text", "new"])
def test_documents_that_change_between_the_two_readings_are_no_split(change, tmp_path, monkeypatch):
    documents = write_documents(tmp_path / "documents", tiny_corpus(12))

    def plan_and_change(*arguments):
        plan = plan_split(*arguments)
        path = documents / "doc-003.json"
        if change == "new":
            (documents / "doc-new.json").write_text(path.read_text().replace("doc-003", "doc-new"))
        elif change == "other text":
            path.write_text(path.read_text().replace("Cells 3", "Cells 4"))
        else:
            path.unlink()
        return plan

    monkeypatch.setattr("nertool.splitting.plan_split", plan_and_change)
    message = refuse("split", documents, tmp_path / "split")
    assert "documents changed while it was read: 'doc-" in message and "try again" in message
    assert not (tmp_path / "split").exists()
