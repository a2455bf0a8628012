"""Try a tokenizer from an untrusted file in a child process with limited memory and time.

The `tokenizers` library trusts its files: one can grow a text a thousand times, panic at a letter, or end the process.
SentencePiece is native code, too, and runs only here. The child runs this file as a script, so it imports nothing but
`tokenizers` or `sentencepiece`, and starts in about 0.1 s.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

_MEMORY = 1 << 31
_SECONDS = 20  # of a CPU; on a busy machine they take longer
# Maximum number of tokens for a byte of text. Normalization turns 3 bytes into up to 18 letters of 2 bytes each.
_MAX_GROWTH = 16
_MAX_ID = 1 << 25
# Maximum number of characters of a thousand tokens.
_MAX_DECODED = 1 << 24
# Characters of the tokenizer's own options that are tried as text, because they may be what it replaces.
_MAX_OPTIONS = 1 << 16
_SENTENCEPIECE = "sentencepiece"  # the child's argument for a SentencePiece model
_SAMPLE = "".join(map(chr, [*range(384), 0x3B1, 0x42F, 0xE2A, 0xE31, 0x200D, 0x2581, 0x767D, 0xFB01, 0xFDFA, 0x1F642]))
_SAMPLE += " The king's 2 crowns, don't you see?\n\n  if x == 10:\treturn  None\r\n" + "a" * 500 + " " * 500


def problem_of(text: str) -> str:
    """Return why a tokenizer's JSON cannot be used; empty if it can."""
    return _run([], text.encode("utf-8", "surrogatepass"))[1]


def sentencepiece_ids(raw: bytes, texts: list[str]) -> list[list[int]]:
    """Return the ids that SentencePiece itself gives to texts with a model; raise ValueError if it cannot be used."""
    output, problem = _run([_SENTENCEPIECE], json.dumps(texts).encode() + b"\n" + raw)
    if problem:
        raise ValueError(problem)
    ids: list[list[int]] = json.loads(output)
    return ids


def _run(arguments: list[str], content: bytes) -> tuple[bytes, str]:
    """Run the child; return what it prints and, if it fails, why."""
    try:
        child = subprocess.run(
            [sys.executable, "-P", __file__, *arguments],
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where the library reports a panic
            timeout=2 * _SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return b"", f"it takes more than {_SECONDS} s to load it and to encode a short text"
    if child.returncode:
        reason = " ".join(child.stdout[:2000].decode(errors="replace").split())
        limits = f"more than {_SECONDS} s or {_MEMORY >> 30} GB of memory"
        default = f"it needs {limits} to load it and to encode a short text, or ends the process"
        return b"", reason[:200] or default
    return child.stdout, ""


def main() -> None:
    """Try what is on standard input; print what fails, and exit with 1."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    try:
        if sys.argv[1:] == [_SENTENCEPIECE]:
            _encode_with_sentencepiece()
        else:
            _try(sys.stdin.buffer.read().decode())
    except BaseException as error:  # a panic is not an Exception
        lines = str(error).strip().splitlines()
        print(lines[0] if lines else type(error).__name__)
        sys.exit(1)


def _encode_with_sentencepiece() -> None:
    """Encode the texts in the first line of standard input with the model that follows; print the ids."""
    import sentencepiece

    texts = json.loads(sys.stdin.buffer.readline())
    processor = sentencepiece.SentencePieceProcessor(model_proto=sys.stdin.buffer.read())
    print(json.dumps([processor.encode(text) for text in texts]))


def _try(text: str) -> None:
    """Load a tokenizer, encode a sample and decode every id."""
    from tokenizers import Tokenizer

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
    main()
