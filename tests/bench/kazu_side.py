"""What KAZU 2.4.0 does in the benchmark: its own dataset, trainer, step and scorer, in a Python of its own.

Reads one JSON request per line, `[name, arguments]`, and answers with one line; knows nothing of nertool.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

answers, sys.stdout = sys.stdout, sys.stderr

from kazu.data import ENTITY_OUTSIDE_SYMBOL, Document  # noqa: E402
from kazu.training.config import TrainingConfig  # noqa: E402
from kazu.training.train_multilabel_ner import (  # noqa: E402
    KazuMultiHotNerMultiLabelTrainingDataset,
    Trainer,
    calculate_metrics,
    move_entities_to_metadata,
)
from transformers import AutoTokenizer  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())


def documents(folder):
    """Reads documents as KAZU's trainer does."""
    return [Document.from_json(path.read_text()) for path in sorted(Path(folder).glob("[!.]*.json"))]


def measured(work):
    """Runs it; returns its result with wall and CPU seconds."""
    wall, cpu = time.perf_counter(), os.times()
    result = work()
    after = os.times()
    used = after.user + after.system - cpu.user - cpu.system
    return {**result, "wall_seconds": time.perf_counter() - wall, "cpu_seconds": used}


def dataset(folder, model, labels, name, *, keep=False):
    target = FOLDER / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return KazuMultiHotNerMultiLabelTrainingDataset(
        docs_iter=documents(folder), model_tokenizer=AutoTokenizer.from_pretrained(model),
        labels=[*labels, ENTITY_OUTSIDE_SYMBOL], tmp_dir=target, use_cache=False, max_length=512, stride=64,
        keep_doc_reference=keep,
    )  # fmt: skip


def cache(folder, model, labels):
    """Builds its cache."""

    def work():
        built = dataset(folder, model, labels, "cache")
        files = list((FOLDER / "cache").iterdir())
        return {"windows": len(built), "bytes": sum(file.stat().st_size for file in files), "files": len(files)}

    return measured(work)


def train(folder, model, labels, learning_rate):
    """Trains one epoch on documents, in batches of 16, without an evaluation; the making of the data isn't counted."""
    built = dataset(folder, model, labels, "train")
    tokens = sum(int(built[i]["attention_mask"].sum()) - 2 for i in range(len(built)))
    working = FOLDER / "run"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    config = TrainingConfig(
        hf_name=model, test_path=None, train_path=None, training_data_cache_dir=None, test_data_cache_dir=None,
        working_dir=working, max_length=512, use_cache=True, max_docs=None, stride=64, batch_size=16, lr=learning_rate,
        evaluate_at_step_interval=10**9, num_epochs=1, lr_scheduler_warmup_prop=0.1, test_overfit=False, device="cpu",
        workers=0,
    )  # fmt: skip
    trainer = Trainer(config, model, [*labels, ENTITY_OUTSIDE_SYMBOL], built, built, working)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

    def work():
        trainer.train_model()
        return {"tokens": tokens, "windows": len(built)}

    result = measured(work)
    return {**result, "peak_mb": max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)}


def score(gold, predicted, labels):
    """Scores predicted documents against gold ones; reading them isn't counted."""
    found = move_entities_to_metadata(documents(gold))
    for document, other in zip(found, documents(predicted), strict=True):
        for section, own in zip(document.sections, other.sections, strict=True):
            section.entities = own.entities
    return measured(lambda: {"mean_f1": calculate_metrics(0.0, found, [*labels, ENTITY_OUTSIDE_SYMBOL])[0]["mean_f1"]})


for line in sys.stdin:
    name, arguments = json.loads(line)
    print(json.dumps({"cache": cache, "train": train, "score": score}[name](**arguments)), file=answers, flush=True)
shutil.rmtree(FOLDER)
