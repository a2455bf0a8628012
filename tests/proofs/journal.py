"""A file with the results of proofs, so that a proof which was stopped continues after its last scenario."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
JOURNAL = ROOT / ".cache" / "proofs.jsonl"


class Result(NamedTuple):
    """What a scenario gave: kills that struck, what is wrong (empty if nothing is), and seconds."""

    kills: int
    problem: str
    seconds: float


class Journal:
    """Results by the names of scenarios, for the source code as it is now. Entries of other code are ignored."""

    def __init__(self, path: Path = JOURNAL) -> None:
        self._path, self._code = path, _digest_of_code()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        entries = [json.loads(line) for line in lines]
        self._results = {e["scenario"]: Result(*e["result"]) for e in entries if e["code"] == self._code}

    def run(self, scenario: str, action: Callable[[], tuple[int, str]]) -> Result:
        """Return the result of a scenario; run it if it is not in the journal."""
        if scenario not in self._results:
            started = time.monotonic()
            kills, problem = action()
            result = Result(kills, problem, round(time.monotonic() - started, 1))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"code": self._code, "scenario": scenario, "result": result}) + "\n")
            self._results[scenario] = result
        return self._results[scenario]


def run_proofs(proofs: dict[str, Callable[[], str]], only: str = "") -> bool:
    """Run the proofs whose names contain `only`, each of which returns what is wrong; return whether one has failed."""
    journal, failed = Journal(), False
    print("| proof | failed | time |\n|---|---|---|")
    for name, proof in proofs.items():
        if only not in name:
            continue
        _, problem, seconds = journal.run(name, lambda proof=proof: (0, proof()))  # type: ignore[misc]
        print(f"| {name} | {'1' if problem else '0'} | {seconds:,.0f} s |", flush=True)
        if problem:
            print(problem, file=sys.stderr)
        failed = failed or bool(problem)
    return failed


def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for path in sorted(
        path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
