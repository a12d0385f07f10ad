"""What a model's `nertool.json` tells, as far as anything relies on it.

The meanings are in docs/reference/data-formats.md. Whatever else is in the file is kept as it is.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from nertool.settings import WindowSettings

_Rate = float | None
_Threshold = Annotated[float, Field(gt=0, lt=1)]


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True)


class _Scheme(_Facts):
    labels: list[str] = Field(min_length=1)
    begin: bool


class _Documents(_Facts):
    documents: NonNegativeInt
    entities: NonNegativeInt
    name: str | None = None
    digest: str | None = None
    annotators: dict[str, int | None] | None = None


class _Side(_Documents):
    classes: dict[str, int] = {}


class _Unseen(_Facts):
    entities: int
    share: float | None


class _Split(_Facts):
    seed: int
    documents: dict[Literal["train", "eval", "test"], int]
    equal_groups: int
    similar_groups: int
    documents_in_groups: int
    unseen_mentions: dict[Literal["eval", "test"], _Unseen]


class _Scores(_Facts):
    """The flat numbers of `evaluate --json` in one scheme; of each class there are some more."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, _Rate]

    scheme: str
    micro_precision: _Rate
    micro_recall: _Rate
    micro_f1: _Rate
    micro_support: int
    mean_f1: _Rate
    intervals: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}

    @model_validator(mode="after")
    def _has_supports(self) -> Self:
        for name, value in self.__pydantic_extra__.items():
            if name.endswith("_support") and value is None:
                raise ValueError(f"{name} must be a number")
        return self


class _Schemes(_Facts):
    strict: _Scores
    overlap: _Scores
    kazu: _Scores


class _Evaluation(_Documents):
    name: str | None
    digest: str | None
    annotators: dict[str, int | None] | None
    of_original: bool
    thresholds: dict[str, float]
    level: float
    samples: int
    schemes: _Schemes


class _Tuned(_Facts):
    documents: str | None = None
    count: int


class _Representation(_Facts):
    entities: int
    kept: int
    losses: dict[str, int]
    ceiling_micro_f1: _Rate

    @model_validator(mode="after")
    def _has_ceiling(self) -> Self:
        if self.entities and self.ceiling_micro_f1 is None:
            raise ValueError("ceiling_micro_f1 must be a number")
        return self


class _Teacher(_Facts):
    name: str


class _Unlabelled(_Facts):
    documents: int


class _Compared(_Facts):
    micro_f1: _Rate
    mean_f1: _Rate
    parameters: int
    megabytes: float
    tokens_per_second: int


class _BesideTeacher(_Facts):
    scheme: str
    teacher: _Compared
    student: _Compared


class _Parity(_Facts):
    decisions: int
    entities: int
    equal_decisions: float
    equal_entities: float


class _ExportScores(_Facts):
    export: float
    original: float
    documents: int = 0


class _Export(_Facts):
    format: Literal["onnx", "openvino", "hf", "kazu"]
    precision: str
    model: str = ""
    pad_id: int = 0
    parity: dict[str, _Parity]
    tokens_per_second: dict[Literal["onnxruntime", "openvino", "torch"], int] = {}
    tokens_per_second_of_original: int = 0
    measured_on: str = ""
    bytes: int = 0
    kept: list[str] = []
    f1: _ExportScores | None = None

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if "f1" in self.model_fields_set and self.f1 is None:
            raise ValueError("f1 must not be null")
        if self.format in ("onnx", "openvino"):
            if lacking := sorted({"model", "pad_id"} - self.model_fields_set):
                raise ValueError(f"{', '.join(lacking)} must be there")
            if not self.tokens_per_second:
                raise ValueError("tokens_per_second must name an engine")
        return self


class ModelFacts(_Facts):
    """The whole file."""

    format: int
    nertool_version: str
    scheme: _Scheme
    windows: WindowSettings
    thresholds: dict[str, _Threshold] | None = None
    threshold: _Threshold | None = None  # of format 1
    switch_cost: float
    backbone: str | None = None
    base_model: str | None = None
    parameters: int = 0
    bytes: int = 0
    step: int = 0
    annotators: list[str] = []
    train: _Side | None = None
    eval: _Side | None = None
    split: _Split | None = None
    tuned: _Tuned | None = None
    evaluations: list[_Evaluation] = []
    representation: _Representation | None = None
    teacher: str | _Teacher | None = None
    unlabelled: _Unlabelled | None = None
    beside_teacher: _BesideTeacher | None = None
    settings: dict[str, dict[str, Any]] | None = None
    files: dict[str, str] = {}
    export: _Export | None = None

    @model_validator(mode="after")
    def _has_decisions(self) -> Self:
        if lacking := sorted(WindowSettings.model_fields.keys() - self.windows.model_fields_set):
            raise ValueError(f"windows lacks {', '.join(lacking)}")
        if empty := [name for name in self.model_fields_set - {"base_model"} if getattr(self, name) is None]:
            raise ValueError(f"{min(empty)} must not be null")
        known = self.thresholds if self.threshold is None else dict.fromkeys(self.scheme.labels)
        if lacking := [label for label in self.scheme.labels if label not in (known or {})]:
            raise ValueError(f"there is no threshold for {', '.join(lacking)}")
        return self
