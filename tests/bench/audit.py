"""How well wrong annotations are found, and what a training gains by it: BioRED with a known share of errors.

    nox -s bench -- audit TRAIN.PubTator TEST.PubTator FOLDER [--share 0.1] [--seeds 3] [--epochs 3] [--every 1]

A quarter of the errors each: entities that are dropped, invented (at random words), of another class, and with a border
shifted by a word. Ranked by the audit, by parts of it, by cleanlab's token scores from the same probabilities, and at
random. Then models are trained on the clean, the noisy, and the corrected documents, and with the suspect words left
out of the loss, and scored on TEST. What is in FOLDER isn't computed again, so the command can be interrupted.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nertool.auditing import CrossFit, folds_of_windows, plan
from nertool.cache_building import build_cache, scan
from nertool.checkpoints import Progress
from nertool.decoding import decode, words_of
from nertool.devices import choose_precision, keep_freed_memory, seed_everything
from nertool.documents import Span
from nertool.doubts import locate_doubts
from nertool.formats.pubtator import read_pubtator
from nertool.labels import make_scheme
from nertool.mention_counts import count_mentions, lexicon_of
from nertool.model import load_tokenizer, new_model
from nertool.runs import evaluate_split, labelled_task, prepare_eval
from nertool.settings import ModelSettings, Settings, TrainSettings
from nertool.suspects import corrected, find_suspects
from nertool.training import BatchPlan, fit, make_optimizer, make_scaler
from nertool.windows import Tokens

KINDS = ("dropped", "invented", "wrong class", "shifted")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Error:
    """One error: its kind, where it is, the entity that stands there now (none if dropped) and that was there."""

    kind: str
    document: str
    section: int
    now: tuple[str, int, int] | None
    was: tuple[str, int, int] | None


def corrupt(documents, share, seed):
    """Returns the documents with errors, and the errors."""
    chance = random.Random(seed)
    places = [
        (d, s, e)
        for d, document in enumerate(documents)
        for s, section in enumerate(document.sections)
        for e, entity in enumerate(section.entities)
        if len(entity.spans) == 1
    ]
    labels = [documents[d].sections[s].entities[e].label for d, s, e in places]
    chosen = chance.sample(range(len(places)), round(len(places) * share))
    kind_of = {places[i]: KINDS[k % 4] for k, i in enumerate(chosen)}
    noisy, errors = [], []
    for d, document in enumerate(documents):
        sections = []
        for s, section in enumerate(document.sections):
            words = [(m.start(), m.end()) for m in re.finditer(r"\w+(?:[-./]\w+)*", section.text)]
            taken = {(entity.start, entity.end) for entity in section.entities}
            entities = []
            for e, entity in enumerate(section.entities):
                kind = kind_of.get((d, s, e))
                here = (entity.label, entity.start, entity.end)
                now, was = None, here
                if kind == "wrong class":
                    now = (chance.choice(sorted(set(labels) - {entity.label})), entity.start, entity.end)
                elif kind == "shifted":
                    options = [span for span in shifts(entity, words) if span not in taken]
                    if not options:
                        kind = None
                    else:
                        now = (entity.label, *chance.choice(options))
                elif kind == "invented":
                    entities.append(entity)
                    now, was = invent(chance, words, taken, labels), None
                    taken.add(now[1:])
                if kind is None:
                    entities.append(entity)
                    continue
                errors.append(Error(kind, document.id, s, now, was))
                if now:
                    label, start, end = now
                    text = section.text[start:end]
                    entities.append(replace(entity, label=label, spans=(Span(start, end),), match=text))
            entities.sort(key=lambda one: (one.start, one.end, one.label))
            sections.append(replace(section, entities=tuple(entities)))
        noisy.append(replace(document, sections=tuple(sections)))
    return noisy, errors


def shifts(entity, words):
    """Yields the spans with a word more or less on one side."""
    inside = [word for word in words if word[0] >= entity.start and word[1] <= entity.end]
    if len(inside) > 1:
        yield inside[1][0], entity.end
        yield entity.start, inside[-2][1]
    if before := [word for word in words if word[1] <= entity.start]:
        yield before[-1][0], entity.end
    if after := [word for word in words if word[0] >= entity.end]:
        yield entity.start, after[0][1]


def invent(chance, words, taken, labels):
    """Returns an entity of one to three random words that overlaps no other."""
    while True:
        first, count = chance.randrange(len(words)), chance.choice([1, 1, 2, 3])
        start, end = words[first][0], words[min(first + count, len(words)) - 1][1]
        if end - start > 2 and all(end <= a or start >= b for a, b in taken):
            return chance.choice(labels), start, end


def judge(folder, noisy, settings):
    """Returns what the model of the other folds says of the words of each document's sections, and how long it took."""
    kept = folder / "judged.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        return found["words"], found["seconds"]
    begun = time.monotonic(), time.process_time()
    tokenizer = load_tokenizer(settings.model.name)
    scanned = scan(noisy)
    scheme = make_scheme(scanned.labels)
    cache = build_cache(folder / "cache", lambda: noisy, tokenizer, settings.windows)
    fold_of = plan(lambda: iter(noisy), settings)
    of_window = folds_of_windows(cache, noisy, fold_of, tokenizer)
    (folder / "folds").mkdir(exist_ok=True)
    fit_of = CrossFit(
        folder / "folds", lambda: iter(noisy), fold_of, cache, of_window, scanned, scheme, settings
    )  # fmt: skip
    words = {}
    for fold in range(settings.audit.folds):
        part = folder / f"fold-{fold}.json"
        if not part.exists():
            said = {}
            for judged in fit_of.judge_fold(fold):
                of = words_of(judged.logits, judged.prepared.tokens)
                number = 0
                for document in judged.documents:
                    said[document.id] = []
                    for _ in document.sections:
                        rows = of.sections == number
                        number += 1
                        said[document.id].append(
                            {"starts": of.starts[rows].tolist(), "ends": of.ends[rows].tolist(),
                             "logits": np.round(of.logits[rows].astype(float), 3).tolist()}
                        )  # fmt: skip
            part.write_text(json.dumps({"words": said}))
        words |= json.loads(part.read_text())["words"]
    seconds = [round(time.monotonic() - begun[0]), round(time.process_time() - begun[1])]
    kept.write_text(json.dumps({"words": words, "seconds": seconds}))
    return words, seconds


