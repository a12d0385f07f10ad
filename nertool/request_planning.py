"""How many requests and tokens asking takes, before and while it is done."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nertool.prompts import CHARS_PER_TOKEN, Piece, Prompt
from nertool.responses import ResponseFile
from nertool.settings import AnnotateSettings

# Until there are answers to learn from: JSON names each mention with its classes.
_OUTPUT_PER_TEXT = 3.0


@dataclass
class Usage:
    """Requests, tokens and what they cost, planned or used.

    Args:
        calls: Requests.
        input_tokens: Tokens of the requests.
        output_tokens: Tokens of the answers.
    """

    calls: int = 0
    input_tokens: float = 0
    output_tokens: float = 0

    def add(self, calls: int, input_tokens: float, output_tokens: float) -> None:
        """Adds to all three; negative numbers take away."""
        self.calls += calls
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    @property
    def tokens(self) -> float:
        """Tokens of requests and answers."""
        return self.input_tokens + self.output_tokens

    def cost(self, settings: AnnotateSettings) -> float:
        """Returns the price by the settings, in the user's currency."""
        return (self.input_tokens * settings.input_price + self.output_tokens * settings.output_price) / 1e6

    def to_json(self, settings: AnnotateSettings) -> dict[str, Any]:
        """Returns the numbers for `--json`; the cost only where there are prices."""
        prices = settings.input_price or settings.output_price
        return {
            "calls": self.calls,
            "input_tokens": round(self.input_tokens),
            "output_tokens": round(self.output_tokens),
            **({"cost": round(self.cost(settings), 6)} if prices else {}),
        }


def estimate(prompt: Prompt, piece: Piece, responses: ResponseFile | None) -> tuple[float, float]:
    """Returns about how many tokens a request and its answer take; by the answers so far, if there are any."""
    text = len(piece.text) / CHARS_PER_TOKEN
    before, ratio = len(prompt.template) / CHARS_PER_TOKEN, _OUTPUT_PER_TEXT
    if responses is not None and responses.paid:
        texts = responses.text_chars / CHARS_PER_TOKEN
        before = max(before, (responses.input_tokens - texts) / responses.paid)
        ratio = responses.output_tokens / max(1.0, texts)
    return before + text, text * ratio


def plan(
    pieces: Iterable[Piece], prompt: Prompt, responses: ResponseFile | None, must_ask: Callable[[str], bool]
) -> Usage:
    """Returns how many requests, and about how many tokens, the pieces that have no answer yet will take."""
    usage = Usage()
    seen: set[str] = set()
    for piece in pieces:
        key = prompt.key(piece.text)
        if key in seen or not must_ask(key):
            continue
        seen.add(key)
        usage.add(1, *estimate(prompt, piece, responses))
    return usage
