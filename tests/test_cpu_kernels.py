"""Attention and dropout for CPUs against torch's own, and against plain float64."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForTokenClassification

from nertool.cpu_kernels import Dropout, _Attention, use_cpu_kernels


def random_inputs(dtype, shape=(3, 2, 7, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]


def padding_mask(lengths, tokens):
    """True where there is a token, as transformers gives it: `(batch, 1, tokens, tokens)`, expanded."""
    real = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return real[:, None, None, :].expand(-1, 1, tokens, -1)


def sliding_mask(batch, tokens, reach):
    position = torch.arange(tokens)
    return ((position[:, None] - position).abs() <= reach).expand(batch, 1, -1, -1)


MASKS = {
    "none": None,
    "padding": padding_mask([7, 3, 5], 7),
    "nothing padded": padding_mask([7, 7, 7], 7),
    "sliding": sliding_mask(3, 7, 2),
    "first column": padding_mask([7, 3, 5], 7).flip(-1),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_and_its_gradients_are_those_of_torch(mask):
    ours, torchs = random_inputs(torch.float64), random_inputs(torch.float64)
    gradient = torch.randn(ours[0].shape, dtype=torch.float64)
    found = _Attention.apply(*ours, mask, 0.5)
    expected = scaled_dot_product_attention(*torchs, attn_mask=mask, scale=0.5)
    found.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(found, expected)
    for own, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(own.grad, other.grad)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_gradients_agree_with_finite_differences(mask):
    assert torch.autograd.gradcheck(lambda q, k, v: _Attention.apply(q, k, v, mask, 0.7), random_inputs(torch.float64))


def test_in_bf16_it_is_as_near_to_the_exact_result_as_eager_attention():
    exact = random_inputs(torch.float64, (2, 4, 65, 16))
    rounded = [tensor.detach().bfloat16() for tensor in exact]
    truth = scaled_dot_product_attention(*(tensor.double() for tensor in rounded))
    queries, keys, values = rounded
    eager = torch.softmax(queries @ keys.transpose(-1, -2) * 0.25, dim=-1) @ values
    own_error = (_Attention.apply(*rounded, None, 0.25) - truth).abs().mean()
    assert own_error <= 1.1 * (eager - truth).abs().mean()


@given(st.integers(1, 3000), st.sampled_from([0.05, 0.1, 0.5, 0.9]), st.integers(0, 2**32))
def test_dropout_zeroes_that_share_and_scales_the_rest(count, share, seed):
    torch.manual_seed(seed)
    given_input = torch.ones(count, requires_grad=True)
    output = Dropout(share)(given_input)
    output.sum().backward()
    kept = output != 0
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1 / (1 - share)), rtol=1e-4, atol=0)
    assert torch.equal(given_input.grad, output)  # the same elements, by the same factor
    deviation = math.sqrt(count * share * (1 - share))
    assert abs(int((~kept).sum()) - count * share) <= 6 * deviation + 1


def test_dropout_draws_each_element_by_itself():
    """Four elements share a random number: none of its bits may be constant or shared."""
    torch.manual_seed(1)
    dropped = (Dropout(0.5)(torch.ones(200_000)) == 0).view(-1, 4).double()
    assert (dropped.mean(dim=0) - 0.5).abs().max() < 0.01
    assert (torch.corrcoef(dropped.T) - torch.eye(4)).abs().max() < 0.02


def test_dropout_is_repeatable_and_off_outside_of_training():
    layer, given_input = Dropout(0.3), torch.randn(5, 7)
    torch.manual_seed(3)
    first = layer(given_input)
    torch.manual_seed(3)
    assert torch.equal(layer(given_input), first)
    assert torch.equal(layer.eval()(given_input), given_input)
    assert torch.equal(Dropout(0.0)(given_input), given_input)
    assert torch.equal(Dropout(1.0)(given_input), torch.zeros(5, 7))


def test_a_network_gives_the_same_logits_with_them(backbone: Path, tmp_path: Path):
    network = AutoModelForTokenClassification.from_pretrained(backbone).eval()
    ids = torch.randint(5, 100, (3, 40))
    mask = (torch.arange(40) < torch.tensor([40, 31, 12])[:, None]).long()
    expected = network(input_ids=ids, attention_mask=mask).logits
    use_cpu_kernels(network)
    torch.testing.assert_close(network(input_ids=ids, attention_mask=mask).logits, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(input_ids=ids, attention_mask=mask).logits.float()
    real = mask.bool()
    torch.testing.assert_close(rounded[real], expected[real], rtol=0, atol=0.02 * expected.abs().max().item())
    assert any(isinstance(module, Dropout) for module in network.modules())
    network.save_pretrained(tmp_path)
    assert "nertool" not in (tmp_path / "config.json").read_text()
    AutoModelForTokenClassification.from_pretrained(tmp_path)


def test_models_with_attention_of_their_own_keep_it():
    from transformers import DebertaV2Config, DebertaV2ForTokenClassification

    config = DebertaV2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        pos_att_type=["p2c", "c2p"], relative_attention=True,
    )  # fmt: skip
    network = DebertaV2ForTokenClassification(config)
    use_cpu_kernels(network)
    assert network.config._attn_implementation == "eager"


def families():
    from transformers import (
        DistilBertConfig,
        DistilBertForTokenClassification,
        ElectraConfig,
        ElectraForTokenClassification,
        GPT2Config,
        GPT2ForTokenClassification,
        ModernBertConfig,
        ModernBertForTokenClassification,
        RobertaConfig,
        RobertaForTokenClassification,
        T5Config,
        T5ForTokenClassification,
    )

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    yield ElectraForTokenClassification(ElectraConfig(vocab_size=60, embedding_size=32, **size))
    yield RobertaForTokenClassification(RobertaConfig(vocab_size=60, **size))
    yield DistilBertForTokenClassification(
        DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    )
    yield ModernBertForTokenClassification(ModernBertConfig(vocab_size=60, pad_token_id=0, local_attention=8, **size))
    yield GPT2ForTokenClassification(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, pad_token_id=0))
    yield T5ForTokenClassification(T5Config(vocab_size=60, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("number", range(6))
def test_families_of_models_give_what_they_give_with_torchs_attention(number, padded):
    """Causal ones and those that add a bias to the scores keep it."""
    torch.manual_seed(1)
    network = list(families())[number].eval()
    with torch.no_grad():
        for parameter in network.parameters():  # wide enough for attention to matter
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    ids = torch.randint(3, 60, (2, 24))
    mask = (torch.arange(24) < torch.tensor([24, 15 if padded else 24])[:, None]).long()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(input_ids=ids, attention_mask=mask).logits.float()
        use_cpu_kernels(network)
        found = network(input_ids=ids, attention_mask=mask).logits.float()
    assert (network.config._attn_implementation == "nertool_cpu") == (number < 4)
    real = mask.bool()
    assert (found - expected)[real].abs().max() <= 0.05 * expected[real].abs().max()
