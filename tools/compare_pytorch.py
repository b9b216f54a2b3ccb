#!/usr/bin/env python3
"""Engine and PyTorch by turns: seconds an iteration and peak memory, medians and ratios.

One SADA-JEM iteration (batch norm, SAM, batches 64/64/128, 32x32x3) on the same number of threads, each program in a process of its
own, A B A B ... so that a machine whose speed drifts treats both alike. Prints a table; --json FILE keeps every figure.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys


def run(command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"error: {' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def spread(values):
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help="the jem_engine program")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--networks", default="10-2,16-4", help="depth-width, separated by commas")
    parser.add_argument("--steps", type=int, default=5, help="SGLD steps, K")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations a round")
    parser.add_argument("--json", help="file for every figure")
    args = parser.parse_args()

    peer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_pytorch.py")
    rows, kept = [], []
    for network in args.networks.split(","):
        depth, width = network.split("-")
        shape = ["--depth", depth, "--width", width, "--threads", str(args.threads)]
        seconds = {"engine": [], "pytorch": []}
        memory = {"engine": [], "pytorch": []}
        for _ in range(args.rounds):
            ours = run([args.engine, "bench", *shape, "--sgld-steps", str(args.steps), "--repeat", str(args.iterations), "--warmup", "1",
                        "--quiet", "--json"])
            theirs = run([args.python, peer, *shape, "--steps", str(args.steps), "--iterations", str(args.iterations), "--warmup", "1"])
            for name, result in (("engine", ours), ("pytorch", theirs)):
                seconds[name].append(statistics.median(result["seconds"]))
                memory[name].append(result["peak_rss_bytes"])
        machine, torch = ours["device"], theirs["torch"]
        ratio = statistics.median(b / a for a, b in zip(seconds["engine"], seconds["pytorch"]))
        share = statistics.median(a / b for a, b in zip(memory["engine"], memory["pytorch"]))
        rows.append(f"| WRN-{network} | {spread(seconds['pytorch'])} | {spread(seconds['engine'])} | {ratio:.2f} | "
                    f"{statistics.median(memory['pytorch']) / 2**20:.0f} | {statistics.median(memory['engine']) / 2**20:.0f} | {share:.2f} |")
        kept.append({"network": network, "seconds": seconds, "peak_rss_bytes": memory, "speed_ratio": ratio, "memory_ratio": share})

    print(f"{machine}; PyTorch {torch} eager, channels_last, {args.threads} threads; f32, K = {args.steps}, batches 64/64/128, SAM, "
          f"batch norm; {args.rounds} rounds by turns, median (least to most) of {args.iterations} iterations each")
    print("| network | PyTorch, s | engine, s | times as fast | PyTorch, MiB | engine, MiB | memory share |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump({"machine": machine, "torch": torch, "threads": args.threads, "results": kept}, out, indent=1)


if __name__ == "__main__":
    main()
