"""Asking an LLM about many texts at once, and keeping every answer the moment it comes."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nertool.annotation import is_usable
from nertool.console import Advance, counted, progress, say
from nertool.entity_classes import ClassList
from nertool.errors import InterruptedBySignalError, NertoolError
from nertool.llm import Completion, Llm, NoAnswerError, RefusedError
from nertool.prompts import CHARS_PER_TOKEN, Piece, Prompt
from nertool.request_planning import Usage, estimate
from nertool.responses import Answer, ResponseFile, answer_for
from nertool.settings import AnnotateSettings

# So many requests in a row, each given up after all its retries, or refused: it is not about these texts.
_IN_A_ROW = 10
_FINISHING_SECONDS = 30.0
_KEPT_WITHOUT_PAUSE = 200
# Longer answers are read in a thread, so that the others don't wait.
_LONG_ANSWER_CHARS = 100_000
_HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([_HANG_UP] if _HANG_UP is not None else [])]


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
    to_ask: int,
    prompt: Prompt,
    settings: AnnotateSettings,
    classes: ClassList,
    responses: ResponseFile,
    must_ask: Callable[[str], bool],
) -> Asked:
    """Asks for every piece that must be asked, `concurrency` at a time; each answer is in the file before it counts.

    Memory doesn't grow with the number of pieces (but for those with one text that is being asked). After a kill, the
    same call asks only for what is missing.

    Args:
        pieces: All pieces.
        to_ask: How many different requests will be asked.
        prompt: The prompt.
        settings: Endpoint, limits, prices.
        classes: The classes, to tell answers that can't be used.
        responses: Where the answers are kept.
        must_ask: Tells by a request's key whether it must be asked; else its answer is in the file.

    Raises:
        NertoolError: If the endpoint answers nothing at all, or refuses the key, the model or the settings; after the
            requests in flight have been answered.
        InterruptedBySignalError: After SIGINT, SIGTERM or SIGHUP; the answers so far are kept.
    """
    with progress("asking", to_ask, "texts") as advance:
        asker = _Asker(prompt, settings, classes, responses, must_ask, advance)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with _signals_as_they_were():
                asyncio.run(asker.run(pieces))
        else:  # in a notebook; no thread can have two loops
            with ThreadPoolExecutor(1) as beside:
                running = beside.submit(asyncio.run, asker.run(pieces))
                try:
                    running.result()
                except KeyboardInterrupt:
                    asker.take_no_more()
                    raise
    return asker.asked


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Puts the signal handlers back that asyncio leaves at the system's defaults."""
    if threading.current_thread() is not threading.main_thread():  # where signals don't come
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        self._llm = Llm(settings, self._on_retry)
        self._begun = time.monotonic()
        self._done = 0
        self._waiting: dict[str, list[Piece]] = {}  # key in flight → other pieces with the same request
        self._asked_now: set[str] = set()  # keys that this run has asked, whatever came of it
        self._reserved = Usage()  # what the requests in flight may use
        self._given_up_in_a_row = 0
        # Key → what was refused, maybe not because of the text, and all pieces with that text.
        self._doubtful: dict[str, tuple[Answer, list[Piece]]] = {}
        self._end: NertoolError | None = None

    def take_no_more(self) -> None:
        """Lets the requests in flight be answered, and begins no other."""
        self._llm.stopping = True

    async def run(self, pieces: Iterable[Piece]) -> None:
        """Asks for the pieces; raises what `ask` says."""
        received: list[int] = []
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()

        def stop(number: int) -> None:
            """Lets the requests in flight be answered, for they will be paid; the second signal doesn't."""
            self.take_no_more()
            if received or not self._waiting:
                main.cancel() if main is not None else None
            else:
                say(f"finishing the {counted(len(self._waiting), 'request')} in flight; once more to stop at once")
                loop.call_later(_FINISHING_SECONDS, main.cancel if main is not None else lambda: None)
            received.append(number)

        for number in _SIGNALS:
            if number == _HANG_UP and signal.getsignal(number) is signal.SIG_IGN:  # nohup
                continue
            with suppress(NotImplementedError, RuntimeError):  # Windows: the process just ends; not the main thread
                loop.add_signal_handler(number, stop, number)
        shared = iter(pieces)
        try:
            async with self._llm, asyncio.TaskGroup() as group:
                for _ in range(self._settings.concurrency):
                    group.create_task(self._work(shared))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        except asyncio.CancelledError:
            if not received:
                raise
        finally:
            self.asked.seconds = time.monotonic() - self._begun
        if received:
            raise InterruptedBySignalError(
                received[0],
                f"{len(self._responses):,} answers are kept in {self._responses.path}; the same command goes on",
            )
        for answer, refused in self._doubtful.values():
            self._fail(refused, str(answer.failure))
        if self._end is not None:
            raise self._end

    async def _work(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:  # all workers take from the same iterator
            if self._llm.stopping or self.asked.stopped:
                return
            key = self._prompt.key(piece.text)
            if key in self._waiting:
                self._waiting[key].append(piece)
            elif key in self._doubtful:
                self._doubtful[key][1].append(piece)
            elif key in self._asked_now or not self._must_ask(key):
                self._keep(piece, key)
                if self.asked.kept % _KEPT_WITHOUT_PAUSE == 0:
                    await asyncio.sleep(0)  # signals and answers have their turn
            else:
                await self._ask(piece, key)

    async def _ask(self, piece: Piece, key: str) -> None:
        expected = estimate(self._prompt, piece, self._responses)
        if self._is_over_ceiling(*expected):
            return
        self._waiting[key] = []
        self._asked_now.add(key)
        self._reserved.add(1, *expected)
        facts: dict[str, Any] = {"key": key, "prompt": self._prompt.digest, "settings": self._prompt.settings}
        try:
            completion = await self._llm.complete(self._prompt.body(piece.text), round(sum(expected)))
        except NoAnswerError as error:
            self._give_up(piece, key, error)
        except RefusedError as error:
            answer = answer_for(piece, "", model=self._prompt.model, failure=str(error), **facts, time=_now())
            if error.certain:
                await self._record(answer, key)
            else:
                self._doubt(piece, key, answer)
        except NertoolError as error:  # the others in flight will be paid, so they are waited for
            self._stop_with(error)
        else:
            await self._record(self._answer(piece, completion, expected, facts), key)
            self._believe_doubtful()
        finally:
            self._reserved.add(-1, -expected[0], -expected[1])
            self._waiting.pop(key, None)

    def _answer(
        self, piece: Piece, completion: Completion, expected: tuple[float, float], facts: dict[str, Any]
    ) -> Answer:
        tokens_in, tokens_out = completion.input_tokens, completion.output_tokens
        if tokens_in is None or tokens_out is None:  # some servers don't say
            tokens_in, tokens_out = round(expected[0]), len(completion.text) // CHARS_PER_TOKEN
        self.asked.used.add(1, tokens_in, tokens_out)
        return answer_for(
            piece,
            completion.text,
            model=completion.model or self._prompt.model,
            failure=completion.refusal,
            **facts,
            time=_now(),
            finish_reason=completion.finish_reason,
            usage={"input": tokens_in, "output": tokens_out, "text_chars": len(piece.text)},
        )

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

    async def _record(self, answer: Answer, key: str) -> None:
        """Keeps an answer, for all pieces that wait for the same."""
        self._given_up_in_a_row = 0
        self._responses.add(answer)
        for piece in self._waiting[key]:
            self._keep(piece, key)
        self._waiting[key] = []
        if len(answer.response) > _LONG_ANSWER_CHARS:
            self.asked.unusable += not await asyncio.to_thread(is_usable, answer, self._classes)
        else:
            self.asked.unusable += not is_usable(answer, self._classes)
        self._step()

    def _keep(self, piece: Piece, key: str) -> None:
        """Makes sure that the latest answer to a request is the latest about this piece, too."""
        self.asked.kept += 1
        if key not in self._responses:
            self.asked.failed.append((piece, "an equal text got no answer"))
        elif not self._responses.is_latest(piece, key):
            self._responses.add_copy(piece, key)

    def _doubt(self, piece: Piece, key: str, answer: Answer) -> None:
        """Sets a refusal aside until another request succeeds: then it is about the text, else about the account."""
        self._doubtful[key] = (answer, [piece, *self._waiting[key]])
        if len(self._doubtful) >= _IN_A_ROW:
            self._stop_with(
                NertoolError(
                    f"the endpoint {self._llm.endpoint} refuses every request: {answer.failure}",
                    "check the key, the credit and the settings of annotate; the same command then goes on",
                )
            )

    def _believe_doubtful(self) -> None:
        for key, (answer, (_, *others)) in self._doubtful.items():
            self._responses.add(answer)
            self.asked.unusable += 1
            for piece in others:
                self._keep(piece, key)
            self._step()
        self._doubtful.clear()

    def _give_up(self, piece: Piece, key: str, error: NoAnswerError) -> None:
        if self._llm.stopping:
            return
        self._fail([piece, *self._waiting[key]], str(error))
        self._given_up_in_a_row += not error.busy
        if self._given_up_in_a_row >= _IN_A_ROW:
            self._stop_with(
                NertoolError(
                    f"the endpoint {self._llm.endpoint} does not answer: {error}",
                    "the answers so far are kept; the same command goes on when it is back",
                )
            )

    def _fail(self, pieces: Iterable[Piece], reason: str) -> None:
        self.asked.failed.extend((piece, reason) for piece in pieces)
        self._step()

    def _stop_with(self, error: NertoolError) -> None:
        self._end = self._end or error
        self._llm.stopping = True

    def _on_retry(self, reason: str) -> None:
        if not self.asked.retries:
            say(f"asking again: {reason}")
        self.asked.retries += 1
        self._advance(self._done, self._note())

    def _step(self) -> None:
        self._done += 1
        self._advance(self._done, self._note())

    def _note(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        used = self.asked.used
        notes = [f"{used.calls / seconds:.1f} answers/s", f"{used.tokens:,.0f} tokens"]
        if cost := used.cost(self._settings):
            notes.append(f"cost {cost:,.2f}")
        failed = len(self.asked.failed) + len(self._doubtful)
        for name, count in (("unusable", self.asked.unusable), ("failed", failed), ("retries", self.asked.retries)):
            if count:
                notes.append(f"{count:,} {name}")
        return ", ".join(notes)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
