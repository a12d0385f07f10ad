"""Exported models beside KAZU 2.4.0's own step: size, quality and speed on a CPU, in one run, in turns.

    nox -s bench_kazu -- serving TEACHER STUDENT TEST.PubTator TEXTS [--smaller MODEL] [--rounds 3]

TEACHER and STUDENT are model folders of `nertool train` and `nertool distill`, TEXTS documents on which exports must
decide like their originals. KAZU's step gets the teacher as `nertool export --format kazu` writes it, and pads each
section to 512 tokens, as it does. Figures are medians over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from nertool.formats import ReadReport, read_documents
from nertool.formats.pubtator import read_pubtator
from nertool.inference import load_tagger
from nertool.settings import PredictSettings
from tests.bench.beside_kazu import HERE, Side, cpu_name, empty, torch_version, write

VARIANTS = {
    "teacher, onnx fp32": ("teacher", "onnx", "fp32"),
    "teacher, onnx int8": ("teacher", "onnx", "int8"),
    "teacher, openvino fp32": ("teacher", "openvino", "fp32"),
    "teacher, openvino bf16": ("teacher", "openvino", "bf16"),
    "teacher, openvino int8": ("teacher", "openvino", "int8"),
    "student, onnx int8": ("student", "onnx", "int8"),
    "student, openvino bf16": ("student", "openvino", "bf16"),
    "student, openvino int8": ("student", "openvino", "int8"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--smaller", type=Path, help="a smaller student")
    parser.add_argument("--kazu", required=True, help="the Python of an environment with KAZU 2.4.0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    models = {"teacher": arguments.teacher, "student": arguments.student}
    variants = dict(VARIANTS)
    if arguments.smaller:
        models["smaller student"] = arguments.smaller
        variants["smaller student, openvino int8"] = ("smaller student", "openvino", "int8")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        documents = [record.document for record in read_pubtator(arguments.test) if record.document]
        test = write(folder / "test", documents)
        rows = {}
        for name, (model, form, precision) in variants.items():
            path = folder / name
            rows[name] = {**export(models[model], path, form, precision, test, arguments.texts), "path": path}
        for model, path in models.items():
            size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
            f1 = next(row["f1"]["original"] for name, row in rows.items() if name.startswith(model) and "f1" in row)
            rows[f"{model}, torch, its own precision"] = {"bytes": size, "f1": {"export": f1}, "path": path}
        kazu = export(models["teacher"], folder / "kazu", "kazu", "fp32", test, arguments.texts)
        some = write(folder / "some", documents[: arguments.documents])
        ours, theirs = (
            stack.enter_context(Side([python, str(HERE / script)]))
            for python, script in ((sys.executable, "our_side.py"), (arguments.kazu, "kazu_side.py"))
        )
        theirs("load", path=str(folder / "kazu"))
        measure(rows, kazu, ours, theirs, some, folder, arguments.rounds)
        spans = compare_spans(ours, theirs, arguments.teacher, folder, test)
    result = {
        "rows": {name: {key: value for key, value in row.items() if key != "path"} for name, row in rows.items()},
        "kazu": kazu,
        "spans": spans,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch_version()},
        "rounds": arguments.rounds,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(table(result) + "\n")
    print(table(result))


def export(model, output, form, precision, test, texts):
    """Exports a model; what the gates say counts, and a refusal is a result, too."""
    choice = ["--format", form, "--precision", precision, "--eval", str(test), "--parity", str(texts), "--json"]
    command = [sys.executable, "-m", "nertool", "export", str(model), str(output), *choice]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"exported {output.name}", file=sys.stderr, flush=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"refused": done.stderr.strip().splitlines()[-2:]}


def measure(rows, kazu, ours, theirs, documents, folder, rounds):
    """Predicts the same documents with everything, in turns."""
    found = {}
    for number in range(rounds):
        one = theirs("infer", folder=str(documents), output=str(empty(folder / f"kazu-{number}")))
        for name, row in rows.items():
            if "refused" not in row:
                row["runs_on"] = ours("load", path=str(row["path"]))["runs_on"]
                own = ours("infer", folder=str(documents), output=str(empty(folder / f"{name}-{number}")))
                found.setdefault(name, []).append(own)
        found.setdefault("kazu", []).append({**one, "tokens": own["tokens"]})
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for name, row in [*rows.items(), ("kazu", kazu)]:
        if name in found:
            for kind in ("cpu", "wall"):
                rates = [one["tokens"] / one[f"{kind}_seconds"] for one in found[name]]
                row[f"tokens_per_{kind}_second"] = statistics.median(rates)
            row["peak_mb"] = max(one["peak_mb"] for one in found[name])


def compare_spans(ours, theirs, teacher, folder, documents):
    """Counts the spans that KAZU's step and `predict` agree on, with KAZU's decoding and with nertool's."""
    tagger = load_tagger(teacher, PredictSettings(precision="fp32"))
    ours("load", path=str(teacher), precision="fp32")
    ours("infer", folder=str(documents), output=str(empty(folder / "spans-ours")))
    own = spans_of(folder / "spans-ours")
    texts = {
        (document.id, number): section.text
        for document in read_documents(documents, ReadReport())
        for number, section in enumerate(document.sections)
    }
    short = {key for key, text in texts.items() if len(tagger.tokenizer.tokenize([text]).ids) <= tagger.window_tokens}
    found = {}
    for name, cost in (("KAZU's decoding", None), ("nertool's decoding in its step", tagger.decisions.switch_cost)):
        theirs("load", path=str(folder / "kazu"), switch_cost=cost)
        target = folder / f"spans-{'stock' if cost is None else 'own'}"
        theirs("infer", folder=str(documents), output=str(empty(target)))
        kazu = spans_of(target)
        for where, keys in (("sections of one window", short), ("all sections", set(texts))):
            mine, other = ({span for span in spans if span[:2] in keys} for spans in (own, kazu))
            found[f"{name}, {where}"] = [len(mine & other), len(mine - other), len(other - mine)]
    return found


