"""Draws the pictures of the pages, `docs/pictures/*.svg`, from what nertool itself computed.

    python docs/pictures.py                  # draws them anew from docs/pictures/figures.json and the sample documents
    python docs/pictures.py TUTORIAL_FOLDER  # first takes the figures from a folder in which the tutorial was followed

Windows and begin channels are those of sample documents, cut and decoded here by nertool's own functions; the pipeline
and the learning curves show the figures of a run. `tests/test_docs.py` draws them again and compares.

Each SVG has its own background, so that it can be read on whatever page shows it, and follows the reader's light or
dark.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import orjson

from nertool.commands.demo import sample_data
from nertool.decoding import decode
from nertool.document_parsing import parse_document
from nertool.documents import Section
from nertool.labels import make_scheme
from nertool.model import load_tokenizer
from nertool.settings import WindowSettings
from nertool.targets import locate, paint
from nertool.windows import Tokens, plan_windows

PICTURES = Path(__file__).parent / "pictures"
FIGURES = PICTURES / "figures.json"
WIDTH = 460  # a phone shows it hardly smaller than it is
_STYLE = """
:root { --paper: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #d1d9e0; --soft: #eef2f6; --first: #0969a8;
  --second: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #131416; --ink: #e6e8ea; --muted: #a2abb5; --line: #3d444d;
  --soft: #23272d; --first: #58b0f0; --second: #f0a050; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
.small { font-size: 11.5px; fill: var(--muted); }
.code { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; font-size: 12px; }
.bold { font-weight: 600; }
.first { fill: var(--first); } .second { fill: var(--second); }
.paper { fill: var(--paper); } .box { fill: var(--soft); stroke: var(--line); }
.line { stroke: var(--line); fill: none; } .arrow { stroke: var(--muted); fill: none; stroke-width: 1.2; }
.tip { fill: var(--muted); }
.owned { fill: var(--first); } .shared { fill: var(--first); opacity: 0.28; }
.on { fill: var(--first); } .begin { fill: var(--second); } .off { fill: none; stroke: var(--line); }
.curve1 { stroke: var(--first); fill: none; stroke-width: 1.8; } .curve2 { stroke: var(--second); fill: none;
  stroke-width: 1.8; } .border { stroke: var(--second); stroke-width: 1.5; stroke-dasharray: 4 3; }
"""


class Drawing:
    """An SVG that grows."""

    def __init__(self, height: float, title: str) -> None:
        self._height = height
        self._title = title
        self._parts: list[str] = []

    def text(self, x: float, y: float, words: object, kind: str = "", anchor: str = "start") -> None:
        """Writes a line of text with its base line at `y`."""
        where = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self._parts.append(f'<text {where} class="{kind}" xml:space="preserve">{escape(str(words))}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, corner: float = 0) -> None:
        """Draws a rectangle."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{corner:g}" class="{kind}"/>'
        )

    def path(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Draws straight lines from point to point."""
        self._parts.append(f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" class="{kind}"/>')

    def arrow(self, points: Sequence[tuple[float, float]]) -> None:
        """Draws lines with a tip at their end, whose last one is level or upright."""
        self.path(points, "arrow")
        (before_x, before_y), (x, y) = points[-2:]
        back_x, back_y = np.sign(before_x - x) * 6, np.sign(before_y - y) * 6
        tip = [(x + back_x + back_y / 2, y + back_y + back_x / 2), (x, y)]
        tip.append((x + back_x - back_y / 2, y + back_y - back_x / 2))
        self._parts.append(f'<path d="M{" L".join(f"{a:.1f} {b:.1f}" for a, b in tip)} Z" class="tip"/>')

    def svg(self) -> str:
        """Returns the file's content."""
        size = f'viewBox="0 0 {WIDTH} {self._height:g}" width="{WIDTH}" height="{self._height:g}"'
        paper = f'<rect width="{WIDTH}" height="{self._height:g}" rx="6" class="paper"/>'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(self._title)}</title>'
        return "\n".join([head, f"<style>{_STYLE}</style>", paper, *self._parts, "</svg>", ""])