def suspects_in(noisy, words, labels, settings):
    """Returns what is suspect; decoding sees nothing of tokens but the means of words, so words do for tokens."""
    scheme = make_scheme(labels)
    lexicon = lexicon_of(noisy)
    counts = count_mentions(noisy, lexicon)
    found = []
    for document in noisy:
        said = words[document.id]
        sizes = [len(section["starts"]) for section in said]
        starts, ends = (np.array([x for s in said for x in s[name]], np.int32) for name in ("starts", "ends"))
        logits = np.array([row for s in said for row in s["logits"]], np.float32).reshape(-1, len(labels))
        bounds = np.cumsum([0, *sizes])
        tokens = Tokens(np.zeros(len(starts), np.int32), starts, ends, np.ones(len(starts), np.bool_), bounds)
        thresholds = [settings.model.threshold] * len(labels)
        decoded = decode(logits, tokens, scheme, thresholds, settings.model.switch_cost)
        found += find_suspects([document], words_of(logits, tokens), decoded, scheme.labels, counts, lexicon)
    return found


def hits_of_entities(ranked, errors):
    """Returns for each suspect the number of the error that it names, or None; each error counts once."""
    standing = {(one.document, one.section, *one.now): i for i, one in enumerate(errors) if one.now}
    dropped = defaultdict(list)
    for i, one in enumerate(errors):
        if one.kind == "dropped":
            dropped[one.document, one.section, one.was[0]].append((i, *one.was[1:]))
    found, hits = set(), []
    for suspect in ranked:
        hit = None
        if suspect.entity:
            key = (suspect.document, suspect.section, suspect.entity.label, *suspect.entity.spans[0])
            hit = standing.get(key)
        else:
            start, end = suspect.suggestion.span
            for i, a, b in dropped[suspect.document, suspect.section, suspect.suggestion.label]:
                if start < b and a < end and i not in found:
                    hit = i
        hits.append(None if hit in found else hit)
        found.add(hit)
    return hits


def hits_of_words(ranked, errors):
    """The same for words: any of which the error changed the class; further words of one error don't count at all."""
    at = defaultdict(list)
    for i, one in enumerate(errors):
        spans = [set(range(*place[1:])) if place else set() for place in (one.now, one.was)]
        changed = spans[0] | spans[1] if one.kind == "wrong class" else spans[0] ^ spans[1]
        for character in changed:
            at[one.document, one.section, character].append(i)
    found, hits = set(), []
    for item in ranked:
        named = {i for document, section, start, end in item for c in range(start, end)
                 for i in at.get((document, section, c), ())}  # fmt: skip
        if named and named <= found:
            continue
        new = named - found
        hits.append(min(new) if new else None)
        found |= {min(new)} if new else set()
    return hits


def figures(hits, errors):
    """Returns average precision, of each kind too, and precision at the number of errors."""
    right = np.array([hit is not None for hit in hits])
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    count = len(errors)
    return {
        "average_precision": float((precision * right).sum() / count),
        "precision_at_errors": float(right[:count].sum() / count),
        "average_precision_of_kind": {kind: average_precision_of(hits, errors, kind) for kind in KINDS},
    }


