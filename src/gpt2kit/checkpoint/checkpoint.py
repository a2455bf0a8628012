"""Checkpoints: the one place that writes, finds, verifies and opens them.

A checkpoint is Lightning's own file with one more entry, `gpt2kit`, of plain numbers and strings: the model's shape,
the tokenizer as JSON, the identity of the data, the position. With it a single file is enough to test or generate.
Beside `NAME.ckpt` lies `NAME.ckpt.sha256`. Files are opened with `weights_only=True`; nothing that a file names is
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
from gpt2kit.text.reader import HashRange
from gpt2kit.tokenization import tokenizer as tokenizers

if TYPE_CHECKING:
    from gpt2kit.model.gpt2 import GPT2

KEY = "gpt2kit"
FORMAT = 1
_NAME = re.compile(r"epoch=(\d+)-step=(\d+)(?:-val_loss=([\d.]+))?\.ckpt")


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
    """The name says what the file is, so that best and newest are found without opening any."""
    scored = "" if val_loss is None or not math.isfinite(val_loss) else f"-val_loss={val_loss:.6f}"
    return f"epoch={epoch}-step={step}{scored}.ckpt"


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, newest first, by the step in their names."""
    found = [path for path in (run / "checkpoints").glob("*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Optimizer steps done when the file was written."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else -1


def best_of(paths: list[Path], k: int = 1) -> list[Path]:
    """The k with the lowest validation losses in their names, best first; without any such name, the newest."""
    scored = [(float(match[3]), -step_of(p), p) for p in paths if (match := _NAME.fullmatch(p.name)) and match[3]]
    return [path for _, _, path in sorted(scored)[:k]] or paths[:1]


def find(path: str | Path) -> Path:
    """The checkpoint file that `path` means: itself, or the best of a run folder."""
    given = Path(path)
    if given.is_file() or (given.suffix == ".ckpt" and given.is_dir()):
        return given
    if not given.exists():
        raise CheckpointError(f"{given}: no such checkpoint or run folder (looked from {Path.cwd()}). Check the path")
    best = best_of(checkpoints(given))
    if not best:
        raise CheckpointError(
            f"{given}: no checkpoint in this folder. Give a run folder such as lightning_logs/version_0, or a Hugging "
            "Face folder, which has a config.json"
        )
    return best[0]


def newest_sound(run: Path) -> Path | None:
    """The newest checkpoint of a run that verifies and can be gone on from; each one passed over is said."""
    for candidate in checkpoints(run):
        try:
            refuse_weights_only(candidate)
        except CheckpointError as error:
            print(f"passed over: {error}", file=sys.stderr)
        else:
            return candidate
    return None


def refuse_weights_only(file: Path) -> None:
    """Raise unless the file is a sound checkpoint with all that a run needs to go on."""
    raw = read(file)
    if KEY not in raw or not raw.get("optimizer_states") or "loops" not in raw:
        raise CheckpointError(
            f"{file}: not a checkpoint that a run can go on from. Give one that trainer.py has written"
        )


def open(path: str | Path) -> Opened:
    """Open a checkpoint file, a run's best one, or a Hugging Face model, trusting nothing in it."""
    if folder := huggingface.folder_of(str(path)):
        return Opened(folder, *huggingface.read(folder), {"test_files": [], "test_share": None})
    file = find(path)
    raw = read(file)
    facts = raw.get(KEY)
    state = raw.get("state_dict")
    if not isinstance(facts, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{file}: not a checkpoint of gpt2kit. Give one that trainer.py has written")
    if type(facts.get("format")) is not int or facts["format"] != FORMAT:
        raise CheckpointError(
            f"{file}: has format {facts.get('format')}, this gpt2kit {__version__} reads {FORMAT}. Update it"
        )
    shape = validation.shape_of(file, facts.get("shape"))
    state = finetuning.merged(state)
    validation.check(file, shape, state)
    try:
        tokenizer = tokenizers.from_json(str(facts.get("tokenizer")), str(file))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if tokenizers.size(tokenizer) > shape["vocab_size"]:
        raise CheckpointError(
            f"{file}: its tokenizer has {tokenizers.size(tokenizer)} tokens, "
            f"its model {shape['vocab_size']}. Train it again"
        )
    # The tensors of `raw` are mapped from the file, which training may delete while a demo serves it.
    state = {name: tensor.clone() for name, tensor in validation.of_model(state).items()}
    return Opened(file, shape, state, tokenizer, facts, _document_start(file, facts, shape))


def test_text(opened: Opened) -> tuple[list[str], HashRange | None]:
    """The run's own test text: its files, and the share of their documents that was kept out of training."""
    files = opened.facts.get("test_files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise CheckpointError(f"{opened.path}: what it says of its test text cannot be. Give some with --files")
    return files, share_of(opened, "test_share")


def share_of(opened: Opened, name: str) -> HashRange | None:
    """A share of documents that the checkpoint tells of."""
    share = opened.facts.get(name)
    if share is None:
        return None
    sound = isinstance(share, dict) and set(share) == {"low", "high", "seed"} and type(share["seed"]) is int
    if not (sound and all(type(share[end]) in (int, float) and 0 <= share[end] <= 1 for end in ("low", "high"))):
        raise CheckpointError(f"{opened.path}: what it says of its {name} cannot be. Give text with --files")
    return HashRange(**share)


def read(file: Path) -> dict[str, Any]:
    """The file's content, with `weights_only=True` and its checksum compared."""
    if file.is_dir():
        raise CheckpointError(
            f"{file}: a sharded checkpoint, which gpt2kit no longer reads. Resume the run once with commit 547bc70 and "
            "without trainer.strategy fsdp; its next checkpoint is an ordinary file"
        )
    if not _checksum_fits(file):
        raise CheckpointError(
            f"{file}: its content does not fit its checksum, so it is damaged. Use another checkpoint"
        )
    if not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file}: not a checkpoint file, or a truncated one. Use another one")
    try:
        raw = torch.load(file, map_location="cpu", weights_only=True, mmap=durable.POSIX)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable checkpoint ({reason}). Use another one") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: not a checkpoint of gpt2kit. Give one that trainer.py has written")
    return raw


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def size(file: Path) -> int:
    """Bytes that a checkpoint takes."""
    return file.stat().st_size


def remove(file: Path) -> None:
    """Delete a checkpoint and its checksum."""
    file.unlink(missing_ok=True)
    _sidecar(file).unlink(missing_ok=True)


def _checksum_fits(file: Path) -> bool:
    sidecar = _sidecar(file)
    return not sidecar.is_file() or sidecar.read_bytes().strip() == durable.digest(file).encode()


def _document_start(file: Path, facts: dict[str, Any], shape: dict[str, Any]) -> int | None:
    found = facts.get("document_start")
    if found is not None and not (type(found) is int and 0 <= found < shape["vocab_size"]):
        raise CheckpointError(f"{file}: document_start {found!r} cannot be. The file is damaged or not from gpt2kit")
    return found
