"""What befalls a command, and whether it held: nothing lost, nothing mixed, and a message where it refuses.

A function for each kind of fault takes a `Trial` and yields a `Result` for each run.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.jobs import PEOPLES, Job, Scene, tree
from tests.reliability.processes import Ended, Hook, pause

_DAMAGES = ("cut in half", "emptied", "a bit flipped")


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Args:
        held: Whether nothing was lost, different or unsaid.
        what: What happened, in a word or two, to be counted.
        message: What it said, with its numbers and folders taken out.
        detail: Where to look if it did not hold.
    """

    held: bool
    what: str
    message: str = ""
    detail: str = ""


@dataclass
class Undisturbed:
    """A run that nothing befell: what it made, how long it took, and how many moments it had."""

    made: dict[str, str]
    stderr: str
    seconds: float
    counts: dict[str, int]


@dataclass
class Trial:
    """A job in a scene, and what chance there is.

    Args:
        scene: What it reads.
        job: The job.
        runs: How many runs each kind of fault gets, about; a job with `few` gets one.
        kills: How many kills; a job with `few` gets three.
    """

    scene: Scene
    job: Job
    runs: int
    kills: int
    chance: random.Random = field(default_factory=random.Random)
    undisturbed: Undisturbed = field(init=False)

    def __post_init__(self) -> None:
        if self.job.few:
            self.runs, self.kills = 1, 3
        folder = self.new()
        ended = self.begin(folder, hook=(hook := Hook(folder)))
        if ended.status:
            raise RuntimeError(f"{self.job.name}: {ended.status}\n{ended.stderr}")
        counts = json.loads(next(folder.glob(".talk-*.counts")).read_text())
        assert hook.counts.keys() == counts.keys()
        self.then(folder)
        self.undisturbed = Undisturbed(tree(folder / "out"), ended.stderr, ended.seconds, counts)

    def new(self) -> Path:
        """Makes the folder of a run."""
        return self.scene.new(self.job)

    def begin(self, folder: Path, *more: str, hook: Hook | None = None) -> "Ended":
        """Runs the command."""
        return self.scene.run(folder, (*self.job.arguments, *more), hook)

    def then(self, folder: Path) -> None:
        """Gets what the command made elsewhere, if it did."""
        if self.job.then:
            self.scene.must(folder, self.job.then)

    def finish(self, folder: Path, *more: str) -> Result:
        """Runs the command again, with nothing befalling it, and compares what it made."""
        before = visible(tree(folder / "out"))
        ended = self.begin(folder, *(more or self.job.go_on))
        if ended.status == 2 and "exists" in ended.message and before == visible(self.undisturbed.made):
            return Result(True, "was done", said(ended))  # all but for the end of the process
        return self.judge(folder, ended)

    def judge(self, folder: Path, ended: Ended) -> Result:
        """Says whether a command made what it makes undisturbed."""
        if ended.status:
            return Result(False, "failed afterwards", said(ended), ended.stderr[-2000:])
        self.then(folder)
        different = differing(self.undisturbed.made, tree(folder / "out"))
        return Result(not different, "other output" if different else "same output", detail=", ".join(different[:8]))

    def moment(self, folder: Path, number: int) -> tuple[Hook | None, float]:
        """Chooses a moment for a signal: a change of the file system, the middle of a write, or a time.

        A signal that Python hears of it hears of between two steps of its own, never in the middle of a write.
        """
        kind = self.chance.choice(["changes", "changes", "time", *(["writes"] if number == signal.SIGKILL else [])])
        if kind == "time" or not self.undisturbed.counts[kind]:
            return None, self.chance.random() * self.undisturbed.seconds
        chosen = self.chance.randrange(self.undisturbed.counts[kind])
        return Hook(folder, kind, chosen, lambda: os.kill(os.getpid(), number)), 0.0


def said(ended: Ended) -> str:
    """Returns what a command said was wrong, with what differs from run to run taken out."""
    message = ended.message or (ended.stderr.strip().splitlines() or [""])[-1]
    message = re.sub(r"\b[0-9a-f]{12,}\b", "…", message)
    message = re.sub(r"\d[\d,.]*", "N", message)
    return message[:300]


