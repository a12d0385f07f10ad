"""`nertool annotate` from end to end: against a real server on the loopback interface, killed, and replayed."""

import asyncio
import io
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
import zstandard

from nertool.commands.annotate import run_annotate
from nertool.document_parsing import parse_document
from nertool.entity_classes import load_classes
from nertool.prompts import make_prompt
from nertool.settings import AnnotateSettings, load_settings
from tests.cli_helpers import in_an_empty_folder, nertool, refuse, start, succeed, wait_for  # noqa: F401
from tests.llm_stub import Stub, completion

SAMPLE = Path(__file__).parents[1] / "sample_data"
KEY = "sk-canary-0123456789abcdef"


class RunningStub:
    """A stub server in a thread of its own."""

    def __init__(self, **options):
        self.stub = Stub(**options)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        def serve():
            asyncio.set_event_loop(self._loop)
            self.url = self._loop.run_until_complete(self.stub.start())
            ready.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        ready.wait(10)

    def close(self):
        async def end():
            self.stub.server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def stub():
    running = []

    def run(**options):
        running.append(RunningStub(**options))
        return running[-1]

    yield run
    for one in running:
        one.close()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    import nertool.llm

    monkeypatch.setattr(nertool.llm, "_FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setenv("NERTOOL_ANNOTATE__API_KEY", KEY)


def write_texts(folder, count):
    folder.mkdir()
    for number in range(count):
        (folder / f"text-{number:04d}.txt").write_text(f"No. {number} took methotrexate, then prednisolone.")
    return folder


def says(text, **choice):
    """Makes the stub answer every request with a text."""
    return lambda body: (200, {}, completion(text, **choice))


def refuses(status, message, **error):
    return lambda body: (status, {}, json.dumps({"error": {"message": message, **error}}).encode())


def ask(stub, source="texts", output="out", *options, run=succeed):
    return run("annotate", source, output, "--llm", "stub", "--base-url", stub.url, *options)


def documents(folder):
    return {
        path.stem: json.loads(path.read_bytes())
        for path in Path(folder).glob("[!.]*.json")
        if path.stem != "reconciliation"
    }


def entities(document):
    return [
        (number, entity["start"], entity["end"], entity["entity_class"])
        for number, section in enumerate(document["sections"])
        for entity in section.get("entities", [])
    ]


def adds_up(result):
    """Checks the reconciliation against itself and against what was written."""
    book = result["reconciliation"]
    ways = ("exact", "folded", "spacing", "plural", "in a word", "fuzzy")
    totals, texts = book["totals"], book["pieces"]
    assert texts["all"] == texts["answered"] + texts["unusable"] + texts["missing"]
    for row in [totals, *book["classes"].values()]:
        lost = sum(row.get(name, 0) for name in ("malformed", "unknown class", "repeated", "not in the text"))
        assert row["mentions"] == lost + sum(row.get(way, 0) for way in ways)
        assert row.get("places", 0) == sum(row.get(name, 0) for name in ("entities", "same place", "left out"))
    for name in ("exact", "folded", "fuzzy", "not in the text", "repeated", "entities", "places"):
        assert totals[name] == sum(row.get(name, 0) for row in book["classes"].values())
    assert totals["entities"] == result["entities"]
    return totals


# The sample


def test_the_sample_documents_are_what_the_recorded_answers_give(tmp_path, request):
    out = tmp_path / "out"
    result = json.loads(
        succeed("annotate", SAMPLE / "texts", out, "--responses", SAMPLE / "responses.jsonl", "--json").stdout
    )
    adds_up(result)
    made = {path.name: path.read_bytes() for path in out.glob("[!.]*.json") if path.name != "reconciliation.json"}
    if request.config.getoption("--update-golden"):
        shutil.rmtree(SAMPLE / "documents")
        (SAMPLE / "documents").mkdir()
        for name, content in made.items():
            (SAMPLE / "documents" / name).write_bytes(content)
    assert made == {path.name: path.read_bytes() for path in (SAMPLE / "documents").iterdir()}
    assert result["entities"] == sum(len(entities(json.loads(content))) for content in made.values())


def test_each_document_carries_its_own_counts_and_they_add_up_to_the_total(tmp_path):
    out = tmp_path / "out"
    result = json.loads(
        succeed("annotate", SAMPLE / "texts", out, "--responses", SAMPLE / "responses.jsonl", "--json").stdout
    )
    sums = dict.fromkeys(result["reconciliation"]["totals"], 0)
    for document in documents(out).values():
        for name, count in document["metadata"]["nertool_annotation"]["counts"].items():
            sums[name] += count
    assert sums == result["reconciliation"]["totals"]


def test_what_is_set_aside_is_in_quarantine_with_its_reason(tmp_path):
    result = json.loads(
        succeed("annotate", SAMPLE / "texts", "out", "--responses", SAMPLE / "responses.jsonl", "--json").stdout
    )
    lines = [json.loads(line) for line in Path("out/quarantine.jsonl").read_bytes().splitlines()]
    assert len(lines) == result["set_aside"] == 6
    refused = [line for line in lines if "response" in line]
    assert {line["reason"] for line in refused} == {"there is no JSON in the answer", "the answer is empty"}
    assert all(line["text"] for line in refused)
    left_out = {(line["document"], tuple(line["sections"])) for line in refused}
    for name, sections in left_out:
        document = documents("out")[name]
        before = json.loads((SAMPLE / "texts" / f"{name}.json").read_bytes())
        assert document["metadata"]["nertool_annotation"]["sections_left_out"] == list(sections)
        assert len(document["sections"]) == len(before["sections"]) - len(sections)


def test_output_as_one_file_holds_the_same(tmp_path):
    command = ["annotate", SAMPLE / "texts"]
    recorded = ["--responses", SAMPLE / "responses.jsonl"]
    succeed(*command, "folder", *recorded)
    succeed(*command, "one.jsonl.gz", *recorded)
    succeed("convert", "one.jsonl.gz", "again")
    assert documents("again") == documents("folder")
    assert Path("one.jsonl.gz.quarantine.jsonl").read_bytes() == Path("folder/quarantine.jsonl").read_bytes()
    assert not list(Path().glob(".*"))
    assert "one.jsonl.gz exists" in refuse(*command, "one.jsonl.gz", *recorded)
    succeed(*command, "one.jsonl.gz", *recorded, "--force")
    succeed(*command, "folder", *recorded, "--force")
    # The side files are no documents.
    assert json.loads(succeed("convert", "folder", "third", "--json").stdout)["read"]["ignored_files"] == []


# Asking


def test_texts_are_asked_for_and_become_documents(stub):
    server = stub()
    write_texts(Path("texts"), 5)
    result = json.loads(ask(server, "texts", "out", "--json").stdout)
    adds_up(result)
    made = documents("out")
    assert sorted(made) == [f"text-{number:04d}" for number in range(5)]
    for document in made.values():
        text = document["sections"][0]["text"]
        assert [text[start:end] for _, start, end, _ in entities(document)] == ["methotrexate", "prednisolone"]
    facts = made["text-0000"]["metadata"]["nertool_annotation"]
    assert facts["models"] == ["stub-llm"]
    assert facts["settings"] == [{"temperature": 0.0, "answer_format": "json_schema"}]
    assert len(facts["prompts"][0]) == 16 and facts["first_answer"] == facts["last_answer"]
    assert result["asked"]["calls"] == 5
    body = json.loads(server.stub.bodies[0])
    assert body["model"] == "stub" and body["temperature"] == 0.0
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["entities"]
    assert "cell type: A kind of cell" in body["messages"][0]["content"]
    assert server.stub.headers[0]["authorization"] == f"bearer {KEY}"


def test_a_notebook_may_ask_too_where_an_event_loop_runs_already(stub):
    server = stub()
    write_texts(Path("texts"), 5)
    settings = load_settings(options={"annotate.model": "stub", "annotate.base_url": server.url})

    async def cell() -> dict[str, object]:
        return run_annotate(Path("texts"), Path("out"), settings)

    result = asyncio.run(cell())
    adds_up(result)
    assert result["documents"] == 5 and len(server.stub.bodies) == 5


def test_a_notebook_that_is_interrupted_keeps_the_answers_in_flight(stub):
    server = stub(latency=0.2)
    write_texts(Path("texts"), 200)
    settings = load_settings(options={"annotate.model": "stub", "annotate.base_url": server.url})

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            run_annotate(Path("texts"), Path("out"), settings)

    def interrupt() -> None:
        while len(server.stub.bodies) < 20:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    loop = asyncio.new_event_loop()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a notebook's kernel
    try:
        loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()
    asked = len(server.stub.bodies)
    assert 20 <= asked < 200
    assert len(Path("out.responses.jsonl").read_bytes().splitlines()) == asked


def test_a_second_run_asks_nothing_and_gives_the_same_bytes(stub):
    server = stub()
    write_texts(Path("texts"), 8)
    ask(server)
    assert "out exists and is not empty" in ask(server, run=refuse)
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    result = json.loads(ask(server, "texts", "out", "--force", "--json").stdout)
    assert result["asked"]["calls"] == 0 and result["asked"]["kept"] == 8
    assert len(server.stub.bodies) == 8
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    # The answers replay without a server, too, and to the same documents.
    succeed("annotate", "texts", "replayed", "--responses", "out.responses.jsonl")
    assert documents("replayed") == documents("out")


def test_only_new_texts_and_changed_settings_are_asked(stub):
    server = stub()
    write_texts(Path("texts"), 4)
    ask(server)
    Path("texts/new.txt").write_text("Another text about methotrexate.")
    assert json.loads(ask(server, "texts", "out", "--force", "--json").stdout)["asked"]["calls"] == 1
    changed = json.loads(ask(server, "texts", "out", "--force", "--json", "--set", "annotate.seed=3").stdout)
    assert changed["asked"]["calls"] == 5
    facts = documents("out")["new"]["metadata"]["nertool_annotation"]
    assert facts["settings"] == [{"temperature": 0.0, "seed": 3, "answer_format": "json_schema"}]


def test_equal_texts_are_asked_once(stub):
    server = stub()
    Path("texts").mkdir()
    for number in range(20):
        Path(f"texts/{number}.txt").write_text("Patients took methotrexate.")
    result = json.loads(ask(server, "texts", "out", "--json").stdout)
    assert result["asked"]["calls"] == 1 == len(server.stub.bodies)
    assert all(len(entities(document)) == 1 for document in documents("out").values())
    succeed("annotate", "texts", "replayed", "--responses", "out.responses.jsonl")
    assert documents("replayed") == documents("out")
    assert json.loads(ask(server, "texts", "out", "--json", "--force").stdout)["asked"]["calls"] == 0


def test_answers_that_cannot_be_used_are_asked_again_only_when_wanted(stub):
    server = stub(responder=says("I can't help with that."))
    write_texts(Path("texts"), 3)
    result = json.loads(ask(server, "texts", "out", "--json").stdout)
    assert result["documents"] == 0 and result["documents_set_aside"] == 3
    assert result["reconciliation"]["pieces"] == {"all": 3, "answered": 0, "cut off": 0, "unusable": 3, "missing": 0}
    server.stub.responder = None
    assert json.loads(ask(server, "texts", "out", "--json", "--force").stdout)["asked"]["calls"] == 0
    again = json.loads(ask(server, "texts", "out", "--json", "--force", "--retry-failed").stdout)
    assert again["asked"]["calls"] == 3 and again["documents"] == 3
    assert len(Path("out.responses.jsonl").read_bytes().splitlines()) == 6  # the first answers are kept, too
    assert json.loads(ask(server, "texts", "out", "--json", "--force", "--retry-failed").stdout)["asked"]["calls"] == 0


def test_sections_are_asked_alone_or_joined_and_long_ones_in_parts(stub):
    server = stub()
    long = " ".join(f"Sentence {number} speaks of methotrexate." for number in range(120))
    sections = [{"name": "a", "text": "One adalimumab."}, {"name": "b", "text": " "}, {"name": "c", "text": long}]
    sections += [{"name": "d", "text": "Two etanercept."}, {"name": "e", "text": "Three tocilizumab."}]
    Path("docs").mkdir()
    Path("docs/x.json").write_text(json.dumps({"idx": "x", "sections": sections}))
    alone = json.loads(ask(server, "docs", "alone", "--json", "--set", "annotate.max_text_tokens=100").stdout)
    adds_up(alone)
    parts = alone["asked"]["calls"] - 3
    assert parts >= len(long) / 400
    join = ["--set", "annotate.max_text_tokens=100", "--set", "annotate.join_sections=true"]
    joined = json.loads(ask(server, "docs", "joined", "--json", *join).stdout)
    assert joined["asked"]["calls"] == parts + 2
    adds_up(joined)
    texts = [json.loads(body)["messages"][0]["content"].rpartition("Text:\n")[2].strip() for body in server.stub.bodies]
    assert "Two etanercept.\n\nThree tocilizumab." in texts
    assert "".join(texts[: alone["asked"]["calls"]]).count("methotrexate") == 120
    one, other = documents("alone")["x"], documents("joined")["x"]
    assert entities(one) == entities(other)
    assert len(entities(one)) == 120 + 3
    succeed("annotate", "docs", "replayed", "--responses", "alone.responses.jsonl")
    assert documents("replayed") == documents("alone")


def test_a_dry_run_tells_what_it_would_take_and_does_nothing(stub):
    server = stub()
    write_texts(Path("texts"), 10)
    prices = ["--set", "annotate.input_price=2", "--set", "annotate.output_price=8"]
    plan = json.loads(succeed("annotate", "texts", "out", "--dry-run", "--json", *prices).stdout)
    assert plan["documents"] == plan["texts"] == plan["calls"] == 10
    assert plan["cost"] == pytest.approx((plan["input_tokens"] * 2 + plan["output_tokens"] * 8) / 1e6, rel=0.01)
    assert not list(Path().glob("out*")) and not server.stub.bodies
    shown = succeed("annotate", "texts", "out", "--dry-run", *prices).stderr
    assert "10 requests" in shown and "about 0.0" in shown
    for name in list(Path("texts").iterdir())[4:]:
        name.rename(Path(name.name))
    ask(server)
    for name in Path().glob("text-*.txt"):
        name.rename(Path("texts") / name.name)
    later = json.loads(succeed("annotate", "texts", "out", "--dry-run", "--json", "--llm", "stub").stdout)
    assert later["calls"] == 6 and later["answers_at_hand"] == 4


@pytest.mark.parametrize("ceiling", ["annotate.max_tokens=6000", "annotate.max_cost=0.006"])
def test_a_ceiling_stops_cleanly_and_is_never_passed(stub, ceiling):
    server = stub()
    write_texts(Path("texts"), 60)
    prices = ["--set", "annotate.input_price=1", "--set", "annotate.output_price=1"]
    message = ask(server, "texts", "out", *prices, "--set", ceiling, "--set", "annotate.concurrency=4", run=refuse)
    name = ceiling.partition("=")[0]
    assert f"{name} = " in message and "would be passed" in message and "--responses out.responses.jsonl" in message
    assert not Path("out").exists()
    answers = [json.loads(line) for line in Path("out.responses.jsonl").read_bytes().splitlines()]
    used = sum(answer["usage"]["input"] + answer["usage"]["output"] for answer in answers)
    assert 3000 < used <= 6000
    result = json.loads(succeed("annotate", "texts", "part", "--responses", "out.responses.jsonl", "--json").stdout)
    assert result["documents"] == len(answers) and result["documents_set_aside"] == 60 - len(answers)
    assert result["reconciliation"]["pieces"]["missing"] == 60 - len(answers)
    adds_up(result)
    assert len(server.stub.bodies) == len(answers)
    ask(server, "texts", "out", *prices)
    assert len(server.stub.bodies) == 60


# Faults


def test_every_fault_of_the_endpoint_is_survived(stub):
    server = stub(faults=0.3, hang_seconds=1.0, latency=0.002)
    write_texts(Path("texts"), 150)
    options = ["--json", "--set", "annotate.timeout_seconds=0.3", "--set", "annotate.concurrency=32"]
    result = json.loads(ask(server, "texts", "out", *options).stdout)
    assert result["documents"] == 150
    adds_up(result)
    assert len(Path("out.responses.jsonl").read_bytes().splitlines()) == 150
    assert set(server.stub.outcomes) == {"answered", *server.stub.kinds}
    assert result["asked"]["retries"] >= server.stub.outcomes.total() - server.stub.outcomes["answered"]


def test_texts_without_an_answer_are_named_and_nothing_is_written(stub):
    def sulky(body):
        if b"No. 3 took" in body:
            return 500, {}, b"no"
        return 200, {}, completion('{"entities": []}')

    server = stub(responder=sulky)
    write_texts(Path("texts"), 6)
    message = ask(server, "texts", "out", "--set", "annotate.retries=1", run=refuse)
    assert "1 text got no answer: text-0003, section 0: status 500: no" in message
    assert "5 answers are kept in out.responses.jsonl" in message
    assert not Path("out").exists()
    assert json.loads(Path("out.failed.jsonl").read_bytes())["document"] == "text-0003"
    server.stub.responder = None
    assert json.loads(ask(server, "texts", "out", "--json").stdout)["asked"]["calls"] == 1
    assert not Path("out.failed.jsonl").exists()


def test_a_server_that_is_down_ends_the_run_with_what_to_do(stub):
    write_texts(Path("texts"), 40)
    message = refuse(
        "annotate", "texts", "out", "--llm", "x", "--base-url", "http://127.0.0.1:9/v1", "--set", "annotate.retries=1"
    )
    assert "the endpoint http://127.0.0.1:9/v1 does not answer" in message and "goes on when it is back" in message


@pytest.mark.parametrize(
    ("responder", "message", "hint"),
    [
        (refuses(401, f"Incorrect API key provided: {KEY}"), "refuses the key", "NERTOOL_ANNOTATE__API_KEY"),
        (refuses(403, "forbidden"), "refuses the key: forbidden", "NERTOOL_ANNOTATE__API_KEY"),
        (refuses(404, "The model `stub` does not exist"), "The model `stub` does not exist", "annotate.model"),
        (refuses(429, "no money", code="insufficient_quota"), "no money", "add credit"),
        (refuses(400, "response_format is not supported"), "response_format", "annotate.answer_format=text"),
        (refuses(400, "unknown parameter: max_completion_tokens"), "unknown parameter", "extra_body"),
        (lambda body: (503, {"Retry-After": "3600"}, b"later"), "asks to wait for 3600 s", "goes on later"),
    ],
)  # fmt: skip
def test_what_no_retry_can_mend_stops_at_once_and_says_what_to_do(stub, responder, message, hint):
    server = stub(responder=responder)
    write_texts(Path("texts"), 50)
    shown = ask(server, "texts", "out", "--set", "annotate.concurrency=2", run=refuse)
    assert message in shown and hint in shown
    assert KEY not in shown
    assert len(server.stub.bodies) <= 2
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("responder", "reason"),
    [
        (refuses(400, "maximum context length is 8192", code="context_length_exceeded"), "maximum context length"),
        (refuses(400, "blocked by the content filter"), "content filter"),
        (refuses(413, "too large"), "status 413"),
        (says("", finish_reason="content_filter"), "content filter stopped"),
        (says(None, message={"content": None, "refusal": "I won't"}), "the model refused: I won't"),
    ],
)  # fmt: skip
def test_a_text_that_the_endpoint_refuses_is_set_aside_and_not_asked_again(stub, responder, reason):
    server = stub(responder=responder)
    write_texts(Path("texts"), 2)
    result = json.loads(ask(server, "texts", "out", "--json").stdout)
    assert result["reconciliation"]["pieces"]["unusable"] == 2
    lines = [json.loads(line) for line in Path("out/quarantine.jsonl").read_bytes().splitlines()]
    assert all(reason in line["reason"] for line in lines)
    ask(server, "texts", "out", "--force")
    assert len(server.stub.bodies) == 2


