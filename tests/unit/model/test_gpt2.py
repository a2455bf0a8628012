from __future__ import annotations

import math

import pytest
import torch
from helpers import ROOT, SMALL, SMALL_SHAPE
from torch import Tensor
from torch._dynamo.utils import counters

from gpt2kit.data.order import IGNORE
from gpt2kit.errors import UserError
from gpt2kit.generation.decoder import Decoder, TokenSequence
from gpt2kit.generation.options import SamplingOptions
from gpt2kit.model.backends import Compile, choose_attention, choose_compile, choose_precision
from gpt2kit.model.config import padded_vocab_size, parameter_count, shape_problems, tensor_sizes
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.optim.adamw import AdamW, parameter_groups
from gpt2kit.optim.nonfinite import unfuse
from gpt2kit.training.module import GPT2Module


@pytest.fixture
def gpt2() -> GPT2Module:
    torch.manual_seed(1)
    return GPT2Module(**SMALL).eval()


def test_the_loss_is_that_of_transformers(gpt2: GPT2Module) -> None:
    batch = torch.randint(0, 40, (3, 17))
    nll, tokens = gpt2.model.nll(batch)
    theirs = gpt2.model(batch[:, :-1]).logits[..., :40].log_softmax(-1).gather(-1, batch[:, 1:, None]).sum()
    assert int(tokens) == 48
    torch.testing.assert_close(nll, -theirs)


def test_rows_beyond_the_vocabulary_are_no_tokens(gpt2: GPT2Module) -> None:
    """The embedding has 64 rows for 40 tokens; a model that knows nothing pays log(40), and draws below 40."""
    assert gpt2.model.lm_head.weight.shape[0] == 64 == padded_vocab_size(40) and padded_vocab_size(64) == 64
    torch.nn.init.zeros_(gpt2.model.lm_head.weight)
    nll, tokens = gpt2.model.nll(torch.randint(0, 40, (2, 17)))
    assert (nll / tokens).item() == pytest.approx(math.log(40), rel=1e-6)
    text = TokenSequence([1])
    decoder = Decoder(
        InferenceGPT2(gpt2.shape, gpt2.model.state_dict(), "cpu", torch.float32),
        [text],
        SamplingOptions(temperature=1, top_p=1),
        -1,
    )
    for _ in range(300):
        decoder.step()
    assert max(text.new) == 39


def test_filled_up_rows_count_for_nothing(gpt2: GPT2Module) -> None:
    batch = torch.randint(0, 40, (2, 17))
    short = batch.clone()
    short[1, 6:] = IGNORE
    nll, tokens = gpt2.model.nll(short)
    alone = gpt2.model.nll(batch[:1])[0] + gpt2.model.nll(batch[1:, :6])[0]
    assert int(tokens) == 16 + 5
    torch.testing.assert_close(nll, alone)
    empty = gpt2.model.nll(torch.full((1, 17), IGNORE))
    assert empty[0] == 0 and empty[1] == 0


def test_it_learns_to_count_so_the_shift_is_right() -> None:
    """A counting sequence: from any number on, the model predicts the next one at every position."""
    torch.manual_seed(1)
    gpt2 = GPT2Module(**SMALL)
    optimizer = AdamW(parameter_groups(gpt2.model), lr=3e-3)

    def counted(start: Tensor) -> Tensor:
        return (start[:, None] + torch.arange(17)) % 40

    for _ in range(150):
        nll, tokens = gpt2.model.nll(counted(torch.randint(0, 40, (8,))))
        optimizer.zero_grad()
        (nll / tokens).backward()
        optimizer.step()
    batch = counted(torch.arange(40))
    predicted = gpt2.eval().model(batch[:, :-1]).logits[..., :40].argmax(-1)
    assert torch.equal(predicted, batch[:, 1:])


def test_initial_weights_follow_gpt2() -> None:
    """N(0, 0.02); residual projections N(0, 0.02 / sqrt(2 n_layer)); norms one, biases zero; embeddings tied."""
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
def test_the_model_files_have_the_sizes_they_name(name: str, millions: float) -> None:
    import yaml

    options = yaml.safe_load((ROOT / f"configs/model/{name}.yaml").read_text())
    with torch.device("meta"):
        module = GPT2Module(**options, vocab_size=50257, n_positions=1024)
    count = sum(p.numel() for p in module.parameters())
    if millions < 100:  # ours are counted without the vocabulary
        count -= padded_vocab_size(50257) * options["n_embd"]
    assert count / 1e6 == pytest.approx(millions, abs=0.5 if millions > 100 else 0.05)


@pytest.mark.parametrize("n_inner", [None, 40])
def test_tensor_sizes_are_those_of_the_model(n_inner: int | None) -> None:
    """Checkpoints are compared with these sizes before a model is made."""
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


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        gpt2 = GPT2Module(**SMALL, gradient_checkpointing=recompute).train()
        gpt2.model.nll(torch.arange(34).reshape(2, 17))[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in gpt2.parameters()]))
    assert torch.equal(*gradients)


