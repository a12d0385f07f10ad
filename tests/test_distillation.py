"""Students, what their teacher says, and the whole `distill` command."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool import teacher_logits as module
from nertool.artefacts import model_digest, weights_digest
from nertool.batches import Batch, training_batch
from nertool.distillation import Lesson, distillation_task, join, lesson_batch
from nertool.errors import NertoolError
from nertool.files import exclusive
from nertool.inference import prepare, token_logits
from nertool.labels import make_scheme
from nertool.losses import binary_cross_entropy, distillation_loss
from nertool.model import NerModel, load_model, new_model
from nertool.settings import DistillSettings, ModelSettings, WindowSettings
from nertool.students import chosen_layers, student_of_backbone, student_of_layers
from nertool.teacher_logits import open_logits, teacher_logits
from tests.cli_helpers import in_an_empty_folder, refuse, start, succeed, wait_for  # noqa: F401
from tests.conftest import make_backbone, make_corpus, write_documents
from tests.test_model import FAMILIES, make_family
from tests.test_window_cache import build

CPU = torch.device("cpu")
WINDOWS = WindowSettings(max_tokens=32, overlap_tokens=8)
LABELS = ("disease", "drug", "gene", "organ")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> NerModel:
    backbone = make_backbone(tmp_path_factory.mktemp("deep") / "backbone", layers=4)
    model = new_model(ModelSettings(name=str(backbone)), WINDOWS, make_scheme(LABELS))
    model.network.eval()
    return model


def run(network: Any, ids: torch.Tensor) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        logits: torch.Tensor = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


@pytest.mark.parametrize(("total", "count", "expected"), [(6, 3, [1, 3, 5]), (6, 2, [2, 5]), (12, 5, [1, 3, 6, 8, 11])])
def test_layers_are_chosen_evenly_and_the_last_one_always(total: int, count: int, expected: list[int]) -> None:
    assert chosen_layers(total, count) == expected
    with_the_first = chosen_layers(total, count, keep_first=True)
    assert with_the_first[0] == 0 and with_the_first[-1] == total - 1 and len(set(with_the_first)) == count


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_layers_is_its_teacher_without_the_others(tmp_path: Path, family: str) -> None:
    """The oracle: the teacher itself, with the other layers taken out of its stack."""
    model = new_model(ModelSettings(name=str(make_family(tmp_path / "b", family))), WINDOWS, make_scheme(LABELS))
    student = student_of_layers(model, 1, ModelSettings())
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    found = run(student.network, ids)
    assert sum(p.numel() for p in student.network.parameters()) < sum(p.numel() for p in model.network.parameters())
    stacks = [m for m in model.network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2]
    (stack,) = (one for one in stacks if type(one[0]) is type(one[1]))
    del stack[1 if family == "modernbert" else 0]
    model.network.config.num_hidden_layers = 1
    torch.testing.assert_close(found, run(model.network, ids))


def test_a_student_needs_fewer_layers_than_its_teacher(teacher: NerModel) -> None:
    for count in (0, 4, 5):
        with pytest.raises(NertoolError, match="the teacher has 4"):
            student_of_layers(teacher, count, ModelSettings())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_student_is_its_teacher_without_the_least_important_units(tmp_path: Path, family: str) -> None:
    """The oracle: units that do nothing (what goes out of them is 0) are the ones that are left out."""
    model = new_model(ModelSettings(name=str(make_family(tmp_path / "b", family))), WINDOWS, make_scheme(LABELS))
    dead = torch.arange(0, 64, 2)
    with torch.no_grad():
        for part in model.network.modules():
            if isinstance(part, torch.nn.Linear) and part.in_features == 64:
                part.weight[:, dead] = 0
    shallow = student_of_layers(model, 1, ModelSettings())
    narrow = student_of_layers(model, 1, ModelSettings(), intermediate_size=32)
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run(narrow.network, ids), run(shallow.network, ids))
    assert sum(p.numel() for p in narrow.network.parameters()) < sum(p.numel() for p in shallow.network.parameters())
    with pytest.raises(NertoolError, match="the teacher has 64"):
        student_of_layers(model, 1, ModelSettings(), intermediate_size=64)


def test_a_backbone_with_other_tokens_is_no_student(tmp_path: Path, teacher: NerModel) -> None:
    small = make_backbone(tmp_path / "small", layers=1)
    student = student_of_backbone(teacher, ModelSettings(name=str(small)))
    assert student.decisions == teacher.decisions
    other = make_backbone(tmp_path / "cased", cased=True, layers=1)
    with pytest.raises(NertoolError, match="is not the teacher's"):
        student_of_backbone(teacher, ModelSettings(name=str(other)))


def random_batch(seed: int, *, labelled: list[float]) -> tuple[torch.Tensor, Batch]:
    random = torch.Generator().manual_seed(seed)
    shape = (len(labelled), 5, 3)
    ids = torch.zeros(shape[:2], dtype=torch.int64)
    targets = (torch.rand(shape, generator=random) > 0.5).float()
    mask = (torch.rand(shape[:2], generator=random) > 0.3).float()
    teacher = 3 * torch.randn(shape, generator=random)
    return torch.randn(shape, generator=random), Batch(ids, ids, targets, mask, teacher, torch.tensor(labelled))


@given(st.integers(0, 10_000), st.floats(1, 5))
@settings(max_examples=25, deadline=None)
def test_the_soft_loss_is_least_where_the_student_says_what_its_teacher_says(seed: int, temperature: float) -> None:
    logits, batch = random_batch(seed, labelled=[1.0, 0.0])
    assert batch.teacher_logits is not None
    loss = distillation_loss(0.0, temperature)
    best = loss(batch.teacher_logits, batch)
    assert best <= loss(logits, batch)
    # The gradient: T² / T · (σ(student / T) − σ(teacher / T)), written out by hand.
    logits.requires_grad_()
    loss(logits, batch).backward()
    with torch.no_grad():
        by_hand = temperature * (
            torch.sigmoid(logits / temperature) - torch.sigmoid(batch.teacher_logits / temperature)
        )
    torch.testing.assert_close(logits.grad, by_hand * batch.loss_mask[..., None])


def test_gold_counts_only_where_it_is_known() -> None:
    logits, batch = random_batch(1, labelled=[1.0, 0.0])
    _, other = random_batch(2, labelled=[1.0, 0.0])
    hard = distillation_loss(1.0, 2.0)
    first = Batch(*(tensor[:1] for tensor in batch.tensors()))
    alone = distillation_loss(0.0, 2.0)(logits[1:], Batch(*(tensor[1:] for tensor in batch.tensors())))
    torch.testing.assert_close(hard(logits, batch), binary_cross_entropy(logits[:1], first) + alone)
    changed = Batch(batch.ids, batch.attention_mask, other.targets, *batch.tensors()[3:])
    assert hard(logits, changed) != hard(logits, batch)
    soft = distillation_loss(0.0, 2.0)
    assert soft(logits, changed) == soft(logits, batch)


@pytest.fixture
def lessons(tmp_path: Path, teacher: NerModel) -> list[Lesson]:
    tagger = teacher.tagger(CPU, torch.float32, 200)
    found = []
    for name, documents in (("train", make_corpus(6)), ("unlabelled", make_corpus(9, first=50))):
        cache = build(tmp_path / name, documents, teacher.tokenizer, windows=WINDOWS, labels=LABELS)
        found.append(Lesson(cache, teacher_logits(tmp_path / "logits", name, cache, tagger, "t"), name == "train"))
    return found


def test_the_teachers_logits_are_those_that_it_predicts_with(tmp_path: Path, teacher: NerModel) -> None:
    """`inference.token_logits`, which every prediction goes through, is the oracle."""
    documents = make_corpus(7)
    cache = build(tmp_path / "cache", documents, teacher.tokenizer, windows=WINDOWS)
    tagger = teacher.tagger(CPU, torch.float32, 200)
    found = teacher_logits(tmp_path / "logits", "train", cache, tagger, "teacher")
    sections = [section for document in documents for section in document.sections]
    expected = token_logits(tagger, prepare(sections, tagger))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_batch_of_both_kinds_has_every_window_with_its_own_logits(lessons: list[Lesson], teacher: NerModel) -> None:
    task = distillation_task(lessons, teacher, DistillSettings(), teacher.tagger(CPU, torch.float32))
    first = len(lessons[0].cache.windows)
    assert len(task.lengths) == first + len(lessons[1].cache.windows)
    batch = task.load_batch(np.array([first + 2, 1, first, 0]))
    assert batch.labelled is not None and batch.teacher_logits is not None
    assert batch.labelled.tolist() == [1, 1, 0, 0]
    alone = lesson_batch(lessons[1], np.array([0]), teacher)
    assert alone.teacher_logits is not None
    width = alone.ids.shape[1]
    torch.testing.assert_close(batch.teacher_logits[3, :width], alone.teacher_logits[0])
    assert not batch.loss_mask[3, width:].any() and not batch.attention_mask[3, width:].any()
    plain = training_batch(lessons[0].cache, np.array([1, 0]), teacher.tokenizer, np.arange(4), 4)
    torch.testing.assert_close(batch.targets[:2, : plain.ids.shape[1]], plain.targets)
    named = task.documents_of(np.array([0, first]))
    assert named == ["doc-000", "doc-050"]


def test_joining_batches_changes_no_logits_that_count(lessons: list[Lesson], teacher: NerModel) -> None:
    parts = [lesson_batch(lesson, np.arange(4), teacher) for lesson in lessons]
    joined = join(parts)
    with torch.no_grad():
        together = teacher.network(input_ids=joined.ids, attention_mask=joined.attention_mask).logits
        apart = [teacher.network(input_ids=one.ids, attention_mask=one.attention_mask).logits for one in parts]
    width = parts[0].ids.shape[1]
    mask = parts[0].attention_mask.bool()
    torch.testing.assert_close(together[:4, :width][mask], apart[0][mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [3, 5])
def test_a_killed_computation_of_logits_goes_on_to_the_same_bytes(
    tmp_path: Path, teacher: NerModel, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "_WINDOWS_PER_CHUNK", chunk)
    cache = build(tmp_path / "cache", make_corpus(8), teacher.tokenizer, windows=WINDOWS)
    tagger = teacher.tagger(CPU, torch.float32, 200)
    whole = teacher_logits(tmp_path / "whole", "train", cache, tagger, "t")

    class Killed(BaseException):
        pass

    def kill(done: int) -> None:
        if done >= 2 * chunk:
            raise Killed

    with pytest.raises(Killed):
        teacher_logits(tmp_path / "killed", "train", cache, tagger, "t", kill)
    partial = tmp_path / "killed/train.f16.partial"
    with partial.open("ab") as file:
        file.write(b"xyz")  # a row that was cut off
    seen: list[int] = []
    resumed = teacher_logits(tmp_path / "killed", "train", cache, tagger, "t", seen.append)
    assert seen[0] >= 2 * chunk
    assert resumed.tobytes() == whole.tobytes()


def test_logits_of_another_teacher_or_of_other_documents_are_refused(tmp_path: Path, teacher: NerModel) -> None:
    cache = build(tmp_path / "cache", make_corpus(3), teacher.tokenizer, windows=WINDOWS)
    other = build(tmp_path / "other", make_corpus(4), teacher.tokenizer, windows=WINDOWS)
    tagger = teacher.tagger(CPU, torch.float32, 200)
    teacher_logits(tmp_path / "logits", "train", cache, tagger, "one")
    with pytest.raises(NertoolError, match="another teacher"):
        teacher_logits(tmp_path / "logits", "train", cache, tagger, "two")
    with pytest.raises(NertoolError, match="other documents or windows"):
        teacher_logits(tmp_path / "logits", "train", other, tagger, "one")
    path = tmp_path / "logits/train.f16"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(NertoolError, match="is damaged"):
        open_logits(tmp_path / "logits", "train", cache, tagger, "one")


def test_hidden_states_are_matched_layer_by_layer(lessons: list[Lesson], teacher: NerModel) -> None:
    """A student that is its teacher differs in nothing; the difference of another is written out by hand."""
    tagger = teacher.tagger(CPU, torch.float32, 200)
    both = distillation_task(lessons, teacher, DistillSettings(hidden_weight=2.0), tagger)
    batch = both.load_batch(np.array([0, 1, len(lessons[0].cache.windows)]))
    assert batch.teacher_hidden is not None
    student = student_of_layers(teacher, 2, ModelSettings())
    task = distillation_task(lessons, student, DistillSettings(hidden_weight=2.0), tagger)
    plain = distillation_task(lessons, student, DistillSettings(), tagger)
    batch = task.load_batch(np.array([0, 1, len(lessons[0].cache.windows)]))
    task.network.eval()
    with torch.no_grad():
        given = {"input_ids": batch.ids, "attention_mask": batch.attention_mask}
        found = task.loss(task.network(**given).logits, batch) - plain.loss(
            student.network(**given).logits, replace(batch, teacher_hidden=None)
        )
        of_student = student.network(**given, output_hidden_states=True).hidden_states
        of_teacher = teacher.network(**given, output_hidden_states=True).hidden_states
        by_hand = sum(
            ((of_student[mine + 1] - of_teacher[theirs + 1]) ** 2).mean(dim=-1) for mine, theirs in enumerate([1, 3])
        )
        torch.testing.assert_close(found, (by_hand * batch.loss_mask).sum(), rtol=1e-4, atol=1e-4)
        both.network.eval()
        same = both.load_batch(np.array([0, 3]))
        logits = both.network(input_ids=same.ids, attention_mask=same.attention_mask).logits
        assert same.teacher_hidden is not None
        torch.testing.assert_close(logits[..., 4:], same.teacher_hidden, rtol=1e-4, atol=1e-5)


def test_a_student_of_another_width_is_matched_through_projections(tmp_path: Path, trained: Path) -> None:
    from transformers import AutoConfig, AutoModel

    narrow = tmp_path / "narrow"
    shutil.copytree(trained / "backbone", narrow)
    config = AutoConfig.from_pretrained(narrow, hidden_size=16, num_hidden_layers=1)
    AutoModel.from_config(config).save_pretrained(narrow)
    options = ["--student", narrow, "--set", "distill.hidden_weight=1", "--set", "train.epochs=1"]
    report = json.loads(succeed(*arguments(trained, "out", *options, "--json")).stdout)
    assert report["student"]["parameters"] < report["teacher"]["parameters"] / 2
    weights = load_model(Path("out/model")).network.state_dict()
    assert not any("projection" in name for name in weights)


OPTIONS = ["--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8", "--set", "train.tokens_per_batch=300"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of four layers that knows the small corpus, with the documents beside it."""
    folder = tmp_path_factory.mktemp("trained")
    make_backbone(folder / "backbone", layers=4)
    write_documents(folder / "train", make_corpus(24))
    write_documents(folder / "eval", make_corpus(6, first=24))
    write_documents(folder / "more", make_corpus(30, first=60))
    succeed(
        "train", "--train", folder / "train", "--eval", folder / "eval", "--output", folder / "run", "--model",
        folder / "backbone", *OPTIONS, "--set", "train.learning_rate=0.003", "--set", "train.epochs=12",
    )  # fmt: skip
    return folder


