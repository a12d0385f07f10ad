"""The loop: what a step does, the schedule, evaluation in between, and resuming to the bit."""

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nertool.batches import Batch, training_batch
from nertool.checkpoints import Progress, latest_checkpoint, load_checkpoint, random_states, save_checkpoint
from nertool.devices import choose_device, choose_precision, seed_everything
from nertool.distributed import ALONE
from nertool.errors import NertoolError
from nertool.inference import predict_sections, prepare
from nertool.losses import binary_cross_entropy
from nertool.model import NerModel, new_model
from nertool.runs import _tokens_per_batch, labelled_task
from nertool.settings import ModelSettings, Settings, TrainSettings, WindowSettings
from nertool.training import (
    BatchPlan,
    NonFiniteError,
    fit,
    learning_rate_factor,
    make_optimizer,
    make_scaler,
    most_that_fits,
)
from nertool.window_cache import WindowCache, documents_of_windows
from tests.conftest import make_corpus
from tests.test_window_cache import build

CPU = torch.device("cpu")
WINDOWS = WindowSettings(max_tokens=32, overlap_tokens=8)
SETTINGS = TrainSettings(epochs=3, learning_rate=3e-3, tokens_per_batch=200, seed=7)


def plan_of(cache: WindowCache, settings: TrainSettings, processes: int = 1) -> BatchPlan:
    owned = cache.windows["owned_length"].astype(np.int64)
    return BatchPlan(
        cache.windows["length"].astype(np.int64) + 2, owned, settings, settings.tokens_per_batch, processes
    )


class Fitting:
    """A model, a cache and all that the loop needs, built the same way every time."""

    def __init__(
        self,
        folder: Path,
        backbone: Path,
        settings: TrainSettings = SETTINGS,
        dropout: float = 0.1,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.precision = precision
        seed_everything(settings.seed)
        model_settings = ModelSettings(name=str(backbone), dropout=dropout)
        self.settings = settings
        self.documents = make_corpus(16)
        tokenizer = new_model(model_settings, WINDOWS, _scheme(self.documents)).tokenizer
        self.cache: WindowCache = build(folder / "cache", self.documents, tokenizer, windows=WINDOWS)
        seed_everything(settings.seed)
        self.model: NerModel = new_model(model_settings, WINDOWS, self.cache.scheme)
        self.tagger = self.model.tagger(CPU, torch.float32, 200)
        self.optimizer = make_optimizer(self.model.network, settings)
        self.scaler = make_scaler(CPU, precision)
        self.plan = plan_of(self.cache, settings)
        self.progress = Progress()

    def load(self, indices: np.ndarray) -> Batch:
        channels = self.cache.scheme.channels
        return training_batch(self.cache, indices, self.model.tokenizer, np.arange(channels), channels)

    def steps(self, loss: Callable[..., Any] = binary_cross_entropy) -> Any:
        if not self.progress.step:
            torch.manual_seed(self.settings.seed)  # others may have drawn since the model was made
        return fit(
            self.model.network, self.optimizer, self.scaler, self.plan, self.load, loss, self.settings, self.progress,
            CPU, self.precision,
        )  # fmt: skip

    def save(self, folder: Path) -> Path:
        states = [random_states(CPU)]
        return save_checkpoint(folder, self.model.network, self.optimizer, self.scaler, self.progress, states)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.network.state_dict().items()}


def _scheme(documents: list[Any]) -> Any:
    from nertool.cache_building import scan
    from nertool.labels import make_scheme

    return make_scheme(scan(documents).labels)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_small_model_learns_a_small_corpus_by_heart(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone, TrainSettings(epochs=30, learning_rate=3e-3, tokens_per_batch=200), dropout=0.0)
    losses = [report.loss for report in run.steps() if report.loss is not None]
    assert losses[-1] < losses[0] / 20
    sections = [section for document in run.documents for section in document.sections]
    predicted = predict_sections(run.tagger, prepare(sections, run.tagger))
    gold = {(i, e.label, e.spans) for i, section in enumerate(sections) for e in section.entities}
    found = {(i, e.label, e.spans) for i, entities in enumerate(predicted) for e in entities}
    assert len(gold & found) / len(gold | found) > 0.95
    assert all(e.score is not None and 0.5 <= e.score <= 1 for entities in predicted for e in entities)


