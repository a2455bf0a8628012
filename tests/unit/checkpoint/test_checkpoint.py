"""Checkpoints are complete, self-contained, and safe to open even if they are hostile."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, Run

from gpt2kit.checkpoint import checkpoint, paths, saved_text
from gpt2kit.cli import parser, test
from gpt2kit.errors import CheckpointError
from gpt2kit.text.splits import CutRange, HashRange, MixedRange, SplitRange

MIXED = MixedRange(HashRange(0.0, 0.2, 7), CutRange(0.8, 1.0), 4000)


def test_a_checkpoint_is_self_contained(run: Run, tmp_path: Path) -> None:
    shutil.copy(paths.find(run.folder), tmp_path / "alone.ckpt")
    opened = checkpoint.open(tmp_path / "alone.ckpt")
    assert opened.tokenizer.get_vocab_size() == 320
    assert opened.model.shape["n_embd"] == 32 and not opened.model.training
    assert opened.metadata["tokens_seen"] == 40 * 8 * 16


def test_metadata_has_only_plain_types(run: Run) -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(plain(k) and plain(v) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, str, bool) or isinstance(value, torch.Tensor)

    raw = torch.load(paths.find(run.folder), weights_only=True)
    assert plain({key: value for key, value in raw.items() if key not in ("optimizer_states", "state_dict")})


def test_names_in_a_checkpoint_do_not_change(run: Run) -> None:
    """Users have files with these names. A name may be added; any other change needs another checkpoint.FORMAT."""
    raw = checkpoint.read(paths.find(run.folder))
    metadata = raw["gpt2kit"]
    assert set(metadata) == {
        *("format", "version", "shape", "tokenizer", "data", "reader", "test_files", "test_share", "train_share"),
        *("append_eos", "test_text", "train_texts", "test_texts", "stages"),
        *("document_start", "train_tokens", "step", "tokens_seen", "settings", "skipped", "start", "freeze", "val_bpb"),
    }
    assert set(metadata["shape"]) == {
        *("n_layer", "n_head", "n_embd", "n_inner", "activation_function", "initializer_range", "layer_norm_epsilon"),
        *("embd_pdrop", "attn_pdrop", "resid_pdrop", "vocab_size", "n_positions"),
    }
    assert set(metadata["data"]) == {
        *("text", "block_size", "global_batch", "seed", "shuffle", "stride", "mask_documents", "window_shards"),
        *("token_files", "order_version", "mix"),
    }
    assert all(name.startswith("model.transformer.") or name == "model.lm_head.weight" for name in raw["state_dict"])


def test_file_names_give_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step, loss in ((9, 1.5), (10, 1.25), (100, 1.3), (200, None), (300, float("nan"))):
        (folder / paths.file_name(0, step, loss)).touch()
    saved = paths.checkpoints(tmp_path)
    assert [paths.step_of(path) for path in saved] == [300, 200, 100, 10, 9]
    assert [paths.step_of(path) for path in paths.best_of(saved, 2)] == [10, 100]
    assert paths.best_of([path for path in saved if "val_loss" not in path.name]) == saved[:1]
    assert paths.best_of([]) == []


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.bomb = True",))


def add_lora(state: dict[str, Any], dtype: torch.dtype) -> None:
    layer = "model.transformer.h.0.attn.c_attn"
    base = state.pop(f"{layer}.weight")
    matrices = {"base_layer": base, "lora_A.default": base[:, :1].T, "lora_B.default": base[:1].T}
    state |= {f"{layer}.{name}.weight": matrix.to(dtype) for name, matrix in matrices.items()}


HOSTILE: dict[str, Any] = {
    "pickle bomb": lambda raw: raw.update(payload=Bomb()),
    "missing tensor": lambda raw: raw["state_dict"].pop("model.transformer.wpe.weight"),
    "surplus tensor": lambda raw: raw["state_dict"].update({"model.more": torch.zeros(1)}),
    "wrong shape": lambda raw: raw["state_dict"].update({"model.transformer.wpe.weight": torch.zeros(3, 3)}),
    "wrong dtype": lambda raw: raw["state_dict"].update({"model.transformer.wpe.weight": torch.zeros(16, 32).long()}),
    "untied": lambda raw: raw["state_dict"]["model.lm_head.weight"].add_(1),
    "number as tensor": lambda raw: raw["state_dict"].update({"model.transformer.wpe.weight": 3}),
    "number as name": lambda raw: raw["state_dict"].update({3: torch.zeros(1)}),
    "sparse tensor": lambda raw: raw["state_dict"].update(
        {"model.transformer.wpe.weight": torch.zeros(16, 32).to_sparse()}
    ),
    "expanded tensor": lambda raw: raw["state_dict"].update(
        {"model.transformer.wpe.weight": torch.zeros(1).expand(16, 32)}
    ),
    "nan": lambda raw: raw["state_dict"]["model.transformer.wpe.weight"].fill_(torch.nan),
    "absurd size": lambda raw: raw["gpt2kit"]["shape"].update(n_embd=1 << 40),
    "size beyond its tensors": lambda raw: raw["gpt2kit"]["shape"].update(n_embd=1 << 16, n_head=1),
    "text as size": lambda raw: raw["gpt2kit"]["shape"].update(n_layer="2"),
    "unknown size": lambda raw: raw["gpt2kit"]["shape"].update(extra=1),
    "unknown activation": lambda raw: raw["gpt2kit"]["shape"].update(activation_function="os.system"),
    "no tokenizer": lambda raw: raw["gpt2kit"].update(tokenizer="{"),
    "no shape": lambda raw: raw["gpt2kit"].pop("shape"),
    "later format": lambda raw: raw["gpt2kit"].update(format=99),
    **{
        f"lora_alpha {alpha}": lambda raw, alpha=alpha: raw["gpt2kit"].update(freeze={"lora": 4, "lora_alpha": alpha})
        for alpha in ("x", 0, True, float("inf"))
    },
    "tensor in the metadata": lambda raw: raw["gpt2kit"]["data"].update(order_version=torch.tensor([1, 2])),
    "8-bit LoRA": lambda raw: add_lora(raw["state_dict"], torch.float8_e5m2),
    "other program": lambda raw: raw.pop("gpt2kit"),
}


@pytest.mark.parametrize("harm", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused(
    run: Run, tmp_path: Path, harm: Any, call: Callable[..., Outcome], inside: Path
) -> None:
    raw = checkpoint.read(paths.find(run.folder))
    raw["state_dict"] = {name: tensor.clone() for name, tensor in raw["state_dict"].items()}
    harm(raw)
    torch.save(raw, tmp_path / "bad.ckpt")
    code, out, err = call(lambda args: parser.run(test.test, args), "--ckpt_path", tmp_path / "bad.ckpt")
    assert code == 4 and err.startswith(f"error: {tmp_path / 'bad.ckpt'}: ") and err.count("\n") == 1 and not out
    assert not hasattr(sys, "bomb") and list(inside.iterdir()) == [tmp_path / "bad.ckpt"]


def test_nothing_that_a_checkpoint_names_is_imported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    (tmp_path / "canary.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    raw = checkpoint.read(paths.find(run.folder))
    raw["hyper_parameters"] = {"_class_path": "canary.Model", "_instantiator": "canary.make"}
    raw["datamodule_hyper_parameters"] = {"_class_path": "canary.Data"}
    torch.save(raw, tmp_path / "named.ckpt")
    checkpoint.open(tmp_path / "named.ckpt")
    raw["gpt2kit"]["reader"]["reader"] = "canary.Reader"
    torch.save(raw, tmp_path / "reader.ckpt")
    code, _, err = call(lambda args: parser.run(test.test, args), "--ckpt_path", tmp_path / "reader.ckpt")
    assert code == 4 and "reader canary.Reader is not gpt2kit's own" in err and err.count("\n") == 1
    assert "canary" not in sys.modules


def test_a_folder_named_like_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "epoch=0-step=8.ckpt"
    folder.mkdir(parents=True)
    for path, message in ((folder, "contains no checkpoint"), (tmp_path, "not a regular file")):
        with pytest.raises(CheckpointError, match=rf"step=8\.ckpt: {message}"):
            checkpoint.open(path)


def test_a_flipped_bit_is_noticed(run: Run, tmp_path: Path) -> None:
    source = paths.find(run.folder)
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / source.name).write_bytes(content)
    shutil.copy(f"{source}.sha256", tmp_path)
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.open(tmp_path / source.name)


def test_metadata_is_read_without_weights(run: Run, tmp_path: Path) -> None:
    info, opened = checkpoint.peek(run.folder), checkpoint.open(run.folder)
    assert (info.path, info.shape, info.metadata) == (opened.path, opened.shape, opened.metadata)
    assert info.tokenizer.to_str() == opened.tokenizer.to_str()
    copy = Path(shutil.copy(info.path, tmp_path / "copy.ckpt"))
    (tmp_path / "copy.ckpt.sha256").write_text("0" * 64)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        checkpoint.peek(copy)
    assert checkpoint.open(copy, verify=False).shape == info.shape


def test_weights_in_another_order_in_memory_are_opened(run: Run, tmp_path: Path) -> None:
    raw, name = checkpoint.read(paths.find(run.folder)), "model.transformer.h.0.attn.c_attn.weight"
    expected = raw["state_dict"][name].clone()
    raw["state_dict"][name] = expected.T.contiguous().T
    checkpoint.write(raw, tmp_path / "x.ckpt")
    weight = checkpoint.open(tmp_path / "x.ckpt").state[name.removeprefix("model.")]
    assert weight.is_contiguous() and torch.equal(weight, expected)


def test_weights_that_are_not_finite_are_refused(run: Run, tmp_path: Path) -> None:
    raw = checkpoint.read(paths.find(run.folder))
    raw["state_dict"]["model.transformer.ln_f.weight"][0] = torch.nan
    torch.save(raw, tmp_path / "nan.ckpt")
    with pytest.raises(CheckpointError, match="contains NaN or Inf"):
        checkpoint.peek(tmp_path / "nan.ckpt")


@pytest.mark.parametrize(
    "share",
    [
        {"low": 0.0},
        {"low": "0", "high": 1.0, "seed": 1},
        {"low": 0.0, "high": 9.0, "seed": 1},
        {"low": 0.0, "high": 1.0, "unit": "line"},
        {"low": 0.0, "high": float("nan"), "unit": "document"},
        {"low": 0.0, "high": 1.0, "unit": "document", "seed": 1},
        asdict(MIXED) | {"longest": 0},
        asdict(MIXED) | {"ends": asdict(MIXED)},
        [],
        3,
    ],
)
def test_an_invalid_split_in_a_checkpoint_is_refused(share: object) -> None:
    with pytest.raises(CheckpointError, match=r"x\.ckpt: its test text is invalid"):
        saved_text.test_texts(Path("x.ckpt"), {"test_files": ["a"], "test_share": share})


@pytest.mark.parametrize("split_range", [HashRange(0.0, 0.2, 7), CutRange(0.95, 1.0), MIXED])
def test_the_split_of_a_checkpoint_is_restored(split_range: SplitRange) -> None:
    [text] = saved_text.test_texts(Path("x.ckpt"), {"test_files": ["a"], "test_share": asdict(split_range)})
    assert (text.files, text.split) == (["a"], split_range)
