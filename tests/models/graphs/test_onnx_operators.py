"""Every operator of ONNX that is read gives the numbers of onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from gapssg.models.graphs.onnx_operators import ONNX_OPERATORS
from tests.models.graphs.small_models import images
from tests.models.graphs.written import built, read

# One operator after another in float32: two roundings of each number, of which up to 192 are added or normalised.
ROUNDED = 2 * 192 * 2**-24


class Case(NamedTuple):
    """Operators whose first input is 3x16x16 images; later ones take the result of the one before.

    Attributes:
        kinds: The operators.
        inputs: Constants that the last one takes, too; None for an input that is left out.
        attributes: Of the last one.
        opset: The version of the operators.
        outputs: The number of results of the last one.
        place: The place of the images among the inputs of the last one.
    """

    kinds: str
    inputs: tuple[Any, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012
    opset: int = 18
    outputs: int = 1
    place: int = 0


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def scales(*numbers: float) -> np.ndarray:
    return np.array((1, 1, *numbers), dtype=np.float32)


CHANNELS = (drawn(3), drawn(3))
CASES = [
    *(
        Case(kind)
        for kind in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "Floor", "Ceil", "Round", "Sin", "Cos")
    ),
    *(Case(kind) for kind in ("Atan", "Sign", "Mish", "Selu", "HardSwish", "Softplus", "Softsign", "Elu", "LeakyRelu")),
    *(Case(f"Abs {kind}") for kind in ("Sqrt", "Log", "Reciprocal")),
    *(Case(kind, (drawn(3, 1, 1),)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(Case(kind, (np.float32(0.5),)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    Case("Sub", (np.float32(2),), place=1),
    Case("Abs Pow", (np.float32(1.5),)),
    Case("Abs Pow", (np.abs(drawn(3, 1, 1)),)),
    *(
        Case(f"{kind} Cast", (), {"to": 1})
        for kind in ("Greater0", "Less0", "Equal0", "GreaterOrEqual0", "LessOrEqual0")
    ),
    Case("Greater0 Not Cast", (), {"to": 1}),
    Case("Greater0 Where", (drawn(3, 1, 1), drawn(1, 16, 16))),
    Case("Greater0 CastLike", (np.float32(1),)),
    Case("Conv", (drawn(4, 3, 3, 3), drawn(4)), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    Case("Conv", (drawn(4, 3, 3, 3),), {"pads": [0, 0, 1, 2]}),
    Case("Conv", (drawn(4, 3, 3, 3),), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", (drawn(4, 3, 2, 2),), {"auto_pad": "SAME_LOWER"}),
    Case("Conv", (drawn(6, 1, 3, 3),), {"group": 3, "dilations": [2, 2]}),
    Case(
        "ConvTranspose",
        (drawn(3, 4, 3, 3), drawn(4)),
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    Case("MaxPool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("MaxPool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [2, 2]}),
    Case("AveragePool", (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", (), {"kernel_shape": [3, 3], "pads": [0, 0, 2, 2], "strides": [2, 2]}),
    Case("AveragePool", (), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("GlobalAveragePool"),
    Case("GlobalMaxPool"),
    Case("BatchNormalization", (*CHANNELS, drawn(3), np.abs(drawn(3))), {"epsilon": 1e-3}),
    Case("LayerNormalization", (drawn(16), drawn(16))),
    Case("LayerNormalization", (drawn(3, 16, 16),), {"axis": 1, "epsilon": 1e-3}),
    Case("InstanceNormalization", CHANNELS),
    Case("Pad GroupNormalization", (drawn(2), drawn(2)), {"num_groups": 2}, opset=18),
    Case("Pad GroupNormalization", (drawn(4), drawn(4)), {"num_groups": 2}, opset=21),
    Case("LRN", (), {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}),
    Case("LpNormalization", (), {"axis": 1}),
    Case("Softmax"),
    Case("Softmax", (), {"axis": 1}),
    Case("Softmax", (), {"axis": 1}, opset=11),
    Case("LogSoftmax", (), {"axis": 2}, opset=12),
    Case("Clip", (np.float32(0), np.float32(6))),
    Case("Clip", (np.float32(-0.5),)),
    Case("Clip", (), {"min": -0.5, "max": 0.5}, opset=10),
    Case("PRelu", (drawn(3, 1, 1),)),
    Case("PRelu", (drawn(3, 16, 16),)),
    Case("Gelu", (), {"approximate": "tanh"}, opset=20),
    Case("Gelu", opset=20),
    Case("HardSigmoid"),
    Case("HardSigmoid", (), {"alpha": 1 / 6, "beta": 0.5}),
    *(Case(kind, (whole(2, 3),)) for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")),
    *(Case(kind, (), {"axes": [1], "keepdims": 0}, opset=11) for kind in ("ReduceMean", "ReduceSum")),
    Case("ReduceSum", (whole(-1),), {"keepdims": 0}),
    Case("ReduceMean", (), {"noop_with_empty_axes": 1}),
    Case("CumSum", (np.int64(2),)),
    Case("Reshape", (whole(0, -1, 8),)),
    Case("Transpose", (), {"perm": [0, 2, 3, 1]}),
    Case("GlobalAveragePool Squeeze", (whole(2, 3),)),
    Case("GlobalAveragePool Squeeze", (), {"axes": [3]}, opset=11),
    Case("Unsqueeze", (whole(-1, 1),)),
    Case("Concat", (), {"axis": 1}),
    Case("Split", (whole(1, 2),), {"axis": 1}, outputs=2),
    Case("Split", (), {"axis": 2, "num_outputs": 2}, outputs=2),
    Case("Slice", (whole(1), whole(2**63 - 1), whole(2), whole(3))),
    Case("Slice", (whole(-1, 2), whole(-(2**63), 9), whole(3, 2), whole(-2, 1))),
    Case("Slice", (), {"starts": [1], "ends": [-1], "axes": [1]}, opset=9),
    Case("Gather", (whole(2, 0, -1),), {"axis": 2}),
    Case("Gather", (np.array([[0, 1], [2, 2]]),), {"axis": 1}),
    Case("Gather", (np.int64(-1),), {"axis": 3}),
    Case("GlobalAveragePool Expand", (whole(1, 1, 4, 1),)),
    Case("Tile", (whole(1, 2, 1, 1),)),
    Case("Pad", (whole(0, 0, 1, 2, 0, 1, 0, 3), np.float32(0.5))),
    Case("Pad", (whole(0, 0, 1, 2, 0, 0, 3, 3),), {"mode": "reflect"}),
    Case("Pad", (whole(0, 0, 1, 2, 0, 0, 3, 3),), {"mode": "edge"}),
    Case("Pad", (whole(1, 2), None, whole(3)), opset=18),
    Case("Trilu", (np.int64(1),), {"upper": 1}),
    Case("Trilu", (), {"upper": 0}),
    Case("Pad DepthToSpace", (), {"blocksize": 2}),
    Case("Pad DepthToSpace", (), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", (), {"blocksize": 2}),
    Case("Identity"),
    Case("Dropout"),
    Case("Flatten MatMul", (drawn(768, 5),)),
    Case("MatMul", (drawn(16, 5),)),
    Case("MatMul", (drawn(16, 16),), place=1),
    Case("Flatten Gemm", (drawn(5, 768), drawn(5)), {"transB": 1}),
    Case("Flatten Gemm", (drawn(768, 5), drawn(1, 5)), {"alpha": 0.5, "beta": 2.0}),
    Case("Einsum", (drawn(16, 4),), {"equation": "bchw,wd->bhcd"}),
    Case("RMSNormalization", (drawn(16, 16),), {"axis": 2}, opset=23),
    Case("Attention", (), {"is_causal": 1}, opset=23),
    Case("Attention", (drawn(16, 16),), {"scale": 0.5}, opset=23),
    Case("Reshape Attention", (), {"q_num_heads": 3, "kv_num_heads": 3}, opset=23),
    *(
        Case("Resize", (None, scales(1.5, 2.5)), {"nearest_mode": rounding})
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        Case("Resize", (None, scales(1.25, 0.5)), {"coordinate_transformation_mode": method, "mode": mode})
        for method in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
        for mode in ("nearest", "linear", "cubic")
    ),
    Case("Resize", (None, None, whole(24, 7)), {"axes": [2, 3], "mode": "linear"}),
    Case("Resize", (scales(2, 2),), {"mode": "linear"}, opset=10),
    Case("Upsample", (scales(2, 3),), opset=9),
]


def write_case(case: Case, path: Path) -> None:
    """Write a file of the operators of a case, whose result is flattened to rows of logits."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    value = "images"

    def constant(number: Any) -> str:
        name = f"constant{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(number), name))
        return name

    *before, last = case.kinds.split()
    for kind in before:
        result = f"{value}_"
        if kind == "Pad":  # to four channels
            nodes.append(helper.make_node("Pad", [value, constant(whole(0, 0, 0, 0, 0, 1, 0, 0))], [result]))
        elif kind == "Reshape":  # to 16 vectors of 48 numbers
            nodes.append(helper.make_node("Reshape", [value, constant(whole(0, 16, 48))], [result]))
        elif kind.endswith("0"):
            nodes.append(helper.make_node(kind[:-1], [value, constant(np.float32(0))], [result]))
        else:
            nodes.append(helper.make_node(kind, [value], [result]))
        value = result
    given = [constant(each) if each is not None else "" for each in case.inputs]
    given.insert(case.place, value)
    if last == "Concat":
        given.append(value)
    if last == "Attention":  # keys and values
        given[1:1] = [value, value]
    outputs = [f"result{number}" for number in range(case.outputs)]
    nodes.append(helper.make_node(last, given, outputs, **case.attributes))
    nodes.append(helper.make_node("Flatten", [outputs[-1]], ["logits"], axis=1))
    write_nodes(nodes, constants, path, case.opset)