def test_a_pause_that_the_endpoint_asks_for_holds_for_all_requests(stub):
    times = []

    def busy(body):
        times.append(time.monotonic())
        if len(times) == 1:
            return 429, {"Retry-After": "1"}, b"{}"
        return 200, {}, completion('{"entities": []}')

    server = stub(responder=busy)
    write_texts(Path("texts"), 4)
    ask(server, "texts", "out", "--set", "annotate.concurrency=1")
    assert times[1] - times[0] >= 0.99


def test_requests_per_minute_are_kept(stub):
    server = stub()
    write_texts(Path("texts"), 6)
    begun = time.monotonic()
    ask(server, "texts", "out", "--set", "annotate.requests_per_minute=120")
    assert time.monotonic() - begun >= 1.9  # two at once, then one each half second


def test_tokens_per_minute_are_kept(stub):
    server = stub()
    write_texts(Path("texts"), 3)
    result = json.loads(ask(server, "texts", "out", "--set", "annotate.tokens_per_minute=60000", "--json").stdout)
    assert result["asked"]["seconds"] >= 1.0  # each takes about 940, and a second has 1,000


def test_the_request_is_what_the_settings_say():
    settings = AnnotateSettings(
        model="stub",
        temperature=0.5,
        seed=3,
        max_answer_tokens=70,
        answer_format="json_object",
        extra_body={"top_p": 0.9},
    )
    body = make_prompt(settings, load_classes(None)).body("A text.")
    assert body.pop("messages")[0]["content"].endswith("A text.\n")
    assert body == {
        "model": "stub", "temperature": 0.5, "seed": 3, "max_completion_tokens": 70, "top_p": 0.9,
        "response_format": {"type": "json_object"},
    }  # fmt: skip


