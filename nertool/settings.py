"""Every setting, defined once: its name, default, unit, range and meaning.

Precedence: command-line option > `--set train.epochs=3` > environment `NERTOOL_TRAIN__EPOCHS` > configuration file
(`--config FILE`, else `nertool.toml` in the working folder) > default.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from nertool.errors import NertoolError, nearest_name

ENVIRONMENT_PREFIX = "NERTOOL_"
CONFIG_FILE = "nertool.toml"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


def _sendable(key: SecretStr | None) -> SecretStr | None:
    """Refuses what no header can hold: the exceptions of some clients would show it."""
    if key is None:
        return None
    plain = key.get_secret_value().strip()  # of the line end that `$(cat key)` and files bring
    if not plain.isascii() or not plain.isprintable() or " " in plain:
        raise ValueError("a key is made of visible ASCII characters")
    return SecretStr(plain) if plain else None


def _address(url: str) -> str:
    """Refuses what is no address, and secrets in one: addresses are shown, and saved beside what came from there."""
    plain = url.strip().rstrip("/")
    try:
        parts = urlsplit(plain)
        complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # its text may be what stands where the port should be, and so a secret
        complete = False
    if not complete:
        raise ValueError("an address looks like http://localhost:8080 or https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address has no user, password or query in it; the key has a setting of its own")
    return plain


class DataSettings(_Part):
    """Reading and splitting documents."""

    skip_invalid: bool = Field(
        False,
        description="Set invalid documents aside in `rejected.jsonl` and go on with the rest, instead of failing.",
    )
    labels: tuple[str, ...] = Field(
        (), description="The classes to learn; entities of others are counted and left out. Empty: all that occur."
    )
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Processes that tokenise when a cache is built. Unset: one for each core."
    )
    split_fractions: tuple[Fraction, Fraction, Fraction] = Field(
        (0.8, 0.1, 0.1), description="Shares of train, eval and test; they must add up to 1."
    )
    split_seed: int = Field(42, ge=0, description="Seed of the split.")
    duplicate_similarity: float = Field(
        0.8, gt=0.0, le=1.0,
        description="Documents whose sets of five-word sequences have at least this Jaccard similarity stay on one "
        "side.",
    )  # fmt: skip


class WindowSettings(_Part):
    """Cutting sections into the windows that the model sees."""

    max_tokens: int = Field(512, ge=8, description="Longest window in tokens, special tokens included.")
    overlap_tokens: int = Field(
        64, ge=0, description="Tokens that neighbouring windows share (Hugging Face calls it stride)."
    )


class ModelSettings(_Part):
    """The backbone and what the model predicts."""

    name: str = Field(
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        description="Backbone: a Hugging Face hub name, a folder, or `minilm` (the one of the extra `offline`).",
    )
    begin_channels: bool = Field(
        False, description="Learn where entities begin, too, so that touching entities of one class stay apart."
    )
    dropout: Fraction = Field(0.1, description="Dropout of the hidden layers and the output layer.")
    attention_dropout: Fraction = Field(
        0.0, description="Dropout of the attention weights; above 0 the fused attention kernels can't be used."
    )
    threshold: float = Field(
        0.5, gt=0.0, lt=1.0, description="Probability from which a word counts as part of an entity."
    )
    switch_cost: float = Field(
        1.0, ge=0.0,
        description="Logits that it costs to begin or end an entity between words with no space between them.",
    )  # fmt: skip


class TrainSettings(_Part):
    """The training loop."""

    epochs: int = Field(8, ge=1, description="Passes over the training windows.")
    learning_rate: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="Peak learning rate of the backbone. Unset: by its hidden size, 6e-4 for 384 units, 7.5e-5 for "
        "768, 3.2e-5 for 1,024.",
    )
    head_learning_rate_factor: float = Field(
        5.0, gt=0.0, description="The learning rate of the new output layer, as a multiple of the backbone's."
    )
    warmup_fraction: Fraction = Field(0.1, description="Share of all steps in which the learning rate rises from 0.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after the warm-up: to 0 in a line or half a cosine, or not."
    )
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW's weight decay; biases and norms have none.")
    max_gradient_norm: float = Field(1.0, gt=0.0, description="Gradients are scaled down to this norm.")
    tokens_per_batch: Annotated[int, Field(ge=8)] | Literal["auto"] = Field(
        2048,
        description="Tokens of one batch on the device, padding included; a longer window is a batch alone. `auto`: as "
        "many as a GPU's memory holds and leave 100 steps in an epoch, at most 32,768; 2,048 on a CPU.",
    )
    accumulate_batches: int = Field(
        1, ge=1, description="Batches per optimizer step, of each process where several train together."
    )
    seed: int = Field(42, ge=0, description="Seed of everything random in training.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Autocast precision. `auto`: bf16 where the device computes in it, fp16 on older GPUs, else fp32.",
    )
    evaluations_per_epoch: float = Field(
        1.0, gt=0.0, description="How often the eval split is scored; 0.5: every second epoch."
    )
    evaluate_every_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Score the eval split after so many steps, whatever `evaluations_per_epoch` says."
    )
    metric: str = Field(
        "micro_f1", description="The key of `evaluate --json` that picks the best model and stops early."
    )
    patience: int = Field(5, ge=1, description="Evaluations without a better value after which training stops.")
    checkpoint_every_seconds: float = Field(
        300.0, ge=0.0, description="Longest time of work, in seconds, that a crash can cost; 0 saves after every step."
    )
    skip_nonfinite: bool = Field(
        False, description="Pass over a batch whose loss or gradients are not finite, instead of stopping."
    )
    tensorboard: bool = Field(True, description="Write TensorBoard files.")


class AuditSettings(_Part):
    """Looking for wrong annotations; what the models learn is in `model` and `train`."""

    folds: int = Field(
        5, ge=2, description="Into how many parts the documents are divided; each is judged by a model of the others."
    )
    epochs: int = Field(
        3, ge=1,
        description="Passes over the windows for each of these models, instead of `train.epochs`: models that learn "
        "longer learn the mistakes, too.",
    )  # fmt: skip
    min_score: Fraction = Field(
        0.75, description="From this score on, what is suspect is put right in `corrected.jsonl`."
    )


class DistillSettings(_Part):
    """Making a small model of a big one; how long and how fast it learns is in `train`."""

    student: str = Field(
        "", description="The student's backbone, with the teacher's tokenizer: a hub name, a folder, or `minilm`."
    )
    student_layers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Instead of a backbone: a student of so many of the teacher's layers, evenly chosen."
    )
    student_intermediate_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="With `student_layers`: units of the student's feed-forward layers, the most important ones of the "
        "teacher's. Unset: all.",
    )
    hard_weight: Fraction = Field(
        0.5, description="Share of the gold entities in the loss, where they are known; the rest is the teacher's."
    )
    temperature: float = Field(
        2.0, ge=1.0, description="Divides the logits of both before they are compared; above 1, doubts count more."
    )
    hidden_weight: float = Field(
        0.0, ge=0.0,
        description="Weight of matching the teacher's hidden states, too, through learned projections; above 0 the "
        "teacher runs at every step.",
    )  # fmt: skip


class EvaluateSettings(_Part):
    """Scoring."""

    scheme: Literal["strict", "overlap", "kazu"] = Field("strict", description="The scheme of the flat keys.")
    bootstrap_samples: int = Field(
        1000, ge=0, description="Resamples of the documents for the confidence intervals; 0: none."
    )
    bootstrap_seed: int = Field(42, ge=0, description="Seed of the resampling.")


class ExportSettings(_Part):
    """Writing a model for another engine, and judging it."""

    max_f1_drop: Fraction = Field(
        0.005, description="With `--eval`: the largest loss of strict micro F1 that an export may cost."
    )
    min_agreement: Fraction = Field(
        0.97,
        description="The least share of the original's and the export's decisions (a token is inside an entity of a "
        "class) that must be equal, on the texts of `--parity`.",
    )
    parity_windows: int = Field(
        200, ge=2, description="How many windows of those texts are looked at; half of them calibrate int8."
    )


class PredictSettings(_Part):
    """Running a model, in `predict` and `evaluate`; the batch size also when training scores the eval split."""

    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = Field(
        "auto", description="What runs the model. `auto`: the fastest that is installed of those that can."
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Autocast precision; `auto` as in training."
    )
    tokens_per_batch: Annotated[int, Field(ge=8)] | Literal["auto"] = Field(
        "auto",
        description="Tokens of one batch on the device, padding included. `auto`: 1,024 on a CPU, whose caches hold so "
        "many, and 8,192 on a GPU.",
    )
    documents_per_chunk: int = Field(
        256, ge=1,
        description="Most documents that a process holds in memory, sorts by length and saves at a time; of long ones "
        "as many as take 1 MB.",
    )  # fmt: skip
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="`predict`: processes, each with the model and its share of the cores. Unset: one for each core if "
        "the model was exported to ONNX or OpenVINO, else one.",
    )
    min_score: Fraction = Field(0.0, description="`predict`: leave out entities with a lower score.")
    labels: tuple[str, ...] = Field((), description="`predict`: only entities of these classes. Empty: of all.")
    keep_entities: bool = Field(
        False, description="`predict`: keep the entities that the documents have, and add the predicted ones."
    )
    documents_per_file: int = Field(
        1, ge=1,
        description="`predict` into a folder: documents in each file, to the next whole chunk; 1: a `.json` file for "
        "each, more: `part-*.jsonl.zst`.",
    )  # fmt: skip


class AnnotateSettings(_Part):
    """Asking an LLM for entities, and finding them in the text."""

    model: str = Field("", description="The LLM's name at the endpoint; there is no default, as it costs money.")
    base_url: str = Field(
        "https://api.openai.com/v1",
        description="The endpoint, OpenAI-compatible: OpenAI, Azure, Gemini, Vertex, vLLM, Ollama.",
    )
    api_key: SecretStr | None = Field(
        None,
        description="The endpoint's key; best set as `NERTOOL_ANNOTATE__API_KEY`. Never shown or saved.",
    )
    classes: Path | None = Field(
        None, description="TOML file with the classes to ask for. Unset: the 18 of KAZU's published model."
    )
    prompt: Path | None = Field(
        None, description="File with the prompt, with `$text` and `$classes` in it. Unset: the built-in one."
    )
    answer_format: Literal["json_schema", "json_object", "text"] = Field(
        "json_schema",
        description="How the endpoint is told to answer in JSON: by schema, as any object, or not at all.",
    )
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="The LLM's temperature.")
    seed: int | None = Field(None, description="The LLM's seed, where the endpoint has one.")
    max_answer_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest answer in tokens (`max_completion_tokens`). Unset: what the endpoint allows."
    )
    extra_body: dict[str, Any] = Field(
        {}, description='Further fields of each request, such as `{reasoning_effort="low"}`.'
    )
    max_text_tokens: int = Field(
        2000, ge=50,
        description="Longest text to ask for at once, in tokens of about four characters; longer sections are cut.",
    )  # fmt: skip
    join_sections: bool = Field(
        False, description="Ask for neighbouring sections of a document together as long as they fit."
    )
    concurrency: int = Field(16, ge=1, description="Requests at a time.")
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        None, description="At most so many requests a minute. Unset: no limit but the endpoint's."
    )
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        None, description="At most so many tokens a minute, requests and (expected) answers. Unset: no limit."
    )
    retries: int = Field(8, ge=0, description="How often to ask again when the endpoint is busy, broken or silent.")
    timeout_seconds: float = Field(300.0, gt=0.0, description="How long to wait for an answer.")
    input_price: float = Field(0.0, ge=0.0, description="Price of a million tokens of requests, in your currency.")
    output_price: float = Field(0.0, ge=0.0, description="Price of a million tokens of answers, in your currency.")
    max_cost: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Stop before all answers in the file together cost more than this; needs the prices."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop before all answers in the file together take more tokens than this."
    )
    fuzzy_similarity: float = Field(
        0.9, gt=0.0, le=1.0,
        description="Share of characters that must agree where a mention is found in no other way; 1: never guess.",
    )  # fmt: skip

    _is_an_address = field_validator("base_url")(_address)
    _key_is_sendable = field_validator("api_key")(_sendable)

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> Self:
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("annotate.max_cost needs annotate.input_price or annotate.output_price")
        return self


class LabelStudioSettings(_Part):
    """The Label Studio server in which people look at annotations and correct them."""

    url: str = Field("http://localhost:8080", description="The server's address, with its path if it has one.")
    token: SecretStr | None = Field(
        None,
        description="Access token of your account there, personal or legacy; best set as "
        "`NERTOOL_LABEL_STUDIO__TOKEN`. Never shown or saved.",
    )
    project: str = Field("", description="The project where `--project` isn't given.")
    verify_tls: bool = Field(True, description="Verify the server's certificate.")
    ca_file: Path | None = Field(
        None, description="PEM file with the certificates of your organisation. Unset: those that Python trusts."
    )
    timeout_seconds: float = Field(60.0, gt=0.0, description="How long to wait for the answer to one request.")
    patience_seconds: float = Field(
        180.0, ge=0.0, description="How long to try again while the server is silent, busy or broken, before giving up."
    )
    tasks_per_request: int = Field(
        500, ge=1, description="Most sections sent at a time; of predictions ten times as many."
    )
    bytes_per_request: int = Field(
        4_000_000, ge=1000, description="Most bytes sent at a time; halved where the server says that it is too much."
    )
    sample: Annotated[int, Field(ge=1)] | None = Field(
        500, description="With `--ls-project`: how many sections are shown, always the same ones. Unset: all."
    )
    keep_versions: Annotated[int, Field(ge=1)] | None = Field(
        5, description="With `--ls-project`: versions of a run's predictions that are kept. Unset: all."
    )

    _is_an_address = field_validator("url")(_address)
    _token_is_sendable = field_validator("token")(_sendable)


class Settings(BaseSettings):
    """All settings of nertool."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
    )

    data: DataSettings = DataSettings()
    windows: WindowSettings = WindowSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    audit: AuditSettings = AuditSettings()
    distill: DistillSettings = DistillSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()
    predict: PredictSettings = PredictSettings()
    annotate: AnnotateSettings = AnnotateSettings()
    label_studio: LabelStudioSettings = LabelStudioSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Takes nothing but what `load_settings` merged, since only it can say where a wrong value came from."""
        return (init_settings,)


def load_settings(
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Resolves all settings.

    Args:
        config_file: `--config`; by default `nertool.toml` in the working folder, if there is one.
        assignments: The `--set` values, such as `train.epochs=3`.
        options: Dotted name → value of the command line's own options; None values are not given.
        environment: The environment variables; by default the process's.

    Raises:
        NertoolError: With every unknown name (and the nearest right one) and every value out of range, and where it
            came from.
    """
    return trace_settings(config_file, assignments, options, environment)[0]


