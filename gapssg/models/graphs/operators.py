"""The operators that a graph may have: functions of tensors without side effects, all differentiable or of integers."""

from __future__ import annotations

import torch
from torch._ops import OpOverload

_FUNCTIONS = """
    conv1d.default conv2d.default conv2d.padding conv3d.default convolution.default
    linear.default matmul.default bmm.default mm.default baddbmm.default einsum.default
    scaled_dot_product_attention.default
    batch_norm.default layer_norm.default group_norm.default instance_norm.default rms_norm.default
    max_pool1d.default max_pool2d.default max_pool3d.default avg_pool1d.default avg_pool2d.default avg_pool3d.default
    adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool2d.default
    upsample_nearest2d.default upsample_nearest2d.vec upsample_bilinear2d.default upsample_bilinear2d.vec
    upsample_bicubic2d.default upsample_bicubic2d.vec
    relu.default relu6.default leaky_relu.default prelu.default _prelu_kernel.default elu.default selu.default
    celu.default gelu.default silu.default mish.default sigmoid.default log_sigmoid.default tanh.default
    softplus.default hardtanh.default hardsigmoid.default hardswish.default threshold.default
    softmax.int _softmax.default log_softmax.int _log_softmax.default glu.default
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar
    div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode floor_divide.default remainder.Tensor remainder.Scalar
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar addcmul.default
    neg.default abs.default sign.default sqrt.default rsqrt.default square.default reciprocal.default exp.default
    expm1.default log.default log1p.default log2.default erf.default sin.default cos.default atan.default
    floor.default ceil.default round.default trunc.default
    clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor clamp_max.default clamp_max.Tensor
    maximum.default minimum.default
    eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor
    ge.Scalar logical_not.default logical_and.default logical_or.default logical_xor.default bitwise_not.default
    bitwise_and.Tensor bitwise_or.Tensor where.self where.ScalarOther where.ScalarSelf masked_fill.Scalar
    masked_fill.Tensor
    mean.default mean.dim sum.default sum.dim_IntList amax.default amin.default prod.dim_int var.correction var.dim
    var_mean.correction std.correction std.dim max.dim min.dim argmax.default norm.ScalarOpt_dim
    linalg_vector_norm.default cumsum.default topk.default
    reshape.default permute.default transpose.int t.default unsqueeze.default squeeze.default squeeze.dim squeeze.dims
    expand.default repeat.default cat.default stack.default split.Tensor split_with_sizes.default split.sizes
    chunk.default unbind.int narrow.default slice.Tensor select.int flip.default roll.default movedim.intlist
    index_select.default gather.default index.Tensor constant_pad_nd.default pad.default reflection_pad2d.default
    replication_pad2d.default pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default
    _to_copy.default tril.default triu.default detach.default
"""
_CONSTANTS = """
    arange.default arange.start arange.start_step zeros.default ones.default full.default empty.memory_format
    eye.default eye.m linspace.default scalar_tensor.default tensor.default tensor.float tensor.int tensor.bool
    zeros_like.default ones_like.default full_like.default new_zeros.default new_ones.default new_full.default
    fill.Scalar fill.Tensor meshgrid.default meshgrid.indexing lift_fresh_copy.default numel.default copy.default
    _convolution.default _convolution.deprecated addmm.default
    Int.Tensor Float.Tensor Bool.Tensor nonzero.default item.default
"""
OPERATORS = frozenset(_FUNCTIONS.split())
CREATION = frozenset(_CONSTANTS.split())
"""Operators that may also compute constants while a file is imported."""


def operator(name: str) -> OpOverload:
    """Return an operator of ATen, such as `add.Tensor`, by its name in `OPERATORS` or `CREATION`."""
    base, _, overload = name.partition(".")
    found: OpOverload = getattr(getattr(torch.ops.aten, base), overload)
    return found
