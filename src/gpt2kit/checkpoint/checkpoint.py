"""Checkpoints: the one place that writes, finds, verifies and opens them.

A checkpoint is Lightning's own file with one more entry, `gpt2kit`, of plain numbers and strings: the model's shape,
the tokenizer as JSON, the identity of the data, the position. With it a single file is enough to test or generate.
`NAME.ckpt.sha256` is next to `NAME.ckpt`. Files are opened with `weights_only=True`; nothing that a file names is
imported, and no size that it claims is believed before the tensors bear it out.
"""

from __future__ import annotations

import functools
import math
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit import __version__
from gpt2kit import files as durable
from gpt2kit.checkpoint import huggingface, validation
from gpt2kit.errors import CheckpointError, DataError, first_line
from gpt2kit.model import finetuning
from gpt2kit.model.config import Shape
from gpt2kit.text.reader import Share
from gpt2kit.tokenization import tokenizer as tokenizers

if TYPE_CHECKING:
    from gpt2kit.model.gpt2 import GPT2

KEY = "gpt2kit"
FORMAT = 1
_NAME = re.compile(r"epoch=(\d+)-step=(\d+)(?:-val_loss=([\d.]+))?\.ckpt")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds besides its tensors.

    Args:
        path: the file, or the Hugging Face folder.
        shape: the options of the model, see `model.config.SHAPE`.
        tokenizer: the one it was trained with.
        facts: what the run recorded; of a Hugging Face folder, only that there is no test text.
        document_start: see `GPT2`.
    """

    path: Path
    shape: Shape
    tokenizer: Tokenizer
    facts: dict[str, Any]
    document_start: int | None = None


@dataclass
class Opened:
    """The content of a checkpoint.

    Args:
        path: the file, or the Hugging Face folder.
        shape: the options of the model, see `model.config.SHAPE`.
        state: its tensors, on the CPU.
        tokenizer: the one it was trained with.
        facts: what the run recorded; of a Hugging Face folder, only that there is no test text.
        document_start: see `GPT2`.
    """

    path: Path
    shape: Shape
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    facts: dict[str, Any]
    document_start: int | None = None

    @functools.cached_property
    def model(self) -> GPT2:
        """The model over these tensors, in eval mode."""
        from gpt2kit.model.gpt2 import GPT2  # transformers takes seconds to import, and generation does without

        return GPT2.from_state(self.shape, self.state, self.document_start)


def write(checkpoint: dict[str, Any], target: Path) -> None:
    """Write beside the target, sync, rename: a file under its final name is whole, and its checksum is there first."""
    with durable.replacing(target) as temporary:
        torch.save(checkpoint, temporary)
        durable.write_text(_sidecar(target), durable.digest(temporary) + "\n")


def file_name(epoch: int, step: int, val_loss: float | None) -> str:
    """Return a name that says what the file is, so that best and newest are found without opening any."""
    scored = "" if val_loss is None or not math.isfinite(val_loss) else f"-val_loss={val_loss:.6f}"
    return f"epoch={epoch}-step={step}{scored}.ckpt"


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoints, newest first, by the step in their names."""
    paths = [path for path in (run / "checkpoints").glob("*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the optimizer steps done when the file was written."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else -1


def best_of(paths: list[Path], k: int = 1) -> list[Path]:
    """Return the k with the lowest validation losses in their names, best first; without any such name, the newest."""
    scored = [(float(match[3]), -step_of(p), p) for p in paths if (match := _NAME.fullmatch(p.name)) and match[3]]
    return [path for _, _, path in sorted(scored)[:k]] or paths[:1]


def find(path: str | Path) -> Path:
    """Return the checkpoint file that `path` means: itself, or the best of a run folder."""
    path = Path(path)
    if path.is_file() or (path.suffix == ".ckpt" and path.is_dir()):
        return path
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run folder (looked from {Path.cwd()}). Check the path")
    best = best_of(checkpoints(path))
    if not best:
        raise CheckpointError(
            f"{path}: no checkpoint in this folder. Give a run folder such as lightning_logs/version_0, or a Hugging "
            "Face folder, which has a config.json"
        )
    return best[0]


def newest_sound(run: Path) -> Path | None:
    """Return the newest valid checkpoint that a run can resume from; print each one that is passed over."""
    for candidate in checkpoints(run):
        try:
            refuse_weights_only(candidate)
        except CheckpointError as error:
            print(f"passed over: {error}", file=sys.stderr)
        else:
            return candidate
    return None


def refuse_weights_only(file: Path) -> None:
    """Raise unless the file is a valid checkpoint with all that a run needs to resume."""
    raw = read(file)
    if KEY not in raw or not raw.get("optimizer_states") or "loops" not in raw:
        raise CheckpointError(
            f"{file}: not a checkpoint that a run can resume from. Give one that trainer.py has written"
        )


def peek(path: str | Path) -> CheckpointInfo:
    """Verify a checkpoint and return what it holds besides its tensors.

    The checksum and the tensors' names, shapes and values are checked as `open` does, but no weight is copied, and no
    model is built.
    """
    return _read_checked(path, verify=True)[0]


def open(path: str | Path, verify: bool = True) -> Opened:
    """Open a checkpoint file, a run's best one, or a Hugging Face model, trusting nothing in it.

    Args:
        path: what `find` takes, or a Hugging Face folder or name.
        verify: compare the checksum; not needed for the path of a `CheckpointInfo`.
    """
    info, tensors = _read_checked(path, verify)
    state = validation.of_model(tensors)
    if info.path.is_file():
        # The tensors are mapped from the file, which training may delete while a demo serves it.
        state = {name: tensor.clone() for name, tensor in state.items()}
    return Opened(info.path, info.shape, state, info.tokenizer, info.facts, info.document_start)


def _read_checked(path: str | Path, verify: bool) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Return the metadata and the tensors of a checkpoint; those of a .ckpt file are mapped from it."""
    if folder := huggingface.folder_of(str(path)):
        shape, state, tokenizer = huggingface.read(folder)
        return CheckpointInfo(folder, shape, tokenizer, {"test_files": [], "test_share": None}), state
    file = find(path)
    raw = read(file, verify)
    facts, tensors = raw.get(KEY), raw.get("state_dict")
    if not isinstance(facts, dict) or not isinstance(tensors, dict):
        raise CheckpointError(f"{file}: not a checkpoint of gpt2kit. Give one that trainer.py has written")
    if type(facts.get("format")) is not int or facts["format"] != FORMAT:
        raise CheckpointError(
            f"{file}: has format {facts.get('format')}, this gpt2kit {__version__} reads {FORMAT}. Update it"
        )
    shape = validation.shape_of(file, facts.get("shape"))
    tensors = finetuning.merged(tensors)
    validation.check(file, shape, tensors)
    try:
        tokenizer = tokenizers.from_json(str(facts.get("tokenizer")), str(file))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if tokenizers.size(tokenizer) > shape["vocab_size"]:
        raise CheckpointError(
            f"{file}: its tokenizer has {tokenizers.size(tokenizer)} tokens, "
            f"its model {shape['vocab_size']}. Train it again"
        )
    info = CheckpointInfo(file, shape, tokenizer, facts, _document_start(file, facts, shape))
    return info, tensors


def test_text(info: CheckpointInfo) -> tuple[list[str], Share | None]:
    """Return the run's own test files, and the split of their documents that was kept out of training."""
    files = info.facts.get("test_files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise CheckpointError(f"{info.path}: test_files is invalid. Name text with --files")
    return files, share_of(info, "test_share")


def share_of(info: CheckpointInfo, name: str) -> Share | None:
    """Return a split of the documents that the checkpoint records."""
    share = info.facts.get(name)
    if share is None:
        return None
    is_share = isinstance(share, dict) and set(share) == {"low", "high", "seed"} and type(share["seed"]) is int
    if not (is_share and all(type(share[end]) in (int, float) and 0 <= share[end] <= 1 for end in ("low", "high"))):
        raise CheckpointError(f"{info.path}: {name} is invalid. Name text with --files")
    return Share(**share)


def read(file: Path, verify: bool = True) -> dict[str, Any]:
    """Return the file's content, read with `weights_only=True`; `verify`: compare its checksum first."""
    if file.is_dir():
        raise CheckpointError(
            f"{file}: a sharded checkpoint, which gpt2kit no longer reads. Resume the run once with commit 547bc70 and "
            "without trainer.strategy fsdp; its next checkpoint is an ordinary file"
        )
    if verify and not _checksum_fits(file):
        raise CheckpointError(
            f"{file}: its content does not fit its checksum, so it is damaged. Use another checkpoint"
        )
    if not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file}: not a checkpoint file, or a truncated one. Use another one")
    try:
        raw = torch.load(file, map_location="cpu", weights_only=True, mmap=durable.POSIX)
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable checkpoint ({reason}). Use another one") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: not a checkpoint of gpt2kit. Give one that trainer.py has written")
    return raw


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def size(file: Path) -> int:
    """Return the bytes that a checkpoint takes."""
    return file.stat().st_size


def remove(file: Path) -> None:
    """Delete a checkpoint and its checksum."""
    file.unlink(missing_ok=True)
    _sidecar(file).unlink(missing_ok=True)


def _checksum_fits(file: Path) -> bool:
    sidecar = _sidecar(file)
    return not sidecar.is_file() or sidecar.read_bytes().strip() == durable.digest(file).encode()


def _document_start(file: Path, facts: dict[str, Any], shape: dict[str, Any]) -> int | None:
    token = facts.get("document_start")
    if token is not None and not (type(token) is int and 0 <= token < shape["vocab_size"]):
        raise CheckpointError(f"{file}: document_start {token!r} is invalid. The file is damaged or not from gpt2kit")
    return token
