#!/usr/bin/env python3
"""Makes the five networks on which the runtime is compared with others: NAME.onnx in static int8, Q/DQ form.

The architectures are the published ones; the weights are drawn from a seeded generator, and every convolution is
scaled so that its outputs have the spread that batch norm would have left them. So nothing that these networks say means
anything, but ranges, shapes and operators are those of trained ones. Activations are u8, weights s8 per channel,
quantised by ONNX Runtime from what a few pictures do to them. The box decoding of the detector stays in float.
"""

import argparse
import json
import logging
import math
import pathlib
import zlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

OPSET, IR_VERSION = 17, 8
INPUT = "image"


class Net:
    """A graph in the making. Values are names; `channels` knows how many channels each has."""

    def __init__(self, name, size):
        self.name, self.size = name, size
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.nodes, self.constants, self.channels = [], {}, {INPUT: 3}
        self.measured = []  # (convolution, norm) whose mean and variance are not known yet
        self.float_only = []  # nodes that are not quantised
        self.output = None

    def constant(self, value, hint):
        name = f"{hint}{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def node(self, operator, inputs, channels=None, outputs=1, quantised=True, **attributes):
        """Appends a node; returns its output, or all of them if there are several."""
        name = f"{operator}{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        for output in names:
            self.channels[output] = channels or self.channels.get(inputs[0])
        if not quantised:
            self.float_only.append(name)
        return names[0] if outputs == 1 else names

    def conv(self, x, channels, kernel=1, stride=1, groups=1, pads=None, activation=None, bias=None):
        """A convolution that is normalised on the first pictures, unless it has a bias of its own."""
        fan_in = self.channels[x] // groups
        shape = (channels, fan_in, kernel, kernel)
        weights = self.random.normal(0, math.sqrt(2 / (fan_in * kernel**2)), shape).astype(np.float32)
        inputs = [x, self.constant(weights, "w")]
        if bias is not None:
            inputs.append(self.constant(np.full(channels, bias, np.float32), "b"))
        y = self.node("Conv", inputs, channels, kernel_shape=[kernel] * 2, strides=[stride] * 2, group=groups,
                      pads=pads or [kernel // 2] * 4)
        if bias is None:
            gain, shift = self.random.uniform(0.5, 1.5, channels), self.random.normal(0, 0.3, channels)
            vectors = [gain, shift, np.zeros(channels), np.ones(channels)]
            conv = self.nodes[-1]
            y = self.node("BatchNormalization", [y] + [self.constant(v.astype(np.float32), "n") for v in vectors],
                          channels, training_mode=1, momentum=0.0)
            self.nodes[-1].output.extend([f"{y}.mean", f"{y}.var"])
            self.measured.append((conv, self.nodes[-1]))
        if activation == "relu6":
            bounds = [self.constant(np.float32(v), "c") for v in (0, 6)]
            return self.node("Clip", [y, *bounds])
        if activation == "silu":
            return self.node("Mul", [y, self.node("Sigmoid", [y])])
        return self.node("Relu", [y]) if activation == "relu" else y

    def classifier(self, x, classes=1000):
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)
        inputs = self.channels[x]
        weights = self.random.normal(0, 3 / math.sqrt(inputs), (classes, inputs)).astype(np.float32)
        bias = np.zeros(classes, np.float32)
        self.output = self.node("Gemm", [x, self.constant(weights, "w"), self.constant(bias, "b")], transB=1)

    def model(self, outputs, batch):
        image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, 3, self.size, self.size])
        results = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, self.name, [image], results, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def fold_norms(self, pictures):
        """Runs the pictures once; each norm's mean and variance go into its convolution."""
        names = [name for _, norm in self.measured for name in norm.output[1:]]
        found = dict(zip(names, session(self.model(names, len(pictures))).run(names, {INPUT: pictures})))
        for conv, norm in self.measured:
            gain, shift, *unused = (self.constants[name] for name in norm.input[1:])
            mean, variance = (found[name] for name in norm.output[1:])
            factor = gain / np.sqrt(variance + 1e-5)
            self.constants[conv.input[1]] = (self.constants[conv.input[1]] * factor.reshape(-1, 1, 1, 1)).astype("f4")
            self.constants[norm.input[2]] = (shift - mean * factor).astype("f4")
            conv.input.append(norm.input[2])
            for name in (norm.input[1], *norm.input[3:]):
                del self.constants[name]
            conv.output[0] = norm.output[0]
            self.nodes.remove(norm)


# -------------------------------------------------------------------------------------------------- architectures


