from __future__ import annotations

import math

import pytest
import torch
from helpers import ROOT, SMALL, SMALL_SHAPE

from gpt2kit.data.order import IGNORE
from gpt2kit.errors import UserError
from gpt2kit.model.config import padded_vocab_size, parameter_count, shape_problems, tensor_sizes
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.training.module import GPT2Module


@pytest.fixture
def gpt2() -> GPT2Module:
    torch.manual_seed(1)
    return GPT2Module(**SMALL).eval()


def test_the_loss_equals_that_of_transformers(gpt2: GPT2Module) -> None:
    batch = torch.randint(0, 40, (3, 17))
    nll, tokens = gpt2.model.nll(batch)
    log_probabilities = gpt2.model(batch[:, :-1]).logits[..., :40].log_softmax(-1)
    assert int(tokens) == 48
    torch.testing.assert_close(nll, -log_probabilities.gather(-1, batch[:, 1:, None]).sum())


def test_padded_rows_of_the_embedding_are_not_tokens(gpt2: GPT2Module) -> None:
    """The embedding has 64 rows for 40 tokens; a uniform model has a loss of log(40)."""
    assert gpt2.model.lm_head.weight.shape[0] == 64 == padded_vocab_size(40) and padded_vocab_size(64) == 64
    torch.nn.init.zeros_(gpt2.model.lm_head.weight)
    nll, tokens = gpt2.model.nll(torch.randint(0, 40, (2, 17)))
    assert (nll / tokens).item() == pytest.approx(math.log(40), rel=1e-6)
    inference = InferenceGPT2(gpt2.shape, gpt2.model.state_dict(), "cpu", torch.float32)
    ids = torch.zeros(1, 1, dtype=torch.long)
    assert inference.next_logits(ids, ids, inference.new_cache()).shape == (1, 40)


def test_padding_does_not_count(gpt2: GPT2Module) -> None:
    batch = torch.randint(0, 40, (2, 17))
    short = batch.clone()
    short[1, 6:] = IGNORE
    nll, tokens = gpt2.model.nll(short)
    alone = gpt2.model.nll(batch[:1])[0] + gpt2.model.nll(batch[1:, :6])[0]
    assert int(tokens) == 16 + 5
    torch.testing.assert_close(nll, alone)
    empty = gpt2.model.nll(torch.full((1, 17), IGNORE))
    assert empty[0] == 0 and empty[1] == 0


def test_initial_weights_follow_gpt2() -> None:
    torch.manual_seed(1)
    shape = GPT2Module(n_layer=8, n_head=4, n_embd=256, vocab_size=500, n_positions=64).shape
    model = GPT2(shape)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif ".ln_" in name:
            assert (p == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.05), name
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    ("name", "millions"),
    [("nano", 1.1), ("tiny", 2.0), ("mini", 11.0), ("small", 124), ("medium", 355), ("large", 774), ("xl", 1558)],
)
def test_model_configs_have_the_sizes_in_their_names(name: str, millions: float) -> None:
    import yaml

    options = yaml.safe_load((ROOT / f"configs/model/{name}.yaml").read_text())
    shape = {**GPT2Module(**options, n_positions=1024).shape, "vocab_size": 50257}
    count = parameter_count(shape)
    if millions < 100:  # the names of gpt2kit's own sizes do not count the embedding
        count -= 50257 * shape["n_embd"]
    assert count / 1e6 == pytest.approx(millions, abs=0.5 if millions > 100 else 0.05)


@pytest.mark.parametrize("n_inner", [None, 40])
def test_tensor_sizes_equal_those_of_the_model(n_inner: int | None) -> None:
    shape = {**SMALL_SHAPE, "n_inner": n_inner}
    model = GPT2(shape)
    assert tensor_sizes(shape) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    padding = (64 - 40) * 32
    assert parameter_count(shape) == sum(parameter.numel() for parameter in model.parameters()) - padding


def test_options_reach_the_model() -> None:
    gpt2 = GPT2Module(
        **SMALL, n_inner=48, activation_function="relu", dropout=0.3, attn_pdrop=0.0, gradient_checkpointing=True
    )
    config = gpt2.model.config
    assert (config.n_inner, config.activation_function) == (48, "relu")
    assert (config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) == (0.3, 0.0, 0.3)
    assert all(layer.gradient_checkpointing for layer in gpt2.model.transformer.h)


def test_gradient_checkpointing_keeps_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        gpt2 = GPT2Module(**SMALL, gradient_checkpointing=recompute).train()
        gpt2.model.nll(torch.arange(34).reshape(2, 17))[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in gpt2.parameters()]))
    assert torch.equal(*gradients)


def test_gradient_checkpointing_trains_layers_above_frozen_embeddings() -> None:
    """With torch's reentrant implementation they would get no gradient."""
    gpt2 = GPT2Module(**SMALL, gradient_checkpointing=True, freeze="embeddings").train()
    gpt2.model.nll(torch.arange(34).reshape(2, 17))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in gpt2.model.transformer.h[0].mlp.parameters())


def test_both_kinds_of_attention_give_the_same_loss(gpt2: GPT2Module) -> None:
    batch = torch.randint(0, 40, (2, 17))
    losses = []
    for kind in ("plain", "sdpa"):
        gpt2.model.use_attention(kind)
        losses.append(gpt2.model.nll(batch)[0])
    torch.testing.assert_close(*losses)


def test_all_problems_of_a_shape_are_reported_together() -> None:
    problems = shape_problems({**SMALL_SHAPE, "n_embd": 33, "embd_pdrop": 1.5, "n_inner": 0})
    assert len(problems) == 3
    with pytest.raises(UserError, match=r"n_embd 33.*n_head 2"):
        GPT2Module(**{**SMALL, "n_embd": 33})