def arguments(trained: Path, output: str, *more: object) -> list[object]:
    return [
        "distill", trained / "run/model", "--train", trained / "train", "--eval", trained / "eval", "--output", output,
        "--unlabelled", trained / "more", *OPTIONS, "--set", "train.learning_rate=0.003",
        "--set", "train.epochs=4", *more,
    ]  # fmt: skip


def test_distill_makes_a_smaller_model_that_predicts(trained: Path) -> None:
    report = json.loads(succeed(*arguments(trained, "small", "--student-layers", "2", "--json")).stdout)
    assert report["student"]["parameters"] < report["teacher"]["parameters"]
    assert report["retained"] == report["student"]["scores"]["micro_f1"] / report["teacher"]["scores"]["micro_f1"]
    assert report["retained"] > 0.9
    assert report == json.loads(Path("small/report.json").read_bytes())
    student = load_model(Path("small/model"))
    assert student.network.config.num_hidden_layers == 2
    assert student.decisions == load_model(trained / "run/model").decisions
    scored = json.loads(succeed("evaluate", "small/model", trained / "eval", "--json").stdout)
    assert scored["micro_f1"] == report["student"]["scores"]["micro_f1"]
    card = Path("small/model/README.md").read_text(encoding="utf-8")
    assert "Distilled from the model run into a student (2 layers of the teacher)" in card
    assert "30 documents without gold entities" in card
    assert f"| micro F1 | {report['teacher']['scores']['micro_f1']:.3f} | {scored['micro_f1']:.3f} |" in card
    assert str(trained) not in card
    again = succeed(*arguments(trained, "small", "--student-layers", "2", "--resume"))
    assert "finished already" in again.stderr


