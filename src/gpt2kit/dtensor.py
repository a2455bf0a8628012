"""Helpers for tensors that may be sharded by rows over the ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def shard_model(model: nn.Module, blocks: Iterable[nn.Module], methods: Iterable[str], mesh: DeviceMesh) -> None:
    """Shard a model's weights by rows over the ranks, unless they are sharded already.

    Args:
        model: the model. Weights outside the blocks are gathered together, so tied tensors stay tied.
        blocks: modules that are gathered one after the other.
        methods: names of the methods that are called from outside. In all others the weights would be sharded.
        mesh: the ranks.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor; all ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> tuple[int, int]:
    """Return the rows that this rank holds: the first, and one past the last."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], offset[0] + shape[0]


def shard_like(parameter: Tensor, value: Any) -> Any:
    """Shard a value of a checkpoint like its parameter; return scalars, and values of full parameters, unchanged."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or not value.shape:
        return value
    first, end = local_rows(parameter)
    rows, layout = value[first:end].to(parameter.device), (parameter.device_mesh, parameter.placements)
    return DTensor.from_local(rows, *layout, run_check=False, shape=parameter.shape, stride=parameter.stride())


def gather(value: Any, is_kept: bool, gathered: dict[object, Tensor | None] | None = None) -> Any:
    """Replace the sharded tensors in nested containers with full ones on the CPU, or with None unless `is_kept`.

    All ranks must call this. Tensors are gathered one at a time, and tied tensors stay tied.
    """
    gathered = {} if gathered is None else gathered
    if isinstance(value, DTensor):
        rows = value.to_local()
        key = (rows.data_ptr(), value.shape) if rows.numel() else object()
        full = value.full_tensor()  # for tied tensors, too: if one rank skipped this, the others would wait forever
        return gathered.setdefault(key, full.detach().cpu() if is_kept else None)
    if isinstance(value, dict):
        return {name: gather(part, is_kept, gathered) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gather(part, is_kept, gathered) for part in value)
    return value
