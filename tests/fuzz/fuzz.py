"""`make fuzz`: give commands hostile files, options and requests, and report every fault that they have.

    python tests/fuzz/fuzz.py [--minutes 10] [--seed 1] [--targets checkpoint resume ...] [--jobs 2]
    python tests/fuzz/fuzz.py --cases 5       # the first five of each target, and the kept ones: for the tests

Case number n of a target is a function of the seed, the target and n. A journal in .cache has each case that was tried,
so that the next call continues with the next number. A fault's cause is its exit code, its exception and the line of
gpt2kit that raised it. The first case of each cause is reduced and kept in tests/data/fuzz.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
os.environ["PYTHONPATH"] = sys.path[0]  # for processes that a command starts
os.environ["OMP_NUM_THREADS"] = "1"  # no threads before a fork
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["MPLBACKEND"] = "agg"

import demo
import fixture
import matplotlib.pyplot
import sandbox
import targets
from cases import Case
from sandbox import Process, judge

import gpt2kit.model.gpt2
from gpt2kit.cli import cache, env, export, generate, plot, runs, test, train, train_tokenizer, web_demo

ROOT = sandbox.ROOT
JOURNAL = ROOT / ".cache" / "fuzz.jsonl"
KEPT = ROOT / "tests" / "data" / "fuzz"
# Imported once for all cases.
IMPORTED = [cache, env, export, generate, plot, runs, test, train, train_tokenizer, web_demo]
IMPORTED += [gpt2kit.model.gpt2, matplotlib.pyplot]


class Journal:
    """The cases that were tried with a seed, one line of JSON each; a journal of None is not written."""

    def __init__(self, path: Path | None, seed: int) -> None:
        self._path, self._seed = path, seed
        self.next: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0
        self.causes: collections.Counter[str] = collections.Counter()
        if path and path.exists():
            for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                if entry["seed"] == seed:
                    self._count(**entry)

    def _count(self, seed: int, target: str, number: int, seconds: float, cause: str) -> None:
        self.next[target] = max(self.next[target], number + 1)
        self.seconds += seconds
        if cause:
            self.causes[f"{target}: {cause}"] += 1

    def add(self, target: str, number: int, seconds: float, cause: str) -> None:
        entry = {"seed": self._seed, "target": target, "number": number, "seconds": round(seconds, 2), "cause": cause}
        self._count(**entry)  # type: ignore[arg-type]
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def report(self) -> str:
        """Return what was tried in total."""
        counts = ", ".join(f"{target} {self.next[target]:,}" for target in targets.TARGETS)
        causes = "".join(f"\n  {count:5,} x {cause}" for cause, count in self.causes.most_common())
        total = f"{sum(self.next.values()):,} cases with seed {self._seed}: {counts}"
        return f"{total}\n{self.seconds / 60:.0f} minutes of cases, {len(self.causes)} causes of faults{causes}"


class Fuzzer:
    """Runs cases, several at a time."""

    def __init__(self, work: Path, jobs: int) -> None:
        self._work, self._jobs, self._started = work, jobs, 0
        self._folder = work / "fixture" / "files"
        self._folder.parent.mkdir()
        self._folder.parent.chmod(0o777)
        (work / "empty").mkdir()
        self._log = work / "demo.log"
        self._log.touch()
        self._server = demo.Server(self._folder, self._log)
        process = self._process(Case("fixture", [], []), work / "empty", lambda case: self._build())
        while not (outcome := process.poll()):
            time.sleep(0.01)
        if outcome.code:
            raise SystemExit(f"the files for the cases cannot be built: {outcome.err}")
        self.fixture = fixture.Fixture(self._folder)

    def _build(self) -> None:
        fixture.build()
        shutil.copytree(".", self._folder)

    def _process(self, case: Case, files: Path, action: Callable[[Case], None]) -> Process:
        self._started += 1
        folder = self._work / f"case-{self._started}"
        folder.mkdir()
        return Process(case, files, folder, action)

    def _start(self, case: Case) -> Process:
        if case.target == "demo":
            self._server.start()
            return self._process(case, self._work / "empty", self._server.talk)
        action = sandbox.export_page if case.target == "page" else sandbox.call_command
        return self._process(case, self._folder, action)

    def try_all(self, numbered: Iterable[tuple[int, Case]]) -> Iterator[tuple[int, Case, sandbox.Outcome]]:
        """Run cases, several at a time but only one of the demo, whose log they share; yield them as they end."""
        running: dict[Process, int] = {}

        def ended(most: int) -> Iterator[tuple[int, Case, sandbox.Outcome]]:
            while len(running) > most:
                for process in list(running):
                    outcome = process.poll()
                    if outcome:
                        yield running.pop(process), process.case, outcome
                time.sleep(0.01)

        for number, case in numbered:
            is_alone = case.target == "demo" and any(process.case.target == "demo" for process in running)
            yield from ended(0 if is_alone else self._jobs - 1)
            running[self._start(case)] = number
        yield from ended(0)

    def close(self) -> None:
        """End the demo."""
        self._server.stop()

    def reduced(self, case: Case, cause: str) -> Case:
        """Leave out changes and arguments without which the fault is the same."""
        for name in ("changes", "args"):
            for index in reversed(range(name == "args", len(getattr(case, name)))):
                parts = list(getattr(case, name))
                del parts[index]
                smaller = replace(case, **{name: parts})
                ((_, _, outcome),) = self.try_all([(0, smaller)])
                if judge(smaller, outcome) == cause:
                    case = smaller
        return case


def keep(case: Case, cause: str) -> Path:
    """Save a case in tests/data/fuzz."""
    path = KEPT / f"{case.target}-{hashlib.sha256(cause.encode()).hexdigest()[:8]}.json"
    KEPT.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cause": cause, **asdict(case)}, indent=1) + "\n", encoding="utf-8")
    return path


def kept() -> list[Case]:
    """Return the kept cases."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]
    return [Case(content["target"], content["args"], content["changes"]) for content in contents]


