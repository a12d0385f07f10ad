"""Exported models: that they decide like the original, and are refused where they don't."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nertool import exporting, onnx_export
from nertool.artefacts import Decisions, read_facts
from nertool.documents import Document, Entity, Section, Span
from nertool.engines import OnnxRuntimeEngine
from nertool.errors import NertoolError
from nertool.exporting import export, layer_groups, share_out
from nertool.formats.jsonl import JsonlWriter
from nertool.inference import load_tagger, prepare, token_logits
from nertool.labels import make_scheme
from nertool.model import NerModel, load_model, new_model
from nertool.onnx_export import linear_layers, to_int8, write_onnx
from nertool.settings import ModelSettings, PredictSettings, WindowSettings
from nertool.verification import Parity, parity
from tests.cli_helpers import in_an_empty_folder, refuse, succeed  # noqa: F401
from tests.conftest import make_backbone, make_corpus, write_documents
from tests.test_model import FAMILIES, make_family

pytest.importorskip("onnxscript")
CPU = torch.device("cpu")
WINDOWS = WindowSettings(max_tokens=32, overlap_tokens=8)
SECTIONS = [section for document in make_corpus(12) for section in document.sections]
OPTIONS = ["--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8", "--set", "train.tokens_per_batch=300"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model (`run/model`), with begin channels, and documents."""
    folder = tmp_path_factory.mktemp("trained")
    make_backbone(folder / "backbone")
    write_documents(folder / "train", make_corpus(24))
    write_documents(folder / "eval", make_corpus(6, first=24))
    succeed(
        "train", "--train", folder / "train", "--eval", folder / "eval", "--output", folder / "run", "--model",
        folder / "backbone", *OPTIONS, "--set", "train.learning_rate=0.003", "--set", "train.epochs=12",
        "--set", "model.begin_channels=true",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def onnx_model(trained: Path) -> Path:
    succeed("export", trained / "run/model", trained / "onnx", "--format", "onnx", "--eval", trained / "eval")
    return trained / "onnx"


@pytest.fixture(scope="module")
def plain(trained: Path) -> Path:
    """The network in fp32, as quantisation takes it."""
    write_onnx(load_model(trained / "run/model").network, trained / "plain.onnx")
    return trained / "plain.onnx"


def logits_of(folder: Path) -> np.ndarray:
    tagger = load_tagger(folder, PredictSettings(precision="fp32"))
    return token_logits(tagger, prepare(SECTIONS, tagger))


def test_an_onnx_model_computes_what_the_original_computes(trained: Path, onnx_model: Path) -> None:
    np.testing.assert_allclose(logits_of(onnx_model), logits_of(trained / "run/model"), atol=1e-4)
    facts = read_facts(onnx_model)
    assert facts["export"]["parity"]["onnxruntime"]["equal_decisions"] == 1
    assert facts["export"]["f1"]["export"] == facts["export"]["f1"]["original"] > 0.9
    assert facts["train"]["annotators"] == {"nertool": 24}
    assert "## Export" in (onnx_model / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in onnx_model.iterdir() if not path.name.startswith(".")}
    assert names == {"model.onnx", "tokenizer.json", "nertool.json", "README.md"}


def test_predict_and_evaluate_take_an_exported_model(trained: Path, onnx_model: Path) -> None:
    succeed("predict", trained / "run/model", trained / "eval", "one.jsonl", "--set", "predict.precision=fp32")
    result = json.loads(succeed("predict", onnx_model, trained / "eval", "two.jsonl", "--json").stdout)
    assert result["runs_on"] in ("onnxruntime on cpu in fp32", "openvino on cpu in fp32")  # whichever was faster
    one, two = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("one.jsonl", "two.jsonl")
    )
    models = {document.pop("metadata")["nertool_prediction"]["model"] for document in one + two}
    assert one == two and models == {"model", onnx_model.name}
    scored = json.loads(succeed("evaluate", onnx_model, trained / "eval", "--json").stdout)
    assert scored["micro_f1"] == pytest.approx(read_facts(onnx_model)["export"]["f1"]["export"], abs=1e-5)