def test_gradient_checkpointing_trains_what_lies_above_frozen_embeddings() -> None:
    """torch's older way gives nothing a gradient whose input needs none, silently."""
    gpt2 = GPT2Module(**SMALL, gradient_checkpointing=True, freeze="embeddings").train()
    gpt2.model.nll(torch.arange(34).reshape(2, 17))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in gpt2.model.transformer.h[0].mlp.parameters())


def test_both_attentions_agree(gpt2: GPT2Module) -> None:
    batch = torch.randint(0, 40, (2, 17))
    losses = []
    for kind in ("plain", "sdpa"):
        gpt2.model.use_attention(kind)
        losses.append(gpt2.model.nll(batch)[0])
    torch.testing.assert_close(*losses)


def test_attention_is_chosen_by_device_block_and_dropout() -> None:
    cpu = torch.device("cpu")
    thin = {**SMALL_SHAPE, "n_positions": 2048, "n_head": 2, "n_embd": 64, "attn_pdrop": 0.0}
    assert choose_attention("auto", cpu, {**thin, "n_head": 1}).value == "plain"
    assert choose_attention("auto", cpu, thin).value == "sdpa"
    assert choose_attention("auto", cpu, {**thin, "attn_pdrop": 0.1}).value == "plain"
    assert choose_attention("auto", torch.device("meta"), SMALL_SHAPE).value == "sdpa"
    assert choose_attention("sdpa", cpu, SMALL_SHAPE) == ("sdpa", "as requested")


def test_compiling_must_be_repaid(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_compile("auto", cpu, "32-true", 1e12, None).value == "off"
    assert choose_compile("auto", cpu, "32-true", 1e16, None).value == "blocks"
    assert choose_compile("auto", cpu, "32-true", 1e16, 30.0).value == "off"
    assert choose_compile("model", cpu, "32-true", 1.0, None) == ("model", "as requested")
    assert choose_compile("auto", torch.device("meta"), "32-true", 1e16, None).value == "off"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++ compiler" in choose_compile("auto", cpu, "32-true", 1e16, None).reason


def test_precision_is_chosen_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2kit.model.backends.cpu_has_fast_bf16", lambda: True)
    assert choose_precision("auto", "cpu").value == "bf16-mixed"
    monkeypatch.setattr("gpt2kit.model.backends.cpu_has_fast_bf16", lambda: False)
    assert choose_precision("auto", "cpu").value == "32-true"
    assert choose_precision("64-true", "cpu") == ("64-true", "as requested")
    names = [("16", "16-mixed"), (16, "16-mixed"), ("bf16", "bf16-mixed"), (32, "32-true"), ("bf16-true", "bf16-true")]
    for name, full in names:
        assert choose_precision(name, "cuda").value == full, "Lightning's short names mean what they mean there"  # type: ignore[arg-type]


def test_every_problem_of_a_shape_is_named_at_once() -> None:
    problems = shape_problems({**SMALL_SHAPE, "n_embd": 33, "embd_pdrop": 1.5, "n_inner": 0})
    assert len(problems) == 3
    with pytest.raises(UserError, match=r"n_embd 33.*n_head 2"):
        GPT2Module(**{**SMALL, "n_embd": 33})


def test_an_unfused_optimizer_still_steps() -> None:
    model = GPT2(SMALL_SHAPE)
    optimizer = AdamW(parameter_groups(model))
    unfuse(optimizer)
    before = model.transformer.wte.weight.clone()
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    assert not torch.equal(before, model.transformer.wte.weight)


@pytest.mark.parametrize("kind", ["blocks", "model"])
def test_a_compiled_model_is_compiled_once_for_training_and_once_for_validation(kind: Compile) -> None:
    """And gives the loss of the model as it is."""
    torch.manual_seed(1)
    gpt2 = GPT2Module(**SMALL, compile=kind)
    batches = torch.randint(0, 40, (4, 2, 17))
    plainly = [gpt2.model.nll(batch)[0].item() for batch in batches]
    torch._dynamo.reset()
    counters.clear()
    gpt2.model.compile_for_training(kind)
    graphs = []
    for _ in range(3):
        for batch in batches[:2]:
            gpt2.train().model.nll(batch)[0].backward()
        with torch.no_grad():
            found = [gpt2.eval().model.nll(batch)[0].item() for batch in batches]
        graphs.append(counters["stats"]["unique_graphs"])
    assert found == pytest.approx(plainly, rel=1e-5)
    assert graphs == [graphs[0]] * 3 and graphs[0] <= (4 if kind == "blocks" else 2)
    assert list(gpt2.state_dict()) == list(GPT2Module(**SMALL).state_dict())
