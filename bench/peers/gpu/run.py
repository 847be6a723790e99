#!/usr/bin/env python3
"""Our runtime on this machine's GPU: first whether it gives the CPU's bytes, then how fast it is beside ncnn on Vulkan.

Runs in the folder that `cargo xtask bench gpu --pack DIR` writes, with the networks that lie there; needs Python 3
and a Vulkan driver, and no network. What it finds goes into one JSON file with the adapter's and the driver's name:
`--out FILE`, by default `result.json`.

Each measurement is a process of its own. Contenders take turns within a round; a ratio is formed within a round, and its
median over the rounds is reported. ncnn's time is from an image in memory to the result in memory, as ours is. Its
networks have the same layers and no weights (zeros), which take the same time.
"""

import argparse
import ast
import json
import lzma
import pathlib
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
MODELS = {"mobilenetv2": 224, "resnet50": 224, "yolov8n": 640, "mobilenetv2.float": 224, "yolov8n.float": 640}
GPU, CPU, HALF = "andon gpu", "andon cpu", "andon gpu f16"
PEERS = ("ncnn fp16", "ncnn int8", "ncnn fp32")
# The better of the two counts.
GOAL = 0.7
ENCODE_US, LOAD_MS, PEAK_PERCENT = 5, 300, 35
# How far float results may be from the CPU's, as a part of their range, and what part of them may be farther.
BOUNDS = {GPU: (1e-4, 0), HALF: (1e-2, 1e-3)}


def is_float(name):
    return name.endswith(".float")


def contenders_of(name):
    if is_float(name):
        return [GPU, HALF, CPU, "ncnn fp16", "ncnn fp32"]
    return [GPU, CPU, "ncnn fp16", "ncnn int8"]


def engine_of(contender, name):
    """Options of the agent: on the CPU, tract runs float networks."""
    engine = "auto" if contender == CPU and is_float(name) else contender.split()[1]
    return ["--engine", engine, *(["--half"] if contender == HALF else [])]


def agent(folder):
    program = folder / "andon-agent"
    program.write_bytes(lzma.decompress((HERE / "andon-agent.xz").read_bytes()))
    program.chmod(0o755)
    return program


def call(command, timeout=300):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr.strip()


def write_npy(path, shape, values):
    """f32, without numpy."""
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
                     + struct.pack(f"<{len(values)}f", *values))


def read_npz(path):
    """Type and bytes of each array, by name."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            data = archive.read(entry)
            size = struct.unpack_from("<H" if data[6] == 1 else "<I", data, 8)[0]
            start = 10 if data[6] == 1 else 12
            header = ast.literal_eval(data[start:start + size].decode())
            arrays[entry.removesuffix(".npy")] = header["descr"], data[start + size:]
    return arrays


def near(program, name, folder, tuning=()):
    """How far the results of a float network are from the CPU's."""
    size = MODELS[name]
    image, source = folder / "image.npy", random.Random(0)
    write_npy(image, (1, 3, size, size), [source.gauss(0, 1) for _ in range(3 * size * size)])
    results = {}
    for contender in (CPU, *BOUNDS):
        out = folder / "out.npz"
        code, _, error = call([program, "run", "--model", HERE / f"{name}.onnx", "--input", image, "--output", out,
                               *engine_of(contender, name), *(tuning if contender == GPU else ())])
        if code and contender == HALF and "has no f16" in error:
            continue
        if code:
            return {"model": name, "error": f"{contender}: {error[-500:]}"}
        results[contender] = {k: struct.unpack(f"<{len(data) // 4}f", data) for k, (_, data) in read_npz(out).items()}
    line = {"model": name, "numbers": sum(len(values) for values in results[CPU].values())}
    for contender, (bound, share) in BOUNDS.items():
        if contender not in results:
            continue
        far, most = 0, 0.0
        for key, mine in results[CPU].items():
            scale = max(map(abs, mine))
            away = [abs(a - b) / scale for a, b in zip(mine, results[contender][key])]
            far, most = far + sum(not a <= bound for a in away), max(most, *away)
        line[contender] = {"farther_than": bound, "of_them": far, "farthest": most, "near": far <= share * line["numbers"]}
    return line