def inverted_residual(net, x, expand, channels, kernel, stride, pads=None):
    inputs = net.channels[x]
    y = net.conv(x, inputs * expand, activation="relu6") if expand > 1 else x
    y = net.conv(y, inputs * expand, kernel, stride, inputs * expand, pads, "relu6")
    y = net.conv(y, channels)
    return net.node("Add", [x, y]) if stride == 1 and inputs == channels else y


def mobilenetv2():
    """Sandler et al. 2018, table 2."""
    net = Net("mobilenetv2", 224)
    x = net.conv(INPUT, 32, 3, 2, activation="relu6")
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, channels, repeats, stride in stages:
        for i in range(repeats):
            x = inverted_residual(net, x, expand, channels, 3, stride if i == 0 else 1)
    net.classifier(net.conv(x, 1280, activation="relu6"))
    return net


def efficientnet_lite0():
    """Tan and Le 2019 without squeeze-and-excite and swish; TensorFlow's padding, which is uneven at stride 2."""
    net = Net("efficientnet_lite0", 224)
    side = 224

    def same(kernel, stride):
        nonlocal side
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        side = -(-side // stride)
        return [total // 2] * 2 + [total - total // 2] * 2

    x = net.conv(INPUT, 32, 3, 2, pads=same(3, 2), activation="relu6")
    stages = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
              (1, 3, 1, 6, 320)]
    for repeats, kernel, stride, expand, channels in stages:
        for i in range(repeats):
            step = stride if i == 0 else 1
            x = inverted_residual(net, x, expand, channels, kernel, step, same(kernel, step))
    net.classifier(net.conv(x, 1280, activation="relu6"))
    return net


def resnet(depth, repeats):
    """He et al. 2015; in the bottleneck the 3x3 carries the stride."""
    net = Net(f"resnet{depth}", 224)
    x = net.conv(INPUT, 64, 7, 2, activation="relu")
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, count in enumerate(repeats):
        width = 64 << stage
        channels = width if depth == 18 else width * 4
        for i in range(count):
            stride = 2 if i == 0 and stage > 0 else 1
            if depth == 18:
                y = net.conv(net.conv(x, width, 3, stride, activation="relu"), width, 3)
            else:
                y = net.conv(net.conv(x, width, activation="relu"), width, 3, stride, activation="relu")
                y = net.conv(y, channels)
            if stride != 1 or net.channels[x] != channels:
                x = net.conv(x, channels, 1, stride)
            x = net.node("Relu", [net.node("Add", [x, y])])
    net.classifier(x)
    return net


def yolov8n(size=640, classes=80, bins=16):
    """YOLOv8 at depth 0.33 and width 0.25, its box decoding included."""
    net = Net("yolov8n", size)
    conv = lambda x, channels, kernel=1, stride=1: net.conv(x, channels, kernel, stride, activation="silu")
    concat = lambda *xs: net.node("Concat", list(xs), sum(net.channels[x] for x in xs), axis=1)

    def cross_stage(x, channels, repeats, shortcut):
        half = channels // 2
        sizes = net.constant(np.int64([half, half]), "s")
        parts = net.node("Split", [conv(x, channels), sizes], half, outputs=2, axis=1)
        for _ in range(repeats):
            y = conv(conv(parts[-1], half, 3), half, 3)
            parts.append(net.node("Add", [parts[-1], y]) if shortcut else y)
        return conv(concat(*parts), channels)

    def pyramid(x, channels):
        parts = [conv(x, channels // 2)]
        for _ in range(3):
            parts.append(net.node("MaxPool", [parts[-1]], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
        return conv(concat(*parts), channels)

    def double(x):
        scales = net.constant(np.float32([1, 1, 2, 2]), "s")
        return net.node("Resize", [x, "", scales], mode="nearest", nearest_mode="floor",
                        coordinate_transformation_mode="asymmetric")

    p2 = cross_stage(conv(conv(INPUT, 16, 3, 2), 32, 3, 2), 32, 1, True)
    p3 = cross_stage(conv(p2, 64, 3, 2), 64, 2, True)
    p4 = cross_stage(conv(p3, 128, 3, 2), 128, 2, True)
    p5 = pyramid(cross_stage(conv(p4, 256, 3, 2), 256, 1, True), 256)
    n4 = cross_stage(concat(double(p5), p4), 128, 1, False)
    n3 = cross_stage(concat(double(n4), p3), 64, 1, False)
    n4 = cross_stage(concat(conv(n3, 64, 3, 2), n4), 128, 1, False)
    n5 = cross_stage(concat(conv(n4, 128, 3, 2), p5), 256, 1, False)

    # Pixels and probabilities cannot share one scale of 256 steps, so that from here on all is float.
    decode = lambda operator, *inputs, **attributes: net.node(operator, list(inputs), quantised=False, **attributes)
    ints = lambda *values: net.constant(np.int64(values), "i")
    cut = lambda x, start, end, axis: decode("Slice", x, ints(start), ints(end), ints(axis))
    levels = []
    for x in (n3, n4, n5):
        box = net.conv(conv(conv(x, 64, 3), 64, 3), 4 * bins, bias=0)
        score = net.conv(conv(conv(x, 80, 3), 80, 3), classes, bias=-6)
        levels.append(decode("Reshape", concat(box, score), ints(0, 4 * bins + classes, -1)))
    flat = decode("Concat", *levels, axis=2)
    cells = sum((size // stride) ** 2 for stride in (8, 16, 32))
    box = decode("Reshape", cut(flat, 0, 4 * bins, 1), ints(0, 4, bins, cells))
    box = decode("Softmax", decode("Transpose", box, perm=[0, 2, 1, 3]), axis=1)
    ramp = net.constant(np.arange(bins, dtype="f4").reshape(1, bins, 1, 1), "r")
    sides = decode("Reshape", decode("Conv", box, ramp), ints(0, 4, cells))
    centres, strides = (net.constant(value, "g") for value in grid(size))
    low = decode("Sub", centres, cut(sides, 0, 2, 1))
    high = decode("Add", centres, cut(sides, 2, 4, 1))
    middle = decode("Div", decode("Add", low, high), net.constant(np.float32(2), "t"))
    box = decode("Mul", decode("Concat", middle, decode("Sub", high, low), axis=1), strides)
    score = decode("Sigmoid", cut(flat, 4 * bins, 4 * bins + classes, 1))
    net.output = decode("Concat", box, score, axis=1)
    return net


def grid(size):
    """Centre of each cell in units of cells, [1, 2, n], and pixels a cell, [1, 1, n]."""
    centres, strides = [], []
    for stride in (8, 16, 32):
        y, x = np.mgrid[:size // stride, :size // stride] + 0.5
        centres.append(np.stack([x.ravel(), y.ravel()]))
        strides.append(np.full(x.size, stride))
    return np.hstack(centres)[None].astype("f4"), np.hstack(strides)[None, None].astype("f4")


NETWORKS = {
    "mobilenetv2": mobilenetv2,
    "efficientnet_lite0": efficientnet_lite0,
    "resnet18": lambda: resnet(18, [2, 2, 2, 2]),
    "resnet50": lambda: resnet(50, [3, 4, 6, 3]),
    "yolov8n": yolov8n,
}

# ------------------------------------------------------------------------------------------------------ quantising


def pictures(count, size, seed):
    """[count, 3, size, size] with zero mean and about unit deviation: smooth noise at several scales, and boxes."""
    random = np.random.default_rng(seed)
    result = np.zeros((count, 3, size, size), np.float32)
    for picture in result:
        for cell in (1, 4, 16, 64):
            coarse = random.normal(0, math.sqrt(cell), (3, -(-size // cell), -(-size // cell)))
            picture += coarse.repeat(cell, 1).repeat(cell, 2)[:, :size, :size].astype(np.float32)
        picture /= picture.std()
        for _ in range(4):
            y, x, height, width = random.integers(size // 16, size // 2, 4)
            picture[:, y:y + height, x:x + width] = random.normal(0, 1, (3, 1, 1))
    return np.clip(result, -2.2, 2.2)


def session(model):
    """An ONNX Runtime session for a file or a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class Pictures(CalibrationDataReader):
    def __init__(self, batch):
        self.rest = iter(batch)

    def get_next(self):
        picture = next(self.rest, None)
        return None if picture is None else {INPUT: picture[None]}


def make(name, folder):
    # It advises a preparation that these networks do not need.
    logging.disable(logging.WARNING)
    net = NETWORKS[name]()
    batch = pictures(2 if net.size > 224 else 8, net.size, seed=1)
    net.fold_norms(batch)
    model = onnx.shape_inference.infer_shapes(net.model([net.output], 1), strict_mode=True)
    onnx.checker.check_model(model)
    float_path = folder / f"{name}.float.onnx"
    onnx.save(model, float_path)
    quantize_static(str(float_path), str(folder / f"{name}.onnx"), Pictures(batch), quant_format=QuantFormat.QDQ,
                    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    nodes_to_exclude=net.float_only)
    return {"model": name, "input": [1, 3, net.size, net.size]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = [make(name, args.out) for name in args.only]
    (args.out / "models.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