def test_students_share_what_the_teacher_said(trained: Path) -> None:
    succeed(*arguments(trained, "one", "--student-layers", "1", "--logits", "said"))
    before = {file.name: file.stat().st_mtime_ns for file in Path("said").iterdir()}
    succeed(*arguments(trained, "two", "--student", trained / "backbone", "--logits", "said"))
    assert before == {file.name: file.stat().st_mtime_ns for file in Path("said").iterdir()}
    assert not Path("one/logits").exists()
    other = Path("other")
    shutil.copytree(trained / "run/model", other)
    facts = json.loads((other / "nertool.json").read_bytes())
    (other / "nertool.json").write_text(json.dumps({**facts, "switch_cost": 2.0}))
    assert model_digest(other) != model_digest(trained / "run/model")
    assert weights_digest(other) == weights_digest(trained / "run/model")  # its logits are the same
    facts.pop("files")  # else the folder is damaged
    (other / "nertool.json").write_text(json.dumps(facts))
    config = json.loads((other / "config.json").read_bytes())
    (other / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    changed = [other if item == trained / "run/model" else item for item in arguments(trained, "three")]
    assert "another teacher" in refuse(*changed, "--student-layers", "1", "--logits", "said")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "either --student or --student-layers"),
        (["--student-layers", "2", "--student", "minilm"], "either --student or --student-layers"),
        (["--student-layers", "9"], "the teacher has 4"),
        (["--student", "missing/folder/x"], "does not exist"),
    ],
)
def test_what_makes_no_student_is_refused(trained: Path, options: list[object], expected: str) -> None:
    assert expected in refuse(*arguments(trained, "out", *options))
    assert not Path("out").exists()


