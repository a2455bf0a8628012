"""Try a tokenizer from an untrusted file in a child process with limited memory and time.

The `tokenizers` library trusts its files: one can grow a text a thousand times, panic at a letter, or end the process.
The child runs this file as a script, so it imports nothing but `tokenizers`, and starts in about 0.1 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable

_MEMORY = 1 << 31
_SECONDS = 20  # of a CPU; on a busy machine they take longer
# Maximum number of tokens for a byte of text. Normalization turns 3 bytes into up to 18 letters of 2 bytes each.
_MAX_GROWTH = 16
_MAX_ID = 1 << 25
# Maximum number of characters of a thousand tokens.
_MAX_DECODED = 1 << 24
# Characters of the tokenizer's own options that are tried as text, because they may be what it replaces.
_MAX_OPTIONS = 1 << 16
_SAMPLE = "".join(map(chr, [*range(384), 0x3B1, 0x42F, 0xE2A, 0xE31, 0x200D, 0x2581, 0x767D, 0xFB01, 0xFDFA, 0x1F642]))
_SAMPLE += " The king's 2 crowns, don't you see?\n\n  if x == 10:\treturn  None\r\n" + "a" * 500 + " " * 500


def problem_of(text: str) -> str:
    """Return why a tokenizer's JSON cannot be used; empty if it can."""
    return run_child(__file__, text.encode("utf-8", "surrogatepass"), _SECONDS)[1]


def run_child(script: str, content: bytes, seconds: int) -> tuple[bytes, str]:
    """Run a script that calls `limit_child`; return what it prints and, if it fails, why.

    Args:
        script: path of the script.
        content: its standard input.
        seconds: the limit of time that it sets.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-P", script],
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where the library reports a panic
            timeout=2 * seconds,
            check=False,
            env={**os.environ, "RAYON_NUM_THREADS": "1"},  # each thread would reserve memory
        )
    except subprocess.TimeoutExpired:
        return b"", f"it takes more than {seconds} s to load it and to encode a short text"
    if child.returncode:
        reason = " ".join(child.stdout[:2000].decode(errors="replace").split())
        limits = f"more than {seconds} s or {_MEMORY >> 30} GB of memory"
        default = f"it needs {limits} to load it and to encode a short text, or ends the process"
        return b"", reason[:200] or default
    return child.stdout, ""


def limit_child(seconds: int) -> None:
    """Limit the memory, and the seconds of a CPU, of this process."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def report_failure(function: Callable[[], None]) -> None:
    """Call a function; if it fails, print why and exit with 1."""
    try:
        function()
    except BaseException as error:  # a panic is not an Exception
        lines = str(error).strip().splitlines()
        print(lines[0] if lines else type(error).__name__)
        sys.exit(1)


def main() -> None:
    """Load the tokenizer on standard input, encode a sample and decode every id."""
    from tokenizers import Tokenizer

    text = sys.stdin.buffer.read().decode()
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if not 0 < size <= _MAX_ID:
        raise ValueError(f"its largest id is {size - 1}")
    raw = json.loads(text)
    options = [raw.get(name) for name in ("normalizer", "pre_tokenizer", "decoder", "added_tokens")]
    for sample in ("", _SAMPLE, *_SAMPLE.split(), json.dumps(options, ensure_ascii=False)[:_MAX_OPTIONS]):
        for is_special in (False, True):
            tokenizer.encode_special_tokens = is_special
            ids = tokenizer.encode(sample, add_special_tokens=False).ids
            if len(ids) > _MAX_GROWTH * len(sample.encode("utf-8", "replace")):
                raise ValueError(f"it turns {len(sample):,} characters into {len(ids):,} tokens")
            tokenizer.decode(ids, skip_special_tokens=False)
    for start in range(0, size, 1000):
        text = tokenizer.decode(list(range(start, min(start + 1000, size))), skip_special_tokens=False)
        if len(text) > _MAX_DECODED:
            raise ValueError(f"it turns 1,000 tokens into {len(text):,} characters")


if __name__ == "__main__":
    limit_child(_SECONDS)
    report_failure(main)
