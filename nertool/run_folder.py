"""The folder of a training run: what may be in it, and whether a run may begin or go on there."""

from pathlib import Path
from typing import Any

from nertool import __version__
from nertool.errors import NertoolError
from nertool.files import MANIFEST_NAME, read_json, remove_own, write_json
from nertool.settings import Settings
from nertool.tracking import METRICS_FILE

RUN_FILE = "run.json"
SETTINGS_FILE = "settings.json"
_OWN_FILES = [RUN_FILE, SETTINGS_FILE, METRICS_FILE, "rejected.jsonl"]
_OWN_TREES = ["model/", ".model.old/", ".model.partial/", "checkpoints/", "cache/", ".cache.partial/", "tensorboard/"]
# The settings that decide on the result: these parts, but for what changes only where and how often.
_PARTS = ("data", "windows", "model", "train", "evaluate")
_FREE_SETTINGS = {
    ("train", "device"),
    ("train", "checkpoint_every_seconds"),
    ("train", "tensorboard"),
    ("evaluate", "bootstrap_samples"),
    ("evaluate", "bootstrap_seed"),
}


def open_run(run: Path, settings: Settings, data: dict[str, str], *, resume: bool, force: bool) -> bool:
    """Makes the run's folder, or makes sure that what is in it may go on.

    Args:
        run: The folder.
        settings: The resolved settings; saved there.
        data: What was read: name → digest.
        resume: Go on with an interrupted run.
        force: Remove an older run.

    Returns:
        Whether a finished run of the same settings and data is there, so that nothing is left to do.

    Raises:
        NertoolError: If another run, or something that isn't nertool's, is there.
    """
    fingerprint = {"settings": _settings_that_matter(settings), "data": data}
    if run.is_dir() and any(run.iterdir()):
        if force:
            remove_own(run)
        elif not (run / RUN_FILE).is_file():
            raise NertoolError(f"{run} is not empty and not a training run", "choose another --output")
        else:
            return _may_go_on(run, read_json(run / RUN_FILE), fingerprint, resume=resume)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / MANIFEST_NAME, {"command": "train", "files": [*_OWN_FILES, *_OWN_TREES]})
    write_json(run / SETTINGS_FILE, settings.model_dump(mode="json"))
    write_json(run / RUN_FILE, {"nertool_version": __version__, "finished": False, **fingerprint})
    return False


def finish_run(run: Path, summary: dict[str, Any]) -> None:
    """Notes that the run is finished, and how it ended."""
    write_json(run / RUN_FILE, {**read_json(run / RUN_FILE), "finished": True, "summary": summary})


def summary_of(run: Path) -> dict[str, Any]:
    """Returns the summary of a finished run."""
    summary: dict[str, Any] = read_json(run / RUN_FILE)["summary"]
    return summary


def _may_go_on(run: Path, known: dict[str, Any], fingerprint: dict[str, Any], *, resume: bool) -> bool:
    if not resume:
        state = "a finished" if known["finished"] else "an unfinished"
        go_on = "" if known["finished"] else "--resume to go on with it, "
        raise NertoolError(f"{run} holds {state} run", f"{go_on}--force to start afresh, or another --output")
    different = [
        f"{part}.{key} was {known['settings'][part].get(key)!r}, now {value!r}"
        for part, values in fingerprint["settings"].items()
        for key, value in values.items()
        if known["settings"][part].get(key) != value
    ]
    different += [
        f"the {name} documents have changed"
        for name, value in fingerprint["data"].items()
        if known["data"].get(name) != value
    ]
    if different:
        raise NertoolError(
            f"can't resume {run}: {'; '.join(different)}", "use the old settings and data, --force, or another --output"
        )
    return bool(known["finished"])


def _settings_that_matter(settings: Settings) -> dict[str, dict[str, Any]]:
    values = settings.model_dump(mode="json", include=set(_PARTS))
    return {
        part: {key: value for key, value in values[part].items() if (part, key) not in _FREE_SETTINGS}
        for part in _PARTS
    }