def test_a_run_with_other_texts_is_not_gone_on_with(trained: Path) -> None:
    options = ["--student-layers", "1", "--set", "train.epochs=1"]
    succeed(*arguments(trained, "out", *options))
    less = [
        item
        for item in arguments(trained, "out", *options, "--resume")
        if item not in ("--unlabelled", trained / "more")
    ]
    assert "the unlabelled documents have changed" in refuse(*less)


def test_exports_and_odd_places_are_refused(trained: Path) -> None:
    more = ["--parity", trained / "train"]
    succeed("export", trained / "run/model", "kazu", "--format", "kazu", *more)
    given = [Path("kazu") if item == trained / "run/model" else item for item in arguments(trained, "out")]
    assert "is an export for kazu" in refuse(*given, "--student-layers", "2")
    inside = ["--student-layers", "2", "--logits", "out/said"]
    assert "is inside out" in refuse(*arguments(trained, "out", *inside))
    units = ["--student", trained / "backbone", "--set", "distill.student_intermediate_size=8"]
    assert "goes with --student-layers only" in refuse(*arguments(trained, "out", *units))
    cache = ["--set", "windows.max_tokens=16", "--set", "windows.overlap_tokens=4"]
    succeed("cache", trained / "train", "cache", "--model", trained / "backbone", *cache)
    given = [Path("cache") if item == trained / "train" else item for item in arguments(trained, "out")]
    assert "doesn't fit" in refuse(*given, "--student-layers", "2")
    assert not Path("out").exists()


