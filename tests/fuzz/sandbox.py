"""Run a case in a process of its own, which is forked from one that has imported everything, and judge what it did.

The process may write to its own folder. Next to it is a decoy, in which nothing may change.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import html.parser
import os
import re
import resource
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cases import Case, apply

from gpt2kit import __main__
from gpt2kit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 60  # of processor time; three times that by the clock, for machines that do other work, too
MAX_MEMORY = 4 << 30
CODES = {0, UserError.exit_code, *(kind.exit_code for kind in UserError.__subclasses__())}
# Targets whose input is the user's own, who may name a server.
MAY_CONNECT = ("command", "config")
_PAGE_ELEMENTS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "h1", "h2", "p", "noscript", "main", "form"),
    *("label", "textarea", "div", "button", "progress", "details", "summary", "input", "select", "option", "table"),
    *("tr", "th", "td", "script"),
}
_LIBC = ctypes.CDLL(None, use_errno=True)
_ERROR = re.compile(r"^error: ", re.MULTILINE)


@dataclass
class Outcome:
    """What the process of a case did."""

    code: int  # -n: ended by signal n
    err: str  # stderr, and the reports of unknown errors
    notes: str  # connections that it tried, and where it was when it was stopped
    stopped: str  # why it was stopped, or empty
    changed: list[str]  # in the decoy
    seconds: float


class Process:
    """A case that runs."""

    def __init__(self, case: Case, fixture: Path, folder: Path, action: Callable[[Case], None]) -> None:
        self.case, self.folder, self._stopped = case, folder, ""
        self._box, self._decoy = folder / "box", folder / "decoy"
        shutil.copytree(fixture, self._box, symlinks=True)
        self._decoy.mkdir()
        (self._decoy / "text.txt").write_text("a decoy\n")
        self._before = _listing(self._decoy)
        self._start = time.monotonic()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _run(case, folder, action)

    def poll(self) -> Outcome | None:
        """Return the outcome if the process has ended. Stop one that takes too much."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        seconds = time.monotonic() - self._start
        if not pid:
            self._limit(seconds)
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)  # processes that it left
        err = _read(self.folder / "stderr") + "".join(self._reports())
        changed = sorted(set(_listing(self._decoy).items()) ^ set(self._before.items()))
        outcome = Outcome(
            os.waitstatus_to_exitcode(status),
            err,
            _read(self.folder / "notes"),
            self._stopped,
            [name for name, _ in changed],
            seconds,
        )
        shutil.rmtree(self.folder)
        return outcome

    def _limit(self, seconds: float) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            memory = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            if memory > MAX_MEMORY:
                self._stop("more than 4 GB")
            elif cpu > MAX_SECONDS or seconds > 3 * MAX_SECONDS:
                self._stop("more than 60 s")

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGQUIT)  # prints the stack into the notes
            time.sleep(0.3)
            os.killpg(self._pid, signal.SIGKILL)

    def _reports(self) -> Iterator[str]:
        """Yield the reports of unknown errors that the command saved in its folder."""
        for path in self._box.iterdir():
            fact = path.lstat()
            if stat.S_ISREG(fact.st_mode) and fact.st_mtime >= time.time() - 600 and fact.st_size < 1 << 16:
                text = _read(path)
                if "Traceback (most recent call last)" in text:
                    yield text


def judge(case: Case, outcome: Outcome) -> str:
    """Return the cause of a fault, without what differs between inputs; empty if there is no fault."""
    errors = len(_ERROR.findall(outcome.err))
    if outcome.stopped:
        return f"{outcome.stopped}, in {_last_frame(outcome.notes)}"
    if "Traceback (most recent call last)" in outcome.err:
        kind = re.search(r"^[A-Za-z_][\w.]*(?=:|$)", outcome.err.rpartition('\n  File "')[2], re.MULTILINE)
        return f"exit code {outcome.code}, {kind[0] if kind else 'exception'} in {_last_frame(outcome.err)}"
    if outcome.changed:
        return f"changed outside of its folder: {', '.join(outcome.changed)}"
    if outcome.code not in CODES:
        return f"exit code {outcome.code}: {re.sub('[0-9]+', 'N', outcome.err.strip()[-80:])}"
    if errors != (outcome.code != 0):
        return f"exit code {outcome.code} with {errors} error lines"
    if outcome.notes.startswith("connects") and case.target not in MAY_CONNECT:
        return f"{outcome.notes.splitlines()[0]}"
    return ""