def test_a_resumed_run_ends_bit_identical(tmp_path: Path, backbone: Path) -> None:
    """KAZU can't resume, and saves no optimizer state."""
    whole = Fitting(tmp_path, backbone)
    assert len(list(whole.steps())) == whole.plan.total_steps
    for stop_after in (1, whole.plan.steps_of_epoch[0], whole.plan.total_steps - 1):
        first = Fitting(tmp_path, backbone)
        for report in first.steps():
            if report.step == stop_after:
                break
        folder = tmp_path / f"checkpoints-{stop_after}"
        save_checkpoint(
            folder, first.model.network, first.optimizer, first.scaler, first.progress, [random_states(CPU)]
        )
        second = Fitting(tmp_path, backbone)
        torch.manual_seed(999)  # the state of the generator must come from the checkpoint
        second.progress = load_checkpoint(
            latest_checkpoint(folder), second.model.network, second.optimizer, second.scaler
        )
        assert second.progress.step == stop_after
        list(second.steps())
        assert same(whole.weights(), second.weights())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path: Path, backbone: Path) -> None:
    runs = [Fitting(tmp_path, backbone, replace_seed(seed)) for seed in (7, 7, 8)]
    for run in runs:
        list(run.steps())
    assert same(runs[0].weights(), runs[1].weights())
    assert not same(runs[0].weights(), runs[2].weights())


@pytest.mark.parametrize(
    "other",
    [{"weight_decay": 0.5}, {"max_gradient_norm": 1e-3}, {"warmup_fraction": 0.9}, {"schedule": "constant"}],
    ids=str,
)
def test_other_settings_of_the_loop_give_other_weights(tmp_path: Path, backbone: Path, other: dict[str, Any]) -> None:
    runs = [Fitting(tmp_path, backbone, replace_seed(7).model_copy(update=changes)) for changes in ({}, other)]
    for run in runs:
        list(run.steps())
    assert not same(runs[0].weights(), runs[1].weights())


def replace_seed(seed: int) -> TrainSettings:
    return SETTINGS.model_copy(update={"seed": seed, "epochs": 1})


def test_evaluating_between_steps_leaves_the_model_in_training_mode_and_the_result_unchanged(
    tmp_path: Path, backbone: Path
) -> None:
    """KAZU's dropout stays off for the rest of the epoch after an evaluation."""
    plain, evaluated = Fitting(tmp_path, backbone), Fitting(tmp_path, backbone)
    list(plain.steps())
    prepared = prepare([section for document in evaluated.documents for section in document.sections], evaluated.tagger)
    for _ in evaluated.steps():
        predict_sections(evaluated.tagger, prepared)
        assert evaluated.model.network.training
    assert same(plain.weights(), evaluated.weights())


def test_accumulated_batches_step_like_one_large_batch(tmp_path: Path, backbone: Path) -> None:
    """The loss is divided by the tokens of the whole step, so unequal batches weigh right."""
    run = Fitting(
        tmp_path, backbone, SETTINGS.model_copy(update={"epochs": 1, "tokens_per_batch": 100_000}), dropout=0.0
    )
    list(run.steps())
    assert run.progress.step == 1
    split = Fitting(tmp_path, backbone, SETTINGS.model_copy(update={"epochs": 1, "tokens_per_batch": 200}), dropout=0.0)
    split.settings = split.settings.model_copy(update={"accumulate_batches": 1000})
    split.plan = plan_of(split.cache, split.settings)
    assert len(split.plan.batches(0)) > 1
    list(split.steps())
    assert split.progress.step == 1
    for name, tensor in run.weights().items():
        torch.testing.assert_close(split.weights()[name], tensor, atol=2e-4, rtol=0)


