"""Write a model as one HTML file that generates text in a browser, without a server or a network.

The page has the weights and the tokenizer as base64, and the JavaScript modules of the folder `html`, joined here. Its
Content-Security-Policy permits exactly its own script, its style and a worker, so it cannot load or send anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit import __version__, files
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import CheckpointError, Problems, UserError
from gpt2kit.export import card, huggingface
from gpt2kit.export.options import HtmlDtype
from gpt2kit.model.gpt2 import GPT2
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
_PARTS = {
    "normalizer": {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Precompiled"},
    "pre_tokenizer": {"Sequence", "Split", "Digits", "ByteLevel", "Metaspace"},
    "decoder": {"Sequence", "ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace"},
    "model": {"BPE", "Unigram"},
}
# What tokenizer.mjs does not translate to JavaScript's expressions: escapes other than these, classes of characters
# other than general categories, possessive quantifiers, groups of other kinds, classes in classes, and the dot.
_UNTRANSLATED = re.compile(
    r"\\(?![sSdDnrtpP]|x\{[0-9a-f]+\}|u[0-9a-f]{4})[A-Za-z0-9]|\\[pP](?!\{[LMNPSZC][a-z]?\})|[+*?]\+|\d\}\+|\(\?(?!:|=|!|<=|<!|i:[^()]*\))"
    r"|&&|\[[^\]]*\[|(?<!\\)\."
)
# An expression of `tokenization.charsmap`, which inserts a character. Its dot stands for any character.
_INSERTION = re.compile(r"\(\?m:(.*)\\K(?:\(\?=\[[^\]]*\]\))?\)", re.DOTALL)


@dataclass(frozen=True)
class Written:
    """A page that was written."""

    size: int  # bytes
    rounding: float  # largest difference of logits that is due to the data type of the weights


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


def html_problems(tokenizer: Tokenizer) -> list[str]:
    """List why the page's tokenizer would not give the same ids."""
    raw, problems = json.loads(tokenizers.to_json(tokenizer)), Problems()
    kind = raw["model"]["type"]
    if kind == "WordPiece":
        return ["--html: a WordPiece tokenizer does not encode every text without loss. Use another kind of tokenizer"]
    steps = {
        "normalizer": list(_steps(raw["normalizer"], "normalizers")),
        "pre_tokenizer": list(_steps(raw["pre_tokenizer"], "pretokenizers")),
        "decoder": list(_steps(raw["decoder"], "decoders")) or [{"type": "none"}],
        "model": [raw["model"]],
    }
    for part, known in _PARTS.items():
        for step in steps[part]:
            name = part.replace("_", "-")
            problems.check(
                step["type"] in known,
                f"--html: the page does not implement the tokenizer's {name} {step['type']}. Use another tokenizer",
            )
            pattern = (step.get("pattern") or {}).get("Regex", "")
            if insertion := _INSERTION.fullmatch(pattern):
                pattern = insertion[1].replace("|.)", ")").replace("(?=.[", "(?=[")
            problems.check(
                not _UNTRANSLATED.search(pattern),
                f"--html: browsers do not have all of the tokenizer's expression {pattern!r:.60}. "
                "Use another tokenizer",
            )
    has_affixes = raw["model"].get("continuing_subword_prefix") or raw["model"].get("end_of_word_suffix")
    problems.check(
        not has_affixes, "--html: the page does not implement the tokenizer's affixes. Use another tokenizer"
    )
    for token in raw["added_tokens"]:
        is_plain = not (token["single_word"] or token["lstrip"] or token["rstrip"])
        is_plain &= not (token["normalized"] and raw["normalizer"])
        problems.check(
            token["special"] or is_plain,
            f"--html: the page does not recognize the token {token['content']!r:.40} in a text as the tokenizer does. "
            "Use another tokenizer",
        )
    return problems.messages


