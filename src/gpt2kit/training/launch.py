"""Before many processes train together: how many there are, whether they can meet, who builds the text first."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import PrefixStore

from gpt2kit.errors import MachineError, UserError

_BUILT = "GPT2KIT_BUILT"
"""Set for processes that rank 0 starts after it has built the text."""
_POLL = 0.2
_SECOND = 1.0
_ROUNDS = itertools.count()


def sizes(devices: Any, num_nodes: int, environment: Mapping[str, str] = os.environ) -> tuple[Any, int]:
    """`trainer.devices` and `trainer.num_nodes`, taken from torchrun or SLURM where they are not given.

    Raises UserError if they are given and contradict what was launched.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        what, each = "torchrun", int(environment["LOCAL_WORLD_SIZE"])
        nodes = int(environment["WORLD_SIZE"]) // each
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(environment.get("SLURM_NNODES", "1"))
        what, each = "srun", int(environment["SLURM_NTASKS"]) // nodes
        if each == 1 and nodes == 1:
            return devices, num_nodes  # one task that starts its own processes
    else:
        return devices, num_nodes
    given = _count(devices)
    if given not in (None, each) or num_nodes not in (1, nodes):
        raise UserError(
            f"trainer.devices {devices}, trainer.num_nodes {num_nodes}: {what} has started {each} processes on each of "
            f"{nodes} machines. Leave both options out, or let them say {each} and {nodes}"
        )
    return (each if given is None else devices), nodes


def _count(devices: Any) -> int | None:
    """How many devices the option asks for; None: it leaves that open."""
    if devices in ("auto", None, -1, "-1"):
        return None
    if isinstance(devices, list | tuple):
        return len(devices)
    words = str(devices).split(",")
    return len([word for word in words if word.strip()]) if len(words) > 1 else int(words[0])


def refuse_missing_devices(accelerator: Any, devices: Any, there: int) -> None:
    """Raise if this machine has fewer GPUs than are asked for."""
    wanted = _count(devices)
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and there > 0)
    if on_gpus and (there == 0 or (wanted or 0) > there):
        has = "no GPU that torch can use" if there == 0 else f"{there} GPU{'s' if there > 1 else ''}"
        advice = "Check nvidia-smi, or use trainer.accelerator auto" if there == 0 else f"Use trainer.devices {there}"
        asked = f"trainer.devices {devices}" if there else f"trainer.accelerator {accelerator}"
        raise MachineError(f"{asked}: this machine ({socket.gethostname()}) has {has}. {advice}")


def accumulation(global_batch: int, batch_size: int, world_size: int) -> int:
    """Forward passes an optimizer step takes on each device; the nearest sizes are named if that is not whole."""
    at_once = batch_size * world_size
    if global_batch % at_once == 0:
        return global_batch // at_once
    below, above = global_batch // at_once * at_once, -(-global_batch // at_once) * at_once
    near = f"{below} or {above}" if below else str(above)
    each = [b for b in range(global_batch, 0, -1) if global_batch % (b * world_size) == 0]
    other = min(each, key=lambda b: abs(b - batch_size), default=None)
    raise UserError(
        f"data.global_batch {global_batch}: not a multiple of {world_size} devices x data.batch_size {batch_size} = "
        f"{at_once}. Nearest: data.global_batch {near}"
        + (f", or data.batch_size {other}" if other else f"; with {world_size} devices, a multiple of {world_size}")
    )


def free_port_if_taken(environment: Any = os.environ) -> None:
    """On one machine, where this process starts the others: another port if the one that is set is taken."""
    port = environment.get("MASTER_PORT", "")
    if "LOCAL_RANK" in environment or not port.isdecimal() or not int(port):
        return
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere this would let it take a port that another program listens at
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError:
            with socket.socket() as free:
                free.bind(("", 0))
                environment["MASTER_PORT"] = str(free.getsockname()[1])
            print(f"note   MASTER_PORT {port} is taken; {environment['MASTER_PORT']} is used", file=sys.stderr)


