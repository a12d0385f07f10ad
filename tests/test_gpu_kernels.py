"""What GPUs are to do, as far as a CPU can show it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForTokenClassification

from nertool import training
from nertool.batches import Batch
from nertool.gpu_kernels import use_gpu_kernels
from nertool.losses import binary_cross_entropy
from nertool.settings import TrainSettings
from nertool.training import NonFiniteError, find_tokens_per_batch
from tests.test_training import CPU, Fitting, same

META = torch.device("meta")  # shapes without numbers: as far from the CPU as a GPU


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def never_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop as on CUDA, where looking at a number is costly."""
    monkeypatch.setattr(training, "_is_costly_to_look_at", lambda _: True)


FAMILIES = {
    "bert": {"hidden_size": 16, "intermediate_size": 32},
    "roberta": {"hidden_size": 16, "intermediate_size": 32, "pad_token_id": 1, "max_position_embeddings": 66},
    "distilbert": {"dim": 16, "hidden_dim": 32},
    "electra": {"hidden_size": 16, "intermediate_size": 32, "embedding_size": 16},
    "modernbert": {"hidden_size": 16, "intermediate_size": 32, "local_attention": 8, "pad_token_id": 0},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_as_they_are(family: str) -> None:
    sizes = {"vocab_size": 50, "num_hidden_layers": 4, "num_attention_heads": 2, "n_layers": 4, "n_heads": 2}
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **sizes, **FAMILIES[family])
    network = AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(5, 50, (3, 40))
    mask = (torch.arange(40) < torch.tensor([40, 31, 12])[:, None]).long()
    padded, whole = network(input_ids=ids, attention_mask=mask).logits, network(input_ids=ids).logits
    use_gpu_kernels(network)
    assert network.config._attn_implementation == "nertool_gpu"
    torch.testing.assert_close(network(input_ids=ids, attention_mask=mask).logits[mask.bool()], padded[mask.bool()])
    torch.testing.assert_close(network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, whole)
    torch.testing.assert_close(network(input_ids=ids, attention_mask=None).logits, whole)


@pytest.mark.usefixtures("never_looking")
def test_a_step_reads_nothing_back(tmp_path: Path, backbone: Path) -> None:
    counts = []
    for name, prepare in (("gpu", use_gpu_kernels), ("plain", lambda _: None)):
        run = Fitting(tmp_path / name, backbone, TrainSettings(epochs=9, tokens_per_batch=200))
        prepare(run.model.network)
        steps = run.steps()
        with Operations() as operations:
            for _ in range(9):
                next(steps)
            counts.append(operations.counts["_local_scalar_dense"])
            next(steps)  # the tenth reads the loss
        assert operations.counts["_local_scalar_dense"] > counts[-1]
    ours, transformers = counts
    assert ours == 0
    assert transformers >= 9  # it looks whether each mask could be left out


@pytest.mark.usefixtures("never_looking")
def test_a_step_with_infinite_gradients_spoils_no_weights_though_nobody_looks(tmp_path: Path, backbone: Path) -> None:
    calls = 0

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return binary_cross_entropy(logits, batch) * (float("inf") if calls == 4 else 1.0)

    run = Fitting(tmp_path, backbone, TrainSettings(epochs=9, tokens_per_batch=100))
    steps = run.steps(loss)
    for _ in range(3):
        next(steps)
    before = run.weights()
    moments = [{k: v.clone() for k, v in state.items()} for state in run.optimizer.state.values()]
    next(steps)
    assert same(before, run.weights())
    for state, saved in zip(run.optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(state[key], saved[key]) for key in saved)  # the count of its steps is among them
    next(steps)
    assert not same(before, run.weights())
    assert all(tensor.isfinite().all() for tensor in run.weights().values())
    with pytest.raises(NonFiniteError, match="the loss is") as raised:
        for _ in steps:
            pass
    assert raised.value.step == 10
    assert set(run.plan.batches(0)[3].tolist()) <= set(raised.value.windows.tolist())
    assert all(tensor.isfinite().all() for tensor in run.weights().values())


@pytest.mark.parametrize(
    ("tokens", "longest", "expected"), [(40, 512, 48), (48, 512, 48), (40, 43, 43), (50, 50, 50), (1, 512, 16)]
)
def test_batches_have_few_shapes_away_from_the_cpu(tokens: int, longest: int, expected: int) -> None:
    mask = torch.ones(2, tokens, dtype=torch.int64)
    ones = torch.ones(2, tokens)
    batch = Batch(mask, mask, torch.ones(2, tokens, 3), ones, torch.ones(2, tokens, 3), torch.ones(2))
    there = batch.to(META, longest)
    assert there.ids.shape == there.loss_mask.shape == (2, expected)
    assert there.targets.shape == (2, expected, 3)
    assert there.labelled is not None and there.labelled.shape == (2,)
    assert there.ids.device == META
    assert (there.attention_mask is None) == (expected == tokens)
    assert there.to(META, longest) is there
    assert batch.to(CPU, longest) is batch


def test_what_is_added_to_a_batch_does_not_count() -> None:
    mask, ones = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5)
    longer = Batch(mask * 7, mask, torch.ones(2, 5, 3), ones).padded(8)
    assert longer.attention_mask is not None
    for tensor in (longer.attention_mask, longer.loss_mask, longer.targets):
        assert tensor[:, :5].all() and not tensor[:, 5:].any()


@pytest.mark.parametrize("limit", [0, 40, 300, 1 << 40])
def test_the_batch_that_memory_holds_is_tried_with_the_longest_windows(
    tmp_path: Path, backbone: Path, limit: int
) -> None:
    run = Fitting(tmp_path, backbone)
    lengths = run.cache.windows["length"].astype("int64") + 2
    longest = int(lengths.max())
    sizes: list[int] = []

    def load(windows: Any) -> Batch:
        assert lengths[windows[0]] == longest
        sizes.append(len(windows) * longest)
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("no memory left")
        return run.load(windows)

    before = run.weights()
    arguments: Any = (run.model.network, lengths, load, binary_cross_entropy, CPU, torch.float32)
    if limit < longest:
        with pytest.raises(Exception, match=f"one window of {longest} tokens does not fit into the memory of cpu"):
            find_tokens_per_batch(*arguments, spare=10)
        return
    found = find_tokens_per_batch(*arguments, spare=10)
    if limit > 2048:  # the corpus has too few tokens for larger ones, not the memory
        assert found == training.TOKENS_PER_BATCH
    else:
        assert found // longest * longest <= limit < 2 * found
    assert same(before, run.weights())
    assert all(parameter.grad is None for parameter in run.model.network.parameters())


def test_a_large_corpus_gets_large_batches(tmp_path: Path, backbone: Path) -> None:
    run = Fitting(tmp_path, backbone)
    lengths = run.cache.windows["length"].astype("int64") + 2

    def found(times: int, **options: int) -> int:
        many = lengths.repeat(times)
        load = lambda windows: run.load(windows[:1] // times)  # noqa: E731 (the size is what matters)
        network = run.model.network
        return find_tokens_per_batch(network, many, load, binary_cross_entropy, CPU, torch.float32, 10, **options)

    times = 8192 * 100 // int(lengths.sum()) + 1
    assert found(times) == 8192
    assert found(times, batches_of_step=4) == training.TOKENS_PER_BATCH
    assert found(100 * times) == 2**15