def news_in(stderr: str, usual: str) -> list[str]:
    """Returns the lines that a command doesn't usually say."""
    known = set(usual.splitlines())
    return [line for line in stderr.splitlines() if line not in known and "/s" not in line]


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Returns the names of files that are not in both alike."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def killed(trial: Trial) -> Iterator[Result]:
    """`kill -9`, up to three times in a row, then the command to its end; every other time over an older output."""
    left, number = trial.kills, 0
    older = older_output(trial)
    while left > 0:
        number += 1
        folder = trial.new()
        force: tuple[str, ...] = ()
        if older is not None and number % 2:
            shutil.copytree(older, folder / "out", dirs_exist_ok=True)
            force = ("--force",)
        chain = []
        for _ in range(min(left, trial.chance.choice([1, 1, 2, 3]))):
            more = force or (trial.job.go_on if chain else ())
            ended = strike(trial, folder, more, signal.SIGKILL)
            if ended.status != -signal.SIGKILL:
                break
            chain.append(whole_or_not(trial, folder, older))
        if chain:
            left -= len(chain)
            result = trial.finish(folder, *(force or trial.job.go_on))
            bad = [what for what in chain if what]
            for _ in chain[1:]:
                yield Result(not bad, "went on", detail=", ".join(bad))
            what = result.what if result.what == "was done" else "went on"
            yield Result(result.held and not bad, what, result.message, ", ".join([*bad, result.detail]))
        elif ended.status:
            left -= 1
            yield Result(False, "failed", said(ended), ended.stderr[-2000:])


def strike(trial: Trial, folder: Path, more: tuple[str, ...], number: int) -> Ended:
    """Runs the command and sends it a signal at some moment."""
    hook, seconds = trial.moment(folder, number)
    running = trial.scene.start(folder, (*trial.job.arguments, *more), hook)
    if hook is None:
        pause(seconds)
        running.send(number)
    return running.wait()


def killed_for_real(trial: Trial) -> Iterator[Result]:
    """`kill -9` of processes that were started as people start them, at any time of their life."""
    folder = trial.new()
    seconds = trial.scene.start(folder, trial.job.arguments, real=True).wait().seconds
    wanted, tries = (1, 5) if trial.job.few else (2, 8)
    while wanted and tries:
        tries -= 1
        folder = trial.new()
        running = trial.scene.start(folder, trial.job.arguments, real=True)
        # The first half of its life is spent on imports.
        pause(seconds * trial.chance.uniform(0.3, 1.0))
        running.send(signal.SIGKILL)
        if running.wait().status == -signal.SIGKILL:  # else it was faster this time
            wanted -= 1
            bad = whole_or_not(trial, folder, None)
            result = trial.finish(folder)
            yield Result(
                result.held and not bad, "went on", result.message, ", ".join(filter(None, [bad, result.detail]))
            )


def older_output(trial: Trial) -> Path | None:
    """Makes an output of half of the documents, which `--force` replaces; returns its folder."""
    if trial.job.few or trial.job.asks:
        return None
    folder = trial.new()
    for place in [folder / name for name in trial.job.inputs]:
        if place.is_dir() and any(place.glob("doc-*")):
            for path in sorted(place.iterdir())[1::2]:
                path.unlink()
        elif place.suffix == ".jsonl":
            place.write_bytes(b"".join(place.read_bytes().splitlines(keepends=True)[::2]))
    ended = trial.begin(folder)
    if ended.status:
        return None
    kept = folder.parent / f"{folder.name}-older"
    shutil.rmtree(kept, ignore_errors=True)
    (folder / "out").rename(kept)
    return kept


def whole_or_not(trial: Trial, folder: Path, older: Path | None) -> str:
    """Says what is wrong with what others see of the output after a kill: it must be the old one, the new one, none."""
    if trial.job.grows:
        return ""
    found = visible(tree(folder / "out"))
    wholes = [{}, visible(trial.undisturbed.made), *([visible(tree(older))] if older else [])]
    return "" if found in wholes else f"a part is seen: {len(found)} files"


def visible(made: dict[str, str]) -> dict[str, str]:
    """Returns what is not hidden."""
    return {name: content for name, content in made.items() if not name.startswith(".")}


def terminated(trial: Trial) -> Iterator[Result]:
    """SIGTERM at some moment: the exit status is 143, and the same command goes on."""
    for _ in range(trial.runs):
        folder = trial.new()
        ended = strike(trial, folder, (), signal.SIGTERM)
        if ended.status == 0:
            yield trial.judge(folder, ended)
            continue
        result = trial.finish(folder)
        stopped = ended.status in (143, -signal.SIGTERM)  # the latter: before it is ready for it
        yield Result(
            result.held and stopped, f"status {ended.status}", said(ended), result.detail or ended.stderr[-2000:]
        )


