"""`nertool doctor`: what it says of a machine that is whole, and of each thing that can be wrong."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nertool import health
from nertool.console import size
from tests.cli_helpers import in_an_empty_folder, nertool  # noqa: F401

SECRET = "canary-8817"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but this machine is asked."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NERTOOL_MODEL__NAME", "minilm")


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, object]], str]]:
    """Starts a server that answers some paths with JSON, and everything else with 404."""
    servers = []

    def start(answers: dict[str, object]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.split("?")[0].strip("/")
                asked.append((self.command, path, self.headers.get("Authorization")))
                body = json.dumps(answers.get(path, {})).encode()
                self.send_response(200 if path in answers else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    asked.clear()
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


asked: list[tuple[str, str, str | None]] = []


def doctor(*args: str, status: int = 0) -> dict[str, dict[str, str]]:
    result = nertool("doctor", "--json", *args)
    assert result.exit_code == status, result.output
    report = json.loads(result.stdout)
    findings = report["findings"]
    assert report["problems"] == sum(finding["state"] == "problem" for finding in findings)
    assert SECRET not in result.output
    return {finding["subject"]: finding for finding in findings}


def test_a_machine_without_servers_is_fine_and_what_is_there_is_said() -> None:
    import torch

    found = doctor()
    assert found["torch"]["text"] == torch.__version__
    assert found["Python"]["text"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert "cores usable" in found["CPU"]["text"] and "GB" in found["memory"]["text"]
    assert "torch" in found["engines"]["text"]
    assert found["hub"]["state"] == "note" and "refused" in found["hub"]["text"]
    assert found["Label Studio"]["state"] == found["LLM"]["state"] == "note"
    assert str(Path.cwd()) in found["working folder"]["text"]
    assert list(Path().iterdir()) == []


def test_servers_that_answer_are_fine_and_the_llm_is_not_sent_the_key(
    serve: Callable[[dict[str, object]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = {"id": 1, "first_name": "A", "last_name": "B", "username": "a", "email": "a@b.c"}
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", SECRET)
    monkeypatch.setenv(
        "NERTOOL_LABEL_STUDIO__URL", serve({"api/current-user/whoami": user, "api/version": {"release": "1.23.2"}})
    )
    monkeypatch.setenv("NERTOOL_ANNOTATE__API_KEY", SECRET)
    monkeypatch.setenv("NERTOOL_ANNOTATE__BASE_URL", f"{serve({})}/v1")
    monkeypatch.setenv("HF_ENDPOINT", serve({}))
    found = doctor()
    assert found["Label Studio"]["state"] == "ok" and "version 1.23.2" in found["Label Studio"]["text"]
    assert found["LLM"]["state"] == found["hub"]["state"] == "ok"
    assert ("HEAD", "v1", None) in asked
    assert {key for _, path, key in asked if key} == {f"Token {SECRET}"}
    assert {path for _, path, key in asked if key} == {"api/current-user/whoami", "api/version"}


def test_servers_that_are_set_and_do_not_answer_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", SECRET)
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NERTOOL_ANNOTATE__BASE_URL", "http://127.0.0.1:9/v1")
    found = doctor(status=2)
    for subject in ("Label Studio", "LLM"):
        assert found[subject]["state"] == "problem" and "127.0.0.1:9" in found[subject]["text"]


def test_a_refused_token_is_a_problem(
    serve: Callable[[dict[str, object]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", SECRET)
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", serve({}))
    assert doctor(status=2)["Label Studio"]["state"] == "problem"


def test_silent_servers_and_names_that_nobody_resolves_cost_no_more_than_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch  # noqa: F401 (what it takes is not what is measured)

    monkeypatch.setattr(health, "_LONGEST_WAIT_SECONDS", 0.5)
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **x: time.sleep(20) or resolve(host, *more, **x))
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("NERTOOL_ANNOTATE__BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
        begun = time.monotonic()
        found = doctor(status=2)
        assert time.monotonic() - begun < 10
    assert "no answer within 0.5 s" in found["LLM"]["text"]
    assert "no answer within 0.5 s" in found["hub"]["text"] and found["hub"]["state"] == "note"


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reason = health._unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert reason is not None and "timed out" in reason


@pytest.mark.parametrize("offline", [True, False])
def test_a_backbone_that_can_not_be_had_is_a_problem(
    offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NERTOOL_MODEL__NAME", "someone/backbone")
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = doctor(status=2)["hub"]
    assert finding["state"] == "problem" and "someone/backbone is not on this machine" in finding["text"]
    assert ("HF_HUB_OFFLINE is set" in finding["text"]) == offline
    cached = tmp_path / "hub/models--someone--backbone/snapshots/0a1b"
    cached.mkdir(parents=True)
    (cached / "config.json").touch()
    assert doctor()["hub"]["state"] == ("ok" if offline else "note")


def test_wrong_settings_are_a_problem_and_the_rest_is_still_looked_at() -> None:
    found = doctor("--set", "train.epoch=3", status=2)
    assert "did you mean 'train.epochs'" in found["settings"]["text"]
    assert found["engines"]["state"] == "ok"


def test_a_token_in_a_file_that_others_may_read_is_a_problem() -> None:
    file = Path("nertool.toml")
    file.write_text(f'[label_studio]\nurl = "http://127.0.0.1:9"\n[annotate]\napi_key = "{SECRET}"\n')
    file.chmod(0o644)
    assert "chmod 600" in doctor("--set", "annotate.base_url=http://127.0.0.1:9", status=2)["settings"]["hint"]
    file.chmod(0o600)
    assert doctor("--set", "annotate.base_url=http://127.0.0.1:9", status=2)["settings"]["state"] == "ok"


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = health._version
    monkeypatch.setattr(health, "_version", lambda name: None if name == "openai" else version(name))
    finding = doctor()["extras"]
    assert (
        finding["state"] == "note" and "llm" in finding["hint"] and "llm" in finding["text"].split("not installed")[1]
    )


def test_people_get_a_line_for_each_finding_on_stderr() -> None:
    result = nertool("doctor")
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr.startswith("ok      nertool: ")
    assert result.stderr.endswith("no problems\n")


def test_it_ends_although_a_server_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "nertool", "doctor", "--set", f"annotate.base_url={address}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2 and "timed out" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (45.4e6, "45 MB"),
     (1.26e9, "1.3 GB"), (12.6e9, "13 GB"), (2.5e12, "2.5 TB"), (3e15, "3000 TB")],
)  # fmt: skip
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size(count) == text