def pipeline(figures: dict[str, Any]) -> str:
    """Draws the way from texts to predictions, with what each command of the tutorial made."""
    drawing = Drawing(566, "From texts to predictions: what each command makes")
    left, width, middle = 12, 268, 12 + 268 / 2

    def stage(y: float, name: str, what: str) -> None:
        drawing.box(left, y, width, 44, "box", 6)
        drawing.text(left + 12, y + 18, name, "code bold")
        drawing.text(left + 12, y + 35, what, "small")

    def step(y: float, command: str) -> None:
        drawing.arrow([(middle, y), (middle, y + 40)])
        drawing.text(middle + 10, y + 24, command, "code first")

    split = figures["split"]
    stage(10, "texts", f"{figures['texts']} texts in {figures['sections']} sections")
    step(54, "nertool annotate")
    stage(94, "documents", f"{figures['entities']:,} entities of {figures['classes']} classes")
    step(138, "nertool split")
    for number, (side, count) in enumerate(split.items()):
        drawing.box(left + number * 92, 178, 84, 44, "box", 6)
        drawing.text(left + number * 92 + 10, 196, side, "code bold")
        drawing.text(left + number * 92 + 10, 213, f"{count} of {sum(split.values())}", "small")
    step(222, "nertool train")
    stage(262, "run/model", f"{figures['parameters'] / 1e6:.1f} M parameters, {figures['model_bytes'] / 1e6:.0f} MB")
    step(306, "nertool distill")
    small = figures["small"]
    stage(346, "small/model", f"{small['parameters'] / 1e6:.1f} M parameters, {small['bytes'] / 1e6:.0f} MB")
    step(390, "nertool export")
    stage(430, "packed", f"int8, {figures['packed_bytes'] / 1e6:.0f} MB; no torch needed")
    step(474, "nertool predict")
    stage(514, "predictions", f"{figures['predicted']:,} entities")

    # What goes back: people's corrections.
    right = 372
    drawing.arrow([(left + width, 200), (right + 30, 200), (right + 30, 168)])
    drawing.text(right + 24, 192, "nertool audit", "code first", "end")
    drawing.box(right - 70, 114, 150, 54, "box", 6)
    drawing.text(right - 60, 132, "people correct the", "small")
    drawing.text(right - 60, 147, "worst first, in", "small")
    drawing.text(right - 60, 162, "Label Studio", "small")
    drawing.arrow([(right, 114), (right, 104), (left + width, 104)])
    drawing.text(right - 82, 96, "nertool ls-sync", "code first")
    # What is known of each model.
    for y, name, f1 in ((262, "run/model", figures["micro_f1"]), (346, "small/model", small["micro_f1"])):
        drawing.arrow([(left + width, y + 22), (right - 70, y + 22)])
        drawing.box(right - 70, y, 150, 44, "box", 6)
        drawing.text(right - 60, y + 18, "report.html" if name == "run/model" else "scores", "code bold")
        drawing.text(right - 60, y + 35, f"test: micro F1 {f1:.3f}", "small")
    drawing.text(right - 70, 254, "nertool evaluate", "code first")
    return drawing.svg()


def windows() -> str:
    """Draws how a long section is cut, and which window owns which tokens."""
    section = _section("cardiac-amyloid-ttr-long", 1)
    tokenizer, settings = load_tokenizer("minilm"), WindowSettings(max_tokens=384)
    tokens = tokenizer.tokenize([section.text])
    size = settings.max_tokens - tokenizer.special_tokens
    cut = plan_windows(tokens, size, settings.overlap_tokens)
    count = len(tokens.ids)
    left, scale = 74, (WIDTH - 74 - 14) / count
    bottom = 46 + 30 * len(cut)
    drawing = Drawing(bottom + 132, "Which window owns which tokens of a long section")
    drawing.text(12, 22, f"A section of {count:,} tokens, in windows of at most {settings.max_tokens}", "bold")
    rows = zip(cut.starts, cut.ends, cut.owned_starts, cut.owned_ends, strict=True)
    for number, (start, end, owned_start, owned_end) in enumerate(rows):
        y = 40 + 30 * number
        drawing.text(12, y + 15, f"window {number + 1}", "small")
        drawing.box(left + start * scale, y, (end - start) * scale, 20, "shared")
        drawing.box(left + owned_start * scale, y, (owned_end - owned_start) * scale, 20, "owned")
    for border in cut.owned_ends[:-1]:
        drawing.path([(left + border * scale, 36), (left + border * scale, bottom)], "border")
        drawing.text(left + border * scale, bottom + 14, f"{border:,}", "small", "middle")
    drawing.text(left, bottom + 14, "0", "small", "middle")
    drawing.text(WIDTH - 14, bottom + 14, f"{count:,}", "small", "end")
    drawing.box(left, bottom + 30, 14, 12, "owned")
    drawing.text(left + 20, bottom + 40, "owned: counts in the loss and in decoding", "small")
    drawing.box(left, bottom + 48, 14, 12, "shared")
    drawing.text(left + 20, bottom + 58, f"context only; neighbours share {_shared(cut)} tokens", "small")
    border = int(cut.owned_ends[0])
    before = section.text[: int(tokens.starts[border])].split()[-3:]
    after = section.text[int(tokens.starts[border]) :].split()[:3]
    drawing.text(12, bottom + 86, f"The border at token {border:,} lies where a word starts:", "small")
    y, middle = bottom + 108, WIDTH / 2
    drawing.text(middle - 8, y, "… " + " ".join(before), "code", "end")
    drawing.text(middle + 8, y, " ".join(after) + " …", "code")
    drawing.path([(middle, y - 14), (middle, y + 6)], "border")
    return drawing.svg()