def write_nodes(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], path: Path, opset: int = 18) -> None:
    """Write a file of nodes from `images` to `logits`."""
    inputs = [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", None])]
    graph = helper.make_graph(nodes, "case", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kinds.replace(" ", "-"))
def test_an_operator_gives_the_numbers_of_onnxruntime(tmp_path: Path, case):
    path = tmp_path / "case.onnx"
    write_case(case, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    module = built(read(path))
    for count in (1, 4):
        (logits,) = session.run(None, {"images": images(count).numpy()})
        expected = torch.from_numpy(logits)
        found = module(images(count))
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= ROUNDED * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_quantised_activations_have_the_gradient_of_a_clamp(tmp_path: Path, kind: Any):
    scale, zero = np.float32(0.01), np.array(20, dtype=kind)
    constants = [numpy_helper.from_array(np.asarray(each), name) for each, name in ((scale, "scale"), (zero, "zero"))]
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["integers"]),
        helper.make_node("MaxPool", ["integers"], ["pooled"], kernel_shape=[1, 1]),
        helper.make_node("DequantizeLinear", ["pooled", "scale", "zero"], ["floats"]),
        helper.make_node("Flatten", ["floats"], ["logits"]),
    ]
    path = tmp_path / "a.onnx"
    write_nodes(nodes, constants, path)
    pictures = images(4).requires_grad_()
    (expected,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": pictures.detach().numpy()}
    )
    found = built(read(path))(pictures)
    assert (found - torch.from_numpy(expected)).abs().max() <= ROUNDED
    (gradient,) = torch.autograd.grad(found.sum(), pictures)
    limits = np.iinfo(kind)
    low, high = (float(scale) * (limit - 20) for limit in (limits.min, limits.max))
    assert torch.equal(gradient, ((pictures > low) & (pictures < high)).float())