def parity(program, name, folder, tuning=()):
    """How many bytes of all quantised tensors the GPU has otherwise than the CPU, and by how much at most."""
    size = MODELS[name]
    image, results = folder / "image.npy", {}
    source = random.Random(0)
    write_npy(image, (1, 3, size, size), [source.gauss(0, 1) for _ in range(3 * size * size)])
    for engine in ("cpu", "gpu"):
        out = folder / f"{engine}.npz"
        code, _, error = call([program, "run", "--model", HERE / f"{name}.onnx", "--input", image, "--output", out,
                               "--all-tensors", "--engine", engine, *(tuning if engine == "gpu" else ())])
        if code:
            return {"model": name, "error": f"{engine}: {error[-500:]}"}
        results[engine] = read_npz(out)
        out.unlink()
    elements = differ = most = 0
    for key, (kind, mine) in results["cpu"].items():
        if kind not in ("|u1", "|i1"):
            continue
        other = results["gpu"].get(key, (kind, b""))[1]
        elements += len(mine)
        if len(other) != len(mine):
            return {"model": name, "error": f"the GPU gave {len(other)} bytes of {key}, expected {len(mine)}"}
        if mine != other:
            distances = [abs(a - b) for a, b in zip(mine, other) if a != b]
            differ, most = differ + len(distances), max(most, *distances)
    return {"model": name, "elements": elements, "differ": differ, "largest_difference": most}


def measure(program, contender, name, args):
    options = ["--model", HERE / f"{name}.onnx", "--runs", args.runs, "--warmup", args.warmup]
    if contender in PEERS:
        command = [sys.executable, __file__, "--peer", contender, "--name", name, "--site", args.site,
                   "--runs", args.runs, "--warmup", args.warmup]
    else:
        command = [program, "bench", *options, *engine_of(contender, name), "--threads", args.threads]
        if contender != CPU:
            folder = args.site.parent
            command += ["--pipelines", folder / f"{contender} {name}.pipelines"]
            # What was found is of f32.
            command += [] if contender == HALF else tuned(folder, name)
            command += [] if is_float(name) else ["--stream"]
    code, out, error = call(command)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if code or not lines:
        return {"error": error[-500:] or out[-500:]}
    return json.loads(lines[-1])


def tuned(folder, name):
    path = folder / f"{name}.tuning.json"
    return ["--tuning", path] if path.exists() else []


def contest(program, name, args):
    contenders = contenders_of(name)
    rounds = {c: [] for c in contenders}
    for turn in range(args.rounds):
        first = turn % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            rounds[contender].append(measure(program, contender, name, args))
            print(name, turn, contender, json.dumps(rounds[contender][-1])[:400], flush=True)
    for contender, results in rounds.items():
        line = {"model": name, "contender": contender}
        errors = [r["error"] for r in results if "error" in r]
        if errors:
            yield line | {"error": errors[0]}
            continue
        line |= {"median_ms": statistics.median(r["median_ms"] for r in results),
                 "min_ms": min(r["min_ms"] for r in results)}
        # The first start has a driver compile, later ones take what it kept.
        line |= {"first_load_ms": results[0].get("load_ms"),
                 "load_ms": statistics.median(r["load_ms"] for r in results[1:] or results)}
        if "stream_ms" in results[0]:
            line["stream_ms"] = statistics.median(r["stream_ms"] for r in results)
        line |= {k: v for k, v in results[-1].items() if k not in line and not k.startswith(("resident", "peak"))}
        for peer in [peer for peer in PEERS if peer in rounds]:
            if contender in (GPU, HALF) and not any("error" in r for r in rounds[peer]):
                ratios = [a["median_ms"] / b["median_ms"] for a, b in zip(results, rounds[peer])]
                line[f"ratio_to_{peer.replace(' ', '_')}"] = round(statistics.median(ratios), 3)
        yield line