def begin_channels() -> str:
    """Draws what the model is to output for two entities of one class that touch, without and with begin channels."""
    section = _section("brca1-parp-resistance", 0)
    tokenizer = load_tokenizer("minilm")
    tokens = tokenizer.tokenize([section.text])
    gene = "gene or gene product"
    entities = tuple(entity for entity in section.entities if entity.label == gene)
    section = Section(section.name, section.text, entities)
    first_word = section.text.index(entities[-2].match)
    shown = np.flatnonzero(tokens.starts >= first_word - len("in "))
    pieces = [section.text[tokens.starts[i] : tokens.ends[i]] for i in shown]
    joined = [i > 0 and tokens.starts[shown[i]] == tokens.ends[shown[i - 1]] for i in range(len(shown))]
    left = 96
    step = (WIDTH - left - 10) / len(shown)
    drawing = Drawing(250, "Two genes that touch, without and with begin channels")
    drawing.text(12, 22, "Gold: two genes with nothing but a blank between them", "bold")
    for i, piece in enumerate(pieces):
        drawing.text(left + (i + 0.5) * step, 48, ("##" if joined[i] else "") + piece, "small", "middle")
    y = 62
    for begin in (False, True):
        scheme = make_scheme([gene], begin=begin)
        targets = paint(locate([section], tokens, scheme), len(tokens.ids), scheme)
        drawing.text(12, y + 14, "with begin" if begin else "without", "bold")
        names = ["inside", "begins"][: targets.shape[1]]
        for row, name in enumerate(names):
            drawing.text(left - 8, y + 34 + 24 * row, name, "small", "end")
            for i, token in enumerate(shown):
                kind = ("on", "begin")[row] if targets[token, row] else "off"
                drawing.box(left + i * step + 2, y + 20 + 24 * row, step - 4, 18, kind, 3)
        y += 20 + 24 * len(names)
        logits = np.where(targets, 1, -1).astype(np.float32)
        found = decode(logits, tokens, scheme, [0.5], switch_cost=0.0)
        drawing.text(left - 8, y + 18, "decoded", "small", "end")
        for start, end in zip(found.start.tolist(), found.end.tolist(), strict=True):
            if start < first_word:
                continue
            inside = _tokens_between(tokens, shown, start, end)
            x = left + inside[0] * step + 2
            drawing.box(x, y + 4, len(inside) * step - 4, 22, "box", 4)
            drawing.text(x + (len(inside) * step - 4) / 2, y + 19, section.text[start:end], "code", "middle")
        y += 44
    drawing.text(
        12, y + 6, "Filled: what the model is to say of each token, for the class “gene or gene product”.", "small"
    )
    return drawing.svg()


