"""What KAZU 2.4.0 does in the comparison: its own dataset, trainer, inference step and scorer."""

import shutil
import sys
import tempfile
from pathlib import Path

from kazu.data import ENTITY_OUTSIDE_SYMBOL, Document
from kazu.pipeline import Pipeline
from kazu.steps.ner.hf_token_classification import TransformersModelForTokenClassificationNerStep
from kazu.steps.ner.tokenized_word_processor import TokenizedWordProcessor
from kazu.training.config import TrainingConfig
from kazu.training.modelling_utils import get_label_list_from_model
from kazu.training.train_multilabel_ner import (
    KazuMultiHotNerMultiLabelTrainingDataset,
    ModelSaver,
    Trainer,
    calculate_metrics,
    move_entities_to_metadata,
)
from side import folder_facts, measured, serve
from transformers import AutoTokenizer

FOLDER = Path(tempfile.mkdtemp())
trained = {}  # the trainer and its model


class KeepingTrainer(Trainer):
    """Evaluates only on demand, and keeps the model."""

    def evaluate_model(self, model, global_step, save_model=True):
        if save_model:
            trained["model"] = model
        else:
            super().evaluate_model(model, global_step, save_model=False)


def documents(folder):
    """Reads documents as KAZU's trainer does."""
    return [Document.from_json(path.read_text()) for path in sorted(Path(folder).glob("[!.]*.json"))]


def fresh(name):
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    (FOLDER / name).mkdir()
    return FOLDER / name


def dataset(folder, model, labels, name, *, keep=False):
    return KazuMultiHotNerMultiLabelTrainingDataset(
        docs_iter=documents(folder), model_tokenizer=AutoTokenizer.from_pretrained(model),
        labels=[*labels, ENTITY_OUTSIDE_SYMBOL], tmp_dir=fresh(name), use_cache=False, max_length=512, stride=64,
        keep_doc_reference=keep,
    )  # fmt: skip


def cache(folder, model, labels):
    """Documents on disk → its cache."""
    return measured(lambda: {"windows": len(dataset(folder, model, labels, "cache")), **folder_facts(FOLDER / "cache")})


def train(folder, eval_folder, model, labels, epochs):
    """Trains in batches of 16 without an evaluation; the making of the data isn't counted."""
    built = dataset(folder, model, labels, "train")
    tokens = sum(int(built[i]["attention_mask"].sum()) - 2 for i in range(len(built)))
    working = fresh("run")
    steps = -(-len(built) // 16) * epochs
    config = TrainingConfig(
        hf_name=model, test_path=None, train_path=None, training_data_cache_dir=None, test_data_cache_dir=None,
        working_dir=working, max_length=512, use_cache=True, max_docs=None, stride=64, batch_size=16, lr=3e-4,
        evaluate_at_step_interval=steps, num_epochs=epochs, lr_scheduler_warmup_prop=0.1, test_overfit=False,
        device="cpu", workers=0,
    )  # fmt: skip
    test = dataset(eval_folder, model, labels, "eval", keep=True)
    trained["trainer"] = KeepingTrainer(config, model, [*labels, ENTITY_OUTSIDE_SYMBOL], built, test, working)

    def work():
        trained["trainer"].train_model()
        return {"tokens": tokens * epochs, "windows": len(built), "steps": steps}

    return measured(work)


def validate():
    """Evaluates the model on the eval documents, as its trainer does between steps."""
    return measured(lambda: trained["trainer"].evaluate_model(trained["model"], 1, save_model=False) or {})


def load(path, switch_cost=None):
    """Loads what `nertool export --format kazu` wrote; with a switch cost, nertool decodes in KAZU's step."""
    labels = get_label_list_from_model(Path(path) / "config.json")
    trained["step"] = make_step(path, labels)
    if switch_cost is not None:
        sys.path.append(str(Path(__file__).parents[2]))
        from nertool.kazu_processor import NertoolWordProcessor

        trained["step"].tokenized_word_processor = NertoolWordProcessor(labels, switch_cost)
    return {}


def make_step(path, labels):
    return TransformersModelForTokenClassificationNerStep(
        path=str(path), batch_size=16, stride=64, max_sequence_length=512, device="cpu",
        tokenized_word_processor=TokenizedWordProcessor(labels=labels, use_multilabel=True),
    )  # fmt: skip


def infer(folder, output):
    """Predicts documents that are in memory, with a model that is loaded; writes them afterwards."""
    if "trainer" in trained:
        trainer = trained["trainer"]
        saved = fresh("model")
        ModelSaver.save_model(trainer.train_dataset.model_tokenizer, trained["model"], saved)
        trained["step"] = make_step(saved, trainer.label_list)
    step = trained["step"]
    found = documents(folder)
    for document in found:
        for section in document.sections:
            section.entities = []
    result = measured(lambda: Pipeline(steps=[step])(found) and {})
    for number, document in enumerate(found):
        (Path(output) / f"{number:05d}.json").write_text(document.to_json())
    return result


def score(gold, predicted, labels):
    """Scores predicted documents against gold ones; reading them isn't counted."""
    found = move_entities_to_metadata(documents(gold))
    others = {document.idx: document for document in documents(predicted)}
    for document in found:
        for section, own in zip(document.sections, others[document.idx].sections, strict=True):
            section.entities = own.entities
    return measured(lambda: {"mean_f1": calculate_metrics(0.0, found, [*labels, ENTITY_OUTSIDE_SYMBOL])[0]["mean_f1"]})


serve(cache=cache, train=train, validate=validate, load=load, infer=infer, score=score)
shutil.rmtree(FOLDER)
