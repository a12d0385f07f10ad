"""Everything that checks nertool, in one place: `nox` runs the defaults, `nox -s NAME` one of them.

Sessions without a virtual environment of their own use the one that nox runs in (`pip install -e ".[dev]"`), so that
torch is installed once. Those that need other packages than that one has make their own.
"""

import os
import re
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "types", "imports", "tests", "docs"]
nox.options.error_on_missing_interpreters = True

IN_PLACE = "none"
HERE = sys.executable
ROOT = Path(__file__).parent


@nox.session(venv_backend=IN_PLACE)
def lint(session: nox.Session) -> None:
    """Style (ruff), format (ruff) and spelling (typos)."""
    session.run(HERE, "-m", "ruff", "check", ".")
    session.run(HERE, "-m", "ruff", "format", "--check", ".")
    session.run(script("typos"))


@nox.session(venv_backend=IN_PLACE)
def types(session: nox.Session) -> None:
    """Types: mypy, strict."""
    session.run(HERE, "-m", "mypy")


@nox.session(venv_backend=IN_PLACE)
def imports(session: nox.Session) -> None:
    """Layers: which module may import which (`[tool.importlinter]` in pyproject.toml)."""
    session.run(script("lint-imports"))


@nox.session(venv_backend=IN_PLACE)
def tests(session: nox.Session) -> None:
    """The tests that take seconds; `nox -s tests -- -k name` chooses among them."""
    workers = str(min(4, os.cpu_count() or 1))  # each loads torch, so more would cost more memory than they save time
    session.run(HERE, "-m", "pytest", "-n", workers, *session.posargs)


@nox.session(venv_backend=IN_PLACE)
def slow(session: nox.Session) -> None:
    """The tests that take minutes: whole runs, killed and resumed ones."""
    marked = "slow and not label_studio"  # those have a session of their own
    session.run(HERE, "-m", "pytest", "-m", marked, *session.posargs, success_codes=[0, 5])  # 5: there are none


