"""What strangers may send, and what nobody may see: models with code in them, ids that climb out, secrets."""

import json
import os
import pickle
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import typer
from safetensors.torch import load_file

from nertool.cli import app
from nertool.documents import Document, Section, document_to_json
from nertool.formats import FORMATS
from nertool.labelling_config import make_config
from nertool.settings import ENVIRONMENT_PREFIX, SECRETS
from tests.cli_helpers import in_an_empty_folder, nertool, refuse, succeed  # noqa: F401
from tests.conftest import entity, make_backbone, make_corpus, write_documents

TINY = [
    "--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8", "--set", "train.epochs=1",
    "--set", "train.tokens_per_batch=256", "--set", "audit.epochs=1", "--set", "audit.folds=2",
]  # fmt: skip


class Evil:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {Path.cwd() / 'pwned'}",)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, a backbone and a trained run, for all tests; nothing may be written into them."""
    folder = tmp_path_factory.mktemp("world")
    write_documents(folder / "train", make_corpus(12))
    write_documents(folder / "eval", make_corpus(4, first=12))
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text("BRCA1 in lung cancer")
    backbone = make_backbone(folder / "backbone")
    data = ["--train", folder / "train", "--eval", folder / "eval", "--output", folder / "run"]
    succeed("train", *data, "--model", backbone, *TINY)
    return folder


# Models of strangers


