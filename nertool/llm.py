"""Asking a language model behind any OpenAI-compatible endpoint: the only module that imports its client."""

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Self

import orjson

from nertool.errors import NertoolError
from nertool.settings import AnnotateSettings

try:
    import aiolimiter
    import openai
except ImportError as missing:
    raise NertoolError("asking an LLM needs the extra llm", 'pip install "nertool[llm]"') from missing

_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 60.0
# Past this, waiting is the user's decision, not ours.
_LONGEST_RETRY_AFTER_SECONDS = 600.0
_LONGEST_WAIT_SECONDS = 3600.0
# So often nobody is reached before there was any answer: the address is wrong, or the server down.
_FIRST_CONNECTIONS = 3
_LONGEST_REASON_CHARS = 300
# What endpoints say when it is this text that they won't take, rather than the settings.
_TEXT_REFUSED = (
    "context_length", "context length", "content_filter", "content filter", "content_policy", "too long", "safety",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer as it came.

    Args:
        text: What the model said.
        model: The model's full name as the endpoint gives it.
        finish_reason: `stop`, `length`, …
        input_tokens: Tokens of the request; None if the endpoint doesn't say.
        output_tokens: Tokens of the answer; None if the endpoint doesn't say.
        refusal: Why the model or the endpoint's filter won't answer for this text, if so.
    """

    text: str
    model: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    refusal: str | None = None


class NoAnswerError(Exception):
    """The endpoint gave no answer, however often it was asked; asking again later may help.

    Args:
        reason: What went wrong the last time.
        busy: Whether it was only too busy.
    """

    def __init__(self, reason: str, *, busy: bool) -> None:
        super().__init__(reason)
        self.busy = busy


class RefusedError(Exception):
    """The endpoint refuses this request.

    Args:
        reason: What it says.
        certain: Whether it says that it is because of this text; else all requests may be refused.
    """

    def __init__(self, reason: str, *, certain: bool) -> None:
        super().__init__(reason)
        self.certain = certain


class _TransientError(Exception):
    def __init__(self, reason: str, *, retry_after_seconds: float | None = None, unreached: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds
        self.unreached = unreached


class Llm:
    """A client that retries, keeps to the rate limits, and never shows its key.

    Args:
        settings: Endpoint, key, limits, retries and time-outs.
        on_retry: Told why a request has to be repeated.
    """

    def __init__(self, settings: AnnotateSettings, on_retry: Callable[[str], None]) -> None:
        self.stopping = False  # no more retries: the run is about to end
        self.endpoint = settings.base_url
        self._settings = settings
        self._on_retry = on_retry
        self._secret = settings.api_key.get_secret_value() if settings.api_key else ""
        self._client: openai.AsyncOpenAI
        self._requests = _limiter(settings.requests_per_minute)
        self._tokens = _limiter(settings.tokens_per_minute)
        self._not_before = 0.0
        self._succeeded = False

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",  # servers without keys take any
            base_url=settings.base_url,
            timeout=settings.timeout_seconds,
            max_retries=0,  # ours pause all requests when one is told to wait, and ask again for broken answers
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.close()

    async def complete(self, body: dict[str, Any], tokens: int) -> Completion:
        """Asks until there is an answer.

        Being told to wait is no failure: it is obeyed, up to an hour in all, and holds for all requests.

        Args:
            body: The request's body: model, messages and parameters.
            tokens: How many tokens it will take, about; for the limit per minute.

        Raises:
            NoAnswerError: If there is none after all retries.
            RefusedError: If the endpoint refuses this request.
            NertoolError: If it won't answer anything: wrong key, unknown model, no credit.
        """
        begun = time.monotonic()
        failures = 0
        while True:
            await _acquire(self._requests, 1)
            await _acquire(self._tokens, tokens)
            while (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait + random.uniform(0.0, 1.0))  # so that not all come back at once
            try:
                completion = await self._ask(body)
            except _TransientError as error:
                asked_to_wait = error.retry_after_seconds is not None
                failures += not asked_to_wait
                if error.unreached and not self._succeeded and failures >= _FIRST_CONNECTIONS:
                    raise NertoolError(
                        f"cannot reach {self.endpoint}: {error}", "check annotate.base_url, and whether the server runs"
                    ) from error
                if (
                    self.stopping
                    or failures > self._settings.retries
                    or time.monotonic() - begun > _LONGEST_WAIT_SECONDS
                ):
                    raise NoAnswerError(str(error), busy=asked_to_wait) from error
                self._on_retry(str(error))
                if error.retry_after_seconds is not None:
                    self._not_before = max(self._not_before, time.monotonic() + error.retry_after_seconds)
                    await asyncio.sleep(min(error.retry_after_seconds, _FIRST_DELAY_SECONDS))
                else:
                    delay = min(_FIRST_DELAY_SECONDS * 2 ** (failures - 1), _LONGEST_DELAY_SECONDS)
                    await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            else:
                self._succeeded = True
                return completion

    async def _ask(self, body: dict[str, Any]) -> Completion:
        parameters = dict(body)
        model, messages = parameters.pop("model"), parameters.pop("messages")
        silent = _TransientError(f"no answer within {self._settings.timeout_seconds:g} s")
        try:
            # The client's own time-out is for each read: a server that drips white space never ends it.
            async with asyncio.timeout(self._settings.timeout_seconds):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=model, messages=messages, extra_body=parameters
                )
                content = raw.content
        except (openai.APITimeoutError, TimeoutError) as error:
            raise silent from error
        except openai.APIConnectionError as error:
            reason = self._plain(str(error.__cause__ or error))
            raise _TransientError(f"no connection: {reason}", unreached=True) from error
        except openai.APIStatusError as error:
            raise self._explain(error) from error
        except openai.OpenAIError as error:
            raise _TransientError(self._plain(str(error))) from error
        return self._read(content)

    def _read(self, content: bytes) -> Completion:
        """Reads the body of a successful response, whatever its content type says."""
        try:
            value = orjson.loads(content)
            choice = value["choices"][0]
            message = choice["message"]
            usage = value.get("usage") or {}
            text, finish_reason = message.get("content") or "", choice.get("finish_reason")
            refusal: str | None = None
            if not text and message.get("refusal"):
                refusal = f"the model refused: {self._plain(str(message['refusal']))}"
            elif finish_reason == "content_filter":
                refusal = "the endpoint's content filter stopped the answer"
            return Completion(
                self._hide_key(str(text)),
                self._hide_key(str(value["model"])) if value.get("model") else None,
                str(finish_reason) if finish_reason else None,
                _count(usage.get("prompt_tokens")),
                _count(usage.get("completion_tokens")),
                refusal,
            )
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            begin = self._plain(content.decode("utf-8", "replace"))[:80]
            raise _TransientError(f"the endpoint's response is no chat completion: {begin!r}") from error

    def _explain(self, error: openai.APIStatusError) -> Exception:  # noqa: PLR0911 (a table in prose)
        """Returns what a refusing status means: try again, leave this text, or stop."""
        status, reason = error.status_code, self._reason(error)
        lower = reason.lower()
        if status == 402 or (status == 429 and "insufficient_quota" in lower):
            return NertoolError(f"the endpoint says: {reason}", "add credit; the same command then goes on")
        if status in (408, 409, 425, 429) or status >= 500:
            seconds = _retry_after(error.response.headers)
            if seconds is not None and seconds > _LONGEST_RETRY_AFTER_SECONDS:
                waiting = f"the endpoint asks to wait for {seconds:.0f} s: {reason}"
                return NertoolError(waiting, "the same command goes on later")
            return _TransientError(f"status {status}: {reason}", retry_after_seconds=seconds)
        if status == 401 or (status == 403 and not self._succeeded):
            return NertoolError(
                f"the endpoint {self.endpoint} refuses the key: {reason}",
                "set NERTOOL_ANNOTATE__API_KEY to a valid one",
            )
        if status == 404 and not self._succeeded:
            return NertoolError(
                f"the endpoint {self.endpoint} knows no such model or address: {reason}",
                "check annotate.model, and annotate.base_url (it often ends in /v1)",
            )
        if not self._succeeded and (hint := _settings_hint(lower)):
            return NertoolError(f"the endpoint refuses the request, status {status}: {reason}", hint)
        certain = status == 413 or any(words in lower for words in _TEXT_REFUSED)
        return RefusedError(f"status {status}: {reason}", certain=certain)

    def _reason(self, error: openai.APIStatusError) -> str:
        body: Any = error.body
        inner = body.get("error", body) if isinstance(body, dict) else body
        if isinstance(inner, dict):
            parts = [str(inner[key]) for key in ("message", "code") if inner.get(key)]
            return self._plain("; ".join(parts) or str(inner))
        return self._plain(str(inner or error.message))

    def _plain(self, text: str) -> str:
        """Makes what the endpoint said fit for a message: one short line, and never with the key in it."""
        line = " ".join(self._hide_key(text).split())
        return line if len(line) <= _LONGEST_REASON_CHARS else f"{line[:_LONGEST_REASON_CHARS]}…"

    def _hide_key(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


def _settings_hint(reason: str) -> str | None:
    if "response_format" in reason or "json_schema" in reason:
        return "this endpoint has no structured output: --set annotate.answer_format=text"
    if "max_completion_tokens" in reason:
        return "unset annotate.max_answer_tokens and use --set 'annotate.extra_body={max_tokens=4096}'"
    return None


def _count(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _limiter(per_minute: int | None) -> aiolimiter.AsyncLimiter | None:
    """Returns what lets through a second's share at once: with a minute's share the first minute would have two."""
    if not per_minute:
        return None
    share = max(1.0, per_minute / 60)
    return aiolimiter.AsyncLimiter(share, share * 60 / per_minute)


async def _acquire(limiter: aiolimiter.AsyncLimiter | None, amount: float) -> None:
    while limiter is not None and amount > 0:
        share = min(amount, limiter.max_rate)
        await limiter.acquire(share)
        amount -= share


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Reads how long to wait: `retry-after-ms` as OpenAI gives it, or `retry-after` in seconds or as a date."""
    header = headers.get("retry-after", "")
    for text, unit in ((headers.get("retry-after-ms", ""), 1000), (header, 1)):
        try:
            seconds = float(text) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - time.time())
