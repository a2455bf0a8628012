"""Write, find, verify and open checkpoints.

A checkpoint is Lightning's file with one more entry, `gpt2kit`, of plain numbers and strings: the model's shape, the
tokenizer as JSON, the identity of the data, the position. So a single file is enough to test or generate. Its
checksum is in `NAME.ckpt.sha256`. Opening a file trusts nothing in it: it is read with `weights_only=True`, nothing
that it names is imported, and its shape is compared with its tensors before a model is built.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit import __version__, files
from gpt2kit.checkpoint import huggingface, validation
from gpt2kit.errors import CheckpointError, DataError, first_line
from gpt2kit.model import finetuning
from gpt2kit.model.config import Shape
from gpt2kit.text.splits import CutRange, HashRange, SplitRange
from gpt2kit.tokenization import tokenizer as tokenizers

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from gpt2kit.model.gpt2 import GPT2

KEY = "gpt2kit"
FORMAT = 1
_ENDS = ("low", "high")  # of the range of a split
_NAME = re.compile(r"epoch=(\d+)-step=(\d+)(?:-val_loss=([\d.]+))?\.ckpt")


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of a checkpoint without its tensors."""

    path: Path  # the file, or the Hugging Face folder
    shape: Shape
    tokenizer: Tokenizer
    metadata: dict[str, Any]  # the entry `gpt2kit`; for a Hugging Face folder, only that it has no test text
    document_start: int | None = None  # the token that begins a document, if tokens see only their own document


@dataclass(frozen=True)
class LoadedCheckpoint(CheckpointInfo):
    """The content of a checkpoint."""

    state: dict[str, Tensor] = field(kw_only=True)  # on the CPU, in float32

    @functools.cached_property
    def model(self) -> GPT2:
        """The model over these tensors, in eval mode."""
        from gpt2kit.model.gpt2 import GPT2  # here, because transformers imports slowly and generation does without

        return GPT2.from_state(self.shape, self.state, self.document_start)


def write(checkpoint: dict[str, Any], target: Path) -> None:
    """Write to a temporary file, sync and rename it. So a file with its final name is complete and has a checksum."""
    with files.replacing(target) as temporary:
        torch.save(checkpoint, temporary)
        files.write_text(_checksum_file(target), files.digest(temporary) + "\n")