def _steps(settings: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """Yield a part of a tokenizer and those that it consists of."""
    if settings:
        yield settings
        for step in settings.get(name, ()):
            yield from _steps(step, name)


def write(path: Path, opened: LoadedCheckpoint, dtype: HtmlDtype, title: str, licence: str | None = None) -> Written:
    """Write the page of a model whose tokenizer has no `html_problems`."""
    model, rounded = pack(opened, dtype)
    size = sum(map(len, model))
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(page(opened, dtype, title, licence, size))
        for block in _blocks(model):
            file.write(f'<script type="text/plain" class="block">{base64.b64encode(block).decode()}</script>\n')
        file.write("</body></html>\n")
    return Written(path.stat().st_size, _rounding(opened, rounded))


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


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of all parts in blocks of equal size; the last one may be shorter."""
    rest = b""
    for part in parts:
        rest += part
        end = len(rest) - len(rest) % _BLOCK
        yield from (rest[start : start + _BLOCK] for start in range(0, end, _BLOCK))
        rest = rest[end:]
    if rest:
        yield rest


def pack(opened: LoadedCheckpoint, dtype: HtmlDtype) -> tuple[list[bytes], dict[str, Tensor]]:
    """Return the file of a model that model.mjs reads, in parts, and the weights that it contains.

    The file is the length of its header (4 bytes, little-endian), the header as JSON, and the tensors. A matrix is
    stored by rows, [out, in]; rows are padded with zeros to a multiple of 16 numbers, and their number to one of 4.
    """
    parts: list[bytes] = []
    tensors: dict[str, dict[str, Any]] = {}
    state: dict[str, Tensor] = {}
    end = 0

    def store(values: NDArray[Any]) -> int:
        """Add numbers to the file, and return their offset from the first tensor."""
        nonlocal end
        raw = values.tobytes()
        parts.append(raw + bytes(-len(raw) % _ALIGN))
        start, end = end, end + len(parts[-1])
        return start

    for key, tensor in opened.state.items():
        name = key.removeprefix("transformer.")
        if name == "lm_head.weight":  # tied to wte
            continue
        values = tensor[: opened.shape["vocab_size"]] if name == "wte.weight" else tensor
        if values.ndim == 1:
            tensors[name] = {"type": "float32", "rows": len(values), "at": store(values.numpy())}
            state[key] = values
            continue
        is_transposed = name.endswith(_TRANSPOSED)
        matrix = (values.T if is_transposed else values).float()
        numbers, scales = quantize(matrix) if dtype == "int8" else (matrix.to(getattr(torch, dtype)), None)
        if not torch.isfinite(numbers.float()).all():
            raise CheckpointError(f"{key}: too large for {dtype}. Export with --html_dtype float32")
        rounded = numbers.float() if scales is None else numbers.float() * scales[:, None]
        state[key] = rounded.T if is_transposed else rounded
        padding = (0, -matrix.shape[1] % _ALIGN, 0, -len(matrix) % _ROWS)
        padded = torch.nn.functional.pad(numbers, padding)
        entry: dict[str, Any] = {"type": dtype, "rows": len(matrix), "stride": padded.shape[1]}
        tensors[name.removesuffix(".weight") if name in ("wte.weight", "wpe.weight") else name] = entry
        entry["at"] = store(padded.contiguous().numpy())
        if scales is not None:
            entry["scales"] = store(scales.numpy())
    header = _header(opened, tensors)
    return [header, *parts], state


def _header(opened: LoadedCheckpoint, tensors: dict[str, dict[str, Any]]) -> bytes:
    """Return the header, and set the offsets of the tensors, which depend on its length."""
    reader = opened.metadata.get("reader")
    shape = {
        name: opened.shape[name] for name in ("n_layer", "n_head", "n_embd", "n_inner", "vocab_size", "n_positions")
    }
    shape |= {name: opened.shape[name] for name in ("activation_function", "layer_norm_epsilon")}
    content = {
        "shape": shape,
        "end": tokenizers.find_eos(opened.tokenizer),
        # A model that was trained on a part of each record has not learned to predict a prompt.
        "can_heal": not (isinstance(reader, dict) and reader.get("loss_on")),
        "tokenizer": json.loads(tokenizers.to_json(opened.tokenizer)),
        "tensors": tensors,
    }
    length = len(json.dumps(content)) + 20 * len(tensors) * 2 + 4  # room for longer offsets
    start = -(-length // _ALIGN) * _ALIGN
    for tensor in tensors.values():
        for field in ("at", "scales"):
            if field in tensor:
                tensor[field] += start
    raw = json.dumps(content).encode()
    return (start - 4).to_bytes(4, "little") + raw.ljust(start - 4)


def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as int8, and the scale of each row."""
    scales = matrix.abs().amax(1) / 127
    scales[scales == 0] = 1
    return (matrix / scales[:, None]).round().to(torch.int8), scales


def _rounding(opened: LoadedCheckpoint, rounded: dict[str, Tensor]) -> float:
    """Return the largest difference of logits between a model and the weights of its page."""
    ids = torch.linspace(0, opened.shape["vocab_size"] - 1, min(64, opened.shape["n_positions"])).long().tolist()
    state = {**opened.state, **rounded}
    rows = opened.state["transformer.wte.weight"]
    embedding = torch.cat([rounded["transformer.wte.weight"], rows[opened.shape["vocab_size"] :]])
    state |= {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    model = GPT2.from_state(opened.shape, state)
    return float((huggingface.compute_logits(model, ids) - huggingface.compute_logits(opened.model, ids)).abs().max())


def default_title(path: Path) -> str:
    """Return the title of a page without one: the name of its file."""
    return valid_unicode(path.stem)
