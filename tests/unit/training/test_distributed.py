"""Launches on several devices: sizes, mistakes and disagreement, without starting processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome

from gpt2kit.cli import train, train_cli
from gpt2kit.errors import MachineError, UserError, problems_of
from gpt2kit.training import distributed
from gpt2kit.training.distributed import describe_disagreement

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "32"}
SRUN = {"SLURM_NTASKS": "16", "SLURM_NNODES": "4", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("environment", "devices", "num_nodes", "sizes"),
    [
        (TORCHRUN, "auto", 1, (8, 4)),
        (TORCHRUN, 8, 4, (8, 4)),
        (TORCHRUN, [0, 1, 2, 3, 4, 5, 6, 7], 1, ([0, 1, 2, 3, 4, 5, 6, 7], 4)),
        (SRUN, "auto", 1, (4, 4)),
        ({}, "auto", 1, ("auto", 1)),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, 2, 1, (2, 1)),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, 2, 1, (2, 1)),
    ],
)
def test_sizes_come_from_the_launcher(
    environment: dict[str, str], devices: Any, num_nodes: int, sizes: tuple[Any, int]
) -> None:
    assert distributed.launch_sizes(devices, num_nodes, environment) == sizes


@pytest.mark.parametrize(("devices", "num_nodes"), [(2, 4), ("0,1", 1), (8, 2)])
def test_sizes_that_contradict_the_launcher_are_refused(devices: Any, num_nodes: int) -> None:
    with pytest.raises(UserError, match="torchrun has started 8 processes on each of 4 machines"):
        distributed.launch_sizes(devices, num_nodes, TORCHRUN)


@pytest.mark.parametrize(
    ("accelerator", "devices", "available", "message"),
    [
        ("gpu", "auto", 0, "no GPU that torch can use"),
        ("gpu", 8, 4, "has 4 GPUs. Use trainer.devices 4"),
        ("auto", 2, 1, "has 1 GPU. Use trainer.devices 1"),
        ("cuda", "0,1,2", 2, "has 2 GPUs"),
    ],
)
def test_missing_devices_are_refused(accelerator: str, devices: Any, available: int, message: str) -> None:
    with pytest.raises(MachineError, match=message):
        distributed.refuse_missing_devices(accelerator, devices, available)


@pytest.mark.parametrize(
    ("accelerator", "devices", "available"), [("cpu", 8, 0), ("auto", 2, 0), ("gpu", 4, 4), ("gpu", -1, 2)]
)
def test_available_devices_are_accepted(accelerator: str, devices: Any, available: int) -> None:
    assert problems_of(distributed.refuse_missing_devices, accelerator, devices, available) == []


def test_a_global_batch_that_does_not_divide_names_the_nearest() -> None:
    assert distributed.accumulation_steps(512, 8, 16) == 4
    with pytest.raises(
        UserError,
        match=r"batch_size 100: .*3 devices x data.batch_size 8 = 24. Nearest: data.global_batch_size 96 or 120",
    ):
        distributed.accumulation_steps(100, 8, 3)
    with pytest.raises(UserError, match=r"global_batch_size 384 or 512, or data.batch_size 15$"):
        distributed.accumulation_steps(480, 16, 8)
    with pytest.raises(UserError, match=r"Nearest: data\.global_batch_size 64"):
        distributed.accumulation_steps(10, 16, 4)


def test_the_global_batch_decides_the_accumulation(options: list[str], inside: Path) -> None:
    cli = train_cli.TrainCLI([*options, "--data.global_batch_size=32"])  # 4 x data.batch_size 8
    assert cli.trainer.accumulate_grad_batches == 4 and cli.datamodule.global_batch(cli.trainer) == 32


def test_launch_mistakes_are_refused_before_the_run(
    options: list[str], call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call(train.main, *options, "--data.global_batch_size=20")
    assert code == 2 and "Nearest: data.global_batch_size 16 or 24, or data.batch_size 10" in err
    code, _, err = call(train.main, *options, "--data.global_batch_size=16", "--trainer.accumulate_grad_batches=2")
    assert code == 2 and "Leave out one of the two" in err
    code, _, err = call(train.main, *options, "--trainer.accelerator=gpu")
    assert (code, err.count("\n")) == (2 if torch.cuda.is_available() else 5, 1) or torch.cuda.is_available()
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", **TORCHRUN}.items():
        monkeypatch.setenv(name, value)
    code, _, err = call(train.main, *options, "--trainer.devices=2")
    assert code == 2 and "torchrun has started 8" in err


@pytest.mark.parametrize(
    ("error", "explanation"),
    [
        (
            "The server socket has failed to listen on any local network address. port: 29500, EADDRINUSE",
            "uses this port",
        ),
        ("Timed out after 1801 seconds waiting for clients. 3/4 clients joined.", "only 3 of 4 processes connected"),
        ("The client socket has timed out after 60000ms while trying to connect to (node7, 29500).", "cannot be reach"),
    ],
)
def test_failed_connections_are_explained(error: str, explanation: str) -> None:
    explained = distributed.explain_launch_error(RuntimeError(error))
    assert isinstance(explained, MachineError) and explanation in str(explained)
    assert distributed.explain_launch_error(RuntimeError("CUDA error")) is None


def test_a_disagreement_names_the_first_rank_that_differs() -> None:
    info = {"torch": "2.13", "the train text": "abc"}
    assert describe_disagreement([("a", info), ("b", dict(info))]) == ""
    problem = describe_disagreement(
        [("a", info), ("a", dict(info)), ("b", {**info, "the train text": "abd"}), ("c", {"torch": "2.12"})]
    )
    assert problem.startswith("rank 2 on b differs from rank 0 (1 more rank does, too): the train text is abd")


def test_an_error_of_another_rank_names_the_rank(
    options: list[str], call: Callable[..., Outcome], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*options, "--trainer.max_steps=0"]
    code, _, err = call(train.main, *args)
    assert code == 2 and err.startswith("error: ")
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", **TORCHRUN}.items():
        monkeypatch.setenv(name, value)
    code, _, other = call(train.main, *args)
    assert code == 2 and other == f"rank 3: {err}"