def test_a_cache_of_any_classes_is_unlabelled_text(trained: Path) -> None:
    write_documents(Path("other"), [_renamed(document) for document in make_corpus(12, first=80)])
    options = ["--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8"]
    succeed("cache", "other", "cache", "--model", trained / "backbone", *options)
    given = [Path("cache") if item == trained / "more" else item for item in arguments(trained, "out")]
    succeed(*given, "--student-layers", "1", "--set", "train.epochs=1")


def test_logits_are_computed_by_one_process_at_a_time(tmp_path: Path, teacher: NerModel) -> None:
    cache = build(tmp_path / "cache", make_corpus(3), teacher.tokenizer, windows=WINDOWS)
    tagger = teacher.tagger(CPU, torch.float32, 200)
    (tmp_path / "logits").mkdir()
    with exclusive(tmp_path / "logits/train"), pytest.raises(NertoolError, match="another nertool is working on"):
        teacher_logits(tmp_path / "logits", "train", cache, tagger, "t")
    (tmp_path / "logits/train.f16").write_bytes(b"left by somebody")
    assert len(teacher_logits(tmp_path / "logits", "train", cache, tagger, "t")) == len(cache.tokens)


def test_a_report_that_is_missing_is_made_again(trained: Path) -> None:
    options = ["--student-layers", "1", "--set", "train.epochs=1"]
    succeed(*arguments(trained, "out", *options))
    report = json.loads(Path("out/report.json").read_bytes())
    Path("out/report.json").unlink()
    succeed(*arguments(trained, "out", *options, "--resume"))
    again = json.loads(Path("out/report.json").read_bytes())
    assert again["student"]["scores"] == report["student"]["scores"] and again["steps"] == report["steps"]


