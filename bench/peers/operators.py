#!/usr/bin/env python3
"""Compares single int8 operators with ONNX Runtime's, byte by byte, on random shapes, scales, zero points and bytes.

Each network is a handful of operators side by side over the same two images of bytes, each between its own
DequantizeLinear and QuantizeLinear, once in u8 and once in s8. Prints for each operator how many bytes differ, and fails
if one does that is not listed in EXPECTED with its reason.

ONNX Runtime is right only on x86-64 with VNNI: see parity.py.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
from collections import defaultdict

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import parity

OPSET, IR_VERSION = 17, 8
TYPES = {"u8": (np.uint8, TensorProto.UINT8), "s8": (np.int8, TensorProto.INT8)}
# (operator, type): the most bytes of a million that may differ, and why.
SUMS = (1000, "it adds rounded floats one after the other, where ours adds integers or doubles")
EXPECTED = {(operator, kind): SUMS for operator in ("ReduceMean", "Softmax") for kind in TYPES}


class Cases:
    """One network of several operators."""

    def __init__(self, kind, seed):
        self.random = np.random.default_rng(seed)
        self.kind, (self.dtype, self.element) = kind, TYPES[kind]
        self.nodes, self.constants, self.outputs, self.operator = [], [], {}, None
        self.shape = [1, *(int(v) for v in self.random.integers([1, 5, 5], [33, 15, 15]))]
        self.inputs = {}
        # Half of them spread, half near the ends, so that sums saturate.
        for name in ("a", "b"):
            bytes_ = self.random.integers(0, 256, self.shape)
            ends = self.random.integers(0, 2, self.shape) * 255
            near = self.random.random(self.shape) < self.random.choice([0, 0.3])
            self.inputs[name] = np.where(near, ends, bytes_).astype(np.uint8).view(self.dtype)

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def scale(self, low=0.005, high=0.1):
        return np.float32(np.exp(self.random.uniform(np.log(low), np.log(high))))

    def zero(self):
        """Anything, and the two ends more often."""
        byte = self.random.choice([0, 128, 255, int(self.random.integers(0, 256))])
        return np.uint8(byte).view(self.dtype) if self.kind == "u8" else np.int8(byte - 128)

    def node(self, operator, inputs, **attributes):
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def pair(self, scale=None, zero=None):
        return [self.constant(self.scale() if scale is None else scale),
                self.constant(self.zero() if zero is None else zero)]

    def real(self, name="a", pair=None):
        """An input as real numbers."""
        return self.node("DequantizeLinear", [name, *(pair or self.pair())])

    def finish(self, label, value, pair=None):
        """Bytes of a value, as an output."""
        name = self.node("QuantizeLinear", [value, *(pair or self.pair())])
        self.outputs[name] = label

    def model(self):
        graph = helper.make_graph(
            self.nodes, self.kind,
            [helper.make_tensor_value_info(n, self.element, v.shape) for n, v in self.inputs.items()],
            [helper.make_tensor_value_info(n, self.element, None) for n in self.outputs], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def binary(cases, operator):
    cases.finish(operator, cases.node(operator, [cases.real("a"), cases.real("b")]))


def convolution(cases):
    random, channels = cases.random, cases.shape[1]
    kernel, strides, dilations = ([int(v) for v in random.integers(1, most, 2)] for most in (4, 3, 3))
    pads = [int(v) for v in random.integers(0, 2, 4)]
    depthwise = random.random() < 0.4
    groups, outputs = (channels, channels) if depthwise else (1, int(random.integers(1, 40)))
    weights = random.integers(-127, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    input_scale = cases.scale()
    scales = np.exp(random.uniform(np.log(0.001), np.log(0.02), outputs)).astype(np.float32)
    bias = random.integers(-2000, 2000, outputs).astype(np.int32)
    real = [cases.node("DequantizeLinear", [cases.constant(v), cases.constant(s), cases.constant(np.zeros(outputs, v.dtype))],
                       axis=0) for v, s in ((weights, scales), (bias, input_scale * scales))]
    spread = np.float32(np.sqrt(weights[0].size) * 60 * input_scale * 70 * np.median(scales) / 50)
    value = cases.node("Conv", [cases.real("a", cases.pair(input_scale)), *real], kernel_shape=kernel, strides=strides,
                       dilations=dilations, pads=pads, group=groups)
    cases.finish("depthwise Conv" if depthwise else "Conv", value, cases.pair(spread))


def product(cases):
    width, outputs = cases.shape[-1], int(cases.random.integers(1, 40))
    weights = cases.random.integers(-127, 128, (width, outputs)).astype(np.int8)
    scale, input_scale = cases.scale(0.001, 0.02), cases.scale()
    right = cases.node("DequantizeLinear", [cases.constant(weights), cases.constant(scale), cases.constant(np.int8(0))])
    spread = np.float32(np.sqrt(width) * 60 * input_scale * 70 * scale / 50)
    cases.finish("MatMul", cases.node("MatMul", [cases.real("a", cases.pair(input_scale)), right]), cases.pair(spread))


def pools(cases):
    same = cases.pair()
    random = cases.random
    window = {"kernel_shape": [int(v) for v in random.integers(1, 4, 2)],
              "strides": [int(v) for v in random.integers(1, 3, 2)]}
    cases.finish("MaxPool", cases.node("MaxPool", [cases.real("a", same)], **window), same)
    for counts in (0, 1):
        pads = [int(v) for v in random.integers(0, np.repeat([min(window["kernel_shape"])], 4))]
        cases.finish("AveragePool", cases.node("AveragePool", [cases.real()], pads=pads, count_include_pad=counts, **window))
    cases.finish("GlobalAveragePool", cases.node("GlobalAveragePool", [cases.real()]))


def layout(cases):
    cases.finish("Concat", cases.node("Concat", [cases.real("a"), cases.real("b")], axis=1))
    none, scales = "", cases.constant(np.float32([1, 1, 2, 2]))
    same = cases.pair()
    nearest = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    cases.finish("Resize nearest", cases.node("Resize", [cases.real("a", same), none, scales], **nearest), same)
    how = str(cases.random.choice(["half_pixel", "asymmetric", "align_corners"]))
    linear = {"mode": "linear", "coordinate_transformation_mode": how}
    cases.finish("Resize linear", cases.node("Resize", [cases.real(), none, scales], **linear))
    cases.finish("ReduceMean", cases.node("ReduceMean", [cases.real()], axes=[2, 3], keepdims=1))


def tables(cases):
    cases.finish("Sigmoid", cases.node("Sigmoid", [cases.real()]), cases.pair(np.float32(1 / 256)))
    cases.finish("LeakyRelu", cases.node("LeakyRelu", [cases.real()], alpha=0.1))
    for operator in ("Relu", "HardSigmoid", "HardSwish", "Tanh"):
        cases.finish(operator, cases.node(operator, [cases.real()]))
    bounds = [cases.constant(np.float32(v)) for v in (-0.5, 1.5)]
    cases.finish("Clip", cases.node("Clip", [cases.real(), *bounds]))
    cases.finish("Softmax", cases.node("Softmax", [cases.real()], axis=1), cases.pair(np.float32(1 / 256)))
    cases.finish("requantised", cases.real())


def network(kind, seed):
    cases = Cases(kind, seed)
    for operator in ("Add", "Mul", "Sub", "Div"):
        binary(cases, operator)
    convolution(cases)
    convolution(cases)
    for part in (product, pools, layout, tables):
        part(cases)
    return cases


def theirs(model, cases):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Without it, what has weights is left in float where activations are s8.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(cases.outputs)
    return dict(zip(names, session.run(names, cases.inputs)))


def ours(agent, model, cases, folder):
    onnx.save(model, folder / "operators.onnx")
    command = [agent, "run", "--model", folder / "operators.onnx", "--output", folder / "ours.npz"]
    for name, value in cases.inputs.items():
        np.save(folder / f"{name}.npy", value)
        command += ["--input", f"{name}={folder / name}.npy"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"a network of {cases.kind}: {done.stderr.strip()}")
    with np.load(folder / "ours.npz") as arrays:
        return {name: arrays[name] for name in arrays}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent", type=pathlib.Path, required=True, help="the program andon-agent")
    parser.add_argument("--networks", type=int, default=40, help="of each type")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", help=argparse.SUPPRESS)
    args = parser.parse_args()
    counts = defaultdict(lambda: [0, 0, 0])  # bytes, those that differ, by how much at most
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            for seed in range(args.seed, args.seed + args.networks):
                cases = network(kind, seed)
                model = cases.model()
                expected, found = theirs(model, cases), ours(args.agent, model, cases, pathlib.Path(folder))
                for name, label in cases.outputs.items():
                    a, b = found[name], expected[name]
                    if a.dtype != b.dtype or a.shape != b.shape:
                        sys.exit(f"{label} of {kind}: expected {b.dtype} {b.shape}, found {a.dtype} {a.shape}")
                    far, count = np.abs(a.astype(int) - b.astype(int)), counts[label, kind]
                    count[0] += a.size
                    count[1] += int((far > 0).sum())
                    count[2] = max(count[2], int(far.max()))
    wrong = []
    for (label, kind), (size, different, most) in counts.items():
        allowed, why = EXPECTED.get((label, kind), (0, ""))
        fine = different <= allowed * size / 1e6
        wrong += [] if fine else [f"{label} of {kind}"]
        note = f", at most by {most}{': ' + why if why else ''}" if different else ""
        print(f"{label} of {kind}: {different} of {size} bytes differ{note}")
    if wrong and not parity.is_reference():
        print(f"{', '.join(wrong)} differ; this processor has no VNNI, so ONNX Runtime itself is not exact here")
    elif wrong:
        sys.exit(f"not equal to ONNX Runtime: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