def full_disk(trial: Trial) -> Iterator[Result]:
    """A disk (a tmpfs) that is too small; it is made larger then, and the same command must go on."""
    need = sum((len(content) // 8192 + 1) * 4 for content in trial.undisturbed.made.values())  # kB, about
    for number in range(trial.runs):
        folder = trial.new()
        size = max(4, round(need * (number + trial.chance.random()) / trial.runs))
        with mounted(folder / "out", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs"):
            ended = trial.begin(folder)
            if ended.status == 0:
                yield trial.judge(folder, ended)
                continue
            mount("-o", "remount,size=64m", str(folder / "out"))
            result = trial.finish(folder)
            good = ended.status == 2 and re.search(r"no space|disk|quota", ended.message, re.IGNORECASE) is not None
            yield Result(
                result.held and good,
                refusal(ended, "out"),
                said(ended),
                f"{size} kB: {result.detail or ended.stderr[-2000:]}",
            )


def read_only_output(trial: Trial) -> Iterator[Result]:
    """An output folder that can't be written."""
    folder = trial.new()
    with read_only(folder / "out"):
        ended = trial.begin(folder)
        yield Result(
            ended.status == 2 and "out" in ended.message, refusal(ended, "out"), said(ended), ended.stderr[-2000:]
        )


def read_only_input(trial: Trial) -> Iterator[Result]:
    """Inputs that can only be read, which must be enough."""
    folder = trial.new()
    with read_only(folder / "in"):
        yield trial.judge(folder, trial.begin(folder))


def vanished(trial: Trial) -> Iterator[Result]:
    """An input file that vanishes when some input is about to be opened."""
    yield from _meddled(trial, lambda path: path.unlink())


def changed(trial: Trial) -> Iterator[Result]:
    """An input document that gets another text when some input is about to be opened."""
    yield from _meddled(trial, change)


def change(path: Path) -> None:
    """Changes a document, or the last one of a file."""
    if path.suffix == ".txt":
        path.write_text(path.read_text() + " Imatinib again.")
        return
    data = path.read_bytes()
    *before, last = data.splitlines(keepends=True) if path.suffix == ".jsonl" else [data]
    value = json.loads(last)
    for section in value["sections"]:
        section["text"] += " Imatinib again ."
    if section.get("entities"):
        del section["entities"][-1]
    path.write_bytes(b"".join([*before, json.dumps(value).encode()]))


def _meddled(trial: Trial, meddle: Callable[[Path], None]) -> Iterator[Result]:
    for _ in range(trial.runs):
        folder = trial.new()
        files = [
            path
            for name in trial.job.inputs
            for path in ([folder / name] if (folder / name).is_file() else sorted((folder / name).iterdir()))
            if path.name.startswith("doc-")
            or path.name == "all.jsonl"
            or (path.name == "model.safetensors" and meddle is not change)
        ]
        if not files:  # it reads a model only, which nobody changes into another one
            return
        path = trial.chance.choice(files)
        number = trial.chance.randrange(trial.undisturbed.counts["reads"])
        ended = trial.begin(folder, hook=Hook(folder, "reads", number, lambda path=path: meddle(path)))
        if ended.status == 0:
            trial.then(folder)
        made = tree(folder / "out")
        where = f"{path.relative_to(folder)} at read {number}"
        if ended.status == 2:
            shutil.copyfile(trial.scene.folder / path.relative_to(folder), path)
            result = trial.finish(folder)
            yield Result(
                result.held, refusal(ended, path.stem, path.parent.name), said(ended), f"{where}: {result.detail}"
            )
        elif ended.status == 0:
            after = trial.new()
            meddle(after / path.relative_to(folder))
            begun = trial.begin(after)
            if begun.status == 0:
                trial.then(after)
            wholes = [trial.undisturbed.made, *([tree(after / "out")] if begun.status == 0 else [])]
            held = made in wholes
            what = "a mix" if not held else "as before" if made == wholes[0] else "as after"
            yield Result(held, what, "", f"{where}: {differing(made, wholes[-1])[:5]}")
        else:
            yield Result(False, f"status {ended.status}", said(ended), f"{where}: {ended.stderr[-2000:]}")


def damaged(trial: Trial) -> Iterator[Result]:
    """A file that is read, or gone on from, is cut in half, emptied, or has a flipped bit."""
    if not trial.job.damage:
        return
    kept = trial.new()
    if trial.job.begun is not None:
        number = int(trial.undisturbed.counts["changes"] * trial.job.begun)
        ended = trial.begin(kept, hook=Hook(kept, "changes", number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        assert ended.status == -signal.SIGKILL, ended
    template = kept.parent / f"{kept.name}-template"
    shutil.rmtree(template, ignore_errors=True)
    kept.rename(template)
    files = sorted({path for pattern in trial.job.damage for path in template.glob(pattern) if path.is_file()})
    for file in files:
        name = file.relative_to(template)
        for how in _DAMAGES:
            data = bytearray(file.read_bytes())
            if not data:
                continue
            folder = trial.new()
            shutil.rmtree(folder)
            shutil.copytree(template, folder)
            place = trial.chance.randrange(len(data))
            if how == "a bit flipped":
                data[place] ^= 1 << trial.chance.randrange(8)
            else:
                data = data[: len(data) // 2 if how == "cut in half" else 0]
            (folder / name).write_bytes(data)
            more = trial.job.go_on if trial.job.begun is not None else ()
            ended = trial.begin(folder, *more)
            where = f"{name}, {how} at {place}"
            if ended.status == 2:
                names = refusal(ended, name.name, name.parent.name)
                yield Result(names == "refused", names, f"{name.name}: {said(ended)}", where)
            elif ended.status == 0:
                different = [
                    one
                    for one in differing(trial.undisturbed.made, tree(folder / "out"))
                    if f"out/{one}" != name.as_posix()
                ]
                news = " ".join(news_in(ended.stderr, trial.undisturbed.stderr))[:300]
                what = "harmless" if not different else "told" if news else "not noticed"
                if what == "not noticed" and name.name in PEOPLES:
                    what = "taken as it is"
                yield Result(what != "not noticed", what, news if different else "", f"{where}: {different[:5]}")
            else:
                yield Result(False, f"status {ended.status}", said(ended), f"{where}: {ended.stderr[-1500:]}")


def two_at_once(trial: Trial) -> Iterator[Result]:
    """A second one on the same output, begun at some moment of the first one."""
    for _ in range(trial.runs):
        folder = trial.new()
        one = trial.scene.start(folder, trial.job.arguments)
        pause(trial.chance.random() * trial.undisturbed.seconds)
        other = trial.scene.start(folder, (*trial.job.arguments, *trial.job.go_on))
        ends = [one.wait(), other.wait()]
        refused = [ended for ended in ends if ended.status]
        result = trial.judge(folder, Ended(0, "", "", 0.0)) if len(refused) < 2 else trial.finish(folder)
        good = all(ended.status == 2 for ended in refused)
        what = ("both done", refusal(refused[0], "out") if refused else "", "both refused")[len(refused)]
        yield Result(result.held and good, what, "; ".join(map(said, refused)), result.detail)


def clock_jumps(trial: Trial) -> Iterator[Result]:
    """The clock jumps by days, forward and back; this process must run under libfaketime."""
    file = Path(os.environ["FAKETIME_TIMESTAMP_FILE"])
    for number in range(trial.runs):
        folder = trial.new()
        file.write_text("+0d\n")
        running = trial.scene.start(folder, trial.job.arguments)
        pause(trial.chance.random() * trial.undisturbed.seconds * 0.9)
        file.write_text("-400d\n" if number % 2 else "+400d\n")
        yield trial.judge(folder, running.wait())
        file.write_text("+0d\n")


def refusal(ended: Ended, *names: str) -> str:
    """Says in two words how a command refused, and whether its message names the file or its folder."""
    if ended.status != 2:
        return f"status {ended.status}"
    return "refused" if any(name in ended.message for name in names) else "refused, naming no file"


def mount(*arguments: str) -> None:
    """Calls `mount`."""
    subprocess.run(["mount", *arguments], check=True)


class mounted:  # noqa: N801 (used like a function)
    """Mounts something on a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder, self._arguments = folder, arguments

    def __enter__(self) -> None:
        mount(*self._arguments, str(self._folder))

    def __exit__(self, *exception: object) -> None:
        subprocess.run(["umount", str(self._folder)], check=True)


class read_only(mounted):  # noqa: N801
    """Makes a folder one that can only be read, for root too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "--bind", str(folder))

    def __enter__(self) -> None:
        super().__enter__()
        mount("-o", "remount,bind,ro", str(self._folder))


FAULTS: dict[str, Callable[[Trial], Iterator[Result]]] = {
    "killed": killed, "file damaged": damaged, "full disk": full_disk, "output read-only": read_only_output,
    "input read-only": read_only_input, "input vanishes": vanished, "input changes": changed, "terminated": terminated,
    "two at once": two_at_once, "killed, new process": killed_for_real, "clock jumps": clock_jumps,
}  # fmt: skip
