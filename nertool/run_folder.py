"""The folder of a training run: what may be in it, and whether a run may begin or go on there."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nertool import __version__
from nertool.errors import NertoolError
from nertool.files import MANIFEST_NAME, check_output, check_own, is_empty, read_json, remove_own, write_json
from nertool.settings import Settings
from nertool.tracking import METRICS_FILE

RUN_FILE = "run.json"
SETTINGS_FILE = "settings.json"
REPORT_FILE = "report.json"
AUDIT_FILE = "audit.json"
SPOOL_FOLDER = "label_studio"  # what is to be shown there and isn't yet
_OWN_FILES = [RUN_FILE, SETTINGS_FILE, METRICS_FILE, REPORT_FILE, "rejected.jsonl", f".{SPOOL_FOLDER}.lock"]
_OWN_TREES = [
    "model/", ".model.old/", ".model.partial/", "checkpoints/", "cache/", ".cache.partial/", "tensorboard/",
    f"{SPOOL_FOLDER}/", "unlabelled/", ".unlabelled.partial/", "logits/",
]  # fmt: skip
_AUDIT_FILES = [
    AUDIT_FILE, "suspects.jsonl", "queue.txt", "corrected.jsonl", ".corrected.jsonl.partial", "rejected.jsonl", "work/",
]  # fmt: skip
_WHAT_HAS = {"teacher": "the teacher has", "judge": "the judging model has", "documents": "the documents have",
             "suspects": "the suspects have"}  # fmt: skip
# The settings that decide on the result: these parts, but for what changes only where and how often.
_PARTS = {
    "audit": ("data", "windows", "model", "train", "audit"),
    "train": ("data", "windows", "model", "train", "evaluate"),
    "distill": ("data", "windows", "model", "train", "distill", "evaluate"),
}
_FREE_SETTINGS = {
    ("data", "workers"),
    ("data", "split_fractions"),
    ("data", "split_seed"),
    ("data", "duplicate_similarity"),
    ("train", "device"),
    ("train", "skip_nonfinite"),
    ("train", "checkpoint_every_seconds"),
    ("train", "tensorboard"),
    ("evaluate", "bootstrap_samples"),
    ("evaluate", "bootstrap_seed"),
}
_NOT_FREE = {"audit": {("data", "duplicate_similarity")}}  # decides on the folds


class _RunFile(BaseModel):
    """What `run.json` and `audit.json` have at least."""

    command: str = "train"
    finished: bool
    settings: dict[str, dict[str, Any]]
    data: dict[str, str]
    summary: dict[str, Any] = {}


def check_run_folder(run: Path, *, resume: bool, force: bool) -> None:
    """Refuses a folder that can't become or go on as a run, before anything is read.

    Raises:
        NertoolError: If a file, something that isn't nertool's, or a run is there that nobody asked to go on with.
    """
    if not run.is_dir() or is_empty(run):
        check_output(run, force=False)
    elif force:
        check_own(run)
    elif _is_run(run):
        if not resume:
            finished = read_json(run / RUN_FILE, _RunFile)["finished"]
            go_on = "" if finished else "--resume to go on with it, "
            raise NertoolError(
                f"{run} holds {'a finished' if finished else 'an unfinished'} run",
                f"{go_on}--force to start afresh, or another --output",
            )
    elif not _is_begun(run, "train"):
        raise NertoolError(f"{run} is not empty and not a training run", "choose another --output")


def open_run(
    run: Path, settings: Settings, data: dict[str, str], *, resume: bool, force: bool, command: str = "train"
) -> bool:
    """Makes the run's folder, or makes sure that what is in it may go on.

    Args:
        run: The folder.
        settings: The resolved settings; saved there.
        data: What was read: name → digest.
        resume: Go on with an interrupted run.
        force: Remove an older run.
        command: `train` or `distill`.

    Returns:
        Whether a finished run of the same settings and data is there, so that nothing is left to do.

    Raises:
        NertoolError: If another run, or something that isn't nertool's, is there.
    """
    fingerprint = _fingerprint(command, settings, data)
    check_run_folder(run, resume=resume, force=force)
    if force or not run.is_dir():
        remove_own(run)
    elif _is_run(run):
        finished = _may_go_on(run, read_json(run / RUN_FILE, _RunFile), fingerprint)
        _write_manifest(run)  # an older nertool's knows less
        return finished
    run.mkdir(parents=True, exist_ok=True)
    _write_manifest(run)
    write_json(run / SETTINGS_FILE, settings.model_dump(mode="json"))
    write_json(run / RUN_FILE, {"nertool_version": __version__, "finished": False, **fingerprint})
    return False


def is_finished_audit(output: Path, settings: Settings, data: dict[str, str], *, force: bool) -> bool:
    """Says whether a finished audit of the same settings and data is there.

    Args:
        output: The folder.
        settings: The resolved settings.
        data: What was read: name → digest.
        force: Whether an older audit is going to be removed.

    Raises:
        NertoolError: If another audit, or something that isn't nertool's, is there.
    """
    if (output / AUDIT_FILE).is_file() and not force:
        return _may_go_on(output, read_json(output / AUDIT_FILE, _RunFile), _fingerprint("audit", settings, data))
    if force or not _is_begun(output, "audit"):
        check_output(output, force=force)
    return False


def open_audit(output: Path, settings: Settings, data: dict[str, str], *, force: bool) -> None:
    """Makes the folder of an audit, after `is_finished_audit`; one that was begun stays as it is."""
    if force or not output.is_dir():
        remove_own(output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / MANIFEST_NAME, {"command": "audit", "files": _AUDIT_FILES})
    if not (output / AUDIT_FILE).is_file():
        fingerprint = _fingerprint("audit", settings, data)
        write_json(output / AUDIT_FILE, {"nertool_version": __version__, "finished": False, **fingerprint})


def _write_manifest(run: Path) -> None:
    write_json(run / MANIFEST_NAME, {"command": "train", "files": [*_OWN_FILES, *_OWN_TREES]})


def finish_run(run: Path, summary: dict[str, Any]) -> None:
    """Notes that the run is finished, and how it ended."""
    write_json(run / RUN_FILE, {**read_json(run / RUN_FILE, _RunFile), "finished": True, "summary": summary})


def summary_of(run: Path) -> dict[str, Any]:
    """Returns the summary of a finished run."""
    summary: dict[str, Any] = read_json(run / RUN_FILE, _RunFile)["summary"]
    return summary


def _is_run(run: Path) -> bool:
    return (run / RUN_FILE).is_file()


def _is_begun(run: Path, command: str) -> bool:
    """Says whether a kill cut the making of the folder short: there is the manifest, and no run yet."""
    manifest = run / MANIFEST_NAME
    return manifest.is_file() and read_json(manifest).get("command") == command


def _may_go_on(run: Path, known: dict[str, Any], fingerprint: dict[str, Any]) -> bool:
    if (made_by := known.get("command", "train")) != fingerprint["command"]:
        raise NertoolError(f"{run} holds a run of `nertool {made_by}`", "choose another --output")
    different = [
        f"{part}.{key} was {known['settings'].get(part, {}).get(key)!r}, now {value!r}"
        for part, values in fingerprint["settings"].items()
        for key, value in values.items()
        if known["settings"].get(part, {}).get(key) != value
    ]
    different += [
        f"{_WHAT_HAS.get(name, f'the {name} documents have')} changed"
        for name in sorted({*known["data"], *fingerprint["data"]})
        if known["data"].get(name) != fingerprint["data"].get(name)
    ]
    if different:
        raise NertoolError(
            f"can't resume {run}: {'; '.join(different)}", "use the old settings and data, --force, or another output"
        )
    return bool(known["finished"])


def _fingerprint(command: str, settings: Settings, data: dict[str, str]) -> dict[str, Any]:
    return {"command": command, "settings": _settings_that_matter(settings, command), "data": data}


def changed_settings(settings: Settings, command: str) -> dict[str, dict[str, Any]]:
    """Returns the settings that decide on the result of a run and are not the defaults."""
    defaults = _settings_that_matter(Settings(), command)
    changed = {
        part: {key: value for key, value in values.items() if value != defaults[part][key]}
        for part, values in _settings_that_matter(settings, command).items()
    }
    return {part: values for part, values in changed.items() if values}


def _settings_that_matter(settings: Settings, command: str) -> dict[str, dict[str, Any]]:
    values = settings.model_dump(mode="json", include=set(_PARTS[command]))
    free = _FREE_SETTINGS - _NOT_FREE.get(command, set())
    return {
        part: {key: value for key, value in values[part].items() if (part, key) not in free} for part in _PARTS[command]
    }
