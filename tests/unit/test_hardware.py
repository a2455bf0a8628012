from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from gpt2kit import hardware

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "half", "tf32", "single"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA H100 PCIe", 756.0, 378.0, 51.2),
        ("NVIDIA L40S", 362.0, 181.0, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("Tesla V100-SXM2-16GB", None, 15.7, 15.7),
        ("Tesla T4", None, 8.1, 8.1),
    ],
)
def test_peak_flops_of_known_cards(name: str, half: float | None, tf32: float, single: float) -> None:
    assert hardware.data_sheet_flops(name, torch.bfloat16) == (half and half * 1e12)
    assert hardware.data_sheet_flops(name, torch.float32, tf32=True) == tf32 * 1e12
    assert hardware.data_sheet_flops(name, torch.float32) == single * 1e12


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "A100-SXM4-40GB MIG 1g.5gb", "Arc A770"],
)
def test_the_peak_of_other_cards_is_unknown(name: str) -> None:
    assert hardware.data_sheet_flops(name, torch.bfloat16) is None


def test_the_peak_of_a_cpu_is_unknown() -> None:
    assert hardware.peak_flops(CPU, torch.float32) is None


def test_memory_is_in_bytes() -> None:
    before = hardware.resident_memory()
    block = torch.ones(50_000_000)
    grown = hardware.resident_memory() - before
    assert 150e6 < grown < 300e6 and block.sum() > 0
    peak = hardware.peak_memory(CPU)
    assert peak is not None and peak >= grown
    memory = hardware.device_memory(CPU)
    assert memory is not None and 0 < memory[0] <= memory[1]


def test_memory_is_unknown_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "read_text", not_found)
    monkeypatch.delattr(os, "sysconf")
    assert hardware.peak_memory(CPU) is None and hardware.device_memory(CPU) is None
    assert hardware.resident_memory() == 0 and hardware.device_name(CPU)


def test_the_dtype_of_each_precision() -> None:
    assert hardware.compute_dtype("bf16-mixed") == hardware.compute_dtype("bf16-true") == torch.bfloat16
    assert hardware.compute_dtype("16-mixed") == torch.float16
    assert hardware.compute_dtype("32-true") == torch.float32
