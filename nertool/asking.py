"""Asking an LLM about many texts at once, and keeping every answer the moment it comes."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nertool.annotation import is_usable
from nertool.console import Advance, progress
from nertool.entity_classes import ClassList
from nertool.errors import InterruptedBySignalError, NertoolError
from nertool.llm import Llm, NoAnswerError, RefusedError
from nertool.prompts import CHARS_PER_TOKEN, Piece, Prompt
from nertool.request_planning import Usage, estimate
from nertool.responses import Answer, ResponseFile, answer_for
from nertool.settings import AnnotateSettings

# So many requests in a row, each given up after all its retries: nobody is there.
_GIVEN_UP_IN_A_ROW = 10


@dataclass
class Asked:
    """What asking came to.

    Args:
        used: What this run used.
        kept: Pieces that had their answer already, in the file or from a piece with the same text.
        unusable: Answers of this run that can't be read, and refusals.
        failed: Pieces without an answer, with the reason.
        retries: Requests that had to be repeated.
        seconds: How long it took.
        stopped: Why it ended before everything was asked: a ceiling was reached.
    """

    used: Usage = field(default_factory=Usage)
    kept: int = 0
    unusable: int = 0
    failed: list[tuple[Piece, str]] = field(default_factory=list)
    retries: int = 0
    seconds: float = 0.0
    stopped: str | None = None


def ask(
    pieces: Iterable[Piece],
    total: int,
    prompt: Prompt,
    settings: AnnotateSettings,
    classes: ClassList,
    responses: ResponseFile,
    must_ask: Callable[[str], bool],
) -> Asked:
    """Asks for every piece that must be asked, `concurrency` at a time; each answer is in the file before it counts.

    Memory doesn't grow with the number of pieces. After a kill, the same call asks only for what is missing.

    Args:
        pieces: What to ask for.
        total: How many they are.
        prompt: The prompt.
        settings: Endpoint, limits, prices.
        classes: The classes, to tell answers that can't be used.
        responses: Where the answers are kept.
        must_ask: Tells by a request's key whether it must be asked; else its answer is in the file.

    Raises:
        NertoolError: If the endpoint answers nothing at all, or refuses the key, the model or the settings.
        InterruptedBySignalError: After SIGINT or SIGTERM; the answers so far are kept.
    """
    with progress("asking", total, "texts") as advance:
        asker = _Asker(prompt, settings, classes, responses, must_ask, advance)
        asyncio.run(asker.run(pieces))
    return asker.asked


class _Asker:
    def __init__(
        self,
        prompt: Prompt,
        settings: AnnotateSettings,
        classes: ClassList,
        responses: ResponseFile,
        must_ask: Callable[[str], bool],
        advance: Advance,
    ) -> None:
        self.asked = Asked()
        self._prompt = prompt
        self._settings = settings
        self._classes = classes
        self._responses = responses
        self._must_ask = must_ask
        self._advance = advance
        self._llm = Llm(settings)
        self._begun = time.monotonic()
        self._done = 0
        self._waiting: dict[str, list[Piece]] = {}  # key in flight → other pieces with the same request
        self._reserved = Usage()  # what the requests in flight may use
        self._given_up_in_a_row = 0

    async def run(self, pieces: Iterable[Piece]) -> None:
        shared = iter(pieces)
        received: list[int] = []
        main = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            received.append(number)
            if main is not None:
                main.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # on Windows the process just ends
                loop.add_signal_handler(number, stop, number)
        try:
            async with self._llm, asyncio.TaskGroup() as group:
                for _ in range(self._settings.concurrency):
                    group.create_task(self._work(shared))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        except asyncio.CancelledError:
            if not received:
                raise
            raise InterruptedBySignalError(
                received[0],
                f"{len(self._responses):,} answers are kept in {self._responses.path}; the same command goes on",
            ) from None
        finally:
            self.asked.retries = self._llm.retries
            self.asked.seconds = time.monotonic() - self._begun

    async def _work(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:  # all workers take from the same iterator
            key = self._prompt.key(piece.text)
            if key in self._waiting:
                self._waiting[key].append(piece)
            elif not self._must_ask(key):
                self._keep(piece, key)
            else:
                await self._ask(piece, key)
                if self.asked.stopped:
                    return

    async def _ask(self, piece: Piece, key: str) -> None:
        expected = estimate(self._prompt, piece, self._responses)
        if self._is_over_ceiling(*expected):
            return
        self._waiting[key] = []
        self._reserved.add(1, *expected)
        facts: dict[str, Any] = {"key": key, "prompt": self._prompt.digest, "settings": self._prompt.settings}
        try:
            completion = await self._llm.complete(self._prompt.body(piece.text), round(sum(expected)))
        except NoAnswerError as error:
            self._give_up(piece, key, str(error))
        except RefusedError as error:
            answer = answer_for(piece, "", model=self._prompt.model, failure=str(error), **facts, time=_now())
            self._record(answer, key)
        else:
            tokens_in, tokens_out = completion.input_tokens, completion.output_tokens
            if tokens_in is None or tokens_out is None:  # some servers don't say
                tokens_in, tokens_out = round(expected[0]), len(completion.text) // CHARS_PER_TOKEN
            self.asked.used.add(1, tokens_in, tokens_out)
            answer = answer_for(
                piece,
                completion.text,
                model=completion.model or self._prompt.model,
                **facts,
                time=_now(),
                finish_reason=completion.finish_reason,
                usage={"input": tokens_in, "output": tokens_out, "text_chars": len(piece.text)},
            )
            self._record(answer, key)
        finally:
            self._reserved.add(-1, -expected[0], -expected[1])
            self._waiting.pop(key, None)

    def _is_over_ceiling(self, input_tokens: float, output_tokens: float) -> bool:
        """Tells whether one more request may go beyond a ceiling, with all that are in flight."""
        settings = self._settings
        total = Usage(0, self._responses.input_tokens, self._responses.output_tokens)
        total.add(0, self._reserved.input_tokens + input_tokens, self._reserved.output_tokens + output_tokens)
        if settings.max_tokens is not None and total.tokens > settings.max_tokens:
            self.asked.stopped = f"the ceiling annotate.max_tokens = {settings.max_tokens:,} would be passed"
        elif settings.max_cost is not None and total.cost(settings) > settings.max_cost:
            self.asked.stopped = f"the ceiling annotate.max_cost = {settings.max_cost:g} would be passed"
        return self.asked.stopped is not None

    def _record(self, answer: Answer, key: str) -> None:
        """Keeps an answer, for all pieces that wait for the same."""
        self._given_up_in_a_row = 0
        self._responses.add(answer)
        self.asked.unusable += not is_usable(answer, self._classes)
        self._step()
        for piece in self._waiting[key]:
            self._keep(piece, key)

    def _keep(self, piece: Piece, key: str) -> None:
        """Makes sure that an answer that is there stands for this piece, too."""
        if not self._responses.holds(piece, key):
            self._responses.add_copy(piece, key)
        self.asked.kept += 1
        self._step()

    def _give_up(self, piece: Piece, key: str, reason: str) -> None:
        for failed in (piece, *self._waiting[key]):
            self.asked.failed.append((failed, reason))
            self._step()
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= _GIVEN_UP_IN_A_ROW:
            raise NertoolError(
                f"the endpoint {self._settings.base_url} does not answer: {reason}",
                f"{len(self._responses):,} answers are kept; the same command goes on when it is back",
            )

    def _step(self) -> None:
        self._done += 1
        seconds = max(time.monotonic() - self._begun, 1e-9)
        used = self.asked.used
        notes = [f"{used.calls / seconds:.1f} answers/s", f"{used.tokens:,.0f} tokens"]
        if cost := used.cost(self._settings):
            notes.append(f"cost {cost:,.2f}")
        for name, count in (
            ("kept", self.asked.kept), ("unusable", self.asked.unusable), ("failed", len(self.asked.failed)),
            ("retries", self._llm.retries),
        ):  # fmt: skip
            if count:
                notes.append(f"{count:,} {name}")
        self._advance(self._done, ", ".join(notes))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