def explained(error: BaseException) -> MachineError | None:
    """What torch says of processes that cannot meet, in one line."""
    text = str(error)
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return MachineError(
            f"port {where}: taken by another program. Set MASTER_PORT to a free one, or, with torchrun, take "
            "--standalone (one machine) or another --rdzv-endpoint"
        )
    if joined := re.search(r"(\d+)/(\d+) clients joined", text):
        return MachineError(
            f"{where}: only {joined[1]} of {joined[2]} processes came. Look at the others' own words, and whether each "
            "machine can reach this address"
        )
    if re.search(r"client socket has (timed out|failed)|failed to connect to|could not resolve", text, re.IGNORECASE):
        return MachineError(
            f"{where}: rank 0 cannot be reached there. Check MASTER_ADDR (torchrun: --rdzv-endpoint), the network, and "
            "whether rank 0 still runs"
        )
    return None


def first_to_say(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is to say what is wrong: of those that were launched together on this machine, one says it.

    Rank 0 always does, and the others give it a second. A line of their own is never lost.
    """
    rank = int(environment.get("RANK") or environment.get("SLURM_PROCID") or environment.get("LOCAL_RANK") or 0)
    if "TORCHELASTIC_RUN_ID" in environment or "SLURM_STEP_ID" in environment:
        launcher = os.getppid()
    elif _BUILT in environment:  # rank 0 has started the others
        launcher = os.getppid() if rank else os.getpid()
    else:
        return True
    launch = [launcher, *(environment.get(name) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))]
    said = hashlib.sha256(repr([*launch, text]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir())
    if rank:
        time.sleep(_SECOND)
    with contextlib.suppress(OSError):
        for old in folder.glob(".gpt2kit-said-*"):
            if time.time() - old.stat().st_mtime > 3600:
                old.unlink()
    try:
        (folder / f".gpt2kit-said-{said}").touch(exist_ok=False)
    except FileExistsError:
        return rank == 0
    except OSError:
        pass
    return True


def rank_zero_first(trainer: Any, cache_dir: Path | None, build: Callable[[], None]) -> None:
    """Let rank 0 build what all need; the others wait, then find it, or build it once a machine if theirs is another
    disk. Machines whose disk is another do not wait.

    Args:
        trainer: has not begun yet.
        cache_dir: where it is built; None: at a place that all share.
        build: opens what is there, else builds it, under a lock of this machine.
    """
    if trainer.world_size == 1 or os.environ.get(_BUILT):
        return build()
    strategy = trainer.strategy
    if getattr(strategy, "launcher", None) is not None and "LOCAL_RANK" not in os.environ:
        build()
        os.environ[_BUILT] = "1"  # this process is rank 0 and starts the others later
        return None
    join = getattr(strategy, "setup_distributed", None) or getattr(strategy, "_setup_distributed", None)
    if join is None:
        return build()
    join()  # Lightning does so again, and finds it done
    prefix = f"gpt2kit/{next(_ROUNDS)}"  # a process may begin several runs, one after the other
    store = PrefixStore(prefix, distributed.distributed_c10d._get_default_store())
    if distributed.get_rank() == 0:
        with _probe(cache_dir) as name:
            store.set("probe", name)
            code = 0
            try:
                build()
            except UserError as error:
                code = error.exit_code
                raise
            except BaseException:
                code = 1
                raise
            finally:
                store.set("built", str(code))
                _wait(lambda: store.add("heard", 0) >= distributed.get_world_size() - 1, 10)
    else:
        _wait(lambda: store.check(["probe"]))
        name = store.get("probe").decode()
        if cache_dir is not None and not (cache_dir / name).exists():
            build()
        _wait(lambda: store.check(["built"]))
        code = int(store.get("built"))
        store.add("heard", 1)
        if code:
            raise SystemExit(code)  # rank 0 says why
        build()
    return None


@contextlib.contextmanager
def _probe(folder: Path | None) -> Iterator[str]:
    """A file by which others see whether they have the same disk."""
    if folder is None:
        yield ""
        return
    path = folder / f".shared-{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError:  # may only be read: what is needed is there already, or the building will say so
        yield ""
        return
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def _wait(until: Callable[[], bool], seconds: float | None = None) -> None:
    begun = time.monotonic()
    while not until() and (seconds is None or time.monotonic() - begun < seconds):
        time.sleep(_POLL)