def trace_settings(
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Settings, dict[str, str]]:
    """Does what `load_settings` does, and tells where each value that isn't the default came from.

    Returns:
        The settings; and dotted name → file, environment variable, `--set …` or `command line`.
    """
    merged: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    wants_a_list = False
    layers = [
        *_file_layer(config_file),
        *_environment_layer(os.environ if environment is None else environment),
        *_assignment_layer(assignments, problems),
        *((name, value, "command line") for name, value in (options or {}).items() if value is not None),
    ]
    for name, value, origin in layers:
        section, _, key = name.partition(".")
        fields = Settings.model_fields
        if section not in fields:
            problems.append(f"{origin}: unknown settings section {section!r}{nearest_name(section, fields)}")
            continue
        part: type[BaseModel] = fields[section].annotation  # type: ignore[assignment]
        if key not in part.model_fields:
            known = {f"{section}.{field}" for field in part.model_fields}
            problems.append(f"{origin}: unknown setting {name!r}{nearest_name(name, known)}")
            continue
        if reason := _why_unsaveable(value):
            problems.append(f"{origin}: {name}: can't be saved: {reason}")
            continue
        merged.setdefault(section, {})[key] = str(value) if name in SECRETS else value
        origins[name] = origin
    try:
        settings = Settings(**merged)  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors():
            name = ".".join(map(str, item["loc"][:2]))
            given = "" if name in SECRETS or item["type"] == "value_error" else f", not {item['input']!r}"
            wants_a_list |= item["type"] in ("list_type", "tuple_type")
            reason = _KINDS.get(item["type"]) or item["msg"].removeprefix("Input ").removeprefix("Value error, ")
            problems.append(f"{origins.get(name, 'settings')}: {name}: {reason}{given}")
    if not problems:
        return settings, origins
    about_lists = 'lists are written as in TOML: ["a", "b"]; ' if wants_a_list else ""
    raise NertoolError("\n".join(problems), f"{about_lists}docs/reference/settings.md lists every setting")


