"""Tensors that may be sharded by rows over the ranks (FSDP2): the full tensor, this rank's part, its rows."""

from __future__ import annotations

from collections.abc import Iterable

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
        methods: every method that is called from outside; in any other the weights would be sharded.
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
    """Return what this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> tuple[int, int]:
    """Return the first row that this rank holds, and the one after the last."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], offset[0] + shape[0]