def learning_curves(figures: dict[str, Any]) -> str:
    """Draws the loss and the score on the eval split of a run, one above the other."""
    history = figures["history"]
    last = max(step for step, _ in history["loss"])
    left, width = 46, WIDTH - 46 - 20
    drawing = Drawing(342, "Loss and eval score during a training")
    panels = (
        (34, "loss", "loss of the training batches", "curve1"),
        (190, "micro_f1", "strict micro F1 on the eval split", "curve2"),
    )
    for top, key, name, kind in panels:
        points = history[key]
        most = 1.0 if key == "micro_f1" else float(np.ceil(max(value for _, value in points) * 10) / 10)
        drawing.text(left, top - 12, name, "bold")
        for part in range(6 if key == "micro_f1" else 3):
            value = most * part / (5 if key == "micro_f1" else 2)
            y = top + 100 * (1 - value / most)
            drawing.path([(left, y), (left + width, y)], "line")
            drawing.text(left - 6, y + 4, f"{value:.2g}", "small", "end")
        drawing.path([(left + width * step / last, top + 100 * (1 - value / most)) for step, value in points], kind)
    best_step, best = max(history["micro_f1"], key=lambda row: row[1])
    x, y = left + width * best_step / last, 190 + 100 * (1 - best)
    drawing.box(x - 3.5, y - 3.5, 7, 7, "begin", 3.5)
    # At the right, below the curve and between two lines.
    drawing.text(left + width, 244, f"best: {best:.3f} at step {best_step}, kept in run/model", "small", "end")
    for step in (0, last // 2, last):
        x = left + width * step / last
        drawing.text(x, 308, step, "small", "start" if step == 0 else "end" if step == last else "middle")
    drawing.text(left + width / 2, 328, "optimizer steps", "small", "middle")
    return drawing.svg()


def _shared(cut: Any) -> str:
    counts = sorted({int(end - start) for end, start in zip(cut.ends[:-1], cut.starts[1:], strict=True)})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _tokens_between(tokens: Tokens, shown: Any, start: int, end: int) -> list[int]:
    return [i for i, token in enumerate(shown) if tokens.starts[token] >= start and tokens.ends[token] <= end]


def _section(document: str, number: int) -> Section:
    path = sample_data() / "documents" / f"{document}.json"
    return parse_document(path.read_bytes()).document.sections[number]


def collect(folder: Path) -> dict[str, Any]:
    """Takes the figures from a folder in which the tutorial was followed."""

    def read(name: str) -> Any:
        return orjson.loads((folder / name).read_bytes())

    texts, documents, predictions = (
        [parse_document(path.read_bytes()).document for path in (folder / name).glob("*-*.json")]
        for name in ("texts", "documents", "predictions")
    )
    rows = [orjson.loads(line) for line in (folder / "run/metrics.jsonl").read_bytes().splitlines()]
    distilled = read("small/report.json")
    return {
        "texts": len(texts),
        "sections": sum(len(document.sections) for document in texts),
        "entities": sum(len(section.entities) for document in documents for section in document.sections),
        "classes": len({e.label for d in documents for s in d.sections for e in s.entities}),
        "split": {side: len(list((folder / "split" / side).glob("*-*.json"))) for side in ("train", "eval", "test")},
        "parameters": distilled["teacher"]["parameters"],
        "model_bytes": _bytes(folder / "run/model"),
        "micro_f1": read("metrics.json")["micro_f1"],
        "small": {
            "parameters": distilled["student"]["parameters"],
            "bytes": _bytes(folder / "small/model"),
            "micro_f1": read("small-metrics.json")["micro_f1"],
        },
        "packed_bytes": _bytes(folder / "packed"),
        "predicted": sum(len(section.entities) for document in predictions for section in document.sections),
        "history": {
            "loss": [[row["step"], row["loss"]] for row in rows if row["kind"] == "train"],
            "micro_f1": [[row["step"], row["micro_f1"]] for row in rows if row["kind"] == "eval"],
        },
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def draw_all(figures: dict[str, Any]) -> dict[str, str]:
    """Returns file name → content of all pictures."""
    return {
        "pipeline.svg": pipeline(figures),
        "windows.svg": windows(),
        "begin-channels.svg": begin_channels(),
        "learning-curves.svg": learning_curves(figures),
    }


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the pages.")
    parser.add_argument("folder", nargs="?", type=Path, help="a folder in which the tutorial was followed")
    folder = parser.parse_args().folder
    if folder is not None:
        FIGURES.write_bytes(orjson.dumps(collect(folder)) + b"\n")
    for name, content in draw_all(orjson.loads(FIGURES.read_bytes())).items():
        (PICTURES / name).write_text(content, encoding="utf-8")
        print(PICTURES / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
