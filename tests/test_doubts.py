"""What an audit found suspect is left out of the loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nertool.batches import Batch
from nertool.documents import Document, Entity
from nertool.doubts import UNKNOWN, locate_doubts
from nertool.files import read_json
from nertool.labels import make_scheme
from nertool.losses import binary_cross_entropy, binary_cross_entropy_where_known
from nertool.suspects import Suggestion, Suspect
from nertool.windows import SectionTokenizer
from tests.cli_helpers import in_an_empty_folder, refuse, succeed  # noqa: F401
from tests.conftest import make_corpus, write_documents
from tests.test_audit import FEW

LABELS = ("disease", "gene")


def suspect(document: str, section: int, entity: Entity | None, suggestion: Suggestion | None) -> Suspect:
    return Suspect(document, section, "missing", entity, suggestion, 5.0, 5.0, (0, 0), (0, 0))


@given(data=st.data(), begin=st.booleans())
def test_the_tokens_in_doubt_are_those_that_the_spans_touch(
    tokenizer: SectionTokenizer, data: st.DataObject, begin: bool
) -> None:
    documents = [*make_corpus(3), Document("empty", ())]
    scheme = make_scheme(LABELS, begin=begin)
    suspects, expected, base = [], set(), 0
    for document in documents:
        tokens = tokenizer.tokenize([section.text for section in document.sections])
        for index, section in enumerate(document.sections):
            for entity in data.draw(st.lists(st.sampled_from(section.entities), max_size=2)):
                other = data.draw(st.sampled_from(section.entities))
                suggestion = data.draw(st.none() | st.just(Suggestion(other.label, other.spans[0], other.match)))
                suspects.append(suspect(document.id, index, entity, suggestion))
                places = [(entity.label, entity.spans[0])]
                places += [(suggestion.label, suggestion.span)] if suggestion else []
                for label, (start, end) in places:
                    for token in range(*tokens.section_bounds[index : index + 2].tolist()):
                        if label in LABELS and tokens.starts[token] < end and tokens.ends[token] > start:
                            channel = LABELS.index(label)
                            expected.add((base + token, channel))
                            expected |= {(base + token, len(LABELS) + channel)} if begin else set()
        base += len(tokens.ids)
    doubts = locate_doubts(suspects, documents, tokenizer, scheme)
    assert sorted(expected) == list(zip(doubts.tokens.tolist(), doubts.channels.tolist(), strict=True))
    first = data.draw(st.integers(0, base))
    targets = np.zeros((data.draw(st.integers(0, base - first)), scheme.channels), np.float32)
    doubts.mark(targets, first)
    inside = {(token - first, channel) for token, channel in expected if first <= token < first + len(targets)}
    assert set(zip(*map(np.ndarray.tolist, np.nonzero(targets == UNKNOWN)), strict=True)) == inside
    assert not targets[targets != UNKNOWN].any()


def test_what_is_not_known_gives_neither_loss_nor_gradient() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 5, 3, requires_grad=True)
    targets = (torch.rand(2, 5, 3) > 0.5).float()
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]]).float()
    batch = Batch(torch.zeros(2, 5).long(), torch.ones(2, 5).long(), targets, mask)
    torch.testing.assert_close(binary_cross_entropy_where_known(logits, batch), binary_cross_entropy(logits, batch))
    in_doubt = torch.rand(2, 5, 3) > 0.6
    marked = replace(batch, targets=torch.where(in_doubt, UNKNOWN, targets))
    (gradient,) = torch.autograd.grad(binary_cross_entropy_where_known(logits, marked), logits)
    (of_all,) = torch.autograd.grad(binary_cross_entropy(logits, batch), logits)
    torch.testing.assert_close(gradient, of_all * ~in_doubt)


def test_a_training_leaves_out_what_an_audit_of_its_documents_found(backbone: Path, tmp_path: Path) -> None:
    corpus = make_corpus(24)
    title = corpus[3].sections[0]
    forgotten = replace(title, entities=tuple(one for one in title.entities if one.label != "gene"))
    corpus[3] = replace(corpus[3], sections=(forgotten, *corpus[3].sections[1:]))
    train = write_documents(tmp_path / "train", corpus)
    held = write_documents(tmp_path / "eval", make_corpus(4, first=24))
    succeed(
        "audit", train, "audit", "--model", backbone, *FEW, "--set", "audit.epochs=12", "--set", "audit.min_score=0"
    )
    few = ["--model", backbone, *FEW, "--set", "train.epochs=2"]
    start = ["train", "--train", train, "--eval", held]
    said = succeed(*start, "--output", "with", *few, "--suspects", "audit").stderr
    left_out = len(Path("audit/suspects.jsonl").read_bytes().splitlines())
    assert left_out and f"{left_out} suspect annotation" in said
    succeed(*start, "--output", "without", *few)
    weights = [Path(run, "model/model.safetensors").read_bytes() for run in ("with", "without")]
    assert weights[0] != weights[1]
    assert read_json(Path("with/model/nertool.json"))["train"]["left_out"] == left_out
    assert "Left out of the loss" in Path("with/model/README.md").read_text()
    assert "Left out" not in Path("without/model/README.md").read_text()
    assert "the suspects have changed" in refuse(*start, "--output", "with", *few, "--resume")
    assert "of other documents" in refuse(
        "train", "--train", held, "--eval", held, "--output", "x", *few, "--suspects", "audit"
    )
    assert "is not the output of an audit" in refuse(*start, "--output", "x", *few, "--suspects", train)
    assert not Path("x").exists()
