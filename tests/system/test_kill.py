"""A run that is killed anywhere and resumed ends bit-identically. `make prove` does the same hundreds of times."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from proofs.kills import Kill, Setting, difference, finish, last_run, resume, run_args, run_with_kills, start

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.runs import folder

STEADY = ["--save_every=2", "--trainer.log_every_n_steps=1", "--data.batch_size=4", "--trainer.limit_val_batches=3"]
LIMITED = [*STEADY, "--trainer.max_steps=8", "--trainer.val_check_interval=3"]
SETTINGS = {
    "muon, accumulating 1": LIMITED,
    "adamw, accumulating 3": [*LIMITED, "--model.optimizer=gpt2kit.optim.AdamW", "--trainer.accumulate_grad_batches=3"],
    "muon, accumulating 4": [*LIMITED, "--trainer.accumulate_grad_batches=4"],
    "adamw, two epochs": [
        *(*STEADY, "--data.batch_size=64", "--trainer.max_epochs=2", "--trainer.val_check_interval=0.5"),
        "--model.optimizer=gpt2kit.optim.AdamW",
    ],
}
ONCE = [
    *(Kill("forward", n) for n in (1, 6, 9)),
    *(Kill("update", 3), Kill("validation", 2)),
    *(Kill("write", n) for n in (1, 3)),
    *(Kill("renaming", n) for n in (1, 2)),
    *(Kill("renamed", n) for n in (2, 5)),
    Kill("purge", 1),
    Kill("purged", 1),
]


@pytest.fixture(scope="module")
def uninterrupted(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setting]:
    """Return each setting, with an uninterrupted run as its reference."""
    settings = {name: Setting(name, [*options, *args]) for name, args in SETTINGS.items()}
    for setting in settings.values():
        setting.reference, _ = run_with_kills(setting, tmp_path_factory.mktemp("uninterrupted") / "run", [])
    return settings


def check_difference(setting: Setting, run: Path, kills: list[Kill]) -> None:
    """Assert that a killed run is bit-identical to the uninterrupted one."""
    assert setting.reference is not None
    problem = difference(setting.reference, run)
    assert not problem, (kills, problem)


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=list(SETTINGS))
def test_a_run_killed_once_anywhere_ends_bit_identically(
    number: int, uninterrupted: dict[str, Setting], tmp_path: Path
) -> None:
    """Each setting gets a quarter of the kills; proofs/prove_resume.py tries hundreds."""
    setting, kills = list(uninterrupted.values())[number], ONCE[number :: len(SETTINGS)]
    total = 0
    for kill in kills:
        run, struck = run_with_kills(setting, tmp_path / f"{kill.point}{kill.n}", [kill])
        check_difference(setting, run, [kill])
        total += struck
    assert total >= len(kills) - 1, "too few of the kills struck: the points have moved"


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("adamw, two epochs", [Kill("forward", 9), Kill("forward", 2)]),
        ("adamw, two epochs", [Kill("validation", 2), Kill("validation", 1)]),
        ("muon, accumulating 4", [Kill("forward", 10), Kill("config", 1), Kill("config", 2)]),
        ("muon, accumulating 4", [Kill("write", 2), Kill("renaming", 1), Kill("forward", 3)]),
    ],
    ids=["forward", "validation", "config", "write"],
)
def test_a_run_killed_several_times_ends_bit_identically(
    name: str, kills: list[Kill], uninterrupted: dict[str, Setting], tmp_path: Path
) -> None:
    run, struck = run_with_kills(uninterrupted[name], tmp_path / "run", kills)
    assert struck == len(kills)
    check_difference(uninterrupted[name], run, kills)


def test_two_killed_ranks_resume_on_two_and_on_one(options: list[str], tmp_path: Path) -> None:
    """On as many ranks the end is bit-identical. On 2 -> 1 -> 2 ranks the samples are, but sums have another order."""
    args = [*options, *LIMITED]  # with dropout, whose masks must be those of the step
    two = Setting("2 ranks", [*args, "--trainer.accumulate_grad_batches=1"], ranks=2)
    one = Setting("1 rank", [*args, "--trainer.accumulate_grad_batches=2"])
    reference, _ = run_with_kills(two, tmp_path / "uninterrupted", [])
    killed, struck = run_with_kills(two, tmp_path / "killed", [Kill("forward", 4)])
    assert struck == 1 and not difference(reference, killed)
    both = tmp_path / "both"
    both.mkdir()
    kills = {0: Kill("forward", 4), 1: Kill("forward", 4)}
    assert finish(start(run_args(two, both), kills, 2, both / "log.txt")) == [-9, -9]
    assert resume(two, both) == [0, 0] and not difference(reference, last_run(both))

    work = tmp_path / "elastic"
    work.mkdir()
    assert resume(two, work, Kill("forward", 4), rank=1) == [5, -9]  # one rank dies, the other stops
    assert resume(one, work, Kill("forward", 6)) == [-9]
    assert resume(two, work) == [0, 0]
    left, right = (checkpoint.read(paths.checkpoints(run)[0]) for run in (reference, last_run(work)))
    for name, tensor in left["state_dict"].items():
        assert (tensor - right["state_dict"][name]).abs().max() < 1e-3, name
    assert left["gpt2kit"]["data"] == right["gpt2kit"]["data"]


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGUSR1, 1)])
def test_a_signal_to_one_rank_saves_and_stops_all(
    number: signal.Signals, ranks: int, options: list[str], tmp_path: Path
) -> None:
    setting = Setting("", [*options, *STEADY, "--trainer.max_steps=100000", "--save_every=5"], ranks)
    processes = start(run_args(setting, tmp_path), {}, ranks, tmp_path / "log.txt")
    run = tmp_path / paths.LOGS / "version_0"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not paths.checkpoints(run):
        time.sleep(0.05)
    os.kill(processes[-1].pid, number)
    assert set(finish(processes, 30)) == {128 + number}, (tmp_path / "log.txt").read_text()
    status = folder.read_status(run)
    assert (status["state"], status["reason"]) == ("stopped", number.name)
    assert paths.step_of(paths.checkpoints(run)[0]) == status["step"]
