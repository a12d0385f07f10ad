"""Puts the commands that write to the test, and writes the table of it: `nox -s reliability`.

    python -m tests.reliability --table docs/reference/reliability.table

Takes about half an hour of one core; `--only "full disk"` and `--command train` choose. Full and read-only disks need
root on Linux, and jumps of the clock need libfaketime; where those are missing, they are left out, and it is said.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.label_studio_server import LabelStudioServer
from tests.reliability.faults import FAULTS, Trial
from tests.reliability.jobs import JOBS, LABEL_STUDIO, llm_stub, make_scene
from tests.reliability.processes import preload
from tests.reliability.table import make_table

CLOCK = "clock jumps"
NEED_ROOT = ("full disk", "output read-only", "input read-only")
LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"  # where Debian puts it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="only this kind of fault")
    names = [job.name for job in (*JOBS, *LABEL_STUDIO)]
    parser.add_argument("--command", action="append", choices=names, help="only this command")
    parser.add_argument("--kills", type=int, default=15, help="kills of each command")
    parser.add_argument("--runs", type=int, default=3, help="runs of each command under each other kind of fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--label-studio", type=Path, metavar="PYTHON", help="of an environment with a server, for ls-sync"
    )
    parser.add_argument("--work", type=Path, help="a folder that keeps what was made and found, to go on with later")
    parser.add_argument("--table", type=Path, help="the file that gets the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reliability-") as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        records = work / "records.jsonl"
        faked = "FAKETIME_TIMESTAMP_FILE" in os.environ
        faults = [fault for fault in arguments.only or FAULTS if (fault == CLOCK) == faked]
        if os.geteuid():
            tell("not root: full and read-only disks are left out")
            faults = [fault for fault in faults if fault not in NEED_ROOT]
        if faults:
            put_to_the_test(faults, arguments, records, work / "scene")
        if CLOCK in (arguments.only or FAULTS) and not faked:
            jump(sys.argv[1:], work)
        lines = [json.loads(line) for line in records.read_text().splitlines()] if records.is_file() else []
        if arguments.table:
            arguments.table.write_text(make_table(lines), encoding="utf-8")
    return int(any(not line["held"] for line in lines))


def tell(line: str) -> None:
    """Tells how far it is."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 (this is a command)


def put_to_the_test(faults: list[str], arguments: argparse.Namespace, records: Path, folder: Path) -> None:
    """Runs the commands under each fault, but for what was done before, and notes what came of it."""
    preload()
    with ExitStack() as stack:
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        environment["NERTOOL_ANNOTATE__API_KEY"] = "none"
        environment["NERTOOL_ANNOTATE__BASE_URL"] = stack.enter_context(llm_stub(folder.with_name("asked.jsonl")))
        scene = make_scene(folder, environment)
        jobs = list(JOBS)
        if arguments.label_studio and CLOCK not in faults:
            places = (folder.with_name(name) for name in ("server", "template"))
            server = stack.enter_context(LabelStudioServer(arguments.label_studio.absolute(), *places))
            environment |= {"NERTOOL_LABEL_STUDIO__URL": server.url, "NERTOOL_LABEL_STUDIO__TOKEN": server.token}
            scene.must(folder, "ls-sync push in/documents --project Corpus")
            jobs += LABEL_STUDIO
        else:
            tell("ls-sync is left out, which needs --label-studio, and no jumping clock")
        names = [job.name for job in jobs]
        trials: dict[str, Trial] = {}
        for fault in faults:
            for job in jobs:
                wanted = job.name in (arguments.command or names) and fault in (job.only or FAULTS)
                if not wanted or (job.name, fault) in done_before(records):
                    continue
                if job.name not in trials:
                    trials[job.name] = Trial(scene, job, arguments.runs, arguments.kills)
                trials[job.name].chance.seed(f"{arguments.seed} {job.name} {fault}")
                begun = time.monotonic()
                results = list(FAULTS[fault](trials[job.name]))
                lines = ({"command": job.name, "fault": fault, **vars(result)} for result in results)
                with records.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                for result in results:
                    if not result.held:
                        tell(f"{job.name}, {fault}: {result.what}: {result.message}\n    {result.detail}")
                tell(f"{job.name}, {fault}: {len(results)} runs in {time.monotonic() - begun:.0f} s")


def done_before(records: Path) -> set[tuple[str, str]]:
    """Returns commands with the faults that they were put under."""
    lines = map(json.loads, records.read_text().splitlines() if records.is_file() else ())
    return {(line["command"], line["fault"]) for line in lines}


def jump(options: list[str], work: Path) -> None:
    """Does the jumps of the clock, in a process that has libfaketime."""
    library = next(Path("/").glob(LIBRARIES.lstrip("/")), None)
    if library is None:
        tell("no libfaketime: jumps of the clock are left out")
        return
    (work / "time").write_text("+0d\n")
    faked = {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(work / "time"), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.reliability", *options, "--only", CLOCK, "--work", str(work)]
    subprocess.run(command, env={**os.environ, **faked}, check=False)


if __name__ == "__main__":
    sys.exit(main())