def file_name(epoch: int, step: int, val_loss: float | None) -> str:
    """Return a file name that identifies the best and the newest checkpoint without opening any."""
    score = "" if val_loss is None or not math.isfinite(val_loss) else f"-val_loss={val_loss:.6f}"
    return f"epoch={epoch}-step={step}{score}.ckpt"


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run folder, newest first, by the step in their names."""
    paths = [path for path in (run / "checkpoints").glob("*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the optimizer step in a checkpoint's name; -1 for other names."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else -1


def best_of(paths: list[Path], k: int = 1) -> list[Path]:
    """Return the k checkpoints with the lowest validation loss in their names, best first; else the first path."""
    scored = [(float(match[3]), -step_of(p), p) for p in paths if (match := _NAME.fullmatch(p.name)) and match[3]]
    return [path for _, _, path in sorted(scored)[:k]] or paths[:1]


def find(path: str | Path) -> Path:
    """Return the checkpoint file at a path, or the best checkpoint of the run folder there."""
    path = Path(path)
    if path.is_file() or (path.suffix == ".ckpt" and path.is_dir()):
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint or run folder (current folder: {Path.cwd()}). Check the path"
        )
    best = best_of(checkpoints(path))
    if not best:
        raise CheckpointError(
            f"{path}: contains no checkpoint. Give a run folder such as lightning_logs/version_0, or a Hugging Face "
            "folder, which has a config.json"
        )
    return best[0]


def newest_valid(run: Path) -> Path | None:
    """Return the newest checkpoint of a run that is valid and can be resumed; report those that are skipped."""
    for path in checkpoints(run):
        try:
            check_resumable(path)
        except CheckpointError as error:
            logger.warning(f"skipped: {error}")
        else:
            return path
    return None


def check_resumable(file: Path) -> None:
    """Raise unless the file is a valid checkpoint with everything that resuming needs."""
    raw = read(file)
    if KEY not in raw or not raw.get("optimizer_states") or "loops" not in raw:
        raise CheckpointError(f"{file}: not a checkpoint that can be resumed. Use one written by trainer.py")


def peek(path: str | Path) -> CheckpointInfo:
    """Verify a checkpoint and return its content without the tensors.

    The checksum and the tensors' names, sizes and values are checked as by `open`; no weight is copied.
    """
    return _read_checked(path, verify=True)[0]


def open(path: str | Path, verify: bool = True) -> LoadedCheckpoint:
    """Open a checkpoint file, the best one of a run folder, or a Hugging Face model, trusting nothing in it.

    Args:
        path: what `find` takes, or a Hugging Face folder or name.
        verify: compare the checksum; not needed for the path of a `CheckpointInfo`.
    """
    info, tensors = _read_checked(path, verify)
    if info.path.is_file():
        # Its tensors are mapped from the file, which training may delete while the web demo serves it: copy them.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return LoadedCheckpoint(**vars(info), state=tensors)


def _read_checked(path: str | Path, verify: bool) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Return the content of a checkpoint; the tensors of a file are mapped from it."""
    if folder := huggingface.find_folder(str(path)):
        shape, tensors, tokenizer = huggingface.read(folder)
        return CheckpointInfo(folder, shape, tokenizer, {"test_files": [], "test_share": None}), tensors
    file = find(path)
    raw = read(file, verify)
    metadata, state = raw.get(KEY), raw.get("state_dict")
    if not isinstance(metadata, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{file}: not a gpt2kit checkpoint. Use one written by trainer.py")
    version = metadata.get("format")
    if type(version) is not int or version != FORMAT:
        raise CheckpointError(
            f"{file}: has format {version}, but gpt2kit {__version__} reads format {FORMAT}. Update gpt2kit"
        )
    shape = validation.check_shape(file, metadata.get("shape"))
    state = finetuning.merge_lora(state, _lora_scale(file, metadata))
    validation.check_tensors(file, shape, state)
    try:
        tokenizer = tokenizers.from_json(str(metadata.get("tokenizer")), str(file))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    validation.check_tokenizer(file, shape, tokenizer)
    start = metadata.get("document_start")  # an id, or None: tokens see other documents
    if start is not None and not (type(start) is int and 0 <= start < shape["vocab_size"]):
        raise CheckpointError(f"{file}: document_start {start!r} is invalid: the file is damaged. Use another one")
    return CheckpointInfo(file, shape, tokenizer, metadata, start), validation.model_state(state)


def _lora_scale(file: Path, metadata: dict[str, Any]) -> float:
    """Return the scale of a checkpoint's LoRA matrices. Only one other than the default is stored, as its alpha."""
    freeze = metadata.get("freeze")
    if not isinstance(freeze, dict) or "lora_alpha" not in freeze:
        return finetuning.LORA_SCALE
    rank, alpha = freeze.get("lora"), freeze["lora_alpha"]
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise CheckpointError(f"{file}: lora_alpha {alpha!r} is invalid: the file is damaged. Use another one")
    return finetuning.lora_scale(rank, alpha)


def read_test_text(checkpoint: CheckpointInfo) -> tuple[list[str], SplitRange | None]:
    """Return the run's test text: its files, and the range of the test split if it is a split of these files."""
    names = checkpoint.metadata.get("test_files")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{checkpoint.path}: its test_files are invalid. Give the text with --files")
    return names, read_split_range(checkpoint, "test_share")


def read_split_range(checkpoint: CheckpointInfo, name: str) -> SplitRange | None:
    """Return the range of a split under a name of the metadata, such as `train_share`; None for all text."""
    raw = checkpoint.metadata.get(name)
    if raw is None:
        return None
    if isinstance(raw, dict) and all(type(raw.get(end)) in (int, float) and 0 <= raw[end] <= 1 for end in _ENDS):
        if set(raw) == {*_ENDS, "seed"} and type(raw["seed"]) is int:
            return HashRange(**raw)
        if set(raw) == {*_ENDS, "unit"} and raw["unit"] == "document":
            return CutRange(**raw)
    raise CheckpointError(f"{checkpoint.path}: its {name} is invalid. Give the text with --files")


def read(file: Path, verify: bool = True) -> dict[str, Any]:
    """Return the content of a file after comparing its checksum; `weights_only=True` runs no code from it."""
    if file.is_dir():
        raise CheckpointError(
            f"{file}: a sharded checkpoint, which gpt2kit no longer reads. Resume the run once with commit 547bc70 and "
            "without trainer.strategy fsdp; its next checkpoint is an ordinary file"
        )
    checksum = _checksum_file(file)
    if verify and checksum.is_file() and checksum.read_bytes().strip() != files.digest(file).encode():
        raise CheckpointError(f"{file}: does not match its checksum, so it is damaged. Use another checkpoint")
    try:
        raw = torch.load(file, map_location="cpu", weights_only=True, mmap=files.POSIX)
    except Exception as error:  # torch raises many kinds for truncated files and other formats
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable checkpoint ({reason}). Use another one") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: not a gpt2kit checkpoint. Use one written by trainer.py")
    return raw


def remove(file: Path) -> None:
    """Delete a checkpoint and its checksum."""
    file.unlink(missing_ok=True)
    _checksum_file(file).unlink(missing_ok=True)


def _checksum_file(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")
