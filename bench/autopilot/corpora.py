"""Prepare the corpora of the autopilot's experiments: corpora.json says which, and which ones the fit never sees.

    python bench/autopilot/corpora.py corpora/ --shakespeare input.txt --poems train.jsonl.gz

Debian packages are downloaded with `apt-get download` and unpacked with `dpkg-deb`; no package is installed. Manual
pages lose their markup, tables and comments; HTML loses its tags, scripts and headers; files of fortunes become a
document for each fortune. Documents of which another one is a copy are dropped, apart from white space, and so is what
exceeds 30 MB. Of a translation that is not complete, only lines with a letter of its script are kept (`only`). The
order of documents is random, by a hash, so the first N bytes of a corpus are a sample of it.

Each corpus becomes NAME.jsonl, with a record for each document. The folder is created where it does not exist; corpora
that are there are kept.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html.parser
import json
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine import table
from ngrams import measure

HERE = Path(__file__).resolve().parent
MAX_BYTES = 30_000_000
# Corpora whose files are options.
LOCAL = ("shakespeare", "poems")


def read_list() -> list[dict[str, Any]]:
    """Return the entries of corpora.json."""
    return json.loads((HERE / "corpora.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def unpack(packages: list[str], folder: Path) -> None:
    """Download Debian packages, and unpack them into a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=scratch, check=True
        )
        for package in sorted(Path(scratch).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


def read(path: Path) -> str | None:
    """Return the text of a file, compressed or not; None if it is not UTF-8."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None


# The characters that roff writes by name.
_NAMED = {"co": "©", "em": "—", "en": "–", "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "bu": "•"}
_NAMED |= {
    "hy": "-",
    "mi": "-",
    "ti": "~",
    "ha": "^",
    "rs": "\\",
    "at": "@",
    "Fo": "«",
    "Fc": "»",
    "->": "→",
    "ga": "`",
}
_ESCAPE = re.compile(
    r"\\(?:\".*|f(?:\[[^]]*\]|\(..|.)|s[-+]?\d+|[*n](?:\[[^]]*\]|\(..|.)|\[(?P<long>[^]]*)\]|\((?P<short>..)"
    r"|(?P<other>.)|$)"
)
# Requests whose arguments are text, and those after which a paragraph begins.
_TEXT = {"SH", "SS", "B", "I", "BR", "IR", "RB", "RI", "BI", "IB", "SM", "SB", "TP", "IP", "TQ"}
_PARAGRAPH = {"SH", "SS", "TP", "IP", "PP", "P", "LP", "HP", "sp"}
# Requests that begin a part which is left out, and those that end it.
_SKIPPED = {"TS": "TE", "de": ".", "ig": ".", "EQ": "EN", "PS": "PE"}


def _unescape(match: re.Match[str]) -> str:
    name, other = match["long"] or match["short"] or "", match["other"] or ""
    if re.fullmatch("u[0-9A-F]{4,6}", name):
        return chr(int(name[1:], 16))
    return _NAMED.get(name, "") + {"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "t": " ", "'": "´"}.get(other, "")


def man_text(source: str) -> str:
    """Return the text of a manual page without markup; empty for pages of other macros (mdoc), and for links."""
    if re.search(r"^\.(?:Dd|so)\s", source, re.MULTILINE):
        return ""
    lines, end = [], ""
    for line in source.splitlines():
        request, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", line)
        if end:
            end = "" if request == end else end
            continue
        if request in _SKIPPED:
            end = _SKIPPED[request]
            continue
        if request in _PARAGRAPH:
            lines.append("")
        if request and request not in _TEXT:
            continue
        if request:
            words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', rest)]
            words = words[:1] if request in ("TP", "IP", "TQ") else words
            is_alternating = len(request) == 2 and set(request) <= set("BIR")
            rest = ("" if is_alternating else " ").join(words)
            if request == "TP" or not rest.strip(" 0123456789"):
                continue
        lines.append(_ESCAPE.sub(_unescape, rest).strip())
    return "\n".join(lines)


class _Text(html.parser.HTMLParser):
    """The text of a page: a line for each block, without headers and scripts."""

    _HIDDEN = ("script", "style", "head", "nav")
    _BLOCKS = ("p", "div", "li", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "pre", "tr", "br", "td", "th", "blockquote")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = self._pre = 0
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in self._HIDDEN
        self._pre += tag == "pre"
        self.parts += ["\n"] if tag in self._BLOCKS else []

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self._HIDDEN and self._hidden > 0
        self._pre -= tag == "pre" and self._pre > 0
        self.parts += ["\n"] if tag in self._BLOCKS else []

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data if self._pre else re.sub(r"\s+", " ", data))


def html_text(source: str) -> str:
    """Return the text of a page."""
    return "".join(_Text(source).parts)


def split_fortunes(text: str) -> Iterator[str]:
    """Yield the fortunes of a file, without terminal colors."""
    yield from re.split(r"^%.*\n", re.sub("\x1b\\[[0-9;]*m", "", text), flags=re.MULTILINE)


def split_records(text: str) -> Iterator[str]:
    """Yield the texts of JSON Lines, which are strings or records with a text or with paragraphs."""
    for line in text.splitlines():
        record = json.loads(line)
        if isinstance(record, dict):
            record = record.get("text") or "\n".join(record["paragraphs"])
        yield record


FORMATS: dict[str, Callable[[str], Iterator[str]]] = {
    "man": lambda text: iter([man_text(text)]),
    "html": lambda text: iter([html_text(text)]),
    "text": lambda text: iter([text]),
    "fortune": split_fortunes,
    "jsonl": split_records,
}


def clean(text: str) -> str:
    """Return a text without control characters, white space at line ends, and more than one empty line in a row."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\xa0]+$", "", text, flags=re.MULTILINE)).strip()