@nox.session(venv_backend=IN_PLACE)
def docs(session: nox.Session) -> None:
    """The documentation, in docs/_build/html; a warning is an error."""
    session.run(HERE, "-m", "sphinx", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def tests_min(session: nox.Session) -> None:
    """The same tests with the oldest dependencies that pyproject.toml allows, those of extras too (but for torch)."""
    constraints = Path(session.create_tmp()) / "oldest.txt"
    constraints.write_text("\n".join(oldest_dependencies()) + "\n", encoding="utf-8")
    session.install("-e", ".[all]", "--constraint", str(constraints))
    # Not the extra dev: tools and oracles of the tests may want newer ones, which users needn't.
    tools = ("hypothesis", "nervaluate", "networkx", "nox", "psutil", "pytest", "pytest-xdist")
    session.install(*tools, "--constraint", str(constraints))
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def kazu(session: nox.Session) -> None:
    """Compares with KAZU's own code, which gets an environment of its own, as its dependencies differ."""
    session.install("kazu==2.4.0", "tensorboard", "torch<2.14")
    python = Path(session.bin) / "python"
    session.run(HERE, "-m", "pytest", "-m", "kazu", *session.posargs, env={"KAZU_PYTHON": str(python)}, external=True)


@nox.session
def label_studio(session: nox.Session) -> None:
    """ls-sync against a real Label Studio; `-- -m "label_studio and not slow"` leaves out what takes a minute."""
    session.install("label-studio==1.23.2", "playwright")
    python = Path(session.bin) / "python"
    template = Path(session.create_tmp()) / "template"
    env = {"LABEL_STUDIO_PYTHON": str(python), "LABEL_STUDIO_TEMPLATE": str(template)}
    session.run(HERE, "-m", "pytest", "-m", "label_studio", *session.posargs, env=env, external=True)


@nox.session
def reliability(session: nox.Session) -> None:
    """Commands that write, under faults: `-- --table docs/reference/reliability.table`; as root it does more."""
    session.install("label-studio==1.23.2")
    server = ["--label-studio", str(Path(session.bin) / "python")]
    session.run(HERE, "-m", "tests.reliability", *server, *session.posargs, external=True)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged input for every reader, guided by coverage: `-- --inputs 1000 --seconds 60`, `-- PubTator`, `--help`."""
    session.install("--no-deps", "--editable", ".")
    session.install(
        "atheris", "bioc", "defusedxml", "filelock", "json-repair", "numpy", "orjson", "pyarrow", "pydantic-settings",
        "rapidfuzz", "rensa", "rich", "spacy", "typer", "zstandard",
    )  # fmt: skip
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measurements; `-- NAME …` one of them, which tells what it wants, else `steps` and `gpu`.

    `grounding`, `asking`, `steps`, `large_cache`, `ablations`, `audit`, `distilling`, `sizes`, `intervals`, `gpu`,
    `bulk`, `start`.
    """
    if not session.posargs:
        for name in ("steps", "gpu"):
            session.run(HERE, "-m", f"tests.bench.{name}", external=True)
        return
    name, *arguments = session.posargs
    if name == "grounding":
        session.install("kazu==2.4.0", "tensorboard", "torch<2.14")
        arguments += ["--kazu", str(Path(session.bin) / "python")]
    if name == "audit":
        session.install("cleanlab==2.9.0")
        arguments += ["--cleanlab", str(Path(session.bin) / "python")]
    session.run(HERE, "-m", f"tests.bench.{name}", *arguments, external=True)


@nox.session
def bench_kazu(session: nox.Session) -> None:
    """Speed, size and F1 beside KAZU's own code: `-- [TRAIN.PubTator TEST.PubTator] [--json FILE] [--markdown FILE]`.

    `-- serving TEACHER STUDENT TEST.PubTator TEXTS`: exported models beside KAZU's step.
    """
    session.install("kazu==2.4.0", "tensorboard", "torch<2.14")
    kazu = str(Path(session.bin) / "python")
    serving = session.posargs[:1] == ["serving"]
    what, arguments = ("serving", session.posargs[1:]) if serving else ("beside_kazu", session.posargs)
    session.run(HERE, "-m", f"tests.bench.{what}", *arguments, "--kazu", kazu, external=True)


@nox.session
def torch_free(session: nox.Session) -> None:
    """An exported model where there is no torch: `-- FOLDER`, made by `nertool export --format onnx`."""
    if not session.posargs:
        session.error("name an exported model: nox -s torch_free -- packed")
    session.install("--no-deps", ".")
    session.install(
        "filelock", "numpy", "onnxruntime", "orjson", "pydantic-settings", "rich", "tokenizers", "typer", "zstandard"
    )
    for _ in range(3):
        session.run("python", "tests/bench/cold_start.py", *session.posargs)


@nox.session
def known_vulnerabilities(session: nox.Session) -> None:
    """Whether any installed package has a known vulnerability (pip-audit); asks pypi.org, so it needs the network."""
    session.install("pip-audit>=2.7")
    installed = sysconfig.get_path("purelib")
    session.run("pip-audit", "--strict", "--skip-editable", "--path", installed, *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Source archive and wheel: whether the wheel has what it needs, and a demo with it, away from the repository."""
    session.install("build")
    folder = Path(session.create_tmp()) / "dist"
    session.run("python", "-m", "build", "--outdir", str(folder), silent=True)
    wheel = max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ["nertool/py.typed", "nertool/sample_data/README.md", "nertool/annotation_defaults/prompt.txt"]
    wanted += [f"nertool/report_template/page.{ending}" for ending in ("css", "html", "js")]
    wanted += [f"nertool/{path.relative_to(ROOT)}" for path in (ROOT / "sample_data").rglob("*.json")]
    if missing := [name for name in wanted if name not in names]:
        session.error(f"{wheel.name} lacks {', '.join(missing[:5])}")
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        session.error(f"{wheel.name} lacks the licence")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(f"{wheel}[offline]")
    with session.chdir(tempfile.mkdtemp(dir=folder)):
        session.run("nertool", "demo", "demo", env={"PYTHONPATH": None})
        session.run("nertool", "evaluate", "demo/run/model", "demo/split/test", "--json", silent=True)
    session.log(f"{wheel} and {next(folder.glob('*.tar.gz')).name} are fine")


def script(name: str) -> str:
    """Returns the path of a tool's script that is installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def oldest_dependencies() -> list[str]:
    """Returns `name==version` for each dependency with a lower bound that users may install, but for torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (wanted for name, wanted in project["optional-dependencies"].items() if name not in ("dev", "docs"))
    requirements = chain(project["dependencies"], *extras)
    found = (re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement) for requirement in requirements)
    return [f"{one[1]}=={one[2]}" for one in found if one and one[1] != "torch"]
