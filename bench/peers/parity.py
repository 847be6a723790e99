#!/usr/bin/env python3
"""Compares every u8 tensor of the networks of models.py with ONNX Runtime's, element by element.

Prints how many elements differ, names the first tensors that have any (`--each`: a line for every tensor), and fails if
one does.
The float outputs are compared too: equal where they are dequantised bytes, else within 1e-4 of their range. Our network
is run twice, once as it is and once with every u8 tensor as an output: what both give must be the same.

ONNX Runtime is right only on x86-64 with VNNI: without, its products of u8 and s8 saturate, and on ARM it adds by other
rules. There, differences are counted and nothing fails.
"""

import argparse
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper

import models

# Tensors named without --each; one difference early in a network spreads to all that follow.
LINES_MAX = 10
# Networks that are not equal yet, and why. One that is equal must not be here: the comparison fails until its line is gone.
EXPECTED = {}


def theirs(path, names, image):
    """ONNX Runtime's values of `names`, and of the outputs, by name."""
    model = onnx.load(path)
    outputs = [o.name for o in model.graph.output]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in names
                              if n not in outputs)
    wanted = [*names, *(o for o in outputs if o not in names)]
    return dict(zip(wanted, models.session(model).run(wanted, {models.INPUT: image}))), outputs


def ours(agent, path, picture, folder, threads, *options):
    result = folder / "ours.npz"
    command = [agent, "run", "--model", path, "--input", picture, "--output", result, "--threads", str(threads), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{path.name}: {done.stderr.strip()}")
    with np.load(result) as arrays:
        return {name: arrays[name] for name in arrays}, done.stdout.strip().splitlines()[-1]


def check(path, args):
    """Whether all is as it should be."""
    image = models.pictures(1, 640 if "yolo" in path.name else 224, args.seed)
    graph = onnx.load(path).graph
    names = [node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    expected, outputs = theirs(path, names, image)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        np.save(folder / "image.npy", image)
        picture = folder / "image.npy"
        plain, engine = ours(args.agent, path, picture, folder, args.threads)
        every, _ = ours(args.agent, path, picture, folder, args.threads, "--all-tensors")
    missing = [name for name in names if name not in every]
    different, elements, lines = 0, 0, []
    for name in names:
        if name in missing:
            continue
        a, b = every[name], expected[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            lines.append(f"  {name}: expected {b.dtype} {b.shape}, found {a.dtype} {a.shape}")
            different += b.size
            continue
        count = int((a != b).sum())
        different, elements = different + count, elements + a.size
        if args.each or (count and len(lines) < LINES_MAX):
            most = int(np.abs(a.astype(int) - b.astype(int)).max())
            lines.append(f"  {name}: {count} of {a.size} differ, at most by {most}")
    fine = not different and not missing
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for name in outputs:
        span = float(np.ptp(expected[name])) or 1.0
        far = float(np.abs(plain[name] - expected[name]).max()) / span
        same = np.array_equal(plain[name], every[name])
        fine &= same and (far == 0 if name in dequantised else far <= 1e-4)
        lines.append(f"  output {name}: off by {far:.1e} of its range, {'' if same else 'NOT '}the same with --all-tensors")
    print(f"{path.stem}: {len(names)} u8 tensors, {elements} elements, {different} differ, {len(missing)} tensors missing; "
          f"{engine.split(':')[0]}")
    print("\n".join(lines + [f"  missing: {name}" for name in missing[:10]]), flush=True)
    return fine


def is_reference():
    """Whether ONNX Runtime's integers are exact on this processor."""
    flags = pathlib.Path("/proc/cpuinfo").read_text() if platform.machine() == "x86_64" else ""
    return "avx512_vnni" in flags or "avx_vnni" in flags


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=pathlib.Path, required=True, help="folder that models.py made")
    parser.add_argument("--agent", type=pathlib.Path, required=True, help="the program andon-agent")
    parser.add_argument("--only", nargs="+", choices=models.NETWORKS, default=list(models.NETWORKS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--each", action="store_true", help="a line for every tensor")
    args = parser.parse_args()
    equal = {name: check(args.models / f"{name}.onnx", args) for name in args.only}
    wrong = [name for name in equal if not equal[name] and name not in EXPECTED]
    stale = [name for name in equal if equal[name] and name in EXPECTED]
    for name in EXPECTED:
        print(f"{name} is expected to differ: {EXPECTED[name]}")
    if stale:
        sys.exit(f"equal now, remove from the expectations: {', '.join(stale)}")
    if wrong and not is_reference():
        print(f"{', '.join(wrong)} differ; this processor has no VNNI, so ONNX Runtime itself is not exact here")
    elif wrong:
        sys.exit(f"not equal to ONNX Runtime: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
