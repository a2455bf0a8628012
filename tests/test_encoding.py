from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_tokenizer import KINDS, MEAN, TEXT, make
from tokenizers import Tokenizer

from gpt2kit.data import encoding, encoding_gigatoken, encoding_processes
from gpt2kit.data.encoding import encoded
from gpt2kit.errors import DataError, MachineError
from gpt2kit.text.reader import Part
from gpt2kit.tokenization import tokenizer

WORDS = np.dtype("<u2")
BATCHES = [TEXT, MEAN, [], [Part("a piece"), " of a document"], *([text] for text in MEAN), TEXT[::-1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kinds")
    make(made)
    return made


@pytest.fixture
def trained(folder: Path) -> Tokenizer:
    return tokenizer.load(folder / "bytebpe")


@pytest.fixture(autouse=True)
def without_gigatoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes encode, however little there is; these have been started. None is left after the test."""
    monkeypatch.setattr(encoding, "_THREADS", 1)
    monkeypatch.setattr(encoding, "_FEW", 1)
    found: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield found
    assert found and all(process.returncode is not None for process in found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoding")]


def one_by_one(trained: Tokenizer, batches: list[list[str]]) -> list[list[list[int]]]:
    return [[trained.encode(text, add_special_tokens=False).ids for text in batch] for batch in batches]


def told(found: Iterator[tuple[list[str], list[encoding.Ids]]], batches: list[list[str]]) -> list[list[list[int]]]:
    """The ids, of the expected type and beside the expected texts."""
    ids = []
    for (texts, arrays), batch in zip(found, batches, strict=True):
        assert texts is batch and len(arrays) == len(texts)
        assert all(array.dtype == WORDS for array in arrays)
        ids.append([array.tolist() for array in arrays])
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_processes_give_the_tokenizers_own_ids(
    kind: str, folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    loaded = tokenizer.load(folder / kind)
    expected = one_by_one(loaded, BATCHES)
    assert told(encoded(BATCHES, loaded, WORDS, cores=1), BATCHES) == expected
    assert not started
    assert told(encoded(BATCHES, loaded, WORDS, cores=2), BATCHES) == expected
    assert len(started) == 2


def test_a_long_batch_goes_through_a_process_in_slices(
    trained: Tokenizer, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [[text * 40 for text in TEXT] for _ in range(2)]
    assert told(encoded(batches, trained, WORDS, cores=2), batches) == one_by_one(trained, batches)
    texts = ["word " * 9, "", "x"]
    whole = encoding_processes.in_slices(trained, texts, WORDS)
    monkeypatch.setattr(encoding_processes, "_SLICE", 10)
    cut = encoding_processes.in_slices(trained, texts, WORDS)
    assert cut[1] == whole[1] and np.array_equal(cut[0], whole[0])
    assert encoding_processes.in_slices(trained, [], WORDS)[0].dtype == WORDS


def test_a_short_text_starts_no_process(trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert told(encoded([TEXT] * 3, trained, WORDS, cores=64), [TEXT] * 3) == one_by_one(trained, [TEXT] * 3)
    assert not list(encoded([], trained, WORDS, cores=64))


@pytest.mark.parametrize("cores", [1, 3])
def test_it_never_reads_far_ahead(trained: Tokenizer, cores: int, started: list[subprocess.Popen[bytes]]) -> None:
    read = 0

    def counted() -> Iterator[list[str]]:
        nonlocal read
        for _ in range(60):
            read += 1
            yield TEXT

    for done, _ in enumerate(encoded(counted(), trained, WORDS, cores), 1):
        assert read <= done + 2 * cores
    assert read == done == 60
    list(encoded([TEXT] * 2, trained, WORDS, cores=2))  # `started` wants some


@pytest.mark.parametrize("how", ["close", "interrupt", "reader"])
def test_an_early_end_leaves_no_process(trained: Tokenizer, how: str, started: list[subprocess.Popen[bytes]]) -> None:
    def endless() -> Iterator[list[str]]:
        for number in range(1000):
            if how == "reader" and number == 10:
                raise DataError("bad line")
            yield TEXT

    found = encoded(endless(), trained, WORDS, cores=3)
    begin = time.monotonic()
    next(found)
    if how == "close":
        found.close()  # type: ignore[attr-defined]
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    else:
        with pytest.raises(DataError, match="bad line"):
            list(found)
    assert time.monotonic() - begin < 20


def test_a_killed_process_is_an_error_of_the_machine(
    trained: Tokenizer, started: list[subprocess.Popen[bytes]]
) -> None:
    found = encoded([TEXT] * 1000, trained, WORDS, cores=2)
    next(found)
    started[0].send_signal(signal.SIGKILL)
    with pytest.raises(MachineError, match=r"killed by signal 9.*RAYON_NUM_THREADS"):
        list(found)


def test_what_a_process_raises_is_raised_here(trained: Tokenizer, started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(OverflowError):  # ids above 255
        list(encoded([TEXT] * 3, trained, np.dtype("u1"), cores=2))


def test_a_system_without_room_for_a_process(trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> object:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(MachineError, match="cannot start a process"):
        next(encoded([TEXT] * 9, trained, WORDS, cores=64))


_PROGRAM = """
import sys
from gpt2kit.data import encoding
from gpt2kit.tokenization import tokenizer
import numpy, subprocess
encoding._THREADS = encoding._FEW = 1
first = subprocess.Popen
def started(*args, **options):
    child = first(*args, **options)
    print(child.pid, flush=True)
    return child
subprocess.Popen = started
found = encoding.encoded(iter(lambda: ["some text"] * 100, None), tokenizer.load(sys.argv[1]), numpy.dtype("<u2"), 2)
for n, _ in enumerate(found):
    if n == 5:
        print("encodes", "torch" in sys.modules, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="looks processes up by their numbers")
def test_a_killed_program_leaves_no_process_and_needs_no_guard(folder: Path, tmp_path: Path) -> None:
    """The program is a script without `if __name__ == "__main__"`; its processes must not run it again."""
    (tmp_path / "program.py").write_text(_PROGRAM)
    words = [sys.executable, str(tmp_path / "program.py"), str(folder / "bytebpe")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout
        children = [int(program.stdout.readline()) for _ in range(2)]
        assert program.stdout.readline() == "encodes False\n"
        program.kill()
    end = time.monotonic() + 20
    while alive := [child for child in children if _runs(child)]:
        assert time.monotonic() < end, f"{alive} outlive the program"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not (state.is_file() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_how_many_cores_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    assert encoding.usable_cores() == 3
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("RAYON_NUM_THREADS", nothing)
        assert 1 <= encoding.usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    monkeypatch.setattr(encoding, "_QUOTA", tmp_path / "cpu.max")
    for quota, cores in {"max 100000": 64, "350000 100000": 4, "9900000 100000": 64}.items():
        (tmp_path / "cpu.max").write_text(quota)
        assert encoding.usable_cores() == cores
    (tmp_path / "cpu.max").unlink()
    assert encoding.usable_cores() == 64


class StandIn:
    """gigatoken, as far as it is used; what it gives is turned wrong after so many batches."""

    right = 1000
    problem: BaseException | None = None
    batches = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def from_json(cls, told: str) -> StandIn:
        if cls.problem:
            raise cls.problem
        return cls(Tokenizer.from_str(told))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        type(self).batches += 1
        ids = [self.tokenizer.encode(text).ids for text in texts]
        return ids if self.batches <= self.right else [[*own, 0] for own in ids]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    class Own(StandIn):
        pass

    awkward = types.ModuleType("awkward")
    awkward.flatten = lambda rows: [one for row in rows for one in row]  # type: ignore[attr-defined]
    awkward.num = lambda rows: np.array([len(row) for row in rows], np.int64)  # type: ignore[attr-defined]
    gigatoken = types.ModuleType("gigatoken")
    gigatoken.Tokenizer = Own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "awkward", awkward)
    monkeypatch.setitem(sys.modules, "gigatoken", gigatoken)
    return Own


@pytest.mark.parametrize("kind", KINDS)
def test_gigatoken_is_used_where_it_is_right(kind: str, folder: Path, stand_in: type[StandIn]) -> None:
    loaded = tokenizer.load(folder / kind)
    notes: list[str] = []
    assert told(encoded(BATCHES, loaded, WORDS, note=notes.append), BATCHES) == one_by_one(loaded, BATCHES)
    assert not notes
    assert stand_in.batches == 1 + len(BATCHES)


def test_gigatoken_wrong_on_the_sample_is_not_used(trained: Tokenizer, stand_in: type[StandIn]) -> None:
    stand_in.right = 0
    notes: list[str] = []
    assert told(encoded(BATCHES, trained, WORDS, note=notes.append), BATCHES) == one_by_one(trained, BATCHES)
    assert len(notes) == 1 and "gigatoken" in notes[0] and repr(TEXT[0][:40]) in notes[0]
    assert stand_in.batches == 1


def test_gigatoken_that_takes_special_tokens_for_tokens_is_not_used(
    trained: Tokenizer, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding_gigatoken, "_without_special", tokenizer.to_json)
    notes: list[str] = []
    batches = [["no such token in this corpus"]]
    assert told(encoded(batches, trained, WORDS, note=notes.append), batches) == one_by_one(trained, batches)
    assert len(notes) == 1 and tokenizer.EOS in notes[0]


def test_gigatoken_that_turns_wrong_later_stops(trained: Tokenizer, stand_in: type[StandIn]) -> None:
    stand_in.right = 3
    with pytest.raises(encoding_gigatoken.WrongIds, match=r"pip uninstall gigatoken") as caught:
        list(encoded([TEXT] * 20, trained, WORDS))
    assert isinstance(caught.value, DataError)
    assert stand_in.batches < 3 + 2 + encoding_gigatoken._CHECKED // len(TEXT) + 1


@pytest.mark.parametrize("problem", [RuntimeError("no Split\n\nhere"), BaseException("a panic in Rust")])
def test_gigatoken_that_does_not_take_the_tokenizer_is_not_used(
    trained: Tokenizer, stand_in: type[StandIn], problem: BaseException
) -> None:
    stand_in.problem = problem
    notes: list[str] = []
    assert told(encoded([TEXT], trained, WORDS, note=notes.append), [TEXT]) == one_by_one(trained, [TEXT])
    assert len(notes) == 1 and str(problem).splitlines()[0] in notes[0] and "\n" not in notes[0]


@pytest.mark.parametrize("kind", ["bytebpe", "char", "wordpiece"])
def test_the_real_gigatoken(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gigatoken")
    pytest.importorskip("gigatoken")
    loaded = tokenizer.load(folder / kind)
    notes: list[str] = []
    assert told(encoded(BATCHES, loaded, WORDS, note=notes.append), BATCHES) == one_by_one(loaded, BATCHES)
    assert len(notes) == (kind == "wordpiece")


def test_the_sample_is_small(trained: Tokenizer) -> None:
    nasty = len(encoding_gigatoken._sample([], trained))
    assert len(encoding_gigatoken._sample([["a"] * 5000], trained)) == 1000 + nasty
    taken = encoding_gigatoken._sample([["a" * 700_000] * 5], trained)
    assert len(taken) == 2 + nasty and sum(map(len, taken[:2])) == 1 << 20
