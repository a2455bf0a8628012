"""Run trainer.py, kill it with SIGKILL at a chosen point, resume it, and compare it with an uninterrupted run.

A fork server imports everything once, and each run is a forked child, so hundreds of kills take minutes.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import failures, train
from gpt2kit.export import huggingface
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.verify_resume import compare

# The fork server finds its modules by this variable alone (Python 3.11 does not hand it sys.path).
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(files.__file__).parent.parent)])
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["proofs.kills", "torch.utils.tensorboard"])
# The metrics that are not functions of the settings: they depend on time and memory.
TIMINGS = {"tokens_per_s", "mfu", "memory_gb", "hours", "hours_left"}


@dataclass(frozen=True)
class Kill:
    """SIGKILL when the program reaches a point for the n-th time; for `seconds`, after n milliseconds."""

    point: str
    n: int


@dataclass
class Setting:
    """How to train: arguments of trainer.py, and the number of ranks, which are processes under gloo."""

    name: str
    args: list[str]
    ranks: int = 1
    strategy: str = "ddp"
    start: tuple[str, ...] = ()  # more arguments, which a resumed run is not given
    reference: Path | None = field(default=None, repr=False)  # the folder of an uninterrupted run


def _counted(n: int, act: Callable[[], None]) -> Callable[[], None]:
    count = 0

    def reached() -> None:
        nonlocal count
        count += 1
        if count == n:
            act()

    return reached


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(kill: Kill) -> None:
    """Patch the program so that it kills itself at the point of `kill`."""
    reached = _counted(kill.n, _die)

    def before(owner: Any, name: str, when: Callable[..., bool] = lambda *args: True) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if when(*args):
                reached()
            return real(*args, **kwargs)

        setattr(owner, name, wrapped)

    def after(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            reached()
            return result

        setattr(owner, name, wrapped)

    def half_a_file(value: Any, path: Path) -> None:
        torch_save(value, path)
        os.truncate(path, path.stat().st_size // 2)
        reached()
        torch_save(value, path)

    if kill.point == "forward":
        before(GPT2Module, "training_step")
    elif kill.point == "update":  # gradients are computed, weights are not updated
        before(GPT2Module, "configure_gradient_clipping")
    elif kill.point == "validation":
        before(GPT2Module, "validation_step")
    elif kill.point == "write":
        torch_save = torch.save
        torch.save = half_a_file  # type: ignore[assignment]
    elif kill.point == "renaming":  # checksum or checkpoint is written, not yet renamed
        before(files.os, "replace", lambda source, target: ".ckpt" in str(target))
    elif kill.point == "config":  # settings or log are written, not yet renamed
        before(files.os, "replace", lambda source, target: str(target).endswith((".yaml", ".csv")))
    elif kill.point == "renamed":
        after(files, "sync_folder")
    elif kill.point == "purge":
        before(Path, "unlink", lambda path, *rest: path.name.endswith(".ckpt"))
    elif kill.point == "purged":  # the checkpoint is deleted, its checksum not yet
        before(Path, "unlink", lambda path, *rest: path.name.endswith(".ckpt.sha256"))
    elif kill.point == "exporting":  # the folder of an epoch is written, not yet renamed
        before(huggingface, "check")
    elif kill.point == "seconds":
        signal.signal(signal.SIGALRM, lambda *args: _die())
        signal.setitimer(signal.ITIMER_REAL, kill.n / 1000)
    else:
        raise ValueError(kill.point)


def child(
    main: Callable[..., object], args: list[str], kill: Kill | None, environment: dict[str, str], log: str
) -> None:
    """Run a command in this process, with its output in a file."""
    os.environ.update(environment)
    os.chdir(environment.get("CWD", "."))
    torch.set_num_threads(1)
    with open(log, "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if kill is not None:
        _arm(kill)
    failures.guarded(main, args)


def start(
    args: list[str],
    kills: dict[int, Kill],
    ranks: int,
    log: Path,
    environments: dict[int, dict[str, str]] | None = None,
    main: Callable[..., object] = train.main,
) -> list[Any]:
    """Start the processes of one run.

    Args:
        args: the arguments of trainer.py.
        kills: the kills of some ranks.
        ranks: the number of processes.
        log: the file for their output.
        environments: further environment variables of some ranks. CWD is the working directory, and ARGS are further
            arguments.
        main: the command.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        launcher = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "NODE_RANK": "0",
            "LOCAL_RANK": str(rank),
        }
        environment = {**(launcher if ranks > 1 else {}), **(environments or {}).get(rank, {})}
        rank_args = [*args, *environment.pop("ARGS", "").split()]
        child_args = (main, rank_args, kills.get(rank), environment, str(log))
        process = _CONTEXT.Process(target=child, args=child_args)
        process.start()
        processes.append(process)
    return processes


def finish(processes: list[Any], seconds: float = 300) -> list[int]:
    """Wait for processes and return their exit codes. One that does not end is a failure."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            for other in processes:
                other.kill()
            raise AssertionError(f"a process still ran after {seconds} s")
    return [process.exitcode for process in processes]


def run_args(setting: Setting, work: Path) -> list[str]:
    """Return the arguments of trainer.py for a run in a folder."""
    strategy = setting.strategy if setting.ranks > 1 else "auto"
    places = [f"--trainer.default_root_dir={work}", f"--trainer.devices={setting.ranks}"]
    return [*setting.args, *places, f"--trainer.strategy={strategy}"]


def resume(setting: Setting, work: Path, kill: Kill | None = None, rank: int = 0) -> list[int]:
    """Resume the newest run, or start it if nothing has been saved yet; return the exit codes."""
    args = run_args(setting, work)
    if any(paths.checkpoints(run) for run in (work / paths.LOGS).glob("version_*")):
        args += ["--ckpt_path=last"]
    else:
        args += setting.start
    return finish(start(args, {rank: kill} if kill else {}, setting.ranks, work / "log.txt"))


def run_with_kills(setting: Setting, work: Path, kills: list[Kill]) -> tuple[Path, int]:
    """Run to the end through all kills; return the run's folder, and how many kills struck (late ones may not)."""
    work.mkdir(parents=True)
    struck = 0
    for kill in kills:
        codes = resume(setting, work, kill)
        struck += -signal.SIGKILL in codes
    codes = resume(setting, work)
    assert not any(codes), (work / "log.txt").read_text()
    return last_run(work), struck


def last_run(work: Path) -> Path:
    """Return the folder of the newest run."""
    return max((work / paths.LOGS).glob("version_*"), key=lambda run: int(run.name.split("_")[1]))


def logged(run: Path) -> list[dict[str, str]]:
    """Return the rows of the log without the metrics of time and memory, in order and as text, so each digit counts."""
    with open(run / "metrics.csv", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v and k not in TIMINGS} for row in csv.DictReader(file)]


def difference(one: Path, other: Path, weights_only: bool = False) -> str:
    """Return how two runs differ; empty if weights, optimizer state and every logged figure are bit-identical."""
    left, right = (checkpoint.read(paths.checkpoints(run)[0]) for run in (one, other))
    differences = {name: value for name, value in compare(left, right).items() if value}
    if differences:
        return f"tensors differ: {differences}"
    if not weights_only and logged(one) != logged(other):
        return f"logs differ:\n{logged(one)}\n{logged(other)}"
    return ""
