"""Asking a language model behind any OpenAI-compatible endpoint: the only module that imports its client."""

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Mapping
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
_WORST_BODY_CHARS = 300
# What endpoints say when it is this text that they won't take, rather than the settings.
_TEXT_REFUSED = (
    "context_length", "context length", "content_filter", "content filter", "content_policy", "too long", "safety",
)  # fmt: skip


class NoAnswerError(Exception):
    """The endpoint gave no answer, however often it was asked; asking again later may help."""


class RefusedError(Exception):
    """The endpoint won't answer for this text; asking again won't help."""


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer as it came.

    Args:
        text: What the model said.
        model: The model's full name as the endpoint gives it.
        finish_reason: `stop`, `length`, …
        input_tokens: Tokens of the request; None if the endpoint doesn't say.
        output_tokens: Tokens of the answer; None if the endpoint doesn't say.
    """

    text: str
    model: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None


class _TransientError(Exception):
    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class Llm:
    """A client that retries, keeps to the rate limits, and never shows its key.

    Args:
        settings: Endpoint, key, limits, retries and time-outs.
    """

    def __init__(self, settings: AnnotateSettings) -> None:
        self._settings = settings
        self._secret = settings.api_key.get_secret_value() if settings.api_key else ""
        self._client: openai.AsyncOpenAI
        self._requests = _limiter(settings.requests_per_minute)
        self._tokens = _limiter(settings.tokens_per_minute)
        self._not_before = 0.0
        self._succeeded = False
        self.retries = 0

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

        Args:
            body: The request's body: model, messages and parameters.
            tokens: How many tokens it will take, about; for the limit per minute.

        Raises:
            NoAnswerError: If there is none after all retries.
            RefusedError: If the endpoint won't answer for this text.
            NertoolError: If it won't answer anything: wrong key, unknown model, no credit.
        """
        for attempt in range(self._settings.retries + 1):
            await _acquire(self._requests, 1)
            await _acquire(self._tokens, tokens)
            while (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            try:
                completion = await self._ask(body)
            except _TransientError as error:
                if attempt == self._settings.retries:
                    raise NoAnswerError(f"{error}, asked {attempt + 1} times") from error
                self.retries += 1
                if error.retry_after_seconds is not None:
                    self._not_before = max(self._not_before, time.monotonic() + error.retry_after_seconds)
                    continue
                delay = min(_FIRST_DELAY_SECONDS * 2**attempt, _LONGEST_DELAY_SECONDS)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # so that failed requests don't come back as one
            else:
                self._succeeded = True
                return completion
        raise AssertionError("the last attempt raises")

    async def _ask(self, body: dict[str, Any]) -> Completion:
        parameters = dict(body)
        model, messages = parameters.pop("model"), parameters.pop("messages")
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_body=parameters
            )
            content = raw.content
        except openai.APITimeoutError as error:
            raise _TransientError(f"no answer within {self._settings.timeout_seconds:g} s") from error
        except openai.APIConnectionError as error:
            raise _TransientError(f"no connection: {self._plain(str(error.__cause__ or error))}") from error
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
            text = message.get("content") or ""
            if not text and message.get("refusal"):
                raise RefusedError(f"the model refused: {self._plain(str(message['refusal']))}")
            if choice.get("finish_reason") == "content_filter":
                raise RefusedError("the endpoint's content filter stopped the answer")
            return Completion(
                str(text),
                value.get("model"),
                choice.get("finish_reason"),
                usage.get("prompt_tokens"),
                usage.get("completion_tokens"),
            )
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            begin = self._plain(content[:80].decode("utf-8", "replace"))
            raise _TransientError(f"the endpoint's response is no chat completion: {begin!r}") from error

    def _explain(self, error: openai.APIStatusError) -> Exception:  # noqa: PLR0911 (a table in prose)
        """Returns what a refusing status means: try again, leave this text, or stop."""
        status, reason = error.status_code, self._reason(error)
        lower = reason.lower()
        if status == 429 and "insufficient_quota" in lower:
            return NertoolError(f"the endpoint says: {reason}", "add credit; the same command then goes on")
        if status in (408, 409, 425, 429) or status >= 500:
            seconds = _retry_after(error.response.headers)
            if seconds is not None and seconds > _LONGEST_RETRY_AFTER_SECONDS:
                hint = "the same command goes on later"
                return NertoolError(f"the endpoint asks to wait for {seconds:.0f} s: {reason}", hint)
            return _TransientError(f"status {status}: {reason}", seconds)
        if status in (401, 403):
            return NertoolError(
                f"the endpoint {self._settings.base_url} refuses the key: {reason}",
                "set NERTOOL_ANNOTATE__API_KEY to a valid one",
            )
        if status == 404:
            return NertoolError(
                f"the endpoint {self._settings.base_url} knows no such model or address: {reason}",
                "check annotate.model, and annotate.base_url (it often ends in /v1)",
            )
        if status == 413 or self._succeeded or any(words in lower for words in _TEXT_REFUSED):
            return RefusedError(f"status {status}: {reason}")
        hint = "check the settings of annotate: temperature, seed, extra_body"
        if "response_format" in lower or "json_schema" in lower:
            hint = "this endpoint has no structured output: --set annotate.answer_format=text"
        elif "max_completion_tokens" in lower:
            hint = "unset annotate.max_answer_tokens and use --set 'annotate.extra_body={max_tokens=4096}'"
        return NertoolError(f"the endpoint refuses the request, status {status}: {reason}", hint)

    def _reason(self, error: openai.APIStatusError) -> str:
        body = error.body
        if isinstance(body, dict):
            inner = body.get("error", body)
            if isinstance(inner, dict):
                parts = [str(inner[key]) for key in ("message", "code") if inner.get(key)]
                body = "; ".join(parts) or str(inner)
            else:
                body = str(inner)
        return self._plain(str(body or error.message))

    def _plain(self, text: str) -> str:
        """Makes what the endpoint said fit for a message: one short line, and never with the key in it."""
        if self._secret:
            text = text.replace(self._secret, "***")
        line = " ".join(text.split())
        return line if len(line) <= _WORST_BODY_CHARS else f"{line[:_WORST_BODY_CHARS]}…"


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
