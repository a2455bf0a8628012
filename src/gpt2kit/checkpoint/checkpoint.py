"""Write, find, verify and open checkpoints.

A checkpoint is Lightning's file with one more entry, `gpt2kit`, of plain numbers and strings: the model's shape, the
tokenizer as JSON, the identity of the data, the position. So a single file is enough to test or generate. Its
checksum is in `NAME.ckpt.sha256`. Opening a file trusts nothing in it: it is read with `weights_only=True`, nothing
that it names is imported, and its shape is compared with its tensors before a model is built.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit import __version__, files
from gpt2kit.checkpoint import adapter, archive, foreign, huggingface, validation
from gpt2kit.checkpoint.adapter import Adapter, AdapterConfig
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.checkpoint.paths import NEWEST, checkpoints, find
from gpt2kit.errors import CheckpointError, DataError
from gpt2kit.model.config import Shape
from gpt2kit.model.lora import LORA_SCALE, lora_scale, merge_lora, split_lora
from gpt2kit.tokenization import tokenizer as tokenizers

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from gpt2kit.model.gpt2 import GPT2

KEY = "gpt2kit"
FORMAT = 1
# The metadata of a model that gpt2kit has not trained.
_NO_TEST_TEXT: dict[str, Any] = {"test_files": [], "test_share": None}


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of a checkpoint without its tensors."""

    path: Path  # the file, or the Hugging Face folder
    shape: Shape
    tokenizer: Tokenizer
    metadata: dict[str, Any]  # the entry `gpt2kit`; for a model of another program, only that it has no test text
    document_start: int | None = None  # the token that begins a document, if tokens see only their own document
    has_tokenizer: bool = True  # whether the file or the folder contains the tokenizer
    is_adapter: bool = False

    def applicable(self, options: ForeignOptions) -> ForeignOptions:
        """Return the options without those that are for other kinds of checkpoints."""
        return ForeignOptions(
            tokenizer=None if self.has_tokenizer else options.tokenizer,
            n_head=None if self.has_tokenizer else options.n_head,
            adapter_base=options.adapter_base if self.is_adapter else None,
        )


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
    if problem := validation.resume_problem(read(file)):
        raise CheckpointError(f"{file}: {problem}, so it cannot be resumed. Use another checkpoint")


def peek(path: str | Path, options: ForeignOptions = ForeignOptions()) -> CheckpointInfo:
    """Verify a checkpoint and return its content without the tensors."""
    return peek_all([path], options)[0]


def peek_all(paths: Sequence[str | Path], options: ForeignOptions = ForeignOptions()) -> list[CheckpointInfo]:
    """Verify checkpoints and return their content without the tensors.

    The checksum and the tensors' names, sizes and values are checked as by `open`; no weight is copied. Each option
    must apply to one of the checkpoints at least.
    """
    infos = [_read_any(path, True, options)[0] for path in paths]
    refuse_unused(paths, infos, options)
    return infos


def refuse_unused(
    paths: Sequence[str | Path], infos: Sequence[CheckpointInfo], options: ForeignOptions = ForeignOptions()
) -> None:
    """Raise CheckpointError for an option that applies to none of the checkpoints."""
    used = [info.applicable(options) for info in infos]
    unused = [
        f"--{name}"
        for name, value in vars(options).items()
        if value is not None and all(getattr(other, name) is None for other in used)
    ]
    if not unused:
        return
    is_adapter_missing = unused == ["--adapter_base"]
    if len(paths) > 1:
        reason = "none of the checkpoints is an adapter" if is_adapter_missing else "all checkpoints have their own"
        raise CheckpointError(f"{' and '.join(unused)}: {reason}. Leave out what is not needed")
    reason = f"not an adapter, which has the file {adapter.CONFIG}"
    if not is_adapter_missing:
        reason = "has its own tokenizer and shape, which are used"
    raise CheckpointError(f"{paths[0]}: {reason}. Leave out {' and '.join(unused)}")