def test_weight_decay_spares_biases_and_norms_and_the_head_has_its_own_rate(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone, SETTINGS.model_copy(update={"head_learning_rate_factor": 5.0}))
    names = {id(parameter): name for name, parameter in run.model.network.named_parameters()}
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert (group["weight_decay"] > 0) == (name.endswith("weight") and "LayerNorm" not in name)
            assert group["peak_learning_rate"] == pytest.approx(3e-3 * (5 if name.startswith("classifier") else 1))
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == len(names)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_rises_then_falls_and_stays_in_range(schedule: str) -> None:
    factors = [learning_rate_factor(step, 100, 0.1, schedule) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[10] == 1.0


def test_the_schedule_is_torchs_linear_one() -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=50)
    for step in range(50):
        assert learning_rate_factor(step, 50, 0.0, "linear") == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def nan_in_call(*calls: int) -> Callable[..., Any]:
    """Returns a loss that is no number in these calls, counted from 1."""
    count = 0

    def loss(logits: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        return binary_cross_entropy(logits, batch) * (float("nan") if count in calls else 1.0)

    return loss


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    steps = run.steps(nan_in_call(2))
    next(steps)
    before = run.weights()
    with pytest.raises(NonFiniteError, match="the loss is nan") as raised:
        next(steps)
    assert raised.value.step == 2
    assert raised.value.windows.tolist() == run.plan.batches(0)[1].tolist()
    assert same(before, run.weights())


def test_gradients_that_are_no_numbers_stop_too(tmp_path: Path, backbone: Path) -> None:
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, loss: Any) -> Any:
            return loss.clone()

        @staticmethod
        def backward(_ctx: Any, gradient: Any) -> Any:
            return gradient * float("inf")

    run = Fitting(tmp_path, backbone)
    with pytest.raises(NonFiniteError, match="the gradients' norm is"):
        next(run.steps(lambda logits, batch: Spoil.apply(binary_cross_entropy(logits, batch))))


def test_batches_that_are_not_finite_can_be_passed_over(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone, TrainSettings(epochs=3, tokens_per_batch=200, skip_nonfinite=True))
    reports = list(run.steps(nan_in_call(2, 3)))
    assert [report.step for report in reports if report.skipped] == [2, 3]
    assert len(reports) == run.plan.total_steps
    assert all(tensor.isfinite().all() for tensor in run.weights().values())
    assert all(report.loss is None or math.isfinite(report.loss) for report in reports)


def test_but_not_without_end(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone, TrainSettings(epochs=9, tokens_per_batch=100, skip_nonfinite=True))
    with pytest.raises(NonFiniteError) as raised:
        list(run.steps(nan_in_call(*range(3, 1000))))
    assert raised.value.step == 12


def overflow_in_call(wanted: int) -> Callable[..., Any]:
    """Returns a loss whose gradients don't fit into fp16 in one call, counted from 1."""
    calls = itertools.count(1)
    return lambda logits, batch: binary_cross_entropy(logits, batch) * (1e6 if next(calls) == wanted else 1.0)


def test_in_fp16_a_step_that_overflows_is_passed_over_and_the_scale_falls(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone, precision=torch.float16)
    steps = run.steps(overflow_in_call(2))
    next(steps)
    before, scale = run.weights(), run.scaler.get_scale()
    next(steps)
    assert same(before, run.weights()) and run.scaler.get_scale() == scale / 2
    report = next(steps)
    assert report.step == 3 and not same(before, run.weights()) and run.scaler.get_scale() == scale / 2
    assert all(tensor.isfinite().all() for tensor in run.weights().values())


def test_in_fp16_a_resumed_run_goes_on_with_its_scale_to_the_same_bits(tmp_path: Path, backbone: Path) -> None:
    whole, first, second = (Fitting(tmp_path, backbone, precision=torch.float16) for _ in range(3))
    list(whole.steps(overflow_in_call(2)))
    for report in first.steps(overflow_in_call(2)):
        if report.step == 4:
            break
    path = first.save(tmp_path / "checkpoints")
    torch.manual_seed(999)
    second.progress = load_checkpoint(path, second.model.network, second.optimizer, second.scaler)
    assert second.scaler.get_scale() == first.scaler.get_scale() != make_scaler(CPU, torch.float16).get_scale()
    list(second.steps())
    assert same(whole.weights(), second.weights())
    assert second.scaler.state_dict() == whole.scaler.state_dict()