def test_an_exported_model_runs_where_there_is_no_torch(trained: Path, onnx_model: Path) -> None:
    """The packages are made to fail when imported; `nox -s torch_free` does it in an environment without them."""
    script = """
import sys
for name in ("torch", "transformers", "safetensors", "sentencepiece", "tensorboard"):
    sys.modules[name] = None
from pathlib import Path
import nertool.inference
from nertool.cli import app
app(sys.argv[1:], standalone_mode=False)
assert sys.modules["torch"] is None
"""
    for arguments in (
        ["predict", onnx_model, trained / "eval", "found.jsonl"],
        ["evaluate", onnx_model, trained / "eval", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["micro_f1"] > 0.9
    assert Path("found.jsonl").stat().st_size > 0


def test_int8_is_small_and_agrees(trained: Path) -> None:
    report = json.loads(
        succeed(
            "export", trained / "run/model", "packed", "--format", "onnx", "--precision", "int8", "--eval",
            trained / "eval", "--parity", trained / "train", "--json",
        ).stdout
    )  # fmt: skip
    assert report["parity"]["onnxruntime"]["equal_decisions"] >= 0.97
    assert report["f1"]["original"] - report["f1"]["export"] <= 0.005
    assert report == read_facts(Path("packed"))["export"]


def test_an_int8_models_result_for_a_text_does_not_depend_on_its_neighbours(tmp_path: Path, plain: Path) -> None:
    """onnxruntime's own dynamic scales are those of the whole batch."""
    to_int8(plain, tmp_path / "int8.onnx")
    engine = OnnxRuntimeEngine(tmp_path / "int8.onnx", 1)
    ids = np.random.default_rng(1).integers(5, 200, (8, 20))
    mask = np.ones_like(ids)
    np.testing.assert_array_equal(engine(ids, mask)[:1], engine(ids[:1], mask[:1]))


def test_layers_that_are_kept_are_computed_in_fp32(tmp_path: Path, plain: Path) -> None:
    import onnx

    layers = linear_layers(plain)
    assert len(layers) == 2 * 6 + 1 and "bert.encoder.layer.0.output.dense" in layers and layers[-1] == "classifier"
    to_int8(plain, tmp_path / "all.onnx")
    to_int8(plain, tmp_path / "none.onnx", layers)

    def products(name: str) -> int:
        return sum(node.op_type == "MatMulInteger" for node in onnx.load(tmp_path / name).graph.node)

    assert (products("all.onnx"), products("none.onnx")) == (len(layers), 0)
    groups = layer_groups(layers)
    assert groups["bert.encoder.layer.output.dense"] == [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert sorted(name for group in groups.values() for name in group) == sorted(layers)
    ids = np.random.default_rng(1).integers(5, 200, (2, 20))
    exact = OnnxRuntimeEngine(plain, 1)(ids, np.ones_like(ids))
    np.testing.assert_allclose(OnnxRuntimeEngine(tmp_path / "none.onnx", 1)(ids, np.ones_like(ids)), exact, atol=1e-4)


@pytest.mark.parametrize(("least", "expected"), [(0.5, []), (0.9, ["ffn"]), (0.96, ["ffn", "query"])])
def test_as_few_layers_as_possible_stay_in_higher_precision(
    monkeypatch: pytest.MonkeyPatch, least: float, expected: list[str]
) -> None:
    """Every layer costs agreement of its own, the feed-forward ones the most."""
    layers = [f"layer.{i}.{name}" for i in range(2) for name in ("query", "ffn", "value")]
    cost = {"query": 0.02, "ffn": 0.08, "value": 0.01}
    written: list[list[str]] = []

    def measure(keep: Sequence[str]) -> Parity:
        written.append(list(keep))
        lost = sum(cost[layer.rpartition(".")[2]] for layer in layers if layer not in keep)
        return Parity(lost, lost, 1 - lost, 1 - lost, 100, 10)

    monkeypatch.setattr(exporting, "say", lambda _: None)
    kept = exporting._keep_what_hurts(layers, measure, least)
    assert kept == [f"layer.{i}.{name}" for name in expected for i in range(2)]
    assert written[-1] == kept  # what is on the disk is what was chosen


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_exported(tmp_path: Path, family: str, form: str) -> None:
    pytest.importorskip("openvino")
    scheme = make_scheme(["disease", "gene"])
    model = new_model(ModelSettings(name=str(make_family(tmp_path / "backbone", family))), WINDOWS, scheme)
    model.network.eval()
    texts = share_out(SECTIONS, model.tagger(CPU, torch.float32), 40)
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        exported = export(model, folder, form, precision, texts, 0.0, {})
        for engine, found in exported["parity"].items():
            assert found["largest_difference"] < (1e-3 if precision == "fp32" else 0.2), (engine, precision, found)


def test_openvino_and_hugging_face(trained: Path) -> None:
    pytest.importorskip("openvino")
    model = trained / "run/model"
    expected = logits_of(model)
    for form, precision, tolerance in (
        ("openvino", "fp32", 1e-4),
        ("openvino", "bf16", 0.3),
        ("hf", "fp32", 1e-6),
        ("hf", "fp16", 0.05),
        ("hf", "bf16", 0.3),
    ):
        succeed(
            "export",
            model,
            f"{form}-{precision}",
            "--format",
            form,
            "--precision",
            precision,
            "--parity",
            trained / "eval",
        )
        np.testing.assert_allclose(logits_of(Path(f"{form}-{precision}")), expected, atol=tolerance)
    sizes = {name: sum(file.stat().st_size for file in Path(name).iterdir()) for name in ("hf-fp32", "hf-fp16")}
    assert sizes["hf-fp16"] < sizes["hf-fp32"]


def test_what_is_exported_for_kazu_predicts_like_the_original(trained: Path) -> None:
    """But for begin channels, which KAZU has no use for; thresholds are in its bias, and must not count twice."""
    shutil.copytree(trained / "run/model", "original")
    facts = json.loads(Path("original/nertool.json").read_bytes())
    facts["thresholds"] = {"disease": 0.9, "drug": 0.2, "gene": 0.6, "organ": 0.5}
    Path("original/nertool.json").write_text(json.dumps(facts))
    report = json.loads(
        succeed("export", "original", "kazu", "--format", "kazu", "--parity", trained / "train", "--json").stdout
    )
    assert report["parity"]["torch"]["equal_decisions"] == 1
    with Path("kazu/kazu_step.yaml").open("a") as file:
        file.write("# changed\n")
    scored = [json.loads(succeed("evaluate", name, trained / "eval", "--json").stdout) for name in ("original", "kazu")]
    assert scored[0]["micro_f1"] == scored[1]["micro_f1"] > 0.8
    np.testing.assert_allclose(logits_of(Path("kazu")), logits_of(Path("original"))[:, :4], atol=1e-4)
    assert "are in its weights" in refuse("evaluate", "kazu", trained / "eval", "--tune-thresholds")


def test_fp16_onnx(trained: Path) -> None:
    choice = ["--format", "onnx", "--precision", "fp16", "--parity", trained / "train"]
    succeed("export", trained / "run/model", "half", *choice)
    np.testing.assert_allclose(logits_of(Path("half")), logits_of(trained / "run/model"), atol=0.05)


@pytest.mark.slow
def test_openvino_int8(trained: Path) -> None:
    pytest.importorskip("nncf")
    report = json.loads(
        succeed(
            "export", trained / "run/model", "packed", "--format", "openvino", "--precision", "int8", "--eval",
            trained / "eval", "--parity", trained / "train", "--json",
        ).stdout
    )  # fmt: skip
    assert report["parity"]["openvino"]["equal_decisions"] >= 0.97


def test_formats_and_precisions_that_do_not_exist_are_refused(trained: Path) -> None:
    model = trained / "run/model"
    assert "no export of the format 'onnx' in 'bf16'" in refuse(
        "export", model, "out", "--format", "onnx", "--precision", "bf16"
    )
    assert "no export of the format 'tflite'" in refuse("export", model, "out", "--format", "tflite")
    assert not list(Path().iterdir())


def test_an_export_that_decides_otherwise_or_scores_worse_leaves_nothing(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is broken on purpose on its way to the gates."""
    original = exporting.save_model

    def broken(model: NerModel, folder: Path, facts: dict[str, Any]) -> None:
        head = model.network.get_submodule("classifier")
        assert isinstance(head, torch.nn.Linear)
        with torch.no_grad():
            head.bias -= 6
        original(model, folder, facts)

    monkeypatch.setattr(exporting, "save_model", broken)
    choice = ["--format", "hf", "--precision", "fp16", "--eval", trained / "eval"]
    arguments = ["export", trained / "run/model", "out", *choice]
    assert "agrees with the original on" in refuse(*arguments, "--parity", trained / "train")
    assert "lost, more than 0.005" in refuse(*arguments, "--set", "export.min_agreement=0")
    assert not Path("out").exists() and not list(Path().glob(".out*"))
    succeed(*arguments, "--set", "export.min_agreement=0", "--max-f1-drop", "1")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_damaged_export_is_refused(onnx_model: Path, trained: Path, name: str) -> None:
    shutil.copytree(onnx_model, "copied")
    path = Path("copied", name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert f"copied is damaged: {name}" in refuse("predict", "copied", trained / "eval", "out.jsonl")
    path.unlink()
    assert f"copied is damaged: {name} is missing" in refuse("evaluate", "copied", trained / "eval")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_model_is_refused(trained: Path, name: str) -> None:
    shutil.copytree(trained / "run/model", "copied")
    path = Path("copied", name)
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes([data[-4] ^ 1]) + data[-3:])
    for command in ("predict", "export"):
        more = ["--format", "onnx"] if command == "export" else []
        source = [] if command == "export" else [trained / "eval"]
        assert f"copied is damaged: {name}" in refuse(command, "copied", *source, "out", *more)


def test_what_can_not_be_run_or_exported_is_said(trained: Path, onnx_model: Path) -> None:
    engine = ["--set", "predict.engine=torch"]
    assert "can't be run by torch" in refuse("predict", onnx_model, trained / "eval", "out.jsonl", *engine)
    engine = ["--set", "predict.engine=openvino"]
    assert "export it first" in refuse("predict", trained / "run/model", trained / "eval", "out.jsonl", *engine)
    assert "exported for CPUs" in refuse("predict", onnx_model, trained / "eval", "out.jsonl", "--device", "cuda")
    assert "is an export itself" in refuse("export", onnx_model, "out", "--format", "onnx")
    assert "is not a model" in refuse("export", trained / "train", "out", "--format", "onnx")


def test_a_missing_package_is_named(trained: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nertool import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    message = refuse("predict", onnx_model, trained / "eval", "out.jsonl")
    assert "onnxruntime is not installed" in message and "pip install 'nertool[onnx]'" in message
    assert "nertool[onnx]" in refuse("export", trained / "run/model", "out", "--format", "onnx")
    assert "nertool[openvino]" in refuse("export", trained / "run/model", "out", "--format", "openvino")


def test_thresholds_can_be_tuned_on_an_exported_model(onnx_model: Path, trained: Path) -> None:
    shutil.copytree(onnx_model, "copied")
    succeed("evaluate", "copied", trained / "eval", "--tune-thresholds")
    assert "tuned" in read_facts(Path("copied"))


def test_parity_counts_what_it_says() -> None:
    decisions = Decisions(make_scheme(["a", "b"]), WINDOWS, (0.5, 0.5), 0.0)
    one = np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]], np.float32)
    two = np.array([[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]], np.float32)
    entity = Entity("a", (Span(0, 1),), "x")
    found = parity(one, two, decisions, [(entity,), ()], [(entity,), (entity,)])
    assert (found.decisions, found.equal_decisions) == (4, 2 / 4)
    assert found.largest_difference == 2.0 and found.mean_difference == pytest.approx(4 / 6)
    assert (found.entities, found.equal_entities) == (1, 2 / 3)
    nothing: list[Any] = [()]
    assert parity(one[2:], one[2:], decisions, nothing, nothing).equal_decisions == 1


def test_texts_are_shared_out_without_overlap(backbone: Path) -> None:
    model = new_model(ModelSettings(name=str(backbone)), WINDOWS, make_scheme(["gene"]))
    tagger = model.tagger(CPU, torch.float32)
    texts = share_out(SECTIONS, tagger, 10)
    calibration, judged = ({s.text for s in part.sections} for part in (texts.calibration, texts.judged))
    assert len(calibration) == len(judged) == 5 and not calibration & judged
    long = Section("body", "word " * 2000)
    texts = share_out([long], tagger, 4)  # one long text is cut, and still shared
    assert [len(part.sections) for part in (texts.calibration, texts.judged)] == [2, 2]
    with pytest.raises(NertoolError, match="too little text"):
        share_out([Section("title", "A gene"), Section("empty", " ")], tagger, 10)


def test_what_is_no_number_fails_the_gate() -> None:
    decisions = Decisions(make_scheme(["a"]), WINDOWS, (0.5,), 0.0)
    one = np.full((100, 1), 3.0, np.float32)
    broken = one.copy()
    broken[0] = np.nan
    nothing: list[Any] = [()]
    for precision in ("fp32", "int8"):
        with pytest.raises(NertoolError, match="differ by up to nan"):
            exporting._judge(parity(one, broken, decisions, nothing, nothing), "onnxruntime", precision, 0.97)
    with pytest.raises(NertoolError, match="finds too little"):
        exporting._judge(parity(one[:3], one[:3], decisions, nothing, nothing), "onnxruntime", "int8", 0.97)
    exporting._judge(parity(one, one, decisions, nothing, nothing), "onnxruntime", "fp32", 1.0)


def test_begin_channels_are_judged_too() -> None:
    decisions = Decisions(make_scheme(["a"], begin=True), WINDOWS, (0.5,), 0.0)
    one = np.array([[3.0, -3.0], [3.0, -3.0]], np.float32)
    found = parity(one, one + np.array([0, 9], np.float32), decisions, [()], [()])
    assert (found.decisions, found.equal_decisions, found.largest_difference) == (4, 0.5, 9.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--parity", "blank.txt"], "too little text"),
        (["--parity", "foreign"], "finds too little"),
        (["--parity", "TRAIN", "--eval", "plain.jsonl"], "finds no entity"),
        (["--parity", "TRAIN", "--max-f1-drop", "0"], "needs --eval"),
    ],
)
def test_gates_need_something_to_judge(trained: Path, options: list[str], expected: str) -> None:
    Path("blank.txt").write_text("  \n")
    Path("foreign").mkdir()
    for name in ("in", "of"):
        Path(f"foreign/{name}.txt").write_text(name)
    with JsonlWriter(Path("plain.jsonl")) as writer:
        writer.write(Document("1", (Section("title", "EGFR in lung cancer"),)))
    given = [trained / "train" if option == "TRAIN" else option for option in options]
    choice = ["--format", "hf", "--precision", "fp16"]
    assert expected in refuse("export", trained / "run/model", "out", *choice, *given)
    assert not Path("out").exists()


def test_large_tables_are_packed_once_whoever_uses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph by hand: one table with two users, and one of whole numbers, which is left alone."""
    import onnx
    from onnx import helper, numpy_helper

    table = np.random.default_rng(1).normal(0, 1, (50, 8)).astype(np.float32)
    numbers = np.arange(400, dtype=np.int64).reshape(50, 8)
    ids = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n"]) for name in ("a", "b")]
    outputs = [
        helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, ["n", 8]),
        helper.make_tensor_value_info("picked", onnx.TensorProto.INT64, ["n", 8]),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "a"], ["first"]),
        helper.make_node("Gather", ["table", "b"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("Gather", ["numbers", "a"], ["picked"]),
    ]
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(numbers, "numbers")]
    graph = helper.make_graph(nodes, "g", ids, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    monkeypatch.setattr(onnx_export, "_LEAST_TABLE_ELEMENTS", 100)
    onnx_export._pack_tables(model.graph)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["table_rows"] == onnx.TensorProto.INT8 and types["numbers"] == onnx.TensorProto.INT64
    onnx.save(model, tmp_path / "packed.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "packed.onnx"))
    given = {"a": np.array([3, 7]), "b": np.array([0, 49])}
    found, picked = session.run(None, given)
    np.testing.assert_allclose(found, table[[3, 7]] + table[[0, 49]], atol=0.05)
    np.testing.assert_array_equal(picked, numbers[[3, 7]])


def test_an_older_models_folder_can_be_exported(trained: Path) -> None:
    shutil.copytree(trained / "run/model", "old")
    facts = json.loads(Path("old/nertool.json").read_bytes())
    facts |= {"format": 1, "threshold": 0.5}
    del facts["thresholds"]
    Path("old/nertool.json").write_text(json.dumps(facts))
    succeed("export", "old", "out", "--format", "hf", "--precision", "fp16", "--parity", trained / "train")
    thresholds = json.loads(Path("out/nertool.json").read_bytes())["thresholds"]
    assert thresholds == dict.fromkeys(facts["scheme"]["labels"], 0.5)