def open(
    path: str | Path,
    verify: bool = True,
    options: ForeignOptions = ForeignOptions(),
    is_shared: bool = False,
) -> LoadedCheckpoint:
    """Open a checkpoint file, the best one of a run, or a Hugging Face model, trusting nothing in it.

    Args:
        path: what `find` takes, such as `last`, or a Hugging Face folder or name.
        verify: compare the checksum; not needed for the path of a `CheckpointInfo`.
        options: for a checkpoint of another program, or an adapter. Any other one is then refused.
        is_shared: the options are for several checkpoints, so those that do not apply to this one are ignored.
    """
    info, tensors = _read_any(path, verify, options)
    if not is_shared:
        refuse_unused([path], [info], options)
    if info.path.is_file():
        # Its tensors are mapped from the file, which training may delete while the web demo serves it: copy them, and
        # the embedding, which has two names, once.
        copies = {(tensor.data_ptr(), tensor.shape): tensor.clone() for tensor in tensors.values()}
        tensors = {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in tensors.items()}
    return LoadedCheckpoint(**vars(info), state=tensors)


def _read_any(path: str | Path, verify: bool, options: ForeignOptions) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Return the content of a checkpoint; the tensors of a file are mapped from it."""
    folder = None if path in NEWEST else huggingface.find_folder(str(path))
    if folder and adapter.is_adapter(folder):
        return _read_adapter(folder, verify, options)
    if folder:
        shape, tensors, tokenizer = huggingface.read(folder)
        return CheckpointInfo(folder, shape, tokenizer, dict(_NO_TEST_TEXT)), tensors
    file = find(path)
    raw = read(file, verify)
    if KEY not in raw and (content := foreign.read(file, raw, options)):
        shape, tensors, tokenizer = content
        validation.check_tensors(file, shape, tensors)
        info = CheckpointInfo(file, shape, tokenizer, dict(_NO_TEST_TEXT), has_tokenizer=False)
        return info, validation.model_state(tensors)
    metadata, state = raw.get(KEY), raw.get("state_dict")
    if not isinstance(metadata, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{file}: not a gpt2kit checkpoint. Use one that gpt2kit has trained")
    version = metadata.get("format")
    if type(version) is not int or version != FORMAT:
        raise CheckpointError(
            f"{file}: has format {version!r:.20}, but gpt2kit {__version__} reads format {FORMAT}. Update gpt2kit"
        )
    shape = validation.check_shape(file, metadata.get("shape"))
    state = merge_lora(state, _lora_scale(file, metadata))
    validation.check_tensors(file, shape, state)
    tokenizer = read_tokenizer(file, metadata)
    validation.check_tokenizer(file, shape, tokenizer)
    start = metadata.get("document_start")  # an id, or None: tokens see other documents
    if start is not None and not (type(start) is int and 0 <= start < shape["vocab_size"]):
        raise CheckpointError(f"{file}: document_start {start!r:.60} is invalid: the file is damaged. Use another one")
    return CheckpointInfo(file, shape, tokenizer, metadata, start), validation.model_state(state)


def _read_adapter(folder: Path, verify: bool, options: ForeignOptions) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Return the content of an adapter's base, with the adapter merged into its tensors."""
    config = adapter.read_config(folder)
    base = options.adapter_base or config.base
    if base is None:
        raise CheckpointError(f"{folder}: names no model on the hub as its base. Give the base as --adapter_base")
    if (base_folder := Path(base)) and adapter.is_adapter(base_folder):
        raise CheckpointError(f"{folder}: its base {base} is an adapter, too. Export the base as a whole model first")
    info, tensors = _read_any(base, verify, dataclasses.replace(options, adapter_base=None))
    content = adapter.read(folder, config, info.shape)
    expected = content.base_hash if verify else None
    if expected and expected != adapter.hash_weights(tensors, info.shape["vocab_size"]):
        raise CheckpointError(f"{folder}: was trained on other weights than those of {base}. Give its base instead")
    info = dataclasses.replace(info, path=folder, metadata=dict(_NO_TEST_TEXT), is_adapter=True)
    return info, adapter.merge(tensors, content)