def _why_unsaveable(value: Any) -> str:
    """Returns why a value can't be saved with a run, if so: bytes that aren't UTF-8, a number beyond 64 bits."""
    try:
        orjson.dumps(value, default=str)
    except TypeError as error:
        return str(error)
    return ""


# What pydantic says of values of the wrong kind, in words of people who don't write Python.
_KINDS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "should be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "should be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "should be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "should be a list"),
}

Layer = tuple[str, Any, str]

# What follows a name like these is not shown, even where the name is misspelt or the equals sign is missing.
_SECRET_VALUE = re.compile(r"(?<=key|ken)(?!s_).+|(?<=secret|passwd).+|(?<=password).+", re.IGNORECASE | re.DOTALL)
_LONGEST_PLAIN_VALUE = 8
_LONGEST_LINE = 20_000
_NAMES = {
    f"{section}.{key}"
    for section, part in Settings.model_fields.items()
    for key in part.annotation.model_fields  # type: ignore[union-attr]
}
SECRETS = {
    f"{section}.{key}"
    for section, part in Settings.model_fields.items()
    for key, field in part.annotation.model_fields.items()  # type: ignore[union-attr]
    if "Secret" in str(field.annotation)
}


def _file_layer(config_file: Path | None) -> list[Layer]:
    path = config_file or Path(CONFIG_FILE)
    if not path.is_file():
        if config_file is None:
            return []
        raise NertoolError(f"the configuration file {path} does not exist")
    layers: list[Layer] = []
    for section, values in read_toml(path).items():
        if isinstance(values, dict):
            layers += [(f"{section}.{key}", value, str(path)) for key, value in values.items()]
        else:
            layers.append((section, values, str(path)))
    return layers


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        NertoolError: If it isn't TOML, or has a line that takes Python's parser seconds or more.
        OSError: If it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if max(map(len, text.split("\n"))) > _LONGEST_LINE:
            raise ValueError(f"a line has more than {_LONGEST_LINE:,} characters")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of 5,000 digits, lists in lists in …
        raise NertoolError(f"{path} is not valid TOML: {error}") from error


def _environment_layer(environment: Mapping[str, str]) -> list[Layer]:
    layers: list[Layer] = []
    for variable, text in sorted(environment.items()):
        if variable.startswith(ENVIRONMENT_PREFIX):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1)
            layers.append((name, _value(name, text), variable))
    return layers


def _assignment_layer(assignments: Sequence[str], problems: list[str]) -> list[Layer]:
    layers: list[Layer] = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        # What a misspelt name was given may be a secret, if it is as long as one; and there may be one in an address.
        hidden = name.strip().endswith("url") or (name.strip() not in _NAMES and len(text) > _LONGEST_PLAIN_VALUE)
        origin = f"--set {f'{name}=…' if hidden else _SECRET_VALUE.sub('…', assignment)}"
        if not equals:
            problems.append(f"{origin}: write --set SECTION.NAME=VALUE")
        else:
            layers.append((name.strip(), _value(name.strip(), text.strip()), origin))
    return layers


def _value(name: str, text: str) -> Any:
    """Reads a value as TOML does where it is TOML (numbers, true, lists); all else is a string, and so are secrets."""
    if name in SECRETS:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