def show(case: Case, cause: str, outcome: sandbox.Outcome) -> None:
    """Print a fault."""
    print(f"FAULT {case.target}: {cause}\n  {json.dumps(asdict(case))[:600]}")
    if os.environ.get("FUZZ_DEBUG"):
        print(outcome.err[-2500:], outcome.notes[:1500])
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", nargs="+", choices=targets.TARGETS, default=list(targets.TARGETS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cases", type=int, help="try kept cases and this number of each target; no journal")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.fsync = lambda descriptor: None  # no case is a power failure
    journal = Journal(JOURNAL if options.cases is None else None, options.seed)
    JOURNAL.parent.mkdir(exist_ok=True)
    end, spent = time.monotonic() + 60 * options.minutes, dict.fromkeys(options.targets, 0.0)
    new: dict[str, Case] = {}
    with contextlib.ExitStack() as stack:
        work = Path(tempfile.mkdtemp())  # TemporaryDirectory would delete it at the end of each forked process
        work.chmod(0o755)
        stack.callback(shutil.rmtree, work)
        fuzzer = Fuzzer(work, options.jobs)
        stack.callback(fuzzer.close)

        def numbered() -> Iterator[tuple[int, Case]]:
            if options.cases is not None:
                yield from ((-1, case) for case in kept())
                for number, target in itertools.product(range(options.cases), options.targets):
                    yield number, targets.make(target, options.seed, number, fuzzer.fixture)
                return
            numbers = collections.Counter(journal.next)
            while time.monotonic() < end:
                target = min(options.targets, key=lambda each: spent[each])  # each gets the same time
                spent[target] += 0.01  # it may be chosen again before its first case has ended
                yield numbers[target], targets.make(target, options.seed, numbers[target], fuzzer.fixture)
                numbers[target] += 1

        for number, case, outcome in fuzzer.try_all(numbered()):
            cause = judge(case, outcome)
            if number >= 0:
                spent[case.target] += outcome.seconds
                journal.add(case.target, number, outcome.seconds, cause)
            if cause and cause not in new:
                new[cause] = case
                show(case, cause, outcome)
                if options.cases is None:
                    print(f"  kept: {keep(case, cause).relative_to(ROOT)}", flush=True)
        for cause, case in new.items():
            if options.cases is None and not cause.startswith("more than"):  # that would take long
                keep(fuzzer.reduced(case, cause), cause)
    print(journal.report())
    sys.exit(bool(new))


if __name__ == "__main__":
    main()