def open_lora(path: str | Path, options: ForeignOptions = ForeignOptions()) -> tuple[LoadedCheckpoint, Adapter]:
    """Open a run that was trained with LoRA, and return the model that it started from, and the adapter.

    The name of the base is `init_from`, if that is on the hub.
    """
    opened = open(path, options=options)  # checks everything
    raw = read(opened.path, verify=False).get("state_dict") if opened.path.is_file() else None
    base, matrices = split_lora(raw or {})
    if not matrices:
        raise CheckpointError(f"{path}: was not trained with LoRA, so it has no adapter. Leave out --adapter")
    start = opened.metadata.get("start")
    source, weights = (start.get("from"), start.get("weights")) if isinstance(start, dict) else (None, None)
    state = validation.model_state(base)
    base_hash = adapter.hash_weights(state, opened.shape["vocab_size"])
    if weights != base_hash:
        raise CheckpointError(
            f"{path}: its frozen weights are not those that it started from, because its context or its vocabulary is "
            "another one. Export the whole model: leave out --adapter"
        )
    rank = len(next(iter(matrices.values()))[0])
    name = source if isinstance(source, str) and source.startswith(huggingface.HUB) else None
    config = AdapterConfig(rank, _lora_scale(opened.path, opened.metadata), name)
    layers = {layer.removeprefix("model."): (a.float(), b.float()) for layer, (a, b) in matrices.items()}
    return dataclasses.replace(opened, state=state), Adapter(config, layers, base_hash)


def read_tokenizer(file: Path, metadata: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer in the metadata of a checkpoint."""
    text = metadata.get("tokenizer")
    if not isinstance(text, str):
        raise CheckpointError(f"{file}: contains no tokenizer. Use a checkpoint that gpt2kit has trained")
    try:
        return tokenizers.from_json(text, str(file), needs_end=False)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _lora_scale(file: Path, metadata: dict[str, Any]) -> float:
    """Return the scale of a checkpoint's LoRA matrices. Only one other than the default is stored, as its alpha."""
    freeze = metadata.get("freeze")
    if not isinstance(freeze, dict) or "lora_alpha" not in freeze:
        return LORA_SCALE
    rank, alpha = freeze.get("lora"), freeze["lora_alpha"]
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise CheckpointError(f"{file}: lora_alpha {alpha!r:.60} is invalid: the file is damaged. Use another one")
    return lora_scale(rank, alpha)


def read(file: Path, verify: bool = True) -> dict[str, Any]:
    """Return the content of a file after comparing its checksum; `weights_only=True` runs no code from it."""
    checksum = _checksum_file(file)
    if verify and file.is_file() and checksum.is_file():
        with checksum.open("rb") as stream:
            recorded = stream.read(1000).strip()
        if recorded != files.digest(file).encode():
            raise CheckpointError(f"{file}: does not match its checksum, so it is damaged. Use another checkpoint")
    raw = archive.load(file)
    if not validation.is_plain(raw.get(KEY)):  # a comparison with a tensor would fail
        raise CheckpointError(f"{file}: {KEY} contains more than text and numbers, so it is damaged. Use another one")
    return raw


def step_in(file: Path) -> int:
    """Return the optimizer step of a checkpoint, whatever its name; -1 if it is damaged."""
    try:
        step = read(file, verify=False)[KEY]["step"]
    except (CheckpointError, LookupError, TypeError):
        return -1
    return step if isinstance(step, int) else -1


def link(file: Path, target: Path) -> None:
    """Give a checkpoint a second name, which it keeps when the first one is deleted. A kill leaves it or nothing."""
    remove(target)
    for source, name in ((_checksum_file(file), _checksum_file(target)), (file, target)):
        try:
            os.link(source, name)
        except OSError:  # a file system without hard links
            with files.replacing(name) as temporary:
                shutil.copyfile(source, temporary)


def remove(file: Path) -> None:
    """Delete a checkpoint and its checksum."""
    file.unlink(missing_ok=True)
    _checksum_file(file).unlink(missing_ok=True)


def _checksum_file(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")
