"""What benchmarks have in common: a text to work on, processes that are timed, and the machine's description."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def collect(path: Path, most: int) -> Path:
    """Python files of this environment, one after the other, up to a size in bytes."""
    size = 0
    with open(path, "wb") as file:
        for source in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
            raw = source.read_bytes()
            try:
                raw.decode()
            except UnicodeDecodeError:
                continue
            if b"\0" in raw or size >= most:
                continue
            file.write(raw)
            size += len(raw)
    return path


def timed(command: list[str], cores: int = 2) -> tuple[float, float, str]:
    """Seconds, largest resident memory in MB, and what was printed."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(cores), "PYTHONPATH": paths}
    with tempfile.TemporaryFile() as told:
        begin = time.perf_counter()
        child = subprocess.Popen(command, env=environment, stdout=told)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{' '.join(command)}: exit code {child.returncode}")
        told.seek(0)
        return seconds, usage.ru_maxrss / 1024, told.read().decode()


def described() -> dict[str, object]:
    """The machine and how busy it is."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows: list[dict[str, object]]) -> str:
    """The rows as a Markdown table; a column that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def finish(rows: list[dict[str, object]], output: Path | None) -> None:
    """Print the table and the machine; write both as JSON."""
    print(f"\n{table(rows)}\n\n{described()}")
    if output:
        output.write_text(json.dumps({"machine": described(), "rows": rows}, indent=2, ensure_ascii=False) + "\n")
