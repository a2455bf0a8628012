"""Write a model as one HTML file that generates text in a browser, without a server or a network.

The page has the weights and the tokenizer as base64, and the JavaScript modules of the folder `html`, joined here. Its
Content-Security-Policy permits exactly its own script, its style and a worker, so it cannot load or send anything.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2kit import __version__, files
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, UserError
from gpt2kit.export import card
from gpt2kit.export.options import HtmlDtype
from gpt2kit.runs import lifecycle
from gpt2kit.runs.pages import render, valid_unicode
from gpt2kit.tokenization import tokenizer as tokenizers

SOURCES = Path(__file__).parent / "html"
# The modules of the worker and of the page. A module comes after those that it imports.
WORKER = (
    *("kernels", "model", "draws", "sampling", "tokenizer", "text_stream", "healing", "verse", "generator"),
    "worker",
)
PAGE = ("languages", "page")
# Marks pages that --force may replace.
_GENERATOR = "gpt2kit"
# Bytes of the model in one element of the page: browsers read large elements slowly. A multiple of 3, for base64.
_BLOCK = 3 << 18
# The kernels read 16 numbers of a row, and 4 rows, at a time.
_ALIGN, _ROWS = 16, 4
# GPT-2's layers store these as [in, out]; the page, like nn.Linear, as [out, in].
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# Number inputs of the page: the name in page.mjs, the default of generate.py, least, most, step.
_NUMBERS = [
    ("maxNewTokens", 200, 1, 100000, 1),
    ("temperature", 0.8, 0, 100, "any"),
    ("topK", 0, 0, 1000000, 1),
    ("topP", 0.95, 0.001, 1, "any"),
    ("minP", 0, 0, 1, "any"),
    ("repetitionPenalty", 1, 0.01, 100, "any"),
    ("seed", "", -(2**53), 2**53, 1),
    ("lines", 0, 0, 1000, 1),
    ("charsPerLine", 7, 1, 1000, 1),
]


def refuse_other_file(path: Path, force: bool) -> None:
    """Raise unless `path` is new, or is a page of this module that may be replaced."""
    if path.is_dir():
        raise UserError(f"--html {path}: is a folder. Name a file")
    if not path.exists():
        return
    if not force:
        raise UserError(f"--html {path}: already exists. Name another file, or replace it with --force")
    is_page = False
    if path.is_file():
        with path.open("rb") as file:
            is_page = f'name="generator" content="{_GENERATOR}'.encode() in file.read(1000)
    if not is_page:
        raise UserError(f"--html {path}: is not an earlier export. Name another file")


def write(path: Path, opened: LoadedCheckpoint, dtype: HtmlDtype, title: str, licence: str | None = None) -> int:
    """Write the page of a model whose tokenizer has no `html_problems`, and return its size in bytes."""
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts(opened, dtype, title, licence))
    return path.stat().st_size


def parts(opened: LoadedCheckpoint, dtype: HtmlDtype, title: str, licence: str | None = None) -> Iterator[str]:
    """Yield the text of the page in parts."""
    header, size = _header(opened, dtype)
    yield page(opened, dtype, title, licence, size)
    for block in _blocks(itertools.chain([header], _arrays(opened, dtype))):
        yield f'<script type="text/plain" class="block">{base64.b64encode(block).decode()}</script>\n'
    yield "</body></html>\n"


def page(opened: LoadedCheckpoint, dtype: HtmlDtype, title: str, licence: str | None, size: int) -> str:
    """Return the page up to the model, which has `size` bytes."""
    style = (SOURCES / "page.css").read_text(encoding="utf-8")
    script = bundle(PAGE, "start(document)")
    worker = bundle(WORKER, "serve(self)")
    policy = [
        "default-src 'none'",
        f"script-src {content_hash(script)} 'wasm-unsafe-eval'",
        f"style-src {content_hash(style)}",
        "worker-src blob:",
        "img-src data:",  # the empty icon, so that a browser does not ask a server for one
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return render(
        "page.html",
        SOURCES,
        generator=f"{_GENERATOR} {__version__}",
        policy="; ".join(policy),
        title=title,
        style=style,
        script=script,
        worker=worker,
        bytes=size,
        numbers=_NUMBERS,
        card=card.describe(opened, dtype, lifecycle.run_of(opened.path)),
        licence=licence,
    )


def bundle(names: Iterable[str], last: str) -> str:
    """Return JavaScript modules as one script that ends with a call; its top level is not visible outside."""
    code = []
    for name in names:
        source = (SOURCES / f"{name}.mjs").read_text(encoding="utf-8")
        source = re.sub(r'^import \{[^}]*\} from "\./\w+\.mjs";\n', "", source, flags=re.MULTILINE)
        code.append(re.sub(r"^export (?=(async )?(function|const|class) )", "", source, flags=re.MULTILINE))
    script = '"use strict";\n{\n' + "\n".join(code) + f"\n{last};\n}}\n"
    assert "</script" not in script and "<!--" not in script, "would end the element"
    return script


def content_hash(text: str) -> str:
    """Return the source of a Content-Security-Policy that permits an element with this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _blocks(content: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of all parts in blocks of equal size; the last one may be shorter."""
    rest = b""
    for part in content:
        rest += part
        end = len(rest) - len(rest) % _BLOCK
        yield from (rest[start : start + _BLOCK] for start in range(0, end, _BLOCK))
        rest = rest[end:]
    if rest:
        yield rest


def pack(opened: LoadedCheckpoint, dtype: HtmlDtype) -> bytes:
    """Return the file of a model that model.mjs reads.

    It is the length of its header (4 bytes, little-endian), the header as JSON, and the tensors. A matrix is stored by
    rows, [out, in]; rows are padded with zeros to a multiple of 16 numbers, and their number to one of 4.
    """
    return b"".join([_header(opened, dtype)[0], *_arrays(opened, dtype)])


def _layout(opened: LoadedCheckpoint, dtype: HtmlDtype) -> tuple[dict[str, dict[str, Any]], int]:
    """Return where each tensor is, in bytes after the header, and where the last one ends."""
    tensors: dict[str, dict[str, Any]] = {}
    end = 0

    def reserve(size: int) -> int:
        nonlocal end
        start, end = end, end + _round_up(size, _ALIGN)
        return start

    for key, values in _weights(opened):
        name = key.removeprefix("transformer.")
        if values.ndim == 1:
            tensors[name] = {"type": "float32", "rows": len(values), "at": reserve(4 * len(values))}
            continue
        rows, columns = reversed(values.shape) if key.endswith(_TRANSPOSED) else values.shape
        stride = _round_up(columns, _ALIGN)
        size = _round_up(rows, _ROWS) * stride * getattr(torch, dtype).itemsize
        entry = {"type": dtype, "rows": rows, "stride": stride, "at": reserve(size)}
        if dtype == "int8":
            entry["scales"] = reserve(4 * rows)
        tensors[name.removesuffix(".weight") if name in ("wte.weight", "wpe.weight") else name] = entry
    return tensors, end


def _arrays(opened: LoadedCheckpoint, dtype: HtmlDtype) -> Iterator[bytes]:
    """Yield the tensors of the file, one at a time, because a copy of all of them would take much memory."""
    for key, values in _weights(opened):
        arrays = [values]
        if values.ndim > 1:
            numbers, scales = _convert(key, values, dtype)
            rows, columns = numbers.shape
            padded = torch.nn.functional.pad(numbers, (0, -columns % _ALIGN, 0, -rows % _ROWS))
            arrays = [padded] if scales is None else [padded, scales]
        for array in arrays:
            raw = array.contiguous().numpy().tobytes()
            yield raw + bytes(-len(raw) % _ALIGN)


def _header(opened: LoadedCheckpoint, dtype: HtmlDtype) -> tuple[bytes, int]:
    """Return the header of the model's file, and the size of the file in bytes."""
    reader = opened.metadata.get("reader")
    shape = {
        name: opened.shape[name] for name in ("n_layer", "n_head", "n_embd", "n_inner", "vocab_size", "n_positions")
    }
    shape |= {name: opened.shape[name] for name in ("activation_function", "layer_norm_epsilon")}
    tensors, end = _layout(opened, dtype)
    content = {
        "shape": shape,
        "end": tokenizers.find_eos(opened.tokenizer),
        # A model that was trained on a part of each record has not learned to predict a prompt.
        "can_heal": not (isinstance(reader, dict) and reader.get("loss_on")),
        "tokenizer": json.loads(tokenizers.to_json(opened.tokenizer)),
        "tensors": tensors,
    }
    length = len(json.dumps(content)) + 20 * len(tensors) * 2 + 4  # room for longer offsets
    start = _round_up(length, _ALIGN)
    for tensor in tensors.values():
        for field in ("at", "scales"):
            if field in tensor:
                tensor[field] += start
    raw = json.dumps(content).encode()
    return (start - 4).to_bytes(4, "little") + raw.ljust(start - 4), start + end


def _weights(opened: LoadedCheckpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and the values of the tensors that the file contains."""
    for key, tensor in opened.state.items():
        if key != "lm_head.weight":  # tied to wte
            yield key, tensor[: opened.shape["vocab_size"]] if key == "transformer.wte.weight" else tensor


def _convert(key: str, values: Tensor, dtype: HtmlDtype) -> tuple[Tensor, Tensor | None]:
    """Return a matrix as [out, in] in the data type of the file, and for int8 the scale of each row."""
    matrix = values.T if key.endswith(_TRANSPOSED) else values
    if dtype == "int8":
        return quantize(matrix)
    numbers = matrix.to(getattr(torch, dtype))
    if not torch.isfinite(numbers).all():
        raise CheckpointError(f"{key}: too large for {dtype}. Export with --html_dtype float32")
    return numbers, None


def _round_up(number: int, unit: int) -> int:
    """Return the next multiple of a unit."""
    return -(-number // unit) * unit


def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as int8, and the scale of each row."""
    scales = matrix.abs().amax(1) / 127
    scales[scales == 0] = 1
    return (matrix / scales[:, None]).round().to(torch.int8), scales


def rounded(opened: LoadedCheckpoint, dtype: HtmlDtype) -> dict[str, Tensor]:
    """Return the weights that the file contains, as a model's tensors."""
    state: dict[str, Tensor] = {}
    for key, values in _weights(opened):
        state[key] = values
        if values.ndim > 1:
            numbers, scales = _convert(key, values, dtype)
            matrix = numbers.float() if scales is None else numbers.float() * scales[:, None]
            state[key] = matrix.T if key.endswith(_TRANSPOSED) else matrix
    rows = opened.state["transformer.wte.weight"]  # some more than the vocabulary has
    embedding = torch.cat([state["transformer.wte.weight"], rows[opened.shape["vocab_size"] :]])
    return state | {"transformer.wte.weight": embedding, "lm_head.weight": embedding}


def rounding(opened: LoadedCheckpoint, dtype: HtmlDtype) -> float:
    """Return the largest difference of logits that is due to the data type of the weights."""
    from gpt2kit.export import huggingface  # here, because transformers imports slowly and writing does without
    from gpt2kit.model.gpt2 import GPT2

    ids = torch.linspace(0, opened.shape["vocab_size"] - 1, min(64, opened.shape["n_positions"])).long().tolist()
    model = GPT2.from_state(opened.shape, rounded(opened, dtype))
    return float((huggingface.compute_logits(model, ids) - huggingface.compute_logits(opened.model, ids)).abs().max())


def default_title(path: Path) -> str:
    """Return the title of a page without one: the name of its file."""
    return valid_unicode(path.stem)