def test_the_documents_of_windows_are_found(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    tokenizer = run.model.tokenizer
    everything = np.arange(len(run.cache.windows))
    assert documents_of_windows(run.cache, everything, tokenizer) == [document.id for document in run.documents]
    for window in everything:
        (name,) = documents_of_windows(run.cache, np.array([window]), tokenizer)
        start = int(run.cache.windows["start"][window])
        ids = run.cache.tokens[start : start + 3].tolist()
        texts = [section.text for document in run.documents if document.id == name for section in document.sections]
        assert any(tokenizer.tokenize([text]).ids[: len(ids)].tolist() == ids for text in texts)


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Fitting(tmp_path, backbone)
    steps = run.steps()
    next(steps)
    first = save_checkpoint(
        tmp_path / "c", run.model.network, run.optimizer, run.scaler, run.progress, [random_states(CPU)]
    )
    next(steps)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nertool.checkpoints.write_json", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(
            tmp_path / "c", run.model.network, run.optimizer, run.scaler, run.progress, [random_states(CPU)]
        )
    assert latest_checkpoint(tmp_path / "c") == first
    assert [path.name for path in (tmp_path / "c").iterdir()] == [first.name]


def test_older_checkpoints_go_and_no_pickle_is_written(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    for report in run.steps():
        save_checkpoint(
            tmp_path / "c", run.model.network, run.optimizer, run.scaler, run.progress, [random_states(CPU)]
        )
        if report.step == 3:
            break
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000003"]
    assert {path.suffix for path in (tmp_path / "c").rglob("*.*")} <= {".json", ".safetensors", ""}


def test_a_second_save_after_one_step_never_leaves_no_checkpoint(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Fitting(tmp_path, backbone)

    def save() -> Path:
        return save_checkpoint(
            tmp_path / "c", run.model.network, run.optimizer, run.scaler, run.progress, [random_states(CPU)]
        )

    first = save()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nertool.checkpoints.publish_folder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        save()
    assert latest_checkpoint(tmp_path / "c") == first
    run.progress.evaluated_step = 0
    second, third = save(), save()
    assert latest_checkpoint(tmp_path / "c") == third and not second.exists()
    assert load_checkpoint(third, run.model.network, run.optimizer, run.scaler).evaluated_step == 0


def test_a_save_when_a_kill_has_left_two_of_the_same_step_is_the_newest(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    first = run.save(tmp_path / "c")
    shutil.copytree(first, tmp_path / "kept")
    run.progress.evaluated_step = 0
    second = run.save(tmp_path / "c")
    (tmp_path / "kept").rename(first)  # as if a kill had come before it was removed
    assert latest_checkpoint(tmp_path / "c") == second
    for seconds in (1.0, 2.0):
        run.progress.train_seconds = seconds
        newest = run.save(tmp_path / "c")
        assert latest_checkpoint(tmp_path / "c") == newest
        assert load_checkpoint(newest, run.model.network, run.optimizer, run.scaler).train_seconds == seconds
        assert list((tmp_path / "c").iterdir()) == [newest]


def test_a_run_may_go_on_in_another_precision(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    path = save_checkpoint(
        tmp_path / "c", run.model.network, run.optimizer, run.scaler, run.progress, [random_states(CPU)]
    )
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    load_checkpoint(path, run.model.network, run.optimizer, scaler)
    assert scaler.is_enabled()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors"])
@pytest.mark.parametrize("damage", ["broken", "a bit flipped", "gone"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, backbone: Path, name: str, damage: str) -> None:
    run = Fitting(tmp_path, backbone)
    next(run.steps())
    path = save_checkpoint(
        tmp_path / "c", run.model.network, run.optimizer, run.scaler, run.progress, [random_states(CPU)]
    )
    file = path / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"broken" if damage == "broken" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(NertoolError, match=f"checkpoint .*step-.* is damaged: .*{name}"):
        load_checkpoint(path, run.model.network, run.optimizer, run.scaler)


def test_every_epoch_ends_with_an_evaluation_and_so_does_the_run(tmp_path: Path, backbone: Path) -> None:
    """A run of KAZU's that is shorter than the interval ends without a model."""
    plan = Fitting(tmp_path, backbone).plan
    assert plan.total_steps in plan.evaluation_steps()
    assert len(plan.evaluation_steps()) == SETTINGS.epochs
    settings = SETTINGS.model_copy(update={"epochs": 1, "evaluations_per_epoch": 0.1})
    rare = BatchPlan(np.full(3, 5), np.full(3, 3), settings, settings.tokens_per_batch)
    assert rare.evaluation_steps() == {rare.total_steps}


def test_devices_and_precisions() -> None:
    assert choose_device("cpu") == CPU
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("auto", CPU) in (torch.float32, torch.bfloat16)
    with pytest.raises(NertoolError, match="no device"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(NertoolError, match="not available"):
            choose_device("cuda")


def test_predictions_do_not_depend_on_the_batch_size(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    sections = [section for document in run.documents for section in document.sections]
    prepared = prepare(sections, run.tagger)
    one, many = (predict_sections(replace(run.tagger, tokens_per_batch=budget), prepared) for budget in (1, 5000))
    assert [[replace(e, score=None) for e in entities] for entities in one] == [
        [replace(e, score=None) for e in entities] for entities in many
    ]


def test_windows_are_never_padded_to_the_tokenizers_maximum(tmp_path: Path, backbone: Path) -> None:
    """KAZU's inference pads every window to the tokenizer's 512 tokens."""
    run = Fitting(tmp_path, backbone)
    widths = []
    handle = run.model.network.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    sections = [section for document in run.documents for section in document.sections]
    prepared = prepare(sections, run.tagger)
    predict_sections(run.tagger, prepared)
    handle.remove()
    # To the next multiple of 16, of which there are few, but never beyond what the model takes.
    longest = prepared.windows.lengths.max() + 2
    assert max(widths) == min(-(-longest // 16) * 16, WINDOWS.max_tokens)
    assert min(widths) == 16


def test_the_eval_split_is_scored_every_n_steps(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone, SETTINGS.model_copy(update={"evaluate_every_steps": 2}))
    total = run.plan.total_steps
    assert run.plan.evaluation_steps() == {*range(2, total + 1, 2), total}
    every_thousand = Fitting(tmp_path, backbone, SETTINGS.model_copy(update={"evaluate_every_steps": 1000}))
    assert every_thousand.plan.evaluation_steps() == {total}


@pytest.mark.parametrize("limit", [0, 1, 5, 2047, 2048, 3000, 100_000, 10**9])
def test_the_batch_size_that_fits_is_found(limit: int) -> None:
    tried: list[int] = []

    def fits(tokens: int) -> bool:
        tried.append(tokens)
        return tokens <= limit

    found = most_that_fits(fits, 2048, 2**17)
    assert found == (0 if limit < 1 else min(2**17, 2 ** int(math.log2(limit))))
    assert len(tried) <= 13
    assert all(tokens <= 2**17 for tokens in tried)


def test_on_a_cpu_the_automatic_batch_size_is_the_default(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    task = labelled_task(run.cache, run.model)
    settings = Settings(train=TrainSettings(tokens_per_batch="auto"))
    found = _tokens_per_batch(run.model.network, task, settings, CPU, torch.float32, ALONE)
    assert found == TrainSettings().tokens_per_batch


def test_processes_on_a_mac_train_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "mps"
    assert choose_device("auto", 0) == CPU
    with pytest.raises(NertoolError, match="several processes can't train on mps"):
        choose_device("mps", 0)
