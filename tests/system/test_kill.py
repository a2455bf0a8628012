"""kill -9 anywhere, continue, and end with the same bits. `make prove` does the same some hundred times more."""

from __future__ import annotations

from pathlib import Path

import pytest
from proofs.kills import Kill, Setting, difference, finish, go_on, last_run, run_with_kills, start, words_of

from gpt2kit.checkpoint import checkpoint
from gpt2kit.runs import folder, lifecycle

STEADY = ["--save_every=2", "--trainer.log_every_n_steps=1", "--data.batch_size=4", "--trainer.limit_val_batches=3"]
LIMITED = [*STEADY, "--trainer.max_steps=8", "--trainer.val_check_interval=3"]
SETTINGS = {
    "muon, accumulating 1": LIMITED,
    "adamw, accumulating 3": [*LIMITED, "--model.optimizer=gpt2kit.optim.AdamW", "--trainer.accumulate_grad_batches=3"],
    "muon, accumulating 4": [*LIMITED, "--trainer.accumulate_grad_batches=4"],
    "adamw, two epochs": [
        *STEADY,
        *(
            "--data.batch_size=64",
            "--trainer.max_epochs=2",
            "--model.optimizer=gpt2kit.optim.AdamW",
            "--trainer.val_check_interval=0.5",
        ),
    ],
}
ONCE = [
    *(Kill("forward", n) for n in (1, 4, 6, 9)),
    *(Kill("update", n) for n in (3, 6)),
    *(Kill("validation", n) for n in (2, 4)),
    *(Kill("write", n) for n in (1, 3)),
    *(Kill("renaming", n) for n in (1, 2, 4)),
    *(Kill("renamed", n) for n in (2, 5)),
    Kill("purge", 1),
    Kill("purged", 1),
]


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setting]:
    """Each setting with its run that was left alone."""
    found = {}
    for name, words in SETTINGS.items():
        found[name] = Setting(name, [*options, *words])
        work = tmp_path_factory.mktemp("straight")
        found[name].reference, _ = run_with_kills(found[name], work / "run", [])
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_once_anywhere(name: str, straight: dict[str, Setting], tmp_path: Path) -> None:
    struck = 0
    for number, kill in enumerate(ONCE):
        run, times = run_with_kills(straight[name], tmp_path / str(number), [kill])
        assert straight[name].reference is not None
        assert not (found := difference(straight[name].reference, run)), (kill, found)
        struck += times
    assert struck >= len(ONCE) - 3, "too few of the kills struck: the points have moved"


@pytest.mark.parametrize("name", ["muon, accumulating 4", "adamw, two epochs"])
def test_killed_twice_and_more(name: str, straight: dict[str, Setting], tmp_path: Path) -> None:
    twice = [
        [Kill("forward", 9), Kill("forward", 2)],
        [Kill("validation", 2), Kill("validation", 1)],
        [Kill("forward", 10), Kill("config", 1), Kill("config", 2)],
        [Kill("write", 2), Kill("renaming", 1), Kill("forward", 3)],
    ]
    for number, kills in enumerate(twice):
        run, struck = run_with_kills(straight[name], tmp_path / str(number), kills)
        assert struck == len(kills)
        assert straight[name].reference is not None
        assert not (found := difference(straight[name].reference, run)), (kills, found)


def test_two_ranks(options: list[str], tmp_path: Path) -> None:
    """Killed and resumed on the same ranks: the same bits. On 2 -> 1 -> 2: the same samples, sums in another order."""
    words = [*options, *LIMITED]  # dropout is on: its masks, too, must be those of the step
    two = Setting("2 ranks", [*words, "--trainer.accumulate_grad_batches=1"], ranks=2)
    one = Setting("1 rank", [*words, "--trainer.accumulate_grad_batches=2"])
    reference, _ = run_with_kills(two, tmp_path / "straight", [])
    killed, struck = run_with_kills(two, tmp_path / "killed", [Kill("forward", 4)])
    assert struck == 1 and not difference(reference, killed)
    both = tmp_path / "both"
    both.mkdir()
    kills = {0: Kill("forward", 4), 1: Kill("forward", 4)}
    assert finish(start(words_of(two, both), kills, 2, both / "log.txt")) == [-9, -9]
    assert go_on(two, both) == [0, 0] and not difference(reference, last_run(both))

    work = tmp_path / "elastic"
    work.mkdir()
    assert go_on(two, work, Kill("forward", 4), rank=1) == [5, -9]  # one rank dies, the other leaves by itself
    assert go_on(one, work, Kill("forward", 6)) == [-9]
    assert go_on(two, work) == [0, 0]
    left, right = (checkpoint.read(checkpoint.checkpoints(run)[0]) for run in (reference, last_run(work)))
    for name, tensor in left["state_dict"].items():
        assert (tensor - right["state_dict"][name]).abs().max() < 1e-3, name
    assert left["gpt2kit"]["data"] == right["gpt2kit"]["data"]


def test_a_signal_to_one_rank_stops_all_of_them_saved(options: list[str], tmp_path: Path) -> None:
    import os
    import signal
    import time

    words = [*options, *STEADY, "--trainer.max_steps=100000", "--save_every=5"]
    for number, ranks in ((signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGUSR1, 1)):
        setting = Setting("", words, ranks=ranks)
        work = tmp_path / number.name
        work.mkdir()
        processes = start(words_of(setting, work), {}, ranks, work / "log.txt")
        deadline = time.monotonic() + 60
        run = work / lifecycle.LOGS / "version_0"
        while time.monotonic() < deadline and not checkpoint.checkpoints(run):
            time.sleep(0.05)
        os.kill(processes[-1].pid, number)
        assert set(finish(processes, 30)) == {128 + number}, (work / "log.txt").read_text()
        status = folder.read_status(run)
        assert (status["state"], status["reason"]) == ("stopped", number.name)
        assert checkpoint.step_of(checkpoint.checkpoints(run)[0]) == status["step"]