def test_classes_that_the_teacher_does_not_know_are_refused(trained: Path) -> None:
    write_documents(Path("eval"), [_renamed(document) for document in make_corpus(3)])
    changed = [Path("eval") if item == trained / "eval" else item for item in arguments(trained, "out")]
    assert "classes that the teacher doesn't know: protein" in refuse(*changed, "--student-layers", "2")


def _renamed(document: Any) -> Any:
    sections = tuple(
        replace(section, entities=tuple(replace(e, label="protein") for e in section.entities))
        for section in document.sections
    )
    return replace(document, sections=sections)


def test_a_run_of_train_is_not_gone_on_with(trained: Path) -> None:
    shutil.copytree(trained / "run", "copied")
    assert "a run of `nertool train`" in refuse(*arguments(trained, "copied", "--student-layers", "2", "--resume"))


@pytest.mark.parametrize("when", [lambda run: any(run.glob("logits/*")), lambda run: (run / "metrics.jsonl").exists()])
def test_a_killed_distillation_ends_like_one_that_was_not(trained: Path, when: Callable[[Path], bool]) -> None:
    options = ["--student-layers", "2", "--set", "train.checkpoint_every_seconds=0"]
    succeed(*arguments(trained, "whole", *options))
    process = start(*arguments(trained, "killed", *options))
    wait_for(lambda: when(Path("killed")), process)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    succeed(*arguments(trained, "killed", *options, "--resume"))
    for name in ("model/model.safetensors", "logits/train.f16", "logits/unlabelled.f16"):
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes(), name
