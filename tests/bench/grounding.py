"""How well mentions are found again in the text, beside KAZU's way, on a corpus annotated by people.

The gold mentions of each document become what an LLM would answer: its unique strings with their classes. A second
round corrupts each string in one way (case, dashes, spaces, Unicode form, plural, a typo in longer ones), and adds 5 %
mentions from other documents that aren't in this one. Both ways get the same lists.

    python -m tests.bench.grounding BioRED_Test.PubTator [--kazu PYTHON]
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from nertool.alignment import Aligner, Mention, align
from nertool.formats.pubtator import read_pubtator
from nertool.settings import AnnotateSettings

# KAZU's own search, fed by a model that only repeats. It imports Google's client for nothing but its own LLM class, so
# empty modules do.
KAZU_SEARCH = """
import json, sys, time, types
answers, sys.stdout = sys.stdout, sys.stderr
for name in ("vertexai", "vertexai.generative_models", "vertexai.generative_models._generative_models"):
    module = sys.modules[name] = types.ModuleType(name)
    for attribute in ("SafetySetting", "GenerativeModel", "SafetySettingsType"):
        setattr(module, attribute, None)
from kazu.data import Document, Section
from kazu.steps.ner.llm_ner import LLMNERStep, StructuredOutputResultParser

responses = iter(())
step = LLMNERStep(lambda text: next(responses), StructuredOutputResultParser("entity_class"))
task = json.load(sys.stdin)
responses = iter([json.dumps(one["mentions"]) for one in task])
documents = [Document(sections=[Section(text=t, name="s") for t in one["sections"]]) for one in task]
step([Document.create_simple_document("warm up")][:0])
start = time.perf_counter()
_, failed = step(documents)
seconds = time.perf_counter() - start
assert not failed, failed
found = [[[[e.start, e.end, e.entity_class] for e in s.entities] for s in d.sections] for d in documents]
json.dump({"found": found, "seconds": seconds}, answers)
"""


def main() -> None:
    """Prints the table, or with `--json` the figures behind it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, nargs="+")
    parser.add_argument("--kazu", help="the Python of an environment with KAZU 2.4.0")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N missed and N added spans")
    arguments = parser.parse_args()
    documents = [record.document for corpus in arguments.corpus for record in read_pubtator(corpus) if record.document]
    rng = random.Random(arguments.seed)
    everything = sorted({e.match for d in documents for s in d.sections for e in s.entities})
    result = {}
    for name, change in (("clean", False), ("corrupted", True)):
        tasks = [task(document, rng, everything if change else None) for document in documents]
        gold = [[{(e.start, e.end, e.label) for e in s.entities} for s in d.sections] for d in documents]
        ways = {"nertool": nertool_search(tasks)}
        if arguments.kazu:
            ways["KAZU 2.4.0"] = kazu_search(tasks, arguments.kazu)
        for way, (found, seconds) in ways.items():
            result[f"{name}, {way}"] = {**score(gold, found), "seconds": round(seconds, 2)}
        if arguments.show:
            show(tasks, gold, ways["nertool"][0], arguments.show, rng)
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        return
    print("| mentions, found by | gold | found exactly | recall | wrong spans added | precision | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, row in result.items():
        cells = (row["gold"], row["right"], f"{row['recall']:.4f}", row["wrong"], f"{row['precision']:.4f}")
        print(f"| {name} | {' | '.join(map(str, cells))} | {row['seconds']} |")


def task(document, rng, everything):
    """Returns what an LLM would be asked and answer for one document."""
    classes = {}
    for section in document.sections:
        for entity in section.entities:
            classes.setdefault(entity.match, set()).add(entity.label)
    mentions = [
        {"entity_match": corrupted(match, rng) if everything else match, "entity_class": label}
        for match in classes
        for label in sorted(classes[match])
    ]
    if everything:
        text = " ".join(section.text for section in document.sections).lower()
        labels = sorted({mention["entity_class"] for mention in mentions})
        strange = [match for match in rng.sample(everything, 400) if match.lower() not in text]
        mentions += [
            {"entity_match": match, "entity_class": rng.choice(labels)}
            for match in strange[: max(1, round(len(mentions) * 0.05))]
        ]
    return {"sections": [section.text for section in document.sections], "mentions": mentions}


def corrupted(mention, rng):
    """Changes a mention in one of the ways that LLMs do, chosen at random among those that change it."""
    changes = [
        mention.upper(), mention.lower(), mention.capitalize(), mention.title(),
        mention.replace("-", "\u2011"), mention.replace("-", "–"), mention.replace("-", " "), mention.replace("-", ""),
        mention.replace(" ", "\u00a0"), mention.replace(" ", "\u2009"), mention.replace(" ", "  "),
        mention.replace(" ", "-"), mention.replace("-", " - "),
        mention.replace("alpha", "α").replace("beta", "β").replace("gamma", "γ"),
        mention.replace("fi", "ﬁ").replace("fl", "ﬂ"), mention.replace("'", "’"),
        mention.replace("e", "e\u0301", 1),
        mention[:-1] if mention.endswith("s") else f"{mention}s",
    ]  # fmt: skip
    if len(mention) >= 12:
        letters = [i for i in range(1, len(mention) - 1) if mention[i].isalpha() and mention[i + 1].isalpha()]
        if letters:
            i = rng.choice(letters)
            slip = rng.choice("abcdefghijklmnopqrstuvwxyz")
            changes += [
                mention[:i] + mention[i + 1 :],
                mention[:i] + mention[i] + mention[i:],
                mention[:i] + mention[i + 1] + mention[i] + mention[i + 2 :],
                mention[:i] + slip + mention[i + 1 :],
            ]
    return rng.choice([change for change in changes if change != mention])


def nertool_search(tasks):
    """Returns for each document and section the (start, end, label) that nertool finds, and the seconds."""
    threshold = AnnotateSettings().fuzzy_similarity
    start = time.perf_counter()
    found = []
    for one in tasks:
        separator = "\0\0"
        aligner = Aligner(separator.join(one["sections"]), threshold)
        offsets = [0]
        for text in one["sections"]:
            offsets.append(offsets[-1] + len(text) + len(separator))
        sections = [set() for _ in one["sections"]]
        labelled = [(Mention(mention["entity_match"]), mention["entity_class"]) for mention in one["mentions"]]
        for (_, label), places in zip(labelled, align(aligner, labelled), strict=True):
            for place in places:
                index = max(i for i, offset in enumerate(offsets) if offset <= place.spans[0].start)
                first, last = place.spans[0].start - offsets[index], place.spans[-1].end - offsets[index]
                sections[index].add((first, last, label))
        found.append(sections)
    return found, time.perf_counter() - start


def kazu_search(tasks, python):
    """Returns what KAZU's `LLMNERStep` finds in the same documents with the same mentions, and the seconds."""
    command = [python, "-c", KAZU_SEARCH]
    run = subprocess.run(command, input=json.dumps(tasks), stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(run.stdout)
    found = [[{tuple(entity) for entity in section} for section in document] for document in answer["found"]]
    return found, answer["seconds"]


def score(gold, found):
    """Counts spans with exact offsets and class."""
    count = Counter()
    for gold_sections, found_sections in zip(gold, found, strict=True):
        for right, given in zip(gold_sections, found_sections, strict=True):
            count.update(gold=len(right), right=len(right & given), wrong=len(given - right))
    given = count["right"] + count["wrong"]
    return {**count, "recall": count["right"] / count["gold"], "precision": count["right"] / given}


def show(tasks, gold, found, number, rng):
    """Prints some of the missed and of the added spans in their context, to learn from."""
    missed, added = [], []
    for one, gold_sections, found_sections in zip(tasks, gold, found, strict=True):
        for text, right, given in zip(one["sections"], gold_sections, found_sections, strict=True):
            for target, spans in ((missed, right - given), (added, given - right)):
                target += [
                    f"{label}: {text[max(0, s - 25) : s]!r} [{text[s:e]}] {text[e : e + 25]!r}" for s, e, label in spans
                ]
    for name, lines in (("missed", sorted(missed)), ("added", sorted(added))):
        print(f"-- {name}: {len(lines)}", *rng.sample(lines, min(number, len(lines))), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
