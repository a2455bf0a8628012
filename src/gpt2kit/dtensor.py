"""Tensors that may be sharded by rows over the ranks (FSDP2): the whole, this rank's part, its rows."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def cut(model: nn.Module, blocks: Iterable[nn.Module], methods: Iterable[str], mesh: DeviceMesh) -> None:
    """Cut a model's weights over the ranks (FSDP2), once.

    Args:
        model: the whole. What is not in a block stays together, so tied tensors stay one.
        blocks: parts that are gathered one after the other.
        methods: all that is called from outside; anything else would meet the weights cut.
        mesh: the ranks.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be cut; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """The first row that this rank holds, and the one behind the last."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    if any(not isinstance(place, Shard) or place.dim for place in tensor.placements):
        raise ValueError(f"not cut by rows: {tensor.placements}")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], offset[0] + shape[0]
