"""Folders of peft adapters: those that peft writes, and those that do not fit or are hostile."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_huggingface_model
from safetensors.torch import load_file, save_file

from gpt2kit.checkpoint import adapter, checkpoint
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.errors import CheckpointError

pytest.importorskip("peft", reason="optional: pip install peft")
# peft asks transformers for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LAYER = "base_model.model.transformer.h.0.attn.c_attn"


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_huggingface_model(corpus / "tokenizer", tmp_path_factory.mktemp("base") / "base")


def save_adapter(base: Path, folder: Path, **options: Any) -> torch.Tensor:
    """Write an adapter with random matrices as peft does, and return the logits of the model with it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    options = {"r": 4, "lora_alpha": 6, "fan_in_fan_out": True, "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(torch.arange(16)[None]).logits


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(base, folder, target_modules=["c_attn", "c_proj", "c_fc"])
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def refusal(folder: Path, base: Path | str | None) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.open(folder, options=ForeignOptions(adapter_base=None if base is None else str(base)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_config(folder: Path, **values: Any) -> None:
    raw = json.loads((folder / adapter.CONFIG).read_text())
    (folder / adapter.CONFIG).write_text(json.dumps({**raw, **values}))


@pytest.mark.parametrize(
    "options",
    [
        {},  # peft's default for GPT-2: c_attn alone
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_rslora": True},
        {"target_modules": ["c_fc"], "layers_to_transform": [1], "lora_dropout": 0.5},
    ],
)
def test_an_adapter_of_peft_gives_the_same_logits(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    logits = save_adapter(base, tmp_path / "adapter", **options)
    opened = checkpoint.open(tmp_path / "adapter", options=ForeignOptions(adapter_base=str(base)))
    plain = checkpoint.open(base)
    with torch.no_grad():
        ids = torch.arange(16)[None]
        torch.testing.assert_close(opened.model(ids).logits[..., :320], logits)
        assert (plain.model(ids).logits[..., :320] - logits).abs().max() > 1e-3
    assert opened.path == tmp_path / "adapter" and opened.metadata["test_files"] == []


def test_the_base_may_be_inside_the_folder_but_not_elsewhere(folder: Path, base: Path) -> None:
    advice = "names no model on the hub as its base. Give the base as --adapter_base"
    for name in (None, str(base), "../base", "./x", 7, "a/b/c"):
        change_config(folder, base_model_name_or_path=name)
        assert advice in refusal(folder, None), name
    (folder / "link").symlink_to(base)
    change_config(folder, base_model_name_or_path="link")
    assert "link: no such folder, and not available from the hub" in refusal(folder, None)
    shutil.copytree(base, folder / "base")
    change_config(folder, base_model_name_or_path="base")
    assert checkpoint.open(folder).path == folder
    shutil.copy(folder / adapter.CONFIG, folder / "base")
    assert "is an adapter, too" in refusal(folder, None)


def test_a_revision_of_the_base_is_kept(folder: Path) -> None:
    for revision, base in (("v1.2", "hf://a/b@v1.2"), (None, "hf://a/b"), ("../x", "hf://a/b"), (3, "hf://a/b")):
        change_config(folder, base_model_name_or_path="a/b", revision=revision)
        assert adapter.read_config(folder).base == base


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of type 'IA3', but gpt2kit reads LORA"),
        ({"use_dora": True}, "use_dora is True, but gpt2kit reads plain LoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["wte"]}, "modules_to_save is ['wte']"),
        ({"rank_pattern": {"c_attn": 8}}, "rank_pattern is {'c_attn': 8}"),
        ({"new_method": {"x": 1}}, "new_method is {'x': 1}"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": []}, "init_lora_weights is []"),
        ({"r": 0}, "r 0 or lora_alpha 6 is invalid"),
        ({"r": "4"}, "r '4' or lora_alpha 6 is invalid"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan is invalid"),
        ({"lora_alpha": None}, "lora_alpha None is invalid"),
        ({"r": 5}, "lora_A.weight is (4, 32), but its base requires (5, 32)"),
    ],
)
def test_settings_that_are_not_plain_lora_are_refused(
    values: dict[str, Any], message: str, folder: Path, base: Path
) -> None:
    change_config(folder, **values)
    assert message in refusal(folder, base)


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        tensors = load_file(folder / adapter.WEIGHTS)
        change(tensors)
        save_file(tensors, folder / adapter.WEIGHTS, {"format": "pt"})

    return save


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_tensors(lambda t: t.pop(f"{LAYER}.lora_B.weight")), "only one of two"),
        (change_tensors(lambda t: t.clear()), "contains no LoRA matrices"),
        (change_tensors(lambda t: t.update({"x": torch.ones(1)})), "tensor x is not LoRA of a layer of its base"),
        (
            change_tensors(lambda t: t.update({LAYER.replace("h.0", "h.2") + ".lora_A.weight": torch.ones(4, 32)})),
            "h.2.attn.c_attn.lora_A.weight is not LoRA of a layer of its base",
        ),
        (
            change_tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(4, 33)})),
            "lora_A.weight is (4, 33), but its base requires (4, 32)",
        ),
        (
            change_tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.full((4, 32), float("nan"))})),
            "is not floats, or contains NaN or Inf",
        ),
        (
            change_tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(4, 32).long()})),
            "is not floats, or contains NaN or Inf",
        ),
        (lambda folder: (folder / adapter.WEIGHTS).write_bytes(b"x"), "not a readable file of tensors"),
        (lambda folder: (folder / adapter.WEIGHTS).unlink(), f"contains no {adapter.WEIGHTS}"),
        (lambda folder: (folder / adapter.CONFIG).write_text("[" * 9999), "not readable (nested too deeply)"),
        (lambda folder: (folder / adapter.CONFIG).write_text("[]"), "an adapter of type [], but gpt2kit reads LORA"),
    ],
)
def test_damaged_adapters_are_refused(damage: Callable[[Path], Any], message: str, folder: Path, base: Path) -> None:
    damage(folder)
    assert message in refusal(folder, base)


def test_other_weights_than_those_of_the_base_are_refused(folder: Path, base: Path) -> None:
    tensors = load_file(folder / adapter.WEIGHTS)
    opened = checkpoint.open(base)
    for digest, is_valid in ((adapter.hash_weights(opened.state, 320), True), ("0" * 64, False)):
        save_file(tensors, folder / adapter.WEIGHTS, {"format": "pt", adapter.BASE_KEY: digest})
        if is_valid:
            checkpoint.open(folder, options=ForeignOptions(adapter_base=str(base)))
        else:
            assert re.search(r"was trained on other weights than those of .*base\.", refusal(folder, base))


def test_a_model_that_is_no_adapter_has_no_base(base: Path) -> None:
    assert "not an adapter, which has the file adapter_config.json. Leave out --adapter_base" in refusal(base, base)
