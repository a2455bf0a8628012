"""Collect the text of the demo: the source files of the running Python's standard library. Nothing is downloaded.

`python data/demo.py` writes data/demo/{train,valid,test}, one file per module. The same Python gives the same text.
"""

import hashlib
import shutil
import sys
import sysconfig
from pathlib import Path

# Folders of tests, tools and data, and of other packages.
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
    sizes = ", ".join(f"{split} {count / 1e6:.1f} MB" for split, count in size.items())
    print(f"data/demo: Python {sys.version.split()[0]} standard library: {sizes}")


def split_of(name: str) -> str:
    """Return the split of a file by a hash of its name, whatever other files exist: 3 % validation, 3 % test."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    if number < 3:
        return "valid"
    return "test" if number < 6 else "train"


if __name__ == "__main__":
    main()