def peer(args):
    """One measurement of ncnn on Vulkan."""
    sys.path.insert(0, str(args.site))
    import ncnn

    if not ncnn.get_gpu_count():
        sys.exit("ncnn finds no Vulkan device")
    net = ncnn.Net()
    net.opt.use_vulkan_compute = True
    kind = args.peer.split()[1]
    half = kind != "fp32"
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    layers = f"{args.name.removesuffix('.float')}.{'int8' if kind == 'int8' else 'fp16'}.param"
    start = time.perf_counter()
    if net.load_param(str(HERE / "ncnn" / layers)) or net.load_model(ncnn.DataReaderFromEmpty()):
        sys.exit("ncnn cannot load the network")
    load_ms = (time.perf_counter() - start) * 1e3
    image = ncnn.Mat(w=MODELS[args.name], h=MODELS[args.name], c=3)
    image.fill(0.5)
    times = []
    for _ in range(args.warmup + args.runs):
        start = time.perf_counter()
        extractor = net.create_extractor()
        extractor.input("in0", image)
        code, _ = extractor.extract("out0")
        if code:
            sys.exit(f"ncnn ends with {code}")
        times.append((time.perf_counter() - start) * 1e3)
    times = times[args.warmup:]
    print(json.dumps({"median_ms": statistics.median(times), "min_ms": min(times), "load_ms": load_ms}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "result.json")
    here = [name for name in MODELS if (HERE / f"{name}.onnx").exists()]
    parser.add_argument("--only", nargs="+", choices=here, default=here)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--threads", type=int, default=4, help="of our engines on the CPU")
    parser.add_argument("--no-tuning", action="store_true")
    # One measurement of a peer, for itself.
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--name", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--site", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        program = agent(folder)
        args.site = folder / "site"
        for wheel in HERE.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(args.site)
        # Without the folder that it was asked to write to, which is nobody else's business.
        report = {"command": f"python3 run.py --rounds {args.rounds} --runs {args.runs} --warmup {args.warmup}"}

        def save():
            args.out.write_text(json.dumps(report, indent=1) + "\n")

        code, out, error = call([program, "gpu", "--json"], 600)
        report["gpu"] = json.loads(out) if out.startswith("{") else {"error": f"{code}: {error[-2000:]}"}
        print(json.dumps(report["gpu"], indent=1), flush=True)
        save()
        report["parity"] = []
        for name in args.only:
            report["parity"].append((near if is_float(name) else parity)(program, name, folder))
            print(json.dumps(report["parity"][-1]), flush=True)
            save()
        if not args.no_tuning:
            report["tuning"] = []
            for name in args.only:
                code, out, error = call([program, "tune", "--model", HERE / f"{name}.onnx", "--threads", args.threads,
                                          "--json", "--out", folder / f"{name}.tuning.json"], 300)
                report["tuning"].append({"model": name} | (json.loads(out) if out.startswith("{") else {"error": error[-1000:]}))
                print(json.dumps(report["tuning"][-1])[:2000], flush=True)
                # Other kernels than before.
                compared = near if is_float(name) else parity
                report["parity"].append(compared(program, name, folder, tuned(folder, name)) | {"kernels": "tuned"})
                print(json.dumps(report["parity"][-1]), flush=True)
                save()
        report["results"], report["steps"] = [], {}
        for name in args.only:
            for line in contest(program, name, args):
                report["results"].append(line)
                print(json.dumps(line), flush=True)
            code, out, error = call([program, "bench", "--model", HERE / f"{name}.onnx", "--engine", "gpu", "--runs", 20,
                                     "--warmup", 10, "--threads", args.threads, "--per-step", *tuned(folder, name)])
            report["steps"][name] = (out or error).splitlines()
            save()
    columns = [GPU, HALF, CPU, *PEERS]
    print(f"\n{'model':<18}" + "".join(f"{c:>15}" for c in columns) + f"   ratio, goal {GOAL}")
    for name in args.only:
        row = {r["contender"]: r for r in report["results"] if r["model"] == name}
        ms = lambda c: f"{row[c]['median_ms']:.3f}" if "median_ms" in row.get(c, {}) else "-"
        # The better of ours with the better of the peers.
        ratios = [[v for k, v in row.get(c, {}).items() if k.startswith("ratio_to")] for c in (GPU, HALF)]
        best = min((max(each) for each in ratios if each), default=None)
        print(f"{name:<18}" + "".join(f"{ms(c):>15}" for c in columns) + (f"   {best:.2f}" if best else "   -"))
    wrong = [line for line in report["parity"] if "error" in line or not is_right(line)]
    goals(report)
    print(f"written to {args.out}")
    if wrong:
        sys.exit(f"{len(wrong)} comparisons with the CPU failed: {json.dumps(wrong)[:2000]}")


def is_right(line):
    """The same bytes, but for a rounding in a thousand as a driver may have; near, for floats."""
    if "elements" in line:
        return line["largest_difference"] <= 1 and line["differ"] <= line["elements"] / 1000
    return all(line[contender]["near"] for contender in BOUNDS if contender in line)


def goals(report):
    """What else is wanted of a GPU, beside the ratio."""
    peaks = next((a["peaks"] for a in report["gpu"].get("adapters", []) if a.get("peaks")), None)
    if peaks:
        print(f"CPU time to encode and submit a dispatch: {peaks['encode_us']:.2f} us, goal {ENCODE_US}")
    for line in report["results"]:
        if line["contender"] == GPU and "load_ms" in line:
            print(f"{line['model']}: warm start {line['load_ms']:.0f} ms, goal {LOAD_MS}")
    for name, lines in report["steps"].items():
        # "rate  of peak  inside  kernel", of layers with weights that are pointwise.
        found = [re.search(r"([0-9.]+)% +([0-9.]+)%  (?:Convolution|Tiled) .*pointwise: true", line) for line in lines]
        found = [(float(m[1]), float(m[2])) for m in found if m]
        if found:
            print(f"{name}: the best pointwise layer has {max(found)[0]:.0f} % of the dot4 peak by the clock, "
                  f"{max(inside for _, inside in found):.0f} % inside the kernel, goal {PEAK_PERCENT} %")


if __name__ == "__main__":
    main()