def only_script(text: str, script: str | None) -> str:
    """Return the lines that have a letter of a script, by its name in Unicode; all lines if it is None."""
    lines = text.splitlines() if script else []
    kept = [line for line in lines if any(unicodedata.name(letter, "").startswith(str(script)) for letter in line)]
    return "\n".join(kept) if script else text


def documents(files: list[Path], kind: str, script: str | None) -> list[str]:
    """Return the documents of files, without copies, in random order, and at most MAX_BYTES of them."""
    texts: dict[bytes, str] = {}
    for path in files:
        source = read(path)
        for text in FORMATS[kind](source) if source is not None else []:
            text = clean(only_script(text, script))
            if len(text) > 20:
                texts[hashlib.blake2b("".join(text.split()).encode()).digest()] = text
    kept, size = [], 0
    for _, text in sorted(texts.items()):
        size += len(text.encode())
        if kept and size > MAX_BYTES:
            break
        kept.append(text)
    return kept


def prepare(entry: dict[str, Any], output: Path, local: Path | None) -> None:
    """Write the documents of a corpus as JSON Lines."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if local is None:
            unpack(entry["packages"], folder)
        candidates = [local] if local else sorted(folder.glob(entry["files"]))
        files = [path for path in candidates if path.is_file() and not path.is_symlink() and path.suffix != ".dat"]
        texts = documents(files, entry["format"], entry.get("only"))
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    partial = output.with_suffix(".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(output)
    size = sum(len(text.encode()) for text in texts)
    print(f"{entry['name']}: {len(files)} files, {len(texts):,} documents, {size:,} bytes", flush=True)


def describe(entry: dict[str, Any], path: Path) -> dict[str, object]:
    """Return a row about a corpus; its last tenth is predicted from the rest."""
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(texts).encode()
    end = len(text) * 9 // 10
    difficulty = measure(text[:end], text[end:])
    return {
        "corpus": entry["name"],
        "use": entry["use"].replace("_", " "),
        "script, kind": f"{entry['script']}, {entry['kind']}",
        "packages": ", ".join(entry["packages"]) or "given",
        "documents": f"{len(texts):,}",
        "MB": f"{sum(len(text.encode()) for text in texts) / 1e6:.2f}",
        "bits": f"{difficulty.bits:.2f}",
        "short": f"{difficulty.short_bits:.2f}",
        "slope": f"{difficulty.slope:.2f}",
        "repetition": f"{difficulty.repetition:.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", help="names of corpora")
    parser.add_argument("--table", action="store_true", help="print a table of the corpora, with figures of ngrams.py")
    for name in LOCAL:
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for entry in read_list():
        name, output = entry["name"], args.folder / f"{entry['name']}.jsonl"
        local = getattr(args, name) if name in LOCAL else None
        is_left_out = args.only and name not in args.only
        if output.exists() or is_left_out or (name in LOCAL and local is None):
            continue
        prepare(entry, output, local)
    if args.table:
        paths = [(entry, args.folder / f"{entry['name']}.jsonl") for entry in read_list()]
        print(table([describe(entry, path) for entry, path in paths if path.exists()]))


if __name__ == "__main__":
    main()
