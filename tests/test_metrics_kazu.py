"""Our `kazu` scheme and our documents against KAZU itself, which runs in a Python of its own (nox -s kazu)."""

import json
import os
import random
import subprocess
import tempfile

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nertool.document_parsing import parse_document
from nertool.documents import Document, Entity, Section, Span, dump_document, match_text
from nertool.matching import SectionPair
from nertool.metrics import evaluation_report

pytestmark = pytest.mark.kazu

# Answers one line of JSON for each line of JSON; whatever KAZU itself prints goes to stderr.
SERVER = """
import json, sys
answers, sys.stdout = sys.stdout, sys.stderr
from kazu.data import Document
from kazu.training.train_multilabel_ner import calculate_metrics, move_entities_to_metadata

def score(gold, predicted, labels):
    documents = move_entities_to_metadata([Document.from_json(text) for text in gold])
    for document, text in zip(documents, predicted):
        for section, found in zip(document.sections, Document.from_json(text).sections):
            section.entities = found.entities
    return calculate_metrics(0.0, documents, [*labels, "O"])[0]

def load(text):
    document = Document.from_json(text)
    return {
        "document": document.to_json(),
        "sections": [
            [section.name, section.text,
             [[e.entity_class, e.match, e.namespace, e.start, e.end, sorted([s.start, s.end] for s in e.spans)]
              for e in section.entities]]
            for section in document.sections
        ],
    }

print(json.dumps(sys.version_info[:2]), file=answers, flush=True)
for line in sys.stdin:
    name, arguments = json.loads(line)
    print(json.dumps({"score": score, "load": load}[name](**arguments)), file=answers, flush=True)
"""


class Kazu:
    """Calls functions of `SERVER` in KAZU's process."""

    def __init__(self, process, log):
        self._process, self._log = process, log

    def read(self):
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            pytest.fail(f"KAZU ended: {self._log.read()[-3000:]}", pytrace=False)
        return json.loads(line)

    def __call__(self, name, **arguments):
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        return self.read()


@pytest.fixture(scope="module")
def kazu():
    python = os.environ.get("KAZU_PYTHON")
    if not python:
        pytest.skip("KAZU_PYTHON names no Python with kazu==2.4.0")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "encoding": "utf-8"}
        with subprocess.Popen([python, "-c", SERVER], env=environment, **pipes) as process:
            server = Kazu(process, log)
            if tuple(server.read()) >= (3, 12):
                pytest.skip("KAZU adds its mean with sum(), which has rounded differently since Python 3.12")
            yield server
            process.stdin.close()


def random_sections(rng, labels):
    """Returns one document's gold and predicted sections: nested, touching, discontinuous and equal entities."""

    def some(most):
        result = []
        for _ in range(rng.randint(0, most)):
            starts = sorted(rng.sample(range(70), k=rng.choice([1, 1, 1, 2, 3])))
            spans = tuple(sorted({Span(start, start + rng.randint(1, 9)) for start in starts}))
            result.append(Entity(rng.choice(labels), spans, f"mention {rng.randint(0, 4)}"))
        return result

    sections = []
    for _ in range(rng.randint(0, 3)):
        gold = some(14)
        predicted = [e for e in gold if rng.random() < 0.6] + some(5)
        predicted += [Entity(e.label, (Span(e.end, e.end + 2),), e.match) for e in gold if rng.random() < 0.1]
        if gold and rng.random() < 0.3:
            gold.append(rng.choice(gold))
            predicted.append(rng.choice(gold))
        rng.shuffle(predicted)
        sections.append((gold, predicted))
    return sections


def test_kazu_scheme_is_kazu_to_the_last_digit(kazu):
    zero_means = positive_means = 0
    for seed in range(60):
        rng = random.Random(seed)
        known = [f"class{i:02}" for i in range(rng.choice([1, 2, 5, 18]))]
        used = rng.sample(known, k=rng.randint(1, len(known))) if seed % 4 == 0 else known
        used = [*used, "unknown"] if seed % 10 == 0 else used
        documents = [random_sections(rng, used) for _ in range(rng.choice([0, 1, 5, 40]))]
        texts = [
            [
                dump_document(
                    Document(str(i), tuple(Section("body", "x" * 90, tuple(pair[side])) for pair in sections))
                ).decode()
                for i, sections in enumerate(documents)
            ]
            for side in (0, 1)
        ]
        theirs = kazu("score", gold=texts[0], predicted=texts[1], labels=known)
        pairs = [SectionPair(i, *pair) for i, sections in enumerate(documents) for pair in sections]
        ours = evaluation_report(pairs, known, scheme="kazu", bootstrap_samples=0)
        del theirs["test_loss"]
        assert {key: ours[key] for key in theirs} == theirs
        per_class = {key for key in ours if key.endswith(("_precision", "_recall", "_support"))}
        assert {key for key in per_class if not key.startswith("micro_")} == set(theirs) - {
            "mean_f1",
            "false_positives",
            "false_negatives",
        }
        zero_means += theirs["mean_f1"] == 0
        positive_means += theirs["mean_f1"] > 0
    assert zero_means >= 10
    assert positive_means >= 10


letters = st.characters(exclude_categories=["Cs"])


@st.composite
def documents(draw):
    sections = []
    for _ in range(draw(st.integers(0, 3))):
        text = draw(st.text(letters, max_size=40))
        offsets = st.integers(0, len(text))
        span = st.tuples(offsets, offsets).map(lambda pair: Span(min(pair), max(pair)))
        shape = st.sets(span.filter(lambda span: span.start < span.end), min_size=1, max_size=3)
        entities = []
        for spans in draw(st.lists(shape, max_size=4)) if text else []:
            in_order = tuple(sorted(spans))
            label = draw(st.text(letters, min_size=1, max_size=8))
            score = draw(st.none() | st.floats(0, 1))
            entities.append(Entity(label, in_order, match_text(text, in_order), draw(st.text(letters)), score))
        sections.append(Section(draw(st.text(letters)), text, tuple(entities)))
    return Document(draw(st.text(letters)), tuple(sections))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=documents())
def test_kazu_loads_what_we_write_and_we_load_what_it_writes(kazu, document):
    loaded = kazu("load", text=dump_document(document).decode())
    assert loaded["sections"] == [
        [
            section.name,
            section.text,
            [[e.label, e.match, e.namespace, e.start, e.end, list(map(list, e.spans))] for e in section.entities],
        ]
        for section in document.sections
    ]
    assert orjson.loads(loaded["document"])["idx"] == document.id
    assert parse_document(loaded["document"].encode()).document == document
