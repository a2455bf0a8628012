"""Shared by the benchmarks: options, a text to work on, processes that are timed, and a description of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a text, and of a model and its batches."""
    parser.add_argument("--train_files", nargs="+", required=True)
    parser.add_argument("--valid_files", nargs="+", required=True)
    parser.add_argument("--kind", default="char", help="of the tokenizer, which is trained on first use")
    parser.add_argument("--document", default="file", help="what a document is: file, line or auto")
    parser.add_argument("--shape", type=int, nargs=3, default=[4, 4, 128], help="layers, heads, width")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--batch", type=int, default=12)


class Journal:
    """The results of runs, a line of JSON each. A run that is in it is not repeated, so a sweep can be continued."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self._results = {json.dumps(entry["key"]): entry["result"] for entry in entries}

    def result(self, key: list[Any], run: Callable[[], Any]) -> Any:
        """Return the result of the run that `key` describes, from the journal if it is there."""
        name = json.dumps(key)
        if name not in self._results:
            begin = time.perf_counter()
            self._results[name] = result = run()
            entry = {"key": key, "result": result, "seconds": round(time.perf_counter() - begin)}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        return self._results[name]


def collect_python(path: Path, max_bytes: int) -> Path:
    """Write the Python files of this environment to one file, up to a size, and return its path."""
    size = 0
    with open(path, "wb") as file:
        for source in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
            raw = source.read_bytes()
            try:
                raw.decode()
            except UnicodeDecodeError:
                continue
            if b"\0" in raw or size >= max_bytes:
                continue
            file.write(raw)
            size += len(raw)
    return path


def run_timed(command: list[str], cores: int = 2) -> tuple[float, float, str]:
    """Run a command; return its seconds, its largest resident memory in MB, and its output."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(cores), "PYTHONPATH": paths}
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        child = subprocess.Popen(command, env=environment, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{' '.join(command)}: exit code {child.returncode}")
        output.seek(0)
        return seconds, usage.ru_maxrss / 1024, output.read().decode()


def describe_machine() -> dict[str, object]:
    """Describe the machine and how busy it is."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """Return the processor's name, as far as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows: list[dict[str, object]]) -> str:
    """Return the rows as a Markdown table; a column that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(rows: list[dict[str, object]], output: Path | None) -> None:
    """Print the table and the machine; write both as JSON if there is a file to write to."""
    print(f"\n{table(rows)}\n\n{describe_machine()}")
    if output:
        content = {"machine": describe_machine(), "rows": rows}
        output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
