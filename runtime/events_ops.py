"""Per step kind, how its parameters and states are laid out for the compiled kernels. One table, `PACK`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spikedeploy import steps as S
from spikedeploy.runtime import events_ops_dense as dense
from spikedeploy.runtime import events_ops_fused as fused
from spikedeploy.runtime.events_op import Context, Packed
from spikedeploy.runtime.events_plan import Group, over_rows
from spikedeploy.steps import Step


def pack_affine(context: Context, group: Group) -> Packed:
    return (dense.pack_rows if over_rows(context.program, group.head) else fused.pack_affine)(context, group)


PACK: Mapping[type[Step], Callable[[Context, Group], Packed]] = {
    S.Affine: pack_affine,
    S.Conv2d: fused.pack_conv,
    S.SumPool2d: dense.pack_pool,
    S.Scale: dense.pack_scale,
    S.Slice: dense.pack_slice,
    S.TopK: dense.pack_topk,
    S.Nearest: dense.pack_nearest,
    S.Embedding: dense.pack_embedding,
    S.Add: dense.pack_elementwise,
    S.Mul: dense.pack_elementwise,
    S.MatMul: dense.pack_matmul,
    S.Delay: dense.pack_delay,
    S.Activation: dense.pack_activation,
    S.LayerNorm: dense.pack_layer_norm,
    S.L2Normalize: dense.pack_l2,
    S.Integrator: fused.pack_neurons,
    S.Threshold: fused.pack_neurons,
    S.LIF: fused.pack_neurons,
    S.MatrixMemory: fused.pack_memory,
    S.DeltaMemory: fused.pack_memory,
    S.DiagonalSSM: dense.pack_ssm,
}
"""Per kind of a group's first step: its packing. A kind that is not here runs its NumPy function."""
