#!/usr/bin/env python3
"""Times our runtime, ONNX Runtime and OpenVINO on the int8 networks of models.py and prints their ratios.

Each measurement is a process of its own that loads the network, warms up, runs, and prints one JSON line:

    COMMAND --model PATH --threads N --runs K --warmup W
    {"median_ms": 1.9, "min_ms": 1.8, "load_ms": 20.0, "peak_resident_bytes": 60000000, "resident_before_bytes": 5000000}

Memory is what a process had at its peak beyond what it had before it loaded the network, so that the interpreter and the
libraries that a peer needs do not count against it.

Contenders take turns within a round, pinned to the same cores, so that whatever the machine does hits all of them. A
ratio is formed within a round; its median over the rounds is reported. Compare nothing across runs or machines.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

BASELINE, OURS = "onnxruntime", "andon"
# What we want to be at most, as a ratio to ONNX Runtime.
GOALS = {"mobilenetv2": 0.65, "efficientnet_lite0": 0.70, "resnet18": 0.85, "resnet50": 0.85, "yolov8n": 0.80}
MEMORY_GOAL, LOAD_GOAL = 0.6, 1.0


def load_onnxruntime(path, threads, image):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})


def load_openvino(path, threads, image):
    import openvino

    # Without the last one, what the network has in f32 is computed in bf16 where the processor can.
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
               "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", options).create_infer_request()
    return lambda: request.infer([image])


PEERS = {BASELINE: load_onnxruntime, "openvino": load_openvino}


def worker(args):
    """One measurement of one peer."""
    import numpy

    if args.peer == "onnxruntime":
        import onnxruntime  # noqa: F401, so that loading the library is not counted as loading the network
    else:
        import openvino  # noqa: F401
    size = next(m["input"] for m in manifest(args.model.parent) if m["model"] == args.model.stem)
    image = numpy.random.default_rng(0).normal(0, 1, size).astype(numpy.float32)
    before = resident("VmRSS:")
    start = time.perf_counter()
    run = PEERS[args.peer](args.model, args.threads[0], image)
    load_ms = (time.perf_counter() - start) * 1e3
    for _ in range(args.warmup):
        run()
    times = []
    for _ in range(args.runs):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps({"median_ms": statistics.median(times), "min_ms": min(times), "load_ms": load_ms,
                      "peak_resident_bytes": resident("VmHWM:"), "resident_before_bytes": before}))


def resident(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def manifest(folder):
    return json.loads((folder / "models.json").read_text())


def measure(command, model, threads, args):
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    options = ["--model", str(model), "--threads", str(threads), "--runs", str(args.runs), "--warmup", str(args.warmup)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600,
                          preexec_fn=lambda: os.sched_setaffinity(0, cores))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{shlex.join(command)} on {model.name}: {done.stderr.strip()[-500:]}")
    return json.loads(lines[-1])


def contest(name, threads, contenders, args):
    """One result a contender."""
    rounds = {contender: [] for contender in contenders}
    for turn in range(args.rounds):
        order = list(contenders)
        for contender in order[turn % len(order):] + order[:turn % len(order)]:
            rounds[contender].append(measure(contenders[contender], args.models / f"{name}.onnx", threads, args))
    for result in (result for results in rounds.values() for result in results):
        # A peer's image is there before it loads.
        result["memory_bytes"] = (result["peak_resident_bytes"] - result["resident_before_bytes"]
                                  - result.get("input_bytes", 0))
    for contender, results in rounds.items():
        line = {"model": name, "threads": threads, "contender": contender}
        for key in ("median_ms", "load_ms", "memory_bytes", "peak_resident_bytes"):
            pairs = list(zip((r[key] for r in results), (r[key] for r in rounds[BASELINE])))
            line[key] = round(statistics.median(a for a, _ in pairs), 3)
            line[f"{key.rsplit('_', 1)[0]}_ratio"] = round(statistics.median(a / b for a, b in pairs), 3)
        line["min_ms"] = round(min(r["min_ms"] for r in results), 3)
        fastest = min(r["min_ms"] for r in rounds[BASELINE])
        # The steadier one on a busy machine.
        line["ratio_of_minima"] = round(line["min_ms"] / fastest, 3)
        ratios = [a["median_ms"] / b["median_ms"] for a, b in zip(results, rounds[BASELINE])]
        line["median_ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        if "engine" in results[0]:
            line["engine"] = results[0]["engine"]
        yield line


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda key: next((x.split(":", 1)[1].strip() for x in info.splitlines() if x.startswith(key)), "unknown")
    flags = field("flags").split()
    known = ["avx2", "avx_vnni", "avx512_vnni", "avx512_vbmi", "amx_int8"]
    return {"cpu": field("model name"), "features": [f for f in known if f in flags],
            "cores": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 2),
            "versions": {p: importlib.metadata.version(p) for p in PEERS}}


def show(results, contenders):
    """The table: milliseconds of the baseline, then ratios to it, one line a model and number of threads."""
    others = [c for c in contenders if c != BASELINE]
    print(f"\n{'model':<20}{'threads':>8}{BASELINE + ' ms':>16}" + "".join(f"{o:>10}" for o in others)
          + f"{'minima':>8}{'goal':>6}{'load':>7}{'memory':>8}")
    missed = 0
    for model, threads in dict.fromkeys((r["model"], r["threads"]) for r in results):
        row = {r["contender"]: r for r in results if (r["model"], r["threads"]) == (model, threads)}
        line = f"{model:<20}{threads:>8}{row[BASELINE]['median_ms']:>16.2f}"
        line += "".join(f"{row[o]['median_ratio']:>10.2f}" for o in others)
        if OURS in row:
            mine, goal = row[OURS], GOALS[model]
            line += (f"{mine['ratio_of_minima']:>8.2f}{goal:>6.2f}{mine['load_ratio']:>7.2f}"
                     f"{mine['memory_ratio']:>8.2f}")
            short = [what for what, ratio, most in (("speed", mine["median_ratio"], goal),
                                                    ("load", mine["load_ratio"], LOAD_GOAL),
                                                    ("memory", mine["memory_ratio"], MEMORY_GOAL)) if ratio > most]
            missed += len(short)
            line += f"  above its goal: {', '.join(short)}" if short else ""
        print(line)
    if os.getloadavg()[0] > len(os.sched_getaffinity(0)) + 1:
        print("\nThis machine is busy with something else: these numbers are noise.")
    print(f"\nRatios to {BASELINE}, lower is better; goals: see column, load at most {LOAD_GOAL}, memory at most "
          f"{MEMORY_GOAL}. {missed} above their goal.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=pathlib.Path, help="folder that models.py made")
    parser.add_argument("--ours", metavar="COMMAND", help="our runtime")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=GOALS, default=list(GOALS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="folder for the results, one file a processor")
    # One measurement of a peer, for itself.
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return worker(args)

    contenders = {peer: [sys.executable, __file__, "--peer", peer] for peer in PEERS}
    if args.ours:
        contenders[OURS] = shlex.split(args.ours)
    about = machine()
    print(json.dumps(about), flush=True)
    results = []
    for name in args.only:
        for threads in args.threads:
            for line in contest(name, threads, contenders, args):
                results.append(line)
                print(json.dumps(line), flush=True)
    show(results, list(contenders))
    if args.json:
        name = "-".join("".join(c if c.isalnum() else " " for c in about["cpu"].lower()).split())
        path = args.json / f"cpu-{name}.json"
        command = f"cargo xtask bench cpu --rounds {args.rounds} --runs {args.runs}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"command": command, "machine": about, "results": results}, indent=1) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
