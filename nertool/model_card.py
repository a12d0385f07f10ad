"""The `README.md` of a trained model."""

from typing import Any

from nertool import __version__
from nertool.model import NerModel
from nertool.settings import Settings


def model_card(model: NerModel, metrics: dict[str, Any], settings: Settings, facts: dict[str, Any]) -> str:
    """Returns a model card: what the model is, what it learned from, how well it does and how to use it.

    Args:
        model: The model.
        metrics: What `evaluate --json` prints for the eval split.
        settings: The settings of the run.
        facts: `train` and `eval` counts, and who annotated them.
    """
    rows = [
        f"| {label} | {_number(metrics.get(f'{label}_precision'))} | {_number(metrics.get(f'{label}_recall'))} "
        f"| {_number(metrics.get(f'{label}_f1'))} | {metrics.get(f'{label}_support', '–')} |"
        for label in model.scheme.labels
    ]
    decisions = model.decisions
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    changes = [f"- `{part}.{key} = {value!r}`" for part, values in changed.items() for key, value in values.items()]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: token-classification",
        "tags: [nertool, biomedical, named-entity-recognition, multi-label]",
        "---",
        "",
        "# Biomedical named entity recognition, multi-label",
        "",
        f"{_origin(settings, facts)} with nertool {__version__}. For each token it gives one probability per class, so "
        "mentions may nest, overlap and have several classes.",
        "",
        "## Data",
        "",
        f"- Trained on {facts['train']['documents']:,} documents with {facts['train']['entities']:,} entities "
        f"(annotated by: {', '.join(facts['annotators']) or 'unknown'}).",
        f"- Chosen on {facts['eval']['documents']:,} documents with {facts['eval']['entities']:,} entities, "
        f"after step {facts['step']:,}.",
        "",
        "## Scores on the eval split",
        "",
        f"Scheme `{metrics['scheme']}`: micro F1 {_number(metrics['micro_f1'])}, mean F1 over the classes "
        f"{_number(metrics['mean_f1'])}. This split chose the model, so expect a little less on new texts.",
        "",
        "| class | precision | recall | F1 | support |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "## Use",
        "",
        "```shell",
        "nertool predict MODEL texts/ predictions/",
        "```",
        "",
        "A word is inside an entity of a class if the mean logit of its tokens reaches the class's threshold (in "
        f"`nertool.json`); a border where there is no space costs {decisions.switch_cost} logits. "
        f"Windows have at most {decisions.windows.max_tokens} tokens.",
        "",
        "## Settings that are not the defaults",
        "",
        *(changes or ["None."]),
        "",
    ]
    return "\n".join(lines)


def _origin(settings: Settings, facts: dict[str, Any]) -> str:
    if "teacher" not in facts:
        return f"Fine-tuned from `{settings.model.name}`"
    more = facts["unlabelled"]["documents"]
    texts = f", also from {more:,} documents without gold entities" if more else ""
    return f"Distilled from the model `{facts['teacher']}` into `{facts['backbone']}`{texts},"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