def test_nothing_is_guessed_where_all_characters_must_agree(stub):
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("They took metotrexate.")
    server = stub(
        responder=says(json.dumps({"entities": [{"entity_match": "methotrexate", "entity_class": ["drug"]}]}))
    )
    for similarity, found in (("0.9", 1), ("1", 0)):
        result = ask(server, "texts", f"out-{found}", "--set", f"annotate.fuzzy_similarity={similarity}", "--json")
        assert json.loads(result.stdout)["entities"] == found


def test_offsets_stay_right_behind_characters_that_fold_to_several():
    Path("texts").mkdir()
    text = "İİİ straße ﬁbrosis: İL-2, β‑catenin and METHOTREXATE in café"
    Path("texts/t.txt").write_text(text, encoding="utf-8")
    mentions = {"methotrexate": "drug", "beta-catenin": "gene", "fibrosis": "disease", "café": "place", "IL-2": "gene"}
    answer = {"document": "t", "section": 0, "response": json.dumps(mentions)}
    Path("a.jsonl").write_text(json.dumps(answer))
    succeed("annotate", "texts", "out", "--responses", "a.jsonl")
    found = [text[start:end] for _, start, end, _ in entities(documents("out")["t"])]
    assert found == ["ﬁbrosis", "İL-2", "β‑catenin", "METHOTREXATE", "café"]


