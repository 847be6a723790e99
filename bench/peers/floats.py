#!/usr/bin/env python3
"""Compares float networks of models.py on the GPU, in f32 and with f16 in memory, with ONNX Runtime's results.

Prints the largest difference as a part of the results' range and how many are too large, and fails if those are too many. A
GPU that software plays is good enough; where there is none at all nothing is compared, which fails if ANDON_TEST_GPU is set.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx

import models

# Few layers, and many of each kind; software takes long for the others.
NETWORKS = ("mobilenetv2", "yolov8n")
# What a difference may be, as a part of the range, and what part of the results may have a larger one.
BOUNDS = {"f32": (1e-4, 0), "f16": (1e-2, 1e-3)}


def ours(agent, path, picture, folder, options):
    out = pathlib.Path(folder, "ours.npz")
    command = [str(agent), "run", "--engine", "gpu", "--model", str(path), "--input", str(picture), "--output", str(out)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
    if done.returncode:
        return None, done.stderr.strip()
    with np.load(out) as arrays:
        return {name: arrays[name] for name in arrays.files}, None


def check(name, agent, folder_of_models, seed):
    """Whether each precision is near enough."""
    path = folder_of_models / f"{name}.float.onnx"
    model = onnx.load(path)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    wanted = [o.name for o in model.graph.output]
    expected = dict(zip(wanted, models.session(model).run(wanted, {model.graph.input[0].name: image})))
    near = True
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder, "picture.npy")
        np.save(picture, image)
        for precision, (bound, share) in BOUNDS.items():
            results, error = ours(agent, path, picture, folder, ["--half"] if precision == "f16" else [])
            if results is None and precision == "f16" and "has no f16" in error:
                print(f"{name} in f16: NOT TESTED: {error.splitlines()[-1]}")
                continue
            if results is None:
                print(f"{name} in {precision}: {error}")
                near = False
                continue
            away = np.concatenate([np.ravel(np.abs(results[o] - expected[o]) / np.abs(expected[o]).max()) for o in wanted])
            # What is no number is away, too.
            far = np.count_nonzero(~(away <= bound))
            print(f"{name} in {precision}: of {away.size} numbers {far} are more than {bound:.0e} of the range away, the "
                  f"farthest {away.max():.2e}", flush=True)
            near &= far <= share * away.size
    return near


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=pathlib.Path, required=True, help="folder that models.py made")
    parser.add_argument("--agent", type=pathlib.Path, required=True, help="the program andon-agent")
    parser.add_argument("--only", nargs="+", choices=models.NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    listed = subprocess.run([str(args.agent), "gpu", "--list", "--json"], capture_output=True, check=True, timeout=600)
    if not json.loads(listed.stdout)["adapters"]:
        print("NOT TESTED: float networks on a GPU: there is no GPU and nothing that plays one")
        sys.exit(1 if os.environ.get("ANDON_TEST_GPU") else 0)
    wrong = [name for name in args.only if not check(name, args.agent, args.models, args.seed)]
    if wrong:
        sys.exit(f"not near ONNX Runtime: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
