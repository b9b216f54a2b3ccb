#!/usr/bin/env python3
"""Engine and PyTorch by turns: seconds an iteration and peak memory, medians and ratios.

One SADA-JEM iteration (batch norm, SAM, batches 64/64/128, 32x32x3) on the same number of threads, each program in a process of its
own, A B C A B C ... so that a machine whose speed drifts treats all alike. The peer of a row is the faster of PyTorch eager and
compiled; compiling is never timed. Prints a table; --history FILE appends a line to it, from which tools/bench_table makes README's table.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys

# Least ratio of seconds, largest share of memory. bf16 by whether the CPU has AMX.
GOALS = {
    ("10-2", "f32"): (1.8, 0.42), ("16-4", "f32"): (2.0, 0.45), ("28-10", "f32"): (2.2, 0.5),
    ("10-2", "bf16"): ({True: 2.0, False: 1.2}, 0.48), ("16-4", "bf16"): ({True: 1.8, False: 1.2}, 0.45),
    ("28-10", "bf16"): ({True: 1.4, False: 1.05}, 0.45),
}

TABLE_HEAD = ("| network | | PyTorch eager, s | compiled, s | engine, s | times as fast | memory, MiB | share | goals |\n"
              "|---|---|---|---|---|---|---|---|---|")


def run(command, refused_by=None):
    """The last line of stdout as JSON; None where it ends with exit code 2 and refused_by in its error."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 2 and refused_by and refused_by in result.stderr:
        return None
    if result.returncode != 0:
        sys.exit(f"error: {' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def commit():
    def git(*command):
        return subprocess.run(["git", *command], capture_output=True, text=True, check=False).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")


def cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{fields.get('model name', 'unknown CPU')} ({', '.join(wide)})", "amx_bf16" in flags


def measure(args, network, precision):
    """{"engine": ..., "eager": ..., "compiled": ...} of {"seconds": [a median a round], "bytes": [...]}; None where the engine refuses."""
    depth, width = network.split("-")
    shape = ["--depth", depth, "--width", width, "--threads", str(args.threads), "--precision", precision]
    peer = [args.python, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_pytorch.py"), *shape,
            "--steps", str(args.steps), "--iterations", str(args.iterations), "--warmup", str(args.warmup)]
    programs = {
        "engine": [args.engine, "bench", "--device", "cpu", *shape, "--sgld-steps", str(args.steps), "--repeat", str(args.iterations),
                   "--warmup", str(args.warmup), "--quiet", "--json"],
        "eager": peer,
        "compiled": [*peer, "--compile", "--warmup", "1"],  # what compiles is never timed
    }
    results = {name: {"seconds": [], "bytes": []} for name in programs}
    for turn in range(args.rounds):
        for name, command in programs.items():
            if name == "compiled" and turn >= args.compiled_rounds:
                continue
            print(f"WRN-{network} {precision}, round {turn + 1}: {name}", file=sys.stderr, flush=True)
            result = run(command, refused_by=f"--precision {precision}")
            if result is None:
                return None, None
            results[name]["seconds"].append(statistics.median(result["seconds"]))
            results[name]["bytes"].append(result["peak_rss_bytes"])
            torch = result.get("torch")
    return results, torch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help="the jem_engine program")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--networks", default="10-2,16-4", help="depth-width, separated by commas (10-2,16-4)")
    parser.add_argument("--precisions", default="f32,bf16", help="separated by commas (f32,bf16)")
    parser.add_argument("--steps", type=int, default=5, help="SGLD steps, K (5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--compiled-rounds", type=int, default=1, help="of them with torch.compile, which takes minutes to start (1)")
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations a round (3)")
    parser.add_argument("--warmup", type=int, default=1, help="iterations before the timed ones, of what is not compiled (1)")
    parser.add_argument("--history", help="file that one line of JSON is appended to")
    args = parser.parse_args()

    machine, amx = cpu()
    line = {"date": datetime.date.today().isoformat(), "commit": commit(), "cpu": machine, "threads": args.threads, "steps": args.steps,
            "rows": []}
    print(TABLE_HEAD)
    for network in args.networks.split(","):
        for precision in args.precisions.split(","):
            results, torch = measure(args, network, precision)
            if results is None:
                print(f"| WRN-{network} | {precision} | not on this CPU | | | | | | |")
                continue
            line["torch"] = torch
            peers = {name: statistics.median(results[name]["seconds"]) for name in ("eager", "compiled") if results[name]["seconds"]}
            best = min(peers, key=peers.get)
            ours = results["engine"]
            ratio = peers[best] / statistics.median(ours["seconds"])
            mib = {name: statistics.median(r["bytes"]) / 2**20 for name, r in results.items() if r["bytes"]}
            share = mib["engine"] / mib[best]
            row = {"network": network, "precision": precision, "best": best, "ratio": round(ratio, 3), "share": round(share, 3),
                   "seconds": {name: [round(s, 4) for s in r["seconds"]] for name, r in results.items()},
                   "mib": {name: round(v) for name, v in mib.items()}}
            least, most = GOALS.get((network, precision), (0, 1))
            least = least[amx] if isinstance(least, dict) else least
            row["goals"] = [least, most]
            line["rows"].append(row)
            print(table_row(row), flush=True)
    print(f"\n{machine}, {args.threads} threads, PyTorch {line.get('torch')}, K = {args.steps}, commit {line['commit']}")
    if args.history and line["rows"]:
        with open(args.history, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def table_row(row):
    def spread(values):
        if not values:
            return ""
        middle = f"{statistics.median(values):.3g}"
        return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"
    least, most = row["goals"]
    met = ", ".join(f"{what} {'met' if ok else 'missed'}" for what, ok in (
        (f"{least:g}", row["ratio"] >= least), (f"{most:g}", row["share"] <= most)))
    seconds, mib = row["seconds"], row["mib"]
    return (f"| WRN-{row['network']} | {row['precision']} | {spread(seconds['eager'])} | {spread(seconds['compiled'])} | "
            f"{spread(seconds['engine'])} | {row['ratio']:.2f} | {mib['engine']} of {mib[row['best']]} | {row['share']:.2f} | {met} |")


if __name__ == "__main__":
    main()