def _last_frame(text: str) -> str:
    """Return the innermost line of gpt2kit in a traceback, without its number; else the file of a library."""
    frames = re.findall(r'File "[^"]*?/(gpt2kit|site-packages)/([^"]+)", line (\d+)', text)
    if "most recent call first" in text:
        frames.reverse()
    own = [(f"gpt2kit/{file}", number) for package, file, number in frames if package == "gpt2kit"]
    if not own:
        return frames[-1][1] if frames else "the fuzzer"
    file, number = own[-1]
    lines = (ROOT / "src" / file).read_text(encoding="utf-8").splitlines()
    return f"{file}: {lines[int(number) - 1].strip()}"


def _run(case: Case, folder: Path, action: Callable[[Case], None]) -> None:
    """Run a case in this process and end it, as Python ends."""
    code = 1
    try:
        os.setsid()
        for number, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o666), number)
        os.chdir(folder / "box")
        for change in case.changes:
            if case.target != "demo":
                apply(change, Path())
        os.environ |= {"HOME": os.getcwd(), "TMPDIR": str(folder / "tmp")}
        Path(os.environ["TMPDIR"]).mkdir()
        sys.argv = [str(ROOT / "src/gpt2kit/__main__.py"), *case.args]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        notes = os.open(folder / "notes", os.O_WRONLY | os.O_CREAT)
        faulthandler.register(signal.SIGQUIT, notes)
        if case.target != "demo":
            _refuse_connections(notes)
        _drop_privileges(folder)
        end_with_parent()
        action(case)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code)


def call_command(case: Case) -> None:
    """Run the command of a case."""
    __main__.main(list(case.args))


def export_page(case: Case) -> None:
    """Run the command of a case, and check that the page it wrote has no other elements than every page."""
    call_command(case)
    content = Path(case.args[case.args.index("--html") + 1]).read_text(encoding="utf-8")
    parser = _Elements()
    parser.feed(content)
    parser.close()
    others = set(parser.names) - _PAGE_ELEMENTS
    if others or parser.scripts != 1 or not content.endswith("</body></html>\n"):
        raise AssertionError(f"the page has {parser.scripts} scripts and the elements {sorted(others)}")


class _Elements(html.parser.HTMLParser):
    """Collects the elements of a page, and counts those that browsers run as scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.scripts += tag == "script" and "type" not in dict(attrs)


def end_with_parent() -> None:
    """End this process when the fuzzer ends, however that happens."""
    _LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _refuse_connections(notes: int) -> None:
    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(args[1], tuple)):
            os.write(notes, f"connects: {event}\n".encode())
            raise ConnectionRefusedError("no network in a fuzzing case")

    sys.addaudithook(hook)


def _drop_privileges(folder: Path) -> None:
    """Where root runs the fuzzer, go on as nobody, who may read every file (CAP_DAC_READ_SEARCH) but write only here.

    A hostile path must not replace /dev/null.
    """
    if os.getuid() != 0:
        return
    nobody, may_read = 65534, 1 << 2
    for path in (folder, *folder.rglob("*")):
        os.chown(path, nobody, nobody, follow_symlinks=False)
    _LIBC.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setgid(nobody)
    os.setuid(nobody)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[may_read] * 3)
    if _LIBC.capset(header, sets) or _LIBC.prctl(
        47, 2, 2, 0, 0
    ):  # PR_CAP_AMBIENT_RAISE, for the programs that it starts
        raise OSError(ctypes.get_errno(), "capabilities")
    _LIBC.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: it may read /proc/self


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files in a folder with their sizes and times."""
    facts = ((path, path.lstat()) for path in folder.rglob("*"))
    return {str(path.relative_to(folder)): (fact.st_size, fact.st_mtime_ns) for path, fact in facts}