def spans_of(folder):
    return {
        (document.id, number, entity.label, entity.spans)
        for document in read_documents(folder, ReadReport())
        for number, section in enumerate(document.sections)
        for entity in section.entities
    }


def table(result):
    kazu = result["kazu"]["tokens_per_cpu_second"]
    lines = [
        "| model | MB | strict micro F1 | equal decisions on other texts | real tokens per CPU-second | × KAZU |",
        "|---|---|---|---|---|---|",
        f"| teacher in KAZU's step, fp32 | | | | {kazu:,.0f} | 1 |",
    ]
    for name, row in sorted(result["rows"].items(), key=lambda pair: pair[1].get("tokens_per_cpu_second", 0)):
        if "refused" in row:
            lines.append(f"| {name} | refused: {' '.join(row['refused'])} | | | | |")
            continue
        parity = next(iter(row["parity"].values()))["equal_decisions"] if "parity" in row else None
        agrees = "–" if parity is None else f"{parity:.2%}"
        speed = row["tokens_per_cpu_second"]
        shown = name if "torch" not in name else f"{name.split(',')[0]}, {row['runs_on'].replace(' on cpu in ', ' ')}"
        lines.append(
            f"| {shown} | {row['bytes'] / 1e6:.1f} | {row['f1']['export']:.4f} | {agrees} | {speed:,.0f} "
            f"| {speed / kazu:.1f} |"
        )
    lines += ["", "| KAZU's step beside `predict` (fp32) | same spans | only nertool's | only KAZU's |"]
    lines.append("|---|---|---|---|")
    for name, counts in result["spans"].items():
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
    machine = result["machine"]
    lines.append(f"\n{result['rounds']} rounds; {machine['cores']} cores, {machine['cpu']}, torch {machine['torch']}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
