"""Build the wheel, install it in an empty environment, and train, test and generate there. `make wheel` runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("src", "configs", "pyproject.toml", "README.md", "LICENSE")
COMMANDS = (
    ("env",),
    ("train", "text.txt", "--trainer.max_steps", "3"),
    ("runs",),
    ("test", "last"),
    ("generate", "last", "--prompt", "Once", "--max_new_tokens", "20"),
    ("train", "--config", "recipe/poems", "--print_config"),  # the wheel has the configs, too
)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A copy, since setuptools would also pack what an earlier build left in build/.
        for path in [ROOT / source for source in SOURCES]:
            if path.is_dir():
                shutil.copytree(path, folder / "source" / path.name)
            else:
                shutil.copy(path, folder / "source" / path.name)
        run(folder, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "./source")
        (wheel,) = (folder / "dist").glob("*.whl")
        venv.create(folder / "empty", with_pip=True)
        bin_folder = folder / "empty" / ("Scripts" if sys.platform == "win32" else "bin")
        run(folder, bin_folder / "python", "-m", "pip", "install", "--quiet", wheel)
        text = "".join(f"Once upon a time there were {n} words.\n" for n in range(4000))
        (folder / "text.txt").write_text(text, encoding="utf-8")
        for command in COMMANDS:
            run(folder, bin_folder / "gpt2kit", *command)
    print("the wheel works")


def run(folder: Path, *command: str | Path) -> None:
    """Run a program in a folder; it must succeed."""
    print("+", *command, flush=True)
    subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    main()
