"""A small chat-completions server on the loopback interface, with faults on demand, for tests and benchmarks.

    python -m tests.llm_stub --latency 0.2 --faults 0.3

prints its address on the first line, and serves until its standard input ends. What it was asked it writes to `--log`,
one JSON line per request: `{"text", "outcome"}`.
"""

import argparse
import asyncio
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

FAULTS = ("429", "500", "time-out", "dropped", "truncated", "malformed", "wrong type")


class Stub:
    """Answers every request with the long words of the text as drugs, or with a fault.

    Args:
        latency: Seconds until an answer.
        faults: Share of requests that get a fault.
        kinds: Which faults.
        hang_seconds: How long a time-out fault says nothing.
        log: File for what was asked.
        responder: (body) → (status, headers, bytes) in place of the usual answer.
    """

    def __init__(self, latency=0.0, faults=0.0, kinds=FAULTS, hang_seconds=5.0, log=None, seed=1, responder=None):
        self.latency, self.faults, self.kinds, self.hang_seconds = latency, faults, kinds, hang_seconds
        self.rng = random.Random(seed)
        self.log = Path(log).open("a", buffering=1) if log else None  # noqa: SIM115
        self.responder = responder
        self.outcomes = Counter()
        self.bodies = []
        self.headers = []
        self.open_requests = self.most_open = 0

    async def start(self):
        """Starts serving; returns the base URL."""
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=2**26)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.open_requests += 1
                self.most_open = max(self.most_open, self.open_requests)
                try:
                    going_on = await self.answer(body, headers, writer)
                finally:
                    self.open_requests -= 1
                if not going_on:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def answer(self, body, headers, writer):
        fault = self.rng.choice(self.kinds) if self.rng.random() < self.faults else None
        if self.latency:
            await asyncio.sleep(self.latency)
        self.outcomes[fault or "answered"] += 1
        self.bodies.append(body)
        self.headers.append(headers)
        if self.log:
            self.log.write(json.dumps({"text": text_of(body), "outcome": fault or "answered"}) + "\n")
        if fault == "time-out":
            await asyncio.sleep(self.hang_seconds)
            return False
        if fault == "dropped":
            return False
        if self.responder is not None:
            status, extra, content = self.responder(body)
        else:
            status, extra, content = 200, {}, completion(usual_answer(text_of(body)))
        kind = "application/json"
        if fault == "429":
            status, extra, content = 429, {"Retry-After": "0.05"}, b'{"error": {"message": "slow down"}}'
        elif fault == "500":
            status, content = 500, b"<html>oops</html>"
        elif fault == "malformed":
            content = content[: len(content) // 2] + b"\n"
        elif fault == "wrong type":
            kind, content = "text/html", b"<html>a proxy's page</html>"
        length = len(content) + (1000 if fault == "truncated" else 0)
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in extra.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()
        return fault != "truncated"


def completion(text, **choice):
    """Returns the body of a chat completion that says `text`."""
    message = {"role": "assistant", "content": text}
    value = {
        "id": "1", "object": "chat.completion", "model": "stub-llm", "created": 0,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 900, "completion_tokens": max(1, len(text or "") // 4), "total_tokens": 901},
    }  # fmt: skip
    return json.dumps(value).encode()


def text_of(body):
    """Returns the text that a request asks about."""
    return json.loads(body)["messages"][0]["content"].rpartition("Text:\n")[2].strip()


def usual_answer(text):
    """Returns what the stub says about a text: its long words."""
    words = dict.fromkeys(re.findall(r"[A-Za-z]{9,}", text))
    return json.dumps({"entities": [{"entity_match": word, "entity_class": ["drug"], "parts": []} for word in words]})


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--hang-seconds", type=float, default=5.0)
    parser.add_argument("--log")
    arguments = parser.parse_args()
    stub = Stub(arguments.latency, arguments.faults, hang_seconds=arguments.hang_seconds, log=arguments.log)
    print(await stub.start(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps({"outcomes": stub.outcomes, "most_open": stub.most_open}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
