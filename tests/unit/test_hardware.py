from __future__ import annotations

import time

import pytest
import torch

from gpt2kit import hardware


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756.0, 51.2),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA L4", 121.0, 30.3),
        ("NVIDIA L40S", 362.0, 91.6),
        ("NVIDIA A10G", 70.0, 31.2),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
    ],
)
def test_known_cards(name: str, half: float, single: float) -> None:
    assert hardware.data_sheet_flops(name, torch.bfloat16) == half * 1e12
    assert hardware.data_sheet_flops(name, torch.float32) == single * 1e12


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "A100-SXM4-40GB MIG 1g.5gb", "Arc A770"],
)
def test_other_cards_are_measured(name: str) -> None:
    assert hardware.data_sheet_flops(name, torch.bfloat16) is None


def test_cards_without_bfloat16_have_no_peak_in_it() -> None:
    assert hardware.data_sheet_flops("Tesla T4", torch.bfloat16) is None
    assert hardware.data_sheet_flops("Tesla V100-SXM2-16GB", torch.float16) == 125e12


def test_measuring_takes_no_time_and_no_random_number() -> None:
    state, start = torch.get_rng_state(), time.perf_counter()
    flops = hardware.peak_flops(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - start < 3  # 0.3 s on a machine that does nothing else
    assert flops > 1e8
    assert torch.equal(state, torch.get_rng_state())


def test_memory_is_told_in_bytes() -> None:
    before = hardware.resident_memory()
    block = torch.ones(50_000_000)
    grown = hardware.resident_memory() - before
    assert 150e6 < grown < 300e6 and block.sum() > 0
    most = hardware.peak_memory(torch.device("cpu"))
    assert most is not None and most >= grown
    memory = hardware.device_memory(torch.device("cpu"))
    assert memory is not None and 0 < memory[0] <= memory[1]


def test_precisions() -> None:
    assert hardware.compute_dtype("bf16-mixed") == hardware.compute_dtype("bf16-true") == torch.bfloat16
    assert hardware.compute_dtype("16-mixed") == torch.float16
    assert hardware.compute_dtype("32-true") == torch.float32