def test_weights_that_are_stored_in_8_bits_are_read(tmp_path: Path):
    weight = np.random.default_rng(0).integers(-128, 128, (5, 768), dtype=np.int8)
    constants = {"stored": weight, "scale": np.abs(drawn(5)), "zero": np.arange(5, dtype=np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", list(constants), ["weight"], axis=0),
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
    ]
    write_nodes(nodes, [numpy_helper.from_array(array, name) for name, array in constants.items()], tmp_path / "a.onnx")
    floats = (weight.astype(np.float32) - constants["zero"][:, None]) * constants["scale"][:, None]
    expected = images(4).flatten(1) @ torch.from_numpy(floats).T
    found = built(read(tmp_path / "a.onnx"))(images(4))
    assert (found - expected).abs().max() <= ROUNDED * 4 * expected.abs().max().item()  # sums of 768 numbers


def test_every_operator_has_a_case():
    elsewhere = {"Constant", "ConstantOfShape", "Range", "Shape", "Size", "And", "Or", "Xor", "Not", "Mod", "Swish"}
    elsewhere |= {"QuantizeLinear", "DequantizeLinear"}
    fused = {kind for kind in ONNX_OPERATORS if "." in kind}
    assert set(ONNX_OPERATORS) - elsewhere - fused <= {
        kind.removesuffix("0") for case in CASES for kind in case.kinds.split()
    }
