"""What nertool does in the comparison with KAZU: the same work through its own functions, with its defaults."""

# ruff: noqa: E402
import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch is imported
gc.set_threshold(50_000, 20, 100)

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers.models.auto.tokenization_auto  # noqa: F401 (imports aren't counted on either side)
from side import folder_facts, measured, serve

from nertool.batches import training_batch
from nertool.cache_building import build_cache
from nertool.checkpoints import Progress
from nertool.commands.cache import run_cache
from nertool.devices import choose_precision, keep_freed_memory, seed_everything
from nertool.formats import ReadReport, read_documents
from nertool.formats.kazu import KazuWriter
from nertool.inference import load_tagger, predict_documents
from nertool.labels import make_scheme
from nertool.losses import binary_cross_entropy
from nertool.matching import SectionPair
from nertool.metrics import evaluation_report
from nertool.model import new_model
from nertool.runs import channel_columns, evaluate_split, prepare_eval, set_prior_bias
from nertool.settings import Settings
from nertool.training import BatchPlan, fit, make_optimizer, make_scaler

FOLDER = Path(tempfile.mkdtemp())
trained = {}  # the model, the eval documents, how to run it


def documents(folder):
    return list(read_documents(Path(folder), ReadReport()))


def cache(folder, model, labels):
    """Documents on disk → the cache."""
    target = FOLDER / "cache"
    shutil.rmtree(target, ignore_errors=True)
    settings = Settings(model={"name": model}, data={"labels": labels})

    def work():
        windows = run_cache(Path(folder), target, settings)["counts"]["windows"]
        return {"windows": windows, **folder_facts(target)}

    return measured(work)


def train(folder, eval_folder, model, labels, epochs):
    """Trains with the defaults; the making of the data isn't counted."""
    keep_freed_memory()
    settings = Settings(model={"name": model}, train={"epochs": epochs})
    seed_everything(settings.train.seed)
    model = new_model(settings.model, settings.windows, make_scheme(labels))
    shutil.rmtree(FOLDER / "train", ignore_errors=True)
    built = build_cache(FOLDER / "train", lambda: documents(folder), model.tokenizer, settings.windows, labels=labels)
    device = torch.device("cpu")
    precision = choose_precision(settings.train.precision, device)
    network = model.to(device)
    columns = channel_columns(built, model)
    set_prior_bias(model, built, columns)
    plan = BatchPlan(
        built.windows["length"].astype(np.int64) + model.tokenizer.special_tokens,
        built.windows["owned_length"].astype(np.int64), settings.train,
        settings.train.tokens_per_batch,
    )  # fmt: skip
    optimizer = make_optimizer(network, settings.train)
    tagger = model.tagger(device, precision)
    trained.update(tagger=tagger, settings=settings, eval=documents(eval_folder))

    def work():
        steps = fit(
            network, optimizer, make_scaler(device, precision), plan,
            lambda indices: training_batch(built, indices, model.tokenizer, columns, model.scheme.channels),
            binary_cross_entropy, settings.train, Progress(), device, precision,
        )  # fmt: skip
        tokens = sum(step.tokens for step in steps)
        return {"tokens": tokens, "windows": len(built.windows), "steps": plan.total_steps}

    return measured(work)


def validate():
    """Evaluates the model on the eval documents; tokenising them, once in a run, is counted."""
    tagger = trained["tagger"]

    def work():
        evaluate_split(tagger, prepare_eval(trained["eval"], tagger), trained["settings"])
        return {}

    return measured(work)


def load(path, precision="auto"):
    """Loads a model, trained or exported."""
    settings = Settings(predict={"precision": precision})
    trained.update(tagger=load_tagger(Path(path), settings.predict), settings=settings)
    return {"runs_on": trained["tagger"].runs_on}


def infer(folder, output):
    """Predicts documents that are in memory, with a model that is loaded; writes them afterwards."""
    found = []

    def work():
        for chunk in predict_documents(trained["tagger"], given, settings.documents_per_chunk):
            found.extend(chunk)
        return {"tokens": tokens}

    settings = trained["settings"].predict
    given = documents(folder)
    texts = [section.text for document in given for section in document.sections]
    tokens = len(trained["tagger"].tokenizer.tokenize(texts).ids)
    result = measured(work)
    with KazuWriter(Path(output)) as writer:
        for document in found:
            writer.write(document)
    return result


def score(gold, predicted, labels, scheme="kazu"):
    """Scores predicted documents against gold ones under all three schemes; reading them isn't counted."""
    others = {document.id: document for document in documents(predicted)}
    pairs = [
        SectionPair(number, section.entities, own.entities)
        for number, document in enumerate(documents(gold))
        for section, own in zip(document.sections, others[document.id].sections, strict=True)
    ]

    def work():
        report = evaluation_report(pairs, labels, scheme=scheme, bootstrap_samples=0)
        return {key: report[key] for key in ("mean_f1", "micro_f1")}

    return measured(work)


serve(cache=cache, train=train, validate=validate, load=load, infer=infer, score=score)
shutil.rmtree(FOLDER)