def average_precision_of(hits, errors, kind):
    """Returns the average precision for one kind; errors of other kinds are passed over."""
    wanted = {i for i, one in enumerate(errors) if one.kind == kind}
    kept = [hit for hit in hits if hit is None or hit in wanted]
    right = np.array([hit is not None for hit in kept])
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float((precision * right).sum() / len(wanted))


def cleanlab_rankings(noisy, words, labels, python):
    """Returns words, and runs of words with one given and one likely class, ranked by cleanlab's scores.

    One class per token is what it knows: outside, or the first of the entities there. Probabilities are those of
    the channels, and of none of them, made to add up to 1.
    """
    given, likely, probabilities, places, bounds = [], [], [], [], [0]
    for document in noisy:
        for number, (section, said) in enumerate(zip(document.sections, words[document.id], strict=True)):
            classes = np.zeros(len(said["starts"]), np.int64)
            starts, ends = np.array(said["starts"], np.int64), np.array(said["ends"], np.int64)
            for entity in reversed(section.entities):
                classes[(starts < entity.end) & (ends > entity.start)] = 1 + labels.index(entity.label)
            p = 1 / (1 + np.exp(-np.array(said["logits"], np.float64).reshape(-1, len(labels)).clip(-30, 30)))
            p = np.concatenate([(1 - p).prod(axis=1, keepdims=True), p], axis=1)
            probabilities.append(p / p.sum(axis=1, keepdims=True))
            given.append(classes)
            likely.append(probabilities[-1].argmax(axis=1))
            places += [(document.id, number, a, b) for a, b in zip(said["starts"], said["ends"], strict=True)]
            bounds.append(len(places))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/in.npz", labels=np.concatenate(given), probabilities=np.concatenate(probabilities),
                 bounds=bounds)  # fmt: skip
        side = Path(__file__).with_name("cleanlab_side.py")
        subprocess.run([python, side, f"{folder}/in.npz", f"{folder}/out.npy"], check=True)
        scores = np.load(f"{folder}/out.npy")
    order = np.argsort(scores, kind="stable")
    by_word = [[places[i]] for i in order if places[i][2] < places[i][3]]
    runs, worst = [], []
    classes, guesses = np.concatenate(given), np.concatenate(likely)
    for i, place in enumerate(places):
        same = runs and runs[-1][-1][:2] == place[:2] and (classes[i], guesses[i]) == (classes[i - 1], guesses[i - 1])
        if same:
            runs[-1].append(place)
            worst[-1] = min(worst[-1], scores[i])
        else:
            runs.append([place])
            worst.append(scores[i])
    return by_word, [runs[i] for i in np.argsort(worst, kind="stable")]