def backbone_with(world: Path, *, without: str = "", **config: object) -> Path:
    """Returns a copy of the backbone without some files, and with more in its config.json."""
    shutil.copytree(world / "backbone", "model")
    for path in Path("model").glob(without or "nothing"):
        path.unlink()
    file = Path("model/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return Path("model")


def without_digests(model: Path) -> None:
    """Makes a model folder one whose files a stranger changed, and what it tells of them, too."""
    file = model / "nertool.json"
    facts = json.loads(file.read_text())
    facts.pop("files", None)
    file.write_text(json.dumps(facts))


def train_with(world: Path, model: Path) -> list[object]:
    data = ["--train", world / "train", "--eval", world / "eval", "--output", "run"]
    return ["train", *data, "--model", model, *TINY]


@pytest.mark.parametrize("form", ["plain pickle", "torch"])
def test_weights_with_code_in_them_are_refused_and_run_nothing(form: str, world: Path) -> None:
    model = backbone_with(world, without="*.safetensors")
    code = pickle.dumps({"bert.embeddings": Evil()}, protocol=2)
    pickle.loads(code)
    Path("pwned").unlink()  # so it does run where it is simply unpickled
    if form == "torch":
        torch.save({"bert.embeddings": Evil()}, model / "pytorch_model.bin")
    else:
        (model / "pytorch_model.bin").write_bytes(code)
    assert "perhaps code, which nertool doesn't run" in refuse(*train_with(world, model))
    assert not Path("pwned").exists() and not Path("run").exists()


def test_weights_of_a_backbone_may_be_old_style_if_they_are_nothing_but_tensors(world: Path) -> None:
    weights = load_file(world / "backbone/model.safetensors")
    model = backbone_with(world, without="*.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    succeed(*train_with(world, model))


def test_a_trained_model_has_safetensors_or_is_refused(world: Path) -> None:
    shutil.copytree(world / "run/model", "model")
    Path("model/model.safetensors").unlink()
    torch.save({"bert.embeddings": Evil()}, "model/pytorch_model.bin")
    assert "model.safetensors is missing" in refuse("evaluate", "model", world / "eval")
    Path("model/model.safetensors").write_bytes(Path("model/pytorch_model.bin").read_bytes())
    without_digests(Path("model"))
    assert "cannot load the model" in refuse("predict", "model", world / "texts", "out.jsonl")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("model_type", ["bert", "of_our_own"])
def test_code_that_comes_with_a_model_does_not_run_and_nobody_is_asked(model_type: str, world: Path) -> None:
    code = f"open({str(Path.cwd() / 'pwned')!r}, 'w')\nfrom transformers import BertConfig as C, BertModel as M\n"
    classes = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoModelForTokenClassification": "code.M"}
    model = backbone_with(world, model_type=model_type, auto_map=classes)
    (model / "code.py").write_text(code)
    if model_type == "bert":  # whose code transformers has itself
        succeed(*train_with(world, model))
    else:
        assert "code of its own, which nertool doesn't run" in refuse(*train_with(world, model))
    assert not Path("pwned").exists()


def test_a_tokenizer_with_code_is_refused(world: Path) -> None:
    model = backbone_with(world, model_type="of_our_own")
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps({"tokenizer_class": "OurOwn", "auto_map": {"AutoTokenizer": ["code.T", "code.T"]}}))
    (model / "code.py").write_text(f"open({str(Path.cwd() / 'pwned')!r}, 'w')\n")
    assert "code of its own, which nertool doesn't run" in refuse(*train_with(world, model))
    assert not Path("pwned").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_model_can_not_have_kernels_fetched_from_the_hub(key: str, world: Path) -> None:
    succeed(*train_with(world, backbone_with(world, **{key: "someone/kernel"})))
    config = json.loads(Path("run/model/config.json").read_text())
    Path("run/model/config.json").write_text(json.dumps({**config, key: "someone/kernel"}))
    without_digests(Path("run/model"))
    succeed("predict", "run/model", world / "texts", "out.jsonl")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("where", ["../secret.bin", "absolute", "link.bin"])
def test_an_onnx_model_reads_nothing_outside_its_folder(where: str, engine: str) -> None:
    pytest.importorskip(engine)
    onnx = pytest.importorskip("onnx")
    from nertool.engines import OnnxRuntimeEngine, OpenVinoEngine
    from nertool.errors import NertoolError

    Path("secret.bin").write_bytes(bytes(64))
    Path("model").mkdir()
    Path("model/inside.bin").write_bytes(bytes(64))
    Path("model/link.bin").symlink_to(Path("secret.bin").absolute())

    def load(location: str) -> None:
        weights = onnx.TensorProto(name="w", data_type=1, dims=[2, 2], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in {"location": location, "offset": "0", "length": "16"}.items():
            weights.external_data.add(key=key, value=value)
        ends = [onnx.helper.make_tensor_value_info(name, 1, [2, 2]) for name in ("input_ids", "logits")]
        node = onnx.helper.make_node("Add", ["input_ids", "w"], ["logits"])
        graph = onnx.helper.make_graph([node], "graph", ends[:1], ends[1:], [weights])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        path = Path("model/model.onnx")
        path.write_bytes(model.SerializeToString())
        OnnxRuntimeEngine(path, 1) if engine == "onnxruntime" else OpenVinoEngine(path, "fp32", 1)

    load("inside.bin")
    with pytest.raises(NertoolError, match=r"can't load model/model\.onnx"):
        load(str(Path("secret.bin").absolute()) if where == "absolute" else where)


# Documents of strangers

NASTY_IDS = [
    "../../x", "..", ".", "/etc/nertool-x", "a/../../b", "C:\\x", "..\\..\\x", "~/x", "-rf", "a\nb", "a\x00b", " ",
    ".hidden", "nul", "x" * 300, "\u202egnp.exe", "%2e%2e/x", "split.json", ".nertool.json", "$(touch pwned)",
    "<script>alert(1)</script>",
]  # fmt: skip


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """Documents with ids that want to be somewhere else."""
    texts = [f"BRCA1 and aspirin number {number} in lung cancer" for number in range(len(NASTY_IDS))]
    documents = [
        Document(name, (Section("title", text, (entity(text, "gene", "BRCA1"), entity(text, "drug", "aspirin"))),))
        for name, text in zip(NASTY_IDS, texts, strict=True)
    ]
    file = tmp_path / "nasty.jsonl"
    file.write_bytes(b"".join(json.dumps(document_to_json(document)).encode() + b"\n" for document in documents))
    return file


def outside(root: Path, but: Path) -> set[str]:
    return {str(path) for path in root.rglob("*") if but not in path.parents and path != but}


@pytest.mark.parametrize("name", FORMATS)
def test_ids_never_lead_out_of_the_folder_of_a_format(name: str, nasty: Path, tmp_path: Path) -> None:
    before = outside(tmp_path, tmp_path / "work")
    Path("deep/er").mkdir(parents=True)
    result = nertool("convert", nasty, "deep/er/out", "--to", name, "--force")
    assert result.exit_code in (0, 2) and "Traceback" not in result.stderr, result.stderr
    assert outside(tmp_path, tmp_path / "work") == before
    assert [path.name for path in Path().iterdir()] == ["deep"]
    assert all(path.parts[:3] == ("deep", "er", path.parts[2]) and path.parts[2].strip(".").startswith("out")
               for path in Path("deep/er").rglob("*"))  # fmt: skip
    assert not list(Path("/etc").glob("nertool-x*"))


def test_ids_never_lead_out_of_the_folders_of_other_commands(nasty: Path, world: Path, tmp_path: Path) -> None:
    before = outside(tmp_path, tmp_path / "work")
    succeed("split", nasty, "split", "--fractions", "0.5,0.3,0.2")
    succeed("predict", world / "run/model", nasty, "predicted")
    succeed("predict", world / "run/model", nasty, "sharded", "--shard", "1/2")
    answers = [{"document": name, "section": 0, "response": "[]"} for name in NASTY_IDS]
    Path("answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    nertool("annotate", nasty, "annotated", "--responses", "answers.jsonl")
    assert outside(tmp_path, tmp_path / "work") == before
    made = {path.parts[0] for path in Path().rglob("*")}
    assert made - {"annotated", "annotated.quarantine.jsonl"} == {"split", "predicted", "sharded", "answers.jsonl"}
    read = json.loads(succeed("convert", "predicted", "again.jsonl", "--json").stdout)
    assert read["read"]["documents"] == len(NASTY_IDS)


def test_an_xml_bomb_is_refused_by_the_command() -> None:
    pytest.importorskip("defusedxml")
    bomb = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    Path("bomb.xml").write_text(
        f'<!DOCTYPE collection [<!ENTITY l0 "lol">{bomb}]><collection><document><id>&l11;</id></document></collection>'
    )
    assert "could fill the memory" in refuse("convert", "bomb.xml", "out.jsonl", "--from", "bioc")


def test_class_names_are_text_in_a_labelling_configuration() -> None:
    names = ['"><script>alert(1)</script>', "a & b", "<View/>", "it's"]
    root = ElementTree.fromstring(make_config(names))
    assert {label.get("value") for label in root.iter("Label")} >= set(names)
    assert {element.tag for element in root.iter()}.isdisjoint({"script"})


def test_what_documents_hold_does_not_command_the_terminal() -> None:
    escape = "\x1b]0;title\x07\x1b[2J"
    texts = ["BRCA1 in lung cancer", "hepatitis among nurses with BRCA1"]
    documents = [
        Document(f"{text[0]}{escape}", (Section("t", text, (entity(text, f"gene{escape}", "BRCA1"),)),))
        for text in texts
    ]
    lines = [json.dumps(document_to_json(document)) for document in documents]
    Path("in.jsonl").write_text("\n".join(lines))
    tables = succeed("split", "in.jsonl", "out", "--fractions", "0.5,0.5,0")
    message = refuse("split", f"nowhere{escape}", "other")
    for said in (tables.stderr, message):
        assert "\x1b" not in said and "\x07" not in said
        assert r"\x1b]0;title\x07\x1b[2J" in said


# Secrets

CANARY = "canary-4471-never-shown"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """All secrets are set, in the environment."""
    for name in SECRETS:
        monkeypatch.setenv(ENVIRONMENT_PREFIX + name.upper().replace(".", "__"), CANARY)
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("timeout_seconds=1", "patience_seconds=0", "url=http://127.0.0.1:9"):
        key, value = name.split("=")
        monkeypatch.setenv(f"NERTOOL_LABEL_STUDIO__{key.upper()}", value)


def _names() -> list[str]:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    groups = {name: getattr(command, "commands", None) for name, command in commands.items()}
    return [f"{name} {one}".strip() for name, inner in groups.items() for one in (inner or [""])]


SHOWN_URL = ["--set", f"label_studio.url=http://user:{CANARY}@127.0.0.1:9/?key={CANARY}"]
ASKED_URL = ["--base-url", f"http://{CANARY}:{CANARY}@127.0.0.1:9/v1?key={CANARY}"]
NOBODY = ["--base-url", "http://127.0.0.1:9/v1", "--set", "annotate.retries=0"]
# Name → arguments that succeed (None: nothing that is quick and needs no server does), and arguments that fail.
RUNS: dict[str, tuple[list[str] | None, list[list[str]]]] = {
    "demo": (None, [["{world}"]]),
    "doctor": (None, [[], SHOWN_URL, ["--set", f"annotate.base_url=http://127.0.0.1:9/{CANARY[:6]}"]]),
    "settings": ([], [SHOWN_URL, ["--set", f"annotate.api_keys={CANARY}"]]),
    "annotate": (
        ["{world}/texts", "out", "--responses", "answers.jsonl"],
        [
            ["{world}/texts", "o", "--llm", "x", *ASKED_URL],
            ["{world}/texts", "o", "--llm", "x", *NOBODY],
        ],
    ),
    "convert": (["{world}/train", "out.jsonl"], [["{world}/nothing", "out.jsonl"]]),
    "split": (["{world}/train", "out"], [["{world}/train", "out", "--fractions", "2,1,1"]]),
    "cache": (
        ["{world}/train", "out", "--model", "{world}/backbone", *TINY], [["{world}/train", "o", "--model", "no/thing"]],
    ),
    "train": (
        ["--train", "{world}/train", "--eval", "{world}/eval", "--output", "out", "--model", "{world}/backbone", *TINY],
        [["--train", "{world}/train", "--eval", "{world}/eval", "--output", "o", "--model", "someone/nothing"],
         ["--train", "{world}/train", "--eval", "{world}/eval", "--output", "o", "--ls-project", "p", "--model",
          "{world}/backbone", *SHOWN_URL]],
    ),
    "evaluate": (["{world}/run/model", "{world}/eval"], [["{world}/run/model", "{world}/eval", "--ls-project", "p"]]),
    "audit": (["{world}/train", "out", "--model", "{world}/backbone", *TINY], [["{world}/texts", "o"]]),
    "distill": (
        ["{world}/run/model", "--train", "{world}/train", "--eval", "{world}/eval", "--output", "out",
         "--student-layers", "1", *TINY],
        [["{world}/run", "--train", "{world}/train", "--eval", "{world}/eval", "--output", "o"]],
    ),
    "export": (["{world}/run/model", "out", "--format", "hf"], [["{world}/run/model", "o", "--format", "tflite"]]),
    "predict": (["{world}/run/model", "{world}/texts", "out"], [["{world}/run", "{world}/texts", "o"]]),
    "ls-sync push": (None, [["{world}/train", "--project", "p"], ["{world}/train", "--project", "p", *SHOWN_URL]]),
    "ls-sync pull": (None, [["o", "--project", "p"]]),
    "ls-sync status": (None, [["--project", "p"]]),
    "ls-sync list": (None, [[], SHOWN_URL]),
    "ls-sync delete": (None, [["--project", "p"]]),
}  # fmt: skip


@pytest.mark.parametrize("name", _names())
def test_secrets_are_nowhere_in_what_a_command_says_and_writes(
    name: str, world: Path, secrets: None, tmp_path: Path
) -> None:
    answer = {"document": "a", "section": 0, "response": '[{"entity_match": "BRCA1", "entity_class": "gene"}]'}
    Path("answers.jsonl").write_text(json.dumps(answer) + "\n")
    good, bad = RUNS[name]
    for words, status in [*([(good, 0)] if good is not None else []), *((words, 2) for words in bad)]:
        result = nertool(*name.split(), *(word.format(world=world) for word in words))
        assert result.exit_code == status, (words, result.output)
        assert CANARY not in result.output and CANARY not in repr(result.exception), words
    for folder in (tmp_path, world):
        found = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
        assert not found
    if good and Path("out").is_dir():
        assert list(Path("out").rglob("*"))


def test_the_traceback_of_a_defect_shows_no_secrets(world: Path, secrets: None) -> None:
    code = (
        "import nertool.commands.split as split, nertool.cli as cli, sys\n"
        "def broken(source, output, settings, **options):\n"
        "    whole = settings_with_secrets = __import__('nertool.settings').settings.load_settings()\n"
        "    raise RuntimeError(f'a defect {whole.annotate} {whole.label_studio!r}')\n"
        "split.run_split = broken\n"
        f"sys.argv = ['nertool', 'split', {str(world / 'train')!r}, 'out']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "a defect" in done.stderr and "Traceback" in done.stderr
    assert CANARY not in done.stdout + done.stderr


# Connections


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server whose certificate nobody trusts; it keeps what it is asked in `asked`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:  # the clients break off the handshake
            pass

    asked.clear()
    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()
    server.server_close()


asked: list[str] = []


def test_label_studio_must_show_a_certificate_that_is_trusted(
    https: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("label_studio_sdk")
    address, certificate = https
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", "token")
    command = ["ls-sync", "list", "--set", f"label_studio.url={address}", "--set", "label_studio.patience_seconds=0"]
    assert "certificate verify failed" in refuse(*command).lower()
    assert not asked  # not even the token was sent
    refuse(*command, "--set", f"label_studio.ca_file={certificate}")
    assert asked
    asked.clear()
    refuse(*command, "--set", "label_studio.verify_tls=false")
    assert asked


def test_an_llm_must_show_a_certificate_that_is_trusted(
    https: tuple[str, Path], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("NERTOOL_ANNOTATE__API_KEY", "key")
    command = ["annotate", world / "texts", "out", "--llm", "x", "--base-url", f"{https[0]}/v1"]
    assert "certificate verify failed" in refuse(*command, "--set", "annotate.retries=2").lower()
    assert not asked


# Files


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_settings_file_is_begun_without_places_for_secrets() -> None:
    succeed("settings", "--init")
    names = [name.split(".")[1] for name in SECRETS]
    assert not [line for line in Path("nertool.toml").read_text().splitlines() for name in names if f"{name} =" in line]
