"""What a model folder says of itself: `nertool.json`, its model card, and whether its files are whole.

A trained model and an exported one have it alike, and nothing here needs torch. The card, `README.md`, is made of
`nertool.json` whenever that is written, so it never tells anything else.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson

from nertool import __version__
from nertool.errors import NertoolError
from nertool.files import exclusive, file_digest, read_json, write_atomic, write_json
from nertool.labels import LabelScheme
from nertool.model_card import model_card
from nertool.model_facts import ModelFacts
from nertool.settings import WindowSettings

NERTOOL_FILE = "nertool.json"
CARD_FILE = "README.md"
FORMAT_VERSION = 2
_WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Decisions:
    """All that turns a network's logits into entities.

    Args:
        scheme: What the channels mean.
        windows: The window sizes that the network was trained with.
        thresholds: The least probability of a word inside an entity, for each class.
        switch_cost: What it costs, in logits, to begin or end an entity where there is no space.
    """

    scheme: LabelScheme
    windows: WindowSettings
    thresholds: tuple[float, ...]
    switch_cost: float

    @property
    def logit_thresholds(self) -> npt.NDArray[np.float64]:
        """The logits of the thresholds, `(labels,)`."""
        cuts: npt.NDArray[np.float64] = np.log(np.divide(self.thresholds, np.subtract(1.0, self.thresholds)))
        return cuts

    def to_json(self) -> dict[str, Any]:
        """Returns it as it is kept in `nertool.json`."""
        return {
            "scheme": self.scheme.to_json(),
            "windows": self.windows.model_dump(),
            "thresholds": dict(zip(self.scheme.labels, self.thresholds, strict=True)),
            "switch_cost": self.switch_cost,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Reads what `to_json` wrote, and what format 1 had: one threshold for all classes."""
        scheme = LabelScheme.from_json(value["scheme"])
        known = value["thresholds"] if "thresholds" in value else dict.fromkeys(scheme.labels, value["threshold"])
        return cls(
            scheme,
            WindowSettings(**value["windows"]),
            tuple(known[label] for label in scheme.labels),
            value["switch_cost"],
        )


def read_facts(folder: Path) -> dict[str, Any]:
    """Returns what a model's `nertool.json` tells; whether it tells of the files that are there, `check_files` says.

    Raises:
        NertoolError: If the folder is no model of nertool.
    """
    if not folder.is_dir():
        raise NertoolError(f"{folder} is not a model folder", "name the `model` folder of a training run")
    if not (folder / NERTOOL_FILE).is_file():
        inside = folder / "model"
        hint = f"did you mean {inside}?" if (inside / NERTOOL_FILE).is_file() else "name the `model` folder of a run"
        raise NertoolError(f"{folder} is not a model of nertool: {NERTOOL_FILE} is missing", hint)
    version = read_json(folder / NERTOOL_FILE).get("format")
    if version not in (1, FORMAT_VERSION):
        raise NertoolError(
            f"{folder / NERTOOL_FILE} has format {version!r}, this nertool knows {FORMAT_VERSION}",
            "use the nertool version that wrote it",
        )
    facts: dict[str, Any] = read_json(folder / NERTOOL_FILE, ModelFacts)
    return facts


def check_files(folder: Path, facts: dict[str, Any]) -> None:
    """Makes sure that the files of a model are those that were written; reads them all.

    Raises:
        NertoolError: If one is missing, or another one.
    """
    for name, digest in facts.get("files", {}).items():
        if not (folder / name).is_file():
            raise NertoolError(f"{folder} is damaged: {name} is missing", "copy the whole folder again")
        if file_digest(folder / name) != digest:
            raise NertoolError(
                f"{folder} is damaged: {name} is not the file that was written there", "copy the whole folder again"
            )


def write_facts(folder: Path, decisions: Decisions, facts: dict[str, Any]) -> None:
    """Writes `nertool.json`: how to decide, what the files hold, whatever else there is to tell; and the model card."""
    files = {path.name: file_digest(path) for path in _network_files(folder)}
    own = {"format": FORMAT_VERSION, "nertool_version": __version__, "files": files, **decisions.to_json()}
    _write(folder, {**own, **facts})


def add_facts(folder: Path, **facts: Any) -> None:
    """Tells more of a model, or something else than before, in `nertool.json` and the model card."""
    _write(folder, {**read_facts(folder), **facts})


def keep_evaluation(folder: Path, evaluation: dict[str, Any]) -> None:
    """Keeps a model's scores; those on the same documents make room, but for an original's in an export.

    Args:
        folder: The model.
        evaluation: What `kept_scores.kept_evaluation` returns.
    """
    with exclusive(folder / NERTOOL_FILE, wait_seconds=_WAIT_SECONDS):  # evaluations of one model may run side by side
        known = read_facts(folder).get("evaluations", [])
        same = [one["digest"] == evaluation["digest"] and not one["of_original"] for one in known]
        if True in same:
            known[same.index(True)] = evaluation
        else:
            known.append(evaluation)
        add_facts(folder, evaluations=known)


def _write(folder: Path, facts: dict[str, Any]) -> None:
    if "threshold" in facts:  # of format 1
        facts = {**facts, "format": FORMAT_VERSION, **Decisions.from_json(facts).to_json()}
        del facts["threshold"]
    write_json(folder / NERTOOL_FILE, facts)
    write_atomic(folder / CARD_FILE, model_card(facts).encode())


def change_thresholds(folder: Path, thresholds: Sequence[float], how: dict[str, Any]) -> None:
    """Gives a model other thresholds.

    Args:
        folder: The model.
        thresholds: One for each of its classes.
        how: Where they come from, for people who read the file.

    Raises:
        NertoolError: If the model was exported for KAZU, which has the thresholds in its weights.
    """
    facts = read_facts(folder)
    if facts.get("export", {}).get("format") == "kazu":
        raise NertoolError(
            f"the thresholds of {folder} are in its weights, as KAZU wants them",
            "tune the original, and export it again",
        )
    labels = facts["scheme"]["labels"]
    add_facts(folder, thresholds=dict(zip(labels, thresholds, strict=True)), tuned=how)


def model_digest(folder: Path) -> str:
    """Returns a SHA-256 of what decides on a model's predictions: weights, configuration, tokenizer, decisions.

    What an exported model's files hold, and which engine runs it, its nertool.json says. What else that tells, such as
    scores, changes nothing.
    """
    facts = read_facts(folder)
    decisive = [Decisions.from_json(facts).to_json(), facts.get("files"), facts.get("export")]
    return _digest(_network_files(folder), orjson.dumps(decisive, option=orjson.OPT_SORT_KEYS))


def weights_digest(folder: Path) -> str:
    """Returns a SHA-256 of what decides on a trained model's logits: its weights, configuration and tokenizer."""
    return _digest(_network_files(folder))


def _network_files(folder: Path) -> list[Path]:
    others = [folder / name for name in ("config.json", "tokenizer.json")]
    return [*sorted(folder.glob("*.safetensors")), *(path for path in others if path.is_file())]


def _digest(files: Sequence[Path], more: bytes = b"") -> str:
    digest = hashlib.sha256(more)
    for path in files:
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()