def train(variant, seed, documents, suspects, test, labels, epochs, folder):
    """Trains a model and returns its strict scores on the test documents; nothing is chosen by them."""
    keep_freed_memory()
    settings = Settings(model=ModelSettings(name="minilm"), train=TrainSettings(epochs=epochs, seed=seed))
    seed_everything(seed)
    model = new_model(settings.model, settings.windows, make_scheme(labels))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        cache = build_cache(Path(place) / "cache", lambda: documents, model.tokenizer, settings.windows)
        precision = choose_precision("auto", CPU)
        network = model.to(CPU)
        doubts = locate_doubts(suspects, documents, model.tokenizer, model.scheme) if variant == "left out" else None
        task = labelled_task(cache, model, doubts=doubts)
        task.begin()
        batches = BatchPlan(task.lengths, task.owned, settings.train, settings.train.tokens_per_batch)
        begun = time.process_time()
        for _ in fit(
            network, make_optimizer(network, settings.train), make_scaler(CPU, precision), batches,
            task.load_batch, task.loss, settings.train, Progress(), CPU, precision,
        ):  # fmt: skip
            pass
        tagger = model.tagger(CPU, precision)
        scores = evaluate_split(tagger, prepare_eval(test, tagger), settings)
    names = ("micro_f1", "mean_f1", "micro_precision", "micro_recall")
    return {"variant": variant, "seed": seed, "epochs": epochs, **{name: scores[name] for name in names},
            "cpu_seconds": round(time.process_time() - begun)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--noise-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="Train on every so many documents only.")
    parser.add_argument("--variants", nargs="*", default=["clean", "noisy", "corrected", "left out"])
    parser.add_argument("--cleanlab", help="A Python that has cleanlab.")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    clean, test = (
        [record.document for record in read_pubtator(path) if record.document]
        for path in (arguments.train, arguments.test)
    )
    settings = Settings(model=ModelSettings(name="minilm"), train=TrainSettings(tensorboard=False))
    labels = scan(clean).labels
    noisy, errors = corrupt(clean, arguments.share, arguments.noise_seed)
    kinds = Counter(one.kind for one in errors)
    print(f"{labels.total():,} entities, {len(errors):,} errors: {dict(kinds)}", flush=True)
    words, seconds = judge(arguments.folder, noisy, settings)
    suspects = suspects_in(noisy, words, sorted(labels), settings)
    print(f"audited in {seconds[0]:,} s, {seconds[1]:,} CPU-seconds\n")
    print(ranking_table(suspects, words, noisy, errors, sorted(labels), arguments.cleanlab), flush=True)
    by_score = [[0.0, 0.5], [0.5, 0.75], [0.75, 0.9], [0.9, 1.0]]
    right = {id(one) for one, hit in zip(suspects, hits_of_entities(suspects, errors), strict=True) if hit is not None}
    for low, high in by_score:
        inside = [one for one in suspects if low <= one.score < high]
        share = statistics.mean(id(one) in right for one in inside) if inside else 0.0
        print(f"score {low:g}–{high:g}: {len(inside):,} suspects, {share:.2f} of them right")
    clear = [one for one in suspects if one.score >= settings.audit.min_score]
    by_document = defaultdict(list)
    for one in clear:
        by_document[one.document].append(one)
    versions = {
        "clean": clean,
        "noisy": noisy,
        "corrected": [corrected(document, by_document[document.id]) for document in noisy],
        "left out": noisy,
    }
    kept = arguments.folder / "trained.jsonl"
    results = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    results = [one for one in results if (one["epochs"], one.get("every", 1)) == (arguments.epochs, arguments.every)]
    done = {(one["variant"], one["seed"]) for one in results}
    for seed in range(1, arguments.seeds + 1):
        for variant in arguments.variants:
            if (variant, seed) not in done:
                documents = versions[variant][:: arguments.every]
                result = {"every": arguments.every} | train(
                    variant, seed, documents, clear, test, labels, arguments.epochs, arguments.folder
                )
                with kept.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                results.append(result)
                print(f"{variant}, seed {seed}: {result['micro_f1']:.4f}", flush=True)
    print("\n" + training_table(results))


def ranking_table(suspects, words, noisy, errors, labels, cleanlab):
    """Returns the rankings side by side."""
    ranked = sorted(suspects, key=lambda one: -one.log_odds)
    rows = {
        "nertool audit": hits_of_entities(ranked, errors),
        "only the model": hits_of_entities(sorted(suspects, key=lambda one: -one.model), errors),
        "only other occurrences": hits_of_entities(sorted(suspects, key=lambda one: one.model - one.log_odds), errors),
    }
    if cleanlab:
        by_word, runs = cleanlab_rankings(noisy, words, labels, cleanlab)
        rows["cleanlab's tokens"] = hits_of_words(by_word, errors)
        rows["cleanlab's tokens, as runs"] = hits_of_words(runs, errors)
    every = [
        [(document.id, number, entity.start, entity.end)]
        for document in noisy
        for number, section in enumerate(document.sections)
        for entity in section.entities
    ]
    random.Random(0).shuffle(every)
    rows["entities at random"] = hits_of_words(every, errors)
    lines = [
        f"| ranking | average precision | precision at {len(errors):,} | " + " | ".join(KINDS) + " |",
        "|---" * (3 + len(KINDS)) + "|",
    ]
    for name, hits in rows.items():
        one = figures(hits, errors)
        kinds = " | ".join(f"{one['average_precision_of_kind'][kind]:.2f}" for kind in KINDS)
        lines.append(f"| {name} | {one['average_precision']:.3f} | {one['precision_at_errors']:.3f} | {kinds} |")
    return "\n".join(lines)


def training_table(results):
    """Returns the mean and the spread of each variant, and how much of what noise costs is won back."""
    by_variant = defaultdict(list)
    for one in results:
        by_variant[one["variant"]].append(one)
    means = {name: statistics.mean(one["micro_f1"] for one in rows) for name, rows in by_variant.items()}
    lines = ["| documents | seeds | micro F1 | lowest to highest | mean F1 | won back |", "|---|---|---|---|---|---|"]
    for name, rows in by_variant.items():
        micro = [one["micro_f1"] for one in rows]
        back = ""
        if {"clean", "noisy"} <= means.keys() and name not in ("clean", "noisy"):
            back = f"{(means[name] - means['noisy']) / (means['clean'] - means['noisy']):.0%}"
        lines.append(
            f"| {name} | {len(rows)} | {means[name]:.4f} | {min(micro):.4f}–{max(micro):.4f} "
            f"| {statistics.mean(one['mean_f1'] for one in rows):.4f} | {back} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
