#!/usr/bin/env python3
"""Writes ncnn's description of the float networks of models.py, for fp16 and for int8: layers without weights.

int8 as ncnn's own quantiser does it: convolutions and fully connected layers take bytes, and give bytes where all that
reads them are convolutions again.
"""

import argparse
import importlib.metadata
import pathlib
import shutil
import subprocess
import tempfile

MODELS = {"mobilenetv2": 224, "resnet50": 224, "yolov8n": 640}
CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")


def convert(source, size):
    """By the pnnx program of the package of that name."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "network.onnx"
        shutil.copy(source, copy)
        program = importlib.metadata.distribution("pnnx").locate_file("pnnx/pnnx")
        command = [str(program), copy.name, f"inputshape=[1,3,{size},{size}]"]
        program.chmod(0o755)
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return copy.with_suffix(".ncnn.param").read_text()


def quantised(text):
    head, lines = text.splitlines()[:2], text.splitlines()[2:]
    layers = [line.split() for line in lines]
    inputs = lambda layer: layer[4:4 + int(layer[2])]
    outputs = lambda layer: layer[4 + int(layer[2]):4 + int(layer[2]) + int(layer[3])]
    readers = {}
    for layer in layers:
        for blob in inputs(layer):
            readers.setdefault(blob, []).append(layer)

    def takes_bytes(blob):
        layers = readers.get(blob, [])
        return bool(layers) and all(layer[0] in CONVOLUTIONS
                                    or layer[0] == "Split" and all(map(takes_bytes, outputs(layer)))
                                    for layer in layers)

    for line, layer in zip(lines, layers):
        if layer[0] in CONVOLUTIONS or layer[0] == "InnerProduct":
            term = 1 if layer[0] == "ConvolutionDepthWise" else 2
            chained = layer[0] in CONVOLUTIONS and all(map(takes_bytes, outputs(layer)))
            line += f" 8={term + 100 * chained}"
        head.append(line)
    return "\n".join(head) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=pathlib.Path, required=True, help="folder that models.py made")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, size in MODELS.items():
        text = convert(args.models / f"{name}.float.onnx", size)
        (args.out / f"{name}.fp16.param").write_text(text)
        (args.out / f"{name}.int8.param").write_text(quantised(text))


if __name__ == "__main__":
    main()
