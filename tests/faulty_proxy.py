"""A reverse proxy on the loopback interface that goes wrong on demand, between nertool and a real Label Studio."""

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

# (method, path, how many such requests have been before) → what goes wrong: one of the names below, or None.
Rule = Callable[[str, str, int], str | None]


class FaultyProxy:
    """Forwards requests, but for those that `rule` names.

    - `504 after`: the server does what it is asked, and the client hears 504
    - `cut after`: the same, but the connection ends within the reply
    - `cut before`: the connection ends before the server hears of it
    - `413`, `429`, `401`, `500`: an answer of the proxy's own
    - `html`: a log-in page with status 200
    - `silence`: nothing for `silence_seconds`, then the connection ends
    """

    def __init__(self, port: int, rule: Rule, silence_seconds: float = 30.0) -> None:
        self.target, self.rule, self.silence_seconds = port, rule, silence_seconds
        self.requests: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.largest_body = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.handle(self)

            do_POST = do_PATCH = do_DELETE = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        path = request.path.partition("?")[0]
        with self._lock:
            before = sum(one == (request.command, path) for one in self.requests)
            self.requests.append((request.command, path))
            self.largest_body = max(self.largest_body, len(body))
            fault = self.rule(request.command, path, before)
            if fault:
                self.faults.append(fault)
        if fault == "silence":
            time.sleep(self.silence_seconds)
        if fault in ("silence", "cut before"):
            request.close_connection = True
            return
        if fault in ("413", "429", "401", "500"):
            self._answer(request, int(fault), b'{"detail": "the proxy says so"}')
            return
        if fault == "html":
            self._answer(request, 200, b"<!doctype html><html><body>log in</body></html>", "text/html")
            return
        try:
            status, headers, content = self._forward(request, body)
        except OSError:
            self._answer(request, 502, b"<html>bad gateway</html>", "text/html")
            return
        if fault == "504 after":
            self._answer(request, 504, b"<html>gateway time-out</html>", "text/html")
        elif fault == "cut after":
            request.send_response(status)
            request.send_header("Content-Length", str(len(content) + 100))
            request.end_headers()
            request.wfile.write(content[: len(content) // 2])
            request.close_connection = True
        else:
            self._answer(request, status, content, headers.get("content-type", "application/json"))

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=120)
        headers = {
            k: v for k, v in request.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")
        }
        connection.request(request.command, request.path, body or None, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, content

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str = "application/json"
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        if status == 429:
            request.send_header("Retry-After", "1")
        if status != 204:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if status != 204:
            request.wfile.write(content)
