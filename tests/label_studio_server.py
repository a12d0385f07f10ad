"""A real Label Studio server for tests: installed elsewhere, started on a free loopback port with data of its own.

    python -m tests.label_studio_server PYTHON [--template FOLDER]

prints its address and tokens on the first line (JSON), and serves until its standard input ends. PYTHON is the
interpreter of an environment that has `label-studio` installed.
"""

import argparse
import http.cookiejar
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple, Self

EMAIL, PASSWORD = "robot@example.org", "not-a-secret-1"
START_SECONDS = 180


class Person(NamedTuple):
    """Somebody with an account."""

    email: str
    token: str


class LabelStudioServer:
    """Used as a context manager; `stop` and `start` may be called in between, the data stays.

    Args:
        python: An interpreter with Label Studio.
        folder: Where its data goes.
        template: A folder that keeps the data of a server after its first start, which takes most of a minute.
    """

    def __init__(self, python: Path, folder: Path, template: Path) -> None:
        self.python, self.folder, self.template = python, folder, template
        self.port = 0
        self.token = ""
        self.personal_token = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        if not (self.template / "token").is_file():
            self._make_template()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder)
        self.start()
        self.personal_token = self.ask("POST", "/api/token/", {})["token"]
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it, on the port that it had before."""
        self.token = (self.folder / "token").read_text()
        self.port = self.port or free_port()
        command = [
            str(self.python.parent / "label-studio"), "start", "--no-browser", "--internal-host", "127.0.0.1",
            "--port", str(self.port), "--log-level", "WARNING",
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ours():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.2)

    def stop(self) -> None:
        """Kills it; what it has committed stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def join(self, email: str) -> Person:
        """Signs another person up, as the link of an invitation does."""
        invitation: Any = self.ask("GET", "/api/invite")
        link = self.url + invitation["invite_url"]
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
        page = opener.open(link).read().decode()
        secret = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert secret is not None
        form = {"csrfmiddlewaretoken": secret[1], "email": email, "password": PASSWORD}
        opener.open(urllib.request.Request(link, urllib.parse.urlencode(form).encode(), {"Referer": link})).close()
        with opener.open(f"{self.url}/api/current-user/token") as response:
            return Person(email, json.loads(response.read())["token"])

    def ask(self, method: str, path: str, body: object = None, token: str = "") -> object:
        """Sends a request as the user of `token`, by default the first one, without the SDK."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Token {token or self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if content else None

    def _is_ours(self) -> bool:
        """A busy port makes the server take another one without a word; only ours knows the token."""
        try:
            return self.ask("GET", "/api/current-user/whoami")["email"] == EMAIL
        except (OSError, ValueError):
            return False

    def _make_template(self) -> None:
        growing = self.template.with_name(f"{self.template.name}.growing")
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True)
        (growing / "token").write_text(secrets.token_hex(20))
        server = LabelStudioServer(self.python, growing, self.template)
        server.start()
        server.stop()
        growing.rename(self.template)

    def _environment(self) -> dict[str, str]:
        """A clean one: the server reads unprefixed variables such as `PORT`, `DEBUG` and `USERNAME`, too."""
        return {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder),
            "LABEL_STUDIO_USERNAME": EMAIL,
            "LABEL_STUDIO_PASSWORD": PASSWORD,
            "LABEL_STUDIO_USER_TOKEN": self.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
            "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
            "LABEL_STUDIO_SENTRY_DSN": "",
            "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        }


def free_port() -> int:
    """Returns a port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path)
    parser.add_argument("--template", type=Path, default=Path(tempfile.gettempdir()) / "label-studio-template")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LabelStudioServer(arguments.python, Path(folder) / "data", arguments.template) as server,
    ):
        facts = {"url": server.url, "token": server.token, "personal_token": server.personal_token}
        print(json.dumps({**facts, "email": EMAIL, "password": PASSWORD}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
