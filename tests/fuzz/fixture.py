"""The files that cases change: a text, a tokenizer, a trained run with its token store, and a Hugging Face folder."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from cases import read
from safetensors.torch import save_file
from sandbox import ROOT
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2kit import __main__
from gpt2kit.tokenization import tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "says", "good", "morning"]
CONFIG = {
    "data": {
        "train_files": "text.txt",
        "valid_fraction": 0.2,
        "test_fraction": 0.2,
        "tokenizer": "tokenizer",
        "reader": {"document": "line"},
        "block_size": 8,
        "batch_size": 4,
    },
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "dropout": 0.0},
    "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False, "precision": "32-true"},
}
RUN = "lightning_logs/version_0"


class Fixture:
    """The folder, and the content of its structured files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        self.names = sorted(name for name in names if "tfevents" not in name)  # whose names have a time
        self.checkpoint = max(name for name in self.names if name.endswith(".ckpt") and name.startswith(RUN))
        self._contents: dict[str, Any] = {}

    def content(self, name: str) -> Any:
        """Return the content of a structured file."""
        if name not in self._contents:
            self._contents[name] = read(self.folder / name)
        return self._contents[name]

    def size(self, name: str) -> int:
        """Return the size of a file."""
        return (self.folder / name).stat().st_size


def build() -> None:
    """Write the files into the current folder."""
    write_texts()
    __main__.main(["tokenize", "text.txt", "--output_dir=tokenizer", "--vocab_size=300", "--reader.document=line"])
    Path("base.yaml").write_text(yaml.safe_dump(CONFIG))
    limits = ["--trainer.max_steps=3", "--trainer.val_check_interval=2", "--save_every=2"]
    __main__.main(["train", "--config", "base.yaml", *limits])
    for path in Path(RUN, "checkpoints").iterdir():  # the same name on every machine
        path.rename(re.sub("val_loss=[0-9.]+[0-9]", "val_loss=5.5", str(path)))
    Path("model.ckpt").write_bytes(max(Path(RUN, "checkpoints").glob("*.ckpt")).read_bytes())
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=299, eos_token_id=299
    )
    model = GPT2LMHeadModel(config)
    for name in ("hf", "sharded"):
        model.save_pretrained(name, max_shard_size="6KB" if name == "sharded" else "1GB")
        tokenizer.save(tokenizer.load("tokenizer"), Path(name))
    Path("bin").mkdir()
    torch.save(model.state_dict(), "bin/pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        Path("bin", name).write_bytes(Path("hf", name).read_bytes())

    write_adapter()
    write_vocabularies()
    # A checkpoint of nanoGPT, and its vocabulary.
    Path("nanogpt.bin").write_bytes((ROOT / "tests/data/foreign/nanogpt.pt").read_bytes())
    Path("letters.json").write_text(json.dumps(list("\n abcdefghi")))


def write_adapter() -> None:
    """Write an adapter for one layer of the model in `hf`."""
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    Path("adapter").mkdir()
    save_file(
        {name.format("A"): torch.ones(2, 8), name.format("B"): torch.ones(24, 2)}, "adapter/adapter_model.safetensors"
    )
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "bias": "none",
        "revision": None,
    }
    settings |= {"base_model_name_or_path": None, "init_lora_weights": True, "target_modules": ["c_attn"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(settings))


def write_vocabularies() -> None:
    """Write vocabularies in the forms that other programs use."""
    import sentencepiece

    letters = list("abcdefghijklmnopqrstuvwxyz")
    folders = {name: Path("old", name) for name in ("spm", "bpe", "bert", "list")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        input="text.txt",
        model_prefix=str(folders["spm"] / "spiece"),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folders["spm"] / "spiece.vocab").unlink()
    (folders["bpe"] / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate([*letters, "th", "</s>"])}))
    (folders["bpe"] / "merges.txt").write_text("#version: 0.2\nt h\n")
    (folders["bpe"] / "tokenizer_config.json").write_text('{"eos_token": "</s>", "add_prefix_space": true}')
    (folders["bpe"] / "added_tokens.json").write_text('{"<more>": 28}')
    (folders["bert"] / "vocab.txt").write_text("\n".join(["[UNK]", "[SEP]", *letters, "the", "##e"]) + "\n")
    stoi = {name: n for n, name in enumerate(letters)}
    meta = {"vocab_size": 26, "itos": {n: name for name, n in stoi.items()}, "stoi": stoi}
    (folders["list"] / "meta.pkl").write_bytes(pickle.dumps(meta))
    (folders["list"] / "list.json").write_text(json.dumps(letters))


def write_texts() -> None:
    """Write the same documents in every format."""
    chance = random.Random(1)
    lines = [" ".join(chance.choices(WORDS, k=chance.randint(3, 12))) for _ in range(150)]
    lines += ["Où êtes-vous né ?", "白日依山盡", "emoji 🙂"]
    text = "".join(f"{line}\n" for line in lines)
    records = [{"text": line, "id": number} for number, line in enumerate(lines)]
    Path("text.txt").write_text(text, encoding="utf-8")
    Path("text.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    Path("text.json").write_text(json.dumps(records))
    Path("text.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    Path("text.csv").write_text("text,id\n" + "".join(f'"{line}",{n}\n' for n, line in enumerate(lines)))
    Path("latin.txt").write_text(text[:4000], encoding="latin-1", errors="replace")
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, "text.parquet")
    with pyarrow.OSFile("text.arrow", "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
