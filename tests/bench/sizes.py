"""How large models of customary sizes are in each export, with random weights.

nox -s bench -- sizes [--markdown FILE]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from nertool.artefacts import Decisions
from nertool.documents import Section
from nertool.exporting import PRECISIONS, export, share_out
from nertool.labels import make_scheme
from nertool.model import NerModel, backbone_path, load_tokenizer
from nertool.settings import WindowSettings

MINILM = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
SIZES = {
    "MiniLM, 3 layers": ("bert", {**MINILM, "num_hidden_layers": 3}),
    "MiniLM, 6 layers": ("bert", {**MINILM, "num_hidden_layers": 6}),
    "DistilBERT": ("distilbert", {}),
    "BERT-base": ("bert", {}),
}
TEXTS = [f"The kinase {number} binds its ligand in patients with lung cancer." for number in range(12)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    columns = [(form, precision) for form in ("hf", "onnx", "openvino") for precision in PRECISIONS[form]]
    lines = [
        "| | parameters | " + " | ".join(f"{form} {precision}" for form, precision in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, (family, changes) in SIZES.items():
        model = random_model(family, changes)
        parameters = sum(parameter.numel() for parameter in model.network.parameters())
        cells = [f"{megabytes(model, *column):.1f}" for column in columns]
        lines.append(f"| {name} | {parameters / 1e6:.1f} M | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


def random_model(family, changes):
    torch.manual_seed(0)
    scheme = make_scheme([f"class {number}" for number in range(18)])
    config = AutoConfig.for_model(family, num_labels=scheme.channels, vocab_size=30522, **changes)
    decisions = Decisions(scheme, WindowSettings(), (0.5,) * len(scheme.labels), 1.0)
    network = AutoModelForTokenClassification.from_config(config).eval()
    return NerModel(
        network, load_tokenizer("minilm"), AutoTokenizer.from_pretrained(backbone_path("minilm")), decisions
    )


def megabytes(model, form, precision):
    """Exports a model without a gate, since decisions of random weights mean nothing, and adds up all of its files."""
    texts = share_out([Section("s", text) for text in TEXTS], model.tagger(torch.device("cpu"), torch.float32), 12)
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder), form, precision, texts, 0.0, {})
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6


if __name__ == "__main__":
    main()
