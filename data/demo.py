"""Collect a demo corpus without a download: the source text of this Python's own standard library.

`python data/demo.py` writes data/demo/{train,valid,test}, one text file a module, always the same for the same Python.
"""

import hashlib
import shutil
import sys
import sysconfig
from pathlib import Path

SKIP = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "__pycache__",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "encodings",
    "pydoc_data",
}


def main() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    target = Path(__file__).resolve().parent / "demo"
    shutil.rmtree(target, ignore_errors=True)
    size = {"train": 0, "valid": 0, "test": 0}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if SKIP & set(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if not text.strip():
            continue
        split = split_of(name.as_posix())
        copy = target / split / (".".join(name.with_suffix("").parts) + ".txt")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8", newline="\n")
        size[split] += len(text.encode())
    shares = ", ".join(f"{split} {bytes_ / 1e6:.1f} MB" for split, bytes_ in size.items())
    print(f"data/demo: Python {sys.version.split()[0]} standard library: {shares}")


def split_of(name: str) -> str:
    """Three per cent each for validation and test, by a hash of the name: other files that come or go move nothing."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return "valid" if number < 3 else "test" if number < 6 else "train"


if __name__ == "__main__":
    main()