# Killed


def text_of_line(line):
    return Path(f"texts/{json.loads(line)['document']}.txt").read_text()


@pytest.mark.parametrize(
    ("texts", "kills"), [(100, 2), pytest.param(1000, 10, marks=pytest.mark.slow)], ids=["few", "a thousand"]
)
def test_killed_at_random_moments_no_answer_is_asked_twice(tmp_path, texts, kills):
    write_texts(Path("texts"), texts)
    log = tmp_path / "asked.jsonl"
    arguments = ["--latency", "0.02", "--faults", "0.3", "--hang-seconds", "1", "--log", log]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.llm_stub", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    try:
        url = server.stdout.readline().strip()
        command = ["annotate", "texts", "out", "--llm", "stub", "--base-url", url]
        command += ["--set", "annotate.timeout_seconds=0.5", "--set", "annotate.concurrency=8"]
        rng = random.Random(5)
        recorded = Path("out.responses.jsonl")
        kept: set[str] = set()
        asked_later: list[str] = []
        lines_before = 0
        for _ in range(kills):
            goal = len(kept) + rng.randrange(1, texts // kills)
            process = start(*command)
            wait_for(lambda goal=goal: recorded.exists() and recorded.read_bytes().count(b"\n") >= goal, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            asked = [json.loads(line)["text"] for line in log.read_text().splitlines()]
            asked_later += [text for text in asked[lines_before:] if text in kept]
            lines_before = len(asked)
            whole = recorded.read_bytes().splitlines(keepends=True)
            kept = {text_of_line(line) for line in whole if line.endswith(b"\n")}
        final = start(*command, "--json")
        stdout, stderr = final.communicate(timeout=300)
        assert final.returncode == 0, stderr
        asked = [json.loads(line)["text"] for line in log.read_text().splitlines()]
        asked_later += [text for text in asked[lines_before:] if text in kept]
        assert asked_later == []
        result = json.loads(stdout)
        assert result["documents"] == texts
        adds_up(result)
        answers = [json.loads(line) for line in recorded.read_bytes().splitlines()]
        assert len(answers) == len({answer["key"] for answer in answers}) == texts
        succeed("annotate", "texts", "replayed", "--responses", recorded)
        assert documents("replayed") == documents("out")
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_says_what_is_kept_and_goes_on(stub, number, status):
    server = stub(latency=0.05)
    write_texts(Path("texts"), 200)
    command = ["annotate", "texts", "out", "--llm", "stub", "--base-url", server.url, "--set", "annotate.concurrency=4"]
    process = start(*command)
    recorded = Path("out.responses.jsonl")
    wait_for(lambda: recorded.exists() and recorded.read_bytes().count(b"\n") >= 10, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == status and stdout == ""
    kept = len(recorded.read_bytes().splitlines())
    assert f"{kept} answers are kept in out.responses.jsonl" in stderr and "Traceback" not in stderr
    result = json.loads(succeed(*command, "--json").stdout)
    assert result["asked"]["calls"] == 200 - kept


def test_an_answer_that_a_kill_left_half_written_is_asked_again(stub):
    server = stub()
    write_texts(Path("texts"), 3)
    ask(server)
    recorded = Path("out.responses.jsonl")
    recorded.write_bytes(recorded.read_bytes()[:-40])
    assert json.loads(ask(server, "texts", "out", "--force", "--json").stdout)["asked"]["calls"] == 1
    assert len([json.loads(line) for line in recorded.read_bytes().splitlines()]) == 3


def test_two_runs_at_once_on_the_same_answers_are_refused(stub):
    server = stub(latency=0.5)
    write_texts(Path("texts"), 20)
    process = start(
        "annotate", "texts", "out", "--llm", "stub", "--base-url", server.url, "--set", "annotate.concurrency=1"
    )
    wait_for(lambda: Path("out.responses.jsonl").exists() and server.stub.bodies, process)
    assert "another nertool is working on out.responses.jsonl" in ask(server, run=refuse)
    process.kill()
    process.communicate()
    server.stub.latency = 0
    ask(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_loses_no_answer_that_is_there(stub, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("can't mount a small file system here")
    try:
        server = stub()
        write_texts(Path("texts"), 60)
        message = ask(server, "texts", small / "out", run=refuse)
        assert "No space left on device" in message
        kept = [json.loads(line) for line in (small / "out.responses.jsonl").read_bytes().splitlines()[:-1]]
        assert kept
        subprocess.run(["mount", "-o", "remount,size=2m", small], check=True)
        result = json.loads(ask(server, "texts", small / "out", "--json").stdout)
        assert result["documents"] == 60 and result["asked"]["kept"] >= len(kept)
    finally:
        subprocess.run(["umount", small], check=False)


# Rate limits, refusals, interruptions


def test_a_server_that_is_honest_about_its_limit_gets_all_done(stub):
    tokens, last, refused = [8.0], [time.monotonic()], []

    def bucket(body):
        now = time.monotonic()
        tokens[0], last[0] = min(8.0, tokens[0] + (now - last[0]) * 20), now
        if tokens[0] < 1:
            refused.append(now)
            return 429, {"retry-after-ms": "50"}, b"{}"
        tokens[0] -= 1
        return 200, {}, completion('{"entities": []}')

    server = stub(responder=bucket)
    write_texts(Path("texts"), 40)
    result = json.loads(ask(server, "texts", "out", "--json", "--set", "annotate.retries=0").stdout)
    assert result["documents"] == 40 and refused


def test_a_refusal_among_answers_is_the_texts_own(stub):
    def picky(body):
        return refuses(403, "request blocked")(body) if b"No. 3 took" in body else (200, {}, completion("[]"))

    server = stub(responder=picky)
    write_texts(Path("texts"), 30)
    result = json.loads(ask(server, "texts", "out", "--json", "--set", "annotate.concurrency=2").stdout)
    assert result["reconciliation"]["pieces"]["unusable"] == 1 and result["documents"] == 29
    ask(server, "texts", "out", "--force")
    assert len(server.stub.bodies) == 30


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_refusal_holds_for_all_equal_texts_and_replays(stub, concurrency):
    def picky(body):
        return refuses(403, "request blocked")(body) if b"blocked text" in body else (200, {}, completion("[]"))

    server = stub(responder=picky, latency=0.02)
    Path("texts").mkdir()
    for number in range(12):
        text = f"Number {number}." if number in (0, 11) else "A blocked text."
        Path(f"texts/{number:02d}.txt").write_text(text)
    result = json.loads(ask(server, "texts", "out", "--json", "--set", f"annotate.concurrency={concurrency}").stdout)
    assert result["reconciliation"]["pieces"]["unusable"] == 10 and len(server.stub.bodies) == 3
    again = json.loads(succeed("annotate", "texts", "re", "--responses", "out.responses.jsonl", "--json").stdout)
    assert again["reconciliation"] == result["reconciliation"]


@pytest.mark.parametrize("status", [400, 402, 403, 404])
def test_refusals_that_do_not_end_are_not_taken_for_the_texts_own(stub, status):
    answered = []

    def empty_account(body):
        if len(answered) < 5:
            answered.append(body)
            return 200, {}, completion("[]")
        return refuses(status, "balance too low")(body)

    server = stub(responder=empty_account)
    write_texts(Path("texts"), 60)
    message = ask(server, "texts", "out", "--set", "annotate.concurrency=2", run=refuse)
    assert "balance too low" in message
    assert len(Path("out.responses.jsonl").read_bytes().splitlines()) == 5
    server.stub.responder = says("[]")
    assert json.loads(ask(server, "texts", "out", "--json").stdout)["asked"]["calls"] == 55


def test_what_is_in_flight_when_the_run_has_to_end_is_kept(stub):
    seen = []

    def key_expires(body):
        seen.append(body)
        return refuses(401, "expired")(body) if len(seen) == 20 else (200, {}, completion("[]"))

    server = stub(responder=key_expires, latency=0.05)
    write_texts(Path("texts"), 100)
    ask(server, "texts", "out", "--set", "annotate.concurrency=8", run=refuse)
    assert len(Path("out.responses.jsonl").read_bytes().splitlines()) == len(server.stub.bodies) - 1


def test_equal_texts_are_asked_again_once_and_the_answers_replay(stub):
    server = stub(responder=says("sorry"))
    Path("texts").mkdir()
    for number in range(10):
        Path(f"texts/{number}.txt").write_text("Patients took methotrexate.")
    ask(server)
    server.stub.responder = None
    again = json.loads(ask(server, "texts", "out", "--json", "--force", "--retry-failed").stdout)
    assert again["asked"]["calls"] == 1 and again["documents"] == 10
    succeed("annotate", "texts", "replayed", "--responses", "out.responses.jsonl")
    assert documents("replayed") == documents("out")


def test_the_file_replays_to_what_the_last_run_wrote(stub):
    answers = iter(["drug", "chemical", "method"])

    server = stub()
    write_texts(Path("texts"), 1)
    for options in ([], ["--set", "annotate.seed=3"], []):
        server.stub.responder = says(json.dumps({"methotrexate": next(answers)}))
        ask(server, "texts", "out", "--force", *options)
    assert [label for *_, label in entities(documents("out")["text-0000"])] == ["drug"]
    succeed("annotate", "texts", "replayed", "--responses", "out.responses.jsonl")
    assert documents("replayed") == documents("out")


def test_parts_that_do_not_make_up_a_section_leave_the_answer_about_the_whole():
    write_texts(Path("texts"), 1)
    whole = {"document": "text-0000", "section": 0, "response": '{"methotrexate": "drug"}'}
    part = {**whole, "start": 0, "end": 20, "response": "[]"}
    Path("a.jsonl").write_text(f"{json.dumps(whole)}\n{json.dumps(part)}\n")
    succeed("annotate", "texts", "out", "--responses", "a.jsonl")
    assert len(entities(documents("out")["text-0000"])) == 1


def test_a_cut_off_answer_is_marked_and_asked_again_when_wanted(stub):
    server = stub(responder=says('{"entities": []}', finish_reason="length"))
    write_texts(Path("texts"), 2)
    result = json.loads(ask(server, "texts", "out", "--json").stdout)
    assert result["reconciliation"]["pieces"]["cut off"] == 2
    assert documents("out")["text-0000"]["metadata"]["nertool_annotation"]["sections_cut_off"] == [0]
    server.stub.responder = None
    again = json.loads(ask(server, "texts", "out", "--json", "--force", "--retry-failed").stdout)
    assert again["asked"]["calls"] == 2 and again["reconciliation"]["pieces"]["cut off"] == 0


def test_counts_are_there_for_documents_that_are_not_written_too():
    write_texts(Path("texts"), 2)
    lines = [{"document": "text-0000", "section": 0, "response": '{"methotrexate": "drug", "x": "colour"}'}]
    Path("a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = json.loads(succeed("annotate", "texts", "out", "--responses", "a.jsonl", "--json").stdout)
    rows = [json.loads(line) for line in Path("out/reconciliation.jsonl").read_bytes().splitlines()]
    assert [(row["document"], row["written"]) for row in rows] == [("text-0000", True), ("text-0001", False)]
    assert rows[1]["pieces"] == {"all": 1, "missing": 1}
    for name, total in result["reconciliation"]["totals"].items():
        assert sum(row["counts"].get(name, 0) for row in rows) == total
    assert json.loads(Path("out/reconciliation.json").read_bytes())["settings"]["fuzzy_similarity"] == 0.9


def test_paid_refusals_count_for_the_ceiling_and_are_kept(stub):
    server = stub(responder=says("half an ans", finish_reason="content_filter"))
    write_texts(Path("texts"), 30)
    ask(server, "texts", "out", "--set", "annotate.max_tokens=9000", "--set", "annotate.concurrency=1", run=refuse)
    lines = [json.loads(line) for line in Path("out.responses.jsonl").read_bytes().splitlines()]
    assert 5 <= len(lines) < 10
    assert all(line["usage"]["input"] == 900 and line["response"] == "half an ans" for line in lines)


def test_a_server_that_drips_is_not_waited_for_for_ever(stub):
    server = stub(latency=3.0)
    write_texts(Path("texts"), 1)
    message = ask(
        server, "texts", "out", "--set", "annotate.timeout_seconds=0.2", "--set", "annotate.retries=1", run=refuse
    )
    assert "no answer within 0.2 s" in message


def test_odd_usage_is_no_reason_to_lose_an_answer(stub):
    body = json.loads(completion("[]"))
    server = stub(responder=lambda _: (200, {}, json.dumps(body | {"usage": {"prompt_tokens": "9", "x": []}}).encode()))
    write_texts(Path("texts"), 2)
    ask(server)
    assert len(server.stub.bodies) == 2


def test_texts_that_come_while_asking_are_asked_for_the_next_time(stub):
    def add(body):
        Path("texts/zzz.txt").write_text("A late text about methotrexate.")
        return 200, {}, completion("[]")

    server = stub(responder=add, latency=0.05)
    write_texts(Path("texts"), 3)
    result = nertool("annotate", "texts", "out", "--llm", "stub", "--base-url", server.url)
    assert result.exit_code == 0 or "the same command asks for what is new" in result.stderr
    ask(server, "texts", "out", "--force")
    assert len(documents("out")) == 4


def test_a_hang_up_ends_like_other_signals(stub):
    server = stub(latency=0.05)
    write_texts(Path("texts"), 200)
    command = ["annotate", "texts", "out", "--llm", "stub", "--base-url", server.url, "--set", "annotate.concurrency=4"]
    process = start(*command)
    recorded = Path("out.responses.jsonl")
    wait_for(lambda: recorded.exists() and recorded.read_bytes().count(b"\n") >= 10, process)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 129 and "answers are kept" in stderr
    assert len(recorded.read_bytes().splitlines()) == len(server.stub.bodies)


def test_a_lost_terminal_ends_no_work(stub):
    server = stub(latency=0.01)
    write_texts(Path("texts"), 20)
    process = start("annotate", "texts", "out", "--llm", "stub", "--base-url", server.url)
    process.stderr.close()
    assert process.wait(60) == 0
    process.stdout.close()
    assert len(documents("out")) == 20


def test_on_a_terminal_there_is_a_bar_and_it_ends(stub):
    server = stub(latency=0.1)
    write_texts(Path("texts"), 60)
    ours, theirs = pty.openpty()
    command = ["annotate", "texts", "out", "--llm", "stub", "--base-url", server.url, "--set", "annotate.concurrency=4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nertool", *command],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm-256color"}, close_fds=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how a terminal without a program ends
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.wait(30) == 0
    assert b"asking" in shown and "━".encode() in shown and b"60 documents with" in shown
    assert len(documents("out")) == 60


# Secrets


def test_the_key_appears_nowhere(stub, monkeypatch):
    seen = []

    def run(*args, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        Path("out.responses.jsonl").unlink(missing_ok=True)
        result = nertool(*args)
        seen.append((args, result.output + result.stderr + repr(result.exception)))

    def asked(url_of, *args, **environment):
        run(*command, "--base-url", url_of.url, *args, **environment)
        assert url_of.stub.bodies, args

    echo = json.dumps({"error": {"message": f"key {KEY} and {KEY[:-1]}", "code": KEY}}).encode()
    write_texts(Path("texts"), 3)
    command = ["annotate", "texts", "out", "--llm", "stub", "--force", "--set", "annotate.retries=1", "--json"]
    for status in (400, 401, 402, 403, 404, 413, 429, 500, 503):
        asked(stub(responder=lambda body, status=status: (status, {}, echo)))
    for kind in ("dropped", "truncated", "malformed", "wrong type", "time-out"):
        asked(stub(faults=1.0, kinds=(kind,), hang_seconds=0.5), "--set", "annotate.timeout_seconds=0.2")
    padding = b" " * 60
    for responder in (
        says(f"my key is {KEY}"),
        lambda body: (200, {}, b"[" + padding + KEY.encode() + b"]"),
        says(None, message={"content": None, "refusal": f"not with {KEY}"}),
        lambda body: (200, {}, completion("[]").replace(b"stub-llm", KEY.encode())),
    ):
        asked(stub(responder=responder))
    run(*command, "--base-url", "http://127.0.0.1:9/v1")
    run(*command, "--base-url", f"not a url {KEY[:4]}")
    run(*command, "--base-url", f"http://user:{KEY}@127.0.0.1:9/v1?key={KEY}")
    run(*command, "--dry-run")
    run(*command, "--set", f"annotate.api_key={KEY}", "--set", "annotate.concurrency=0")
    run(*command, "--set", f"annotate.api_keys={KEY}")
    run(*command, "--set", f"annotate.api_key:{KEY}")
    run(*command, "--set", f"annotat.api_key={KEY}")
    server = stub(responder=refuses(401, f"key {KEY}"))
    asked(server, NERTOOL_ANNOTATE__API_KEY=f"{KEY}\n")
    assert server.stub.headers[0]["authorization"] == f"bearer {KEY}"
    run(*command, "--base-url", server.url, NERTOOL_ANNOTATE__API_KEY=f"{KEY}é")
    run(*command, "--base-url", server.url, NERTOOL_ANNOTATE__API_KEY=f"{KEY}\n{KEY}")
    Path("nertool.toml").write_text(f'[annotate]\napi_key = ["{KEY}"]\n')
    monkeypatch.delenv("NERTOOL_ANNOTATE__API_KEY")
    run(*command)
    Path("nertool.toml").unlink()
    number = "987654321987654321"  # a number to TOML
    asked(stub(responder=refuses(401, f"key {number}")), NERTOOL_ANNOTATE__API_KEY=number)
    for args, output in seen:
        assert KEY not in output and number not in output, args
    for path in Path().rglob("*"):
        if path.is_file() and path.parent.name != "texts":
            assert KEY.encode() not in path.read_bytes(), path


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no LLM is named"),
        (["--responses", "missing.jsonl"], "cannot open the answers missing.jsonl"),
        (["--responses", "bad.jsonl"], "bad.jsonl:2: not a recorded answer"),
        (["--responses", "lacking.jsonl"], "lacking.jsonl:1: not a recorded answer: lacks 'response'"),
        (["--responses", "strange.jsonl"], "no answer in strange.jsonl is about a text in texts"),
        (["--responses", "strange.jsonl", "--dry-run"], "--responses asks nobody, so --dry-run makes no sense"),
        (["--responses", "strange.jsonl", "--retry-failed"], "--responses asks nobody"),
        (["--classes", "none.toml", "--dry-run"], "cannot read the classes none.toml"),
        (["--set", "annotate.prompt=prompt.txt", "--dry-run"], "prompt.txt: the prompt lacks $text"),
        (["--set", "annotate.prompt=none.txt", "--dry-run"], "cannot read the prompt none.txt"),
        (["--set", "annotate.max_cost=1", "--dry-run"], "annotate.max_cost needs annotate.input_price"),
        (["--responses", "usage.jsonl"], "usage.jsonl:1: not a recorded answer"),
        (["--responses", "start.jsonl"], "start.jsonl:1: not a recorded answer"),
        (["--responses", "number.jsonl"], "number.jsonl:1: not a recorded answer"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_message(options, message):
    write_texts(Path("texts"), 2)
    good = {"document": "text-0000", "section": 0, "response": "[]"}
    Path("bad.jsonl").write_text(f"{json.dumps(good)}\n{{broken\n{json.dumps(good)}\n")
    Path("lacking.jsonl").write_text('{"document": "text-0000", "section": 0}\n')
    Path("strange.jsonl").write_text(json.dumps(good | {"document": "other"}) + "\n")
    for name, line in (("usage", good | {"usage": None}), ("start", good | {"start": "x"}), ("number", 5)):
        Path(f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    Path("prompt.txt").write_text("Annotate!")
    assert message in refuse("annotate", "texts", "out", *options)
    assert not Path("out").exists()


def test_without_the_extra_the_command_says_which_one_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "nertool.llm", raising=False)
    monkeypatch.delitem(sys.modules, "nertool.asking", raising=False)
    write_texts(Path("texts"), 1)
    message = refuse("annotate", "texts", "out", "--llm", "x")
    assert 'pip install "nertool[llm]"' in message


def test_odd_recorded_answers_do_no_harm():
    write_texts(Path("texts"), 1)
    good = {"document": "text-0000", "section": 0, "response": '{"methotrexate": "drug"}'}
    odd = {"document": "text-0000", "sections": [7, 0], "response": "[]"}
    Path("a.jsonl").write_text(f"{json.dumps(odd)}\n{json.dumps(good)}\n{json.dumps(good)[:-30]}")  # cut by a kill
    succeed("annotate", "texts", "out", "--responses", "a.jsonl")
    assert len(entities(documents("out")["text-0000"])) == 1


def test_an_answer_recorded_for_another_text_is_not_used():
    write_texts(Path("texts"), 2)
    lines = [
        {"document": "text-0000", "section": 0, "text": "0" * 16, "response": '{"methotrexate": "drug"}'},
        {"document": "text-0001", "section": 0, "response": '{"methotrexate": "drug"}'},
        {"document": "text-0001", "section": 7, "response": '{"methotrexate": "drug"}'},
    ]
    Path("answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = json.loads(succeed("annotate", "texts", "out", "--responses", "answers.jsonl", "--json").stdout)
    assert list(documents("out")) == ["text-0001"] and result["reconciliation"]["pieces"]["missing"] == 1


def test_the_latest_usable_answer_counts():
    write_texts(Path("texts"), 1)
    answers = ["I can't", '{"methotrexate": "drug"}', '{"methotrexate": "chemical"}', "no", '{"methotrexate": "gene']
    lines = [{"document": "text-0000", "section": 0, "response": answer} for answer in answers]
    Path("answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    succeed("annotate", "texts", "out", "--responses", "answers.jsonl")
    assert [label for *_, label in entities(documents("out")["text-0000"])] == ["chemical"]


def test_what_the_documents_had_before_is_replaced_and_everything_else_kept():
    section = {
        "name": "s", "text": "Give methotrexate.", "metadata": {"a": 1}, "sentence_spans": [{"start": 0, "end": 18}],
        "entities": [{"match": "Give", "entity_class": "x", "spans": [{"start": 0, "end": 4}], "namespace": "n"}],
    }  # fmt: skip
    Path("docs").mkdir()
    Path("docs/d.json").write_bytes(orjson.dumps({"idx": "d", "sections": [section], "metadata": {"b": 2}}))
    Path("a.jsonl").write_bytes(orjson.dumps({"document": "d", "section": 0, "response": '{"methotrexate": "drug"}'}))
    succeed("annotate", "docs", "out", "--responses", "a.jsonl")
    document = documents("out")["d"]
    assert entities(document) == [(0, 5, 17, "drug")]
    assert document["metadata"]["b"] == 2 and document["sections"][0]["metadata"] == {"a": 1}
    assert document["sections"][0]["sentence_spans"] == section["sentence_spans"]
    assert document["sections"][0]["entities"][0]["metadata"] == {"found": "exact"}
    assert parse_document(orjson.dumps(document)).document.id == "d"


def test_shards_together_are_the_whole():
    recorded = ["--responses", SAMPLE / "responses.jsonl"]
    succeed("annotate", SAMPLE / "texts", "whole.jsonl", *recorded)
    for number in (1, 2, 3):
        result = succeed("annotate", SAMPLE / "texts", "parts", *recorded, "--shard", f"{number}/3", "--json")
        assert json.loads(result.stdout)["documents_set_aside"] == 0
    lines = [
        line
        for part in Path("parts").glob("part-*.zst")
        for line in zstandard.open(io.BytesIO(part.read_bytes())).read().splitlines()
    ]
    assert sorted(lines) == sorted(Path("whole.jsonl").read_bytes().splitlines())
    assert "parts: 3 there, 2 now" in refuse("annotate", SAMPLE / "texts", "parts", *recorded, "--shard", "1/2")
    texts = shutil.copytree(SAMPLE / "texts", Path("texts"))
    (texts / "a.txt").write_text("Each document after it would be in another part.")
    assert "made otherwise (files: " in refuse("annotate", texts, "parts", *recorded, "--shard", "1/3")
