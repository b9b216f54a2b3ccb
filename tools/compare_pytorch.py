#!/usr/bin/env python3
"""Engine and PyTorch by turns: seconds an iteration and peak memory, medians and ratios.

One SADA-JEM iteration (batch norm, SAM, batches 64/64/128, 32x32x3, a resident data set of CIFAR-10's size and a replay buffer) on the
same number of threads, each program in a process of its own, A B C A B C ... so that a machine whose speed drifts treats all alike. The
peer of a row is the faster of PyTorch eager and compiled; compiling is never timed. Prints a table; --history FILE appends a line to it,
from which tools/bench_table makes docs/speed.md's tables.

On demand also an iteration by other recipes, with their batches, norms, chains and optimizers (--recipes), `train` itself, from its files to
its checkpoint (--train), the K sampling steps alone (--sampling), a test set's accuracy (--evaluation), an iteration's seconds by K
(--linearity), the time until a first picture exists (--first-image) and what `evaluate` measures besides (--measurements: scores of log p(x)
and p(y|x) of --images images, gradients' lengths of as many, PGD of 50 steps on --attacked, Inception's features of --drawn);
--no-iteration leaves SADA-JEM's iterations out.
"""

import argparse
import datetime
import itertools
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

TOOLS = os.path.dirname(os.path.abspath(__file__))
PEER, CONVERT = os.path.join(TOOLS, "peer_pytorch.py"), os.path.join(TOOLS, "convert")
# Least ratio of seconds, largest share of memory. bf16 by whether the CPU has AMX.
GOALS = {
    ("10-2", "f32"): (1.8, 0.42), ("16-4", "f32"): (2.0, 0.45), ("28-10", "f32"): (2.2, 0.5),
    ("10-2", "bf16"): ({True: 2.0, False: 1.2}, 0.48), ("16-4", "bf16"): ({True: 1.8, False: 1.2}, 0.45),
    ("28-10", "bf16"): ({True: 1.4, False: 1.05}, 0.45),
}

TABLE_HEAD = ("| network | | PyTorch eager, s | compiled, s | engine, s | times as fast | memory, MiB | share | goals |\n"
              "|---|---|---|---|---|---|---|---|---|")
TRAIN_HEAD = TABLE_HEAD.replace("| network |", "| `train` of |", 1)
FURTHER_HEAD = ("| what | network | | PyTorch eager, s | compiled, s | engine, s | times as fast | goals |\n"
                "|---|---|---|---|---|---|---|---|")
MEASUREMENT_HEAD = TABLE_HEAD.replace("| network |", "| what | network |", 1).replace("|---", "|---|---", 1)
RECIPE_HEAD = MEASUREMENT_HEAD.replace("| what |", "| other recipes |", 1)
# Least ratio of seconds, largest share of memory; Inception's are measured alone.
MEASUREMENT_GOALS = {"scores": (1.5, 0.5), "pxgrad": (2.5, 0.5), "pgd": (2.5, 0.5), "inception": ()}
# What --recipes knows (a class of each is in peer_recipes.py), and what its row says of the steps; {} is --steps.
RECIPES = {"jem": "K = {}", "jem++": "M = {}, N = 5", "dat": "K = {}, 10 steps of attack", "igebm": "K = {}"}
RECIPE_GOALS = [1.5, 0.5]
STEPS, RECIPE_STEPS = 5, 10  # K, unless --steps says otherwise
NETWORKS, RECIPE_NETWORKS = "10-2,16-4", {**dict.fromkeys(RECIPES, "10-2"), "igebm": "14-2"}  # likewise
IGEBM_DEPTHS = ("14", "20")  # no Wide-ResNet has them
COST_GOAL = 1.2  # of scores against passes forward, of gradients against sampling steps
ATTACK_EPS = "0.001"  # breaks next to nothing: the engine ends attacks of broken images early
CHAINS = 64  # of bench --only sampling
LINE_STEPS = (0, 1, 2, 5, 10, 20)  # K
FIRST_IMAGE_GOAL = 1  # s
TRAINING_IMAGES = 50000  # what the prior is made of, as CIFAR-10's
SMALL_TRAINING_IMAGES = 1000  # where nothing is made of them


def run(command, refused_by=None):
    """The last line of stdout as JSON, an object with the process's peak_rss_bytes where it does not say it; None where the process ends
    with exit code 2 and refused_by in its error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        status, usage = os.wait4(process.pid, 0)[1:]
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        output, errors = out.read(), err.read()
    if process.returncode == 2 and refused_by and refused_by in errors:
        return None
    if process.returncode != 0:
        sys.exit(f"error: {' '.join(command)} failed:\n{errors[-2000:]}")
    result = json.loads(output.strip().splitlines()[-1])
    return {"peak_rss_bytes": usage.ru_maxrss * 1024, **result} if isinstance(result, dict) else result


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


def is_igebm(network):
    return network.split("-")[0] in IGEBM_DEPTHS


def name_of(network):
    return network if network[0].isalpha() else f"{'IGEBM' if is_igebm(network) else 'WRN'}-{network}"


def shape(args, network, precision):
    depth, width = network.split("-")
    return ["--depth", depth, "--width", width, "--threads", str(args.threads), "--precision", precision]


def bench(args, network, precision, steps, *more):
    return [args.engine, "bench", "--device", "cpu", *shape(args, network, precision), "--sgld-steps", str(steps), "--repeat",
            str(args.iterations), "--warmup", str(args.warmup), *more, "--quiet", "--json"]


def peer(args, network, precision, *more, steps=None):
    return [args.python, PEER, *shape(args, network, precision), "--steps", str(args.steps if steps is None else steps),
            "--iterations", str(args.iterations), "--warmup", str(args.warmup), *more]


def by_turns(args, label, programs):
    """programs: name -> command, or function of its result. name -> results of its processes; None where the engine refuses the precision."""
    results = {name: [] for name in programs}
    for turn in range(args.rounds):
        for name, command in programs.items():
            if name == "compiled" and turn >= args.compiled_rounds:
                continue
            print(f"{label}, round {turn + 1}: {name}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            result = command() if callable(command) else run(command, refused_by="--precision bf16")
            if result is None:
                return None
            results[name].append({**result, "process": time.perf_counter() - start})
    return results


def median(seconds):
    return statistics.median(seconds) if isinstance(seconds, list) else seconds  # evaluate does its work once


def compare(args, work, network, precision, engine, theirs):
    """A row of history.jsonl; None where the engine refuses."""
    results = by_turns(args, f"{name_of(network)} {precision} {work}",
                       {"engine": engine, "eager": theirs, "compiled": [*theirs, "--compile", "--warmup", "2"]})  # the first compiles
    if results is None:
        return None
    seconds = {name: [median(r["seconds"]) for r in found] for name, found in results.items()}
    peers = {name: statistics.median(seconds[name]) for name in ("eager", "compiled") if seconds[name]}
    best = min(peers, key=peers.get)
    row = {"network": network, "precision": precision, "best": best, "ratio": round(peers[best] / statistics.median(seconds["engine"]), 3),
           "seconds": {name: [round(s, 4) for s in values] for name, values in seconds.items()}}
    mib = {name: statistics.median(r["peak_rss_bytes"] for r in found) / 2**20 for name, found in results.items() if found}
    row["share"] = round(mib["engine"] / mib[best], 3)
    row["mib"] = {name: round(value) for name, value in mib.items()}
    return row


def compare_recipe(args, recipe, network, precision):
    row = compare(args, f"iteration by {recipe}", network, precision, bench(args, network, precision, args.recipe_steps, "--recipe", recipe),
                  peer(args, network, precision, "--recipe", recipe, steps=args.recipe_steps))
    what = f"{recipe}, {RECIPES[recipe].format(args.recipe_steps)}"
    return row and {"work": what, "recipe": recipe, "steps": args.recipe_steps, **row, "goals": RECIPE_GOALS}


def make_files(folder, test_images, training_images):
    """CIFAR-10's files, of noise, for whatever reads them."""
    def write(name, images):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(images)
    write("test_batch.bin", b"".join(bytes([i % 10]) + os.urandom(3072) for i in range(test_images)))
    fifth = b"".join(bytes([i % 10]) + os.urandom(3072) for i in range(training_images // 5))
    for i in range(5):
        write(f"data_batch_{1 + i}.bin", fifth)


def make_checkpoint(args, network, folder):
    out = os.path.join(folder, network)
    if not os.path.isdir(out):
        run([args.engine, "train", "--recipe", "sada-jem", "--data", "cifar10", "--data-dir", folder, *shape(args, network, "f32"),
             "--iterations", "0", "--buffer-size", str(args.drawn or 100), "--device", "cpu", "--out", out, "--quiet", "--json"])
    return os.path.join(out, "checkpoints", "last.safetensors")


def compare_train(args, network, precision, folder):
    """The program as it is used, from its files to its checkpoint: seconds between the lines of metrics.jsonl, the process's peak."""
    out = os.path.join(folder, "run")

    def engine():
        shutil.rmtree(out, ignore_errors=True)
        result = run([args.engine, "train", "--recipe", "sada-jem", "--data", "cifar10", "--data-dir", folder, *shape(args, network, precision),
                      "--device", "cpu", "--sgld-steps", str(args.steps), "--iterations", str(max(2, args.warmup) + args.iterations),
                      "--log-interval", "1", "--out", out, "--quiet", "--json"], refused_by="--precision bf16")
        if result is None:
            return None
        with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as lines:
            times = [entry["time_s"] for entry in map(json.loads, lines) if "event" not in entry][:-1]
        # A line is written when the next iteration is queued, the last but one thus with the last: the first says the end of the second.
        return {**result, "seconds": [after - before for before, after in zip(times, times[1:])][-args.iterations:]}

    return compare(args, "train", network, precision, engine,
                   peer(args, network, precision, "--mode", "train", "--out", os.path.join(folder, "peer.pt")))


def compare_sampling(args, network, precision):
    row = compare(args, "sampling", network, precision, bench(args, network, precision, args.steps, "--only", "sampling"),
                  peer(args, network, precision, "--mode", "sampling"))
    if row is None:
        return None
    del row["share"], row["mib"]  # bench holds data and buffer all the same, the peer's steps alone do not
    return {"work": f"{args.steps} sampling steps of 64 images", **row, "goals": [1]}


def compare_evaluation(args, network, precision, folder):
    """The predictions, the engine's cold first batch among them, and as a second row the programs from start to end."""
    engine = [args.engine, "evaluate", "--checkpoint", make_checkpoint(args, network, folder), "--data", "cifar10", "--data-dir", folder,
              "--device", "cpu", "--threads", str(args.threads), "--precision", precision, "--metrics", "accuracy", "--quiet", "--json"]
    theirs = peer(args, network, precision, "--mode", "evaluation", "--images", str(args.images))
    work = f"accuracy on {args.images} images"
    row = compare(args, "evaluation", network, precision, engine, theirs)
    if row is None:
        return []
    whole = by_turns(args, f"WRN-{network} {precision} whole evaluation",
                     {"engine": engine, "eager": [*theirs, "--warmup", "0", "--iterations", "1"]})
    seconds = {name: [round(r["process"], 4) for r in found] for name, found in whole.items()}
    ratio = statistics.median(seconds["eager"]) / statistics.median(seconds["engine"])
    return [{"work": work, **row, "goals": [1]},
            {"work": f"{work}, whole process", "network": network, "precision": precision, "best": "eager", "ratio": round(ratio, 3),
             "seconds": {**seconds, "compiled": []}, "goals": [1]}]


def labels_as_predicted(args, checkpoint, folder):
    """Makes the test set's labels what the network predicts: `evaluate` attacks no image that is misclassified as it is."""
    raw = os.path.join(folder, "raw.safetensors")
    run([args.engine, "evaluate", "--checkpoint", checkpoint, "--data-dir", folder, "--device", "cpu", "--threads", str(args.threads),
         "--metrics", "accuracy", "--raw", raw, "--quiet", "--json"])
    with open(raw, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["logits"]
        logits = file.read()[slice(*header["data_offsets"])]
    count, classes = header["shape"]
    values = struct.unpack(f"<{count * classes}f", logits)
    with open(os.path.join(folder, "test_batch.bin"), "r+b") as file:
        for image in range(count):
            row = values[classes * image:classes * (image + 1)]
            file.seek(3073 * image)
            file.write(bytes([row.index(max(row))]))


def engine_measurement(args, checkpoint, folder, parts, *more):
    """A function for by_turns: `evaluate`, and the seconds of these parts of it."""
    def measure():
        result = run([args.engine, "evaluate", "--checkpoint", checkpoint, "--data-dir", folder, "--device", "cpu", "--threads", str(args.threads),
                      *more, "--quiet", "--json"])
        if result.get("robust_accuracy", {}).get(ATTACK_EPS, 1) == 0:
            sys.exit("error: the attack broke every image, so that it ended early. Its time cannot be compared.")
        return {**result, "seconds": sum(result["timings"][f"{part}_s"] for part in parts)}
    return measure


def scores_of_engine(args, checkpoint, folder, names):
    """Of --images images: half of them the network's own, half strangers, which are the same ones."""
    return engine_measurement(args, checkpoint, folder, ("predictions", "ood"), "--metrics", "ood", "--ood-scores", names, "--ood-data",
                              f"cifar10:{folder}")


def compare_measurements(args, network, folder):
    checkpoint = make_checkpoint(args, network, folder)
    labels_as_predicted(args, checkpoint, folder)
    attack = engine_measurement(args, checkpoint, folder, ("pgd",), "--metrics", "pgd", "--pgd-eps", ATTACK_EPS, "--pgd-images", str(args.attacked))
    for mode, work, count, engine in (
            ("scores", f"log p(x) and p(y\\|x) of {args.images} images", args.images, scores_of_engine(args, checkpoint, folder, "px,py")),
            ("pxgrad", f"gradients of {args.images} images", args.images, scores_of_engine(args, checkpoint, folder, "pxgrad")),
            ("pgd", f"PGD of 50 steps on {args.attacked} images", args.attacked, attack)):
        row = compare(args, mode, network, "f32", engine, peer(args, network, "f32", "--mode", mode, "--images", str(count), "--eps", ATTACK_EPS,
                                                               "--iterations", "1"))
        yield {"work": work, **row, "goals": MEASUREMENT_GOALS[mode]}


def compare_inception(args, network, folder):
    """By random weights, of a replay buffer of --drawn images, with the Inception Score, which needs no reference."""
    weights, features = os.path.join(folder, "inception.pth"), os.path.join(folder, "inception.safetensors")
    peer_of = peer(args, network, "f32", "--mode", "inception", "--iterations", "1")
    run([*peer_of, "--images", "1", "--warmup", "0", "--out", weights])
    subprocess.run([args.python, CONVERT, weights, features], check=True, stdout=subprocess.DEVNULL)
    engine = engine_measurement(args, make_checkpoint(args, network, folder), folder, ("is",), "--metrics", "is", "--samples", "buffer", "--features",
                                f"inception:{features}")
    row = compare(args, "inception", network, "f32", engine, [*peer_of, "--images", str(args.drawn)])
    return {"work": f"Inception's features of {args.drawn} images", **row, "network": "Inception", "goals": MEASUREMENT_GOALS["inception"]}


def measure_costs(args, network, folder):
    """The engine alone: scores of an image against its pass forward, a gradient against a sampling step."""
    checkpoint = make_checkpoint(args, network, folder)
    results = by_turns(args, f"WRN-{network} costs", {
        "scores": scores_of_engine(args, checkpoint, folder, "px,py"), "forward": bench(args, network, "f32", args.steps, "--only", "forward"),
        "pxgrad": scores_of_engine(args, checkpoint, folder, "pxgrad"), "step": bench(args, network, "f32", args.steps, "--only", "sampling")})
    of_one = {"scores": args.images, "forward": results["forward"][0]["images"], "pxgrad": args.images, "step": CHAINS * args.steps}
    each = {name: statistics.median(median(r["seconds"]) for r in found) / of_one[name] for name, found in results.items()}
    return {"network": network, "images": args.images, "seconds": {name: round(s, 7) for name, s in each.items()},
            "scores": round(each["scores"] / each["forward"], 3), "pxgrad": round(each["pxgrad"] / each["step"], 3)}


def measure_linearity(args, network, precision):
    """An iteration's seconds against K: the least-squares line, and its slope against a sampling step by itself."""
    programs = {str(k): bench(args, network, precision, k) for k in LINE_STEPS}
    results = by_turns(args, f"WRN-{network} {precision} by K", {**programs, "alone": bench(args, network, precision, 5, "--only", "sampling")})
    if results is None:
        return None
    medians = {name: statistics.median(s for r in found for s in r["seconds"]) for name, found in results.items()}
    seconds = [medians[str(k)] for k in LINE_STEPS]
    slope, at_zero = statistics.linear_regression(LINE_STEPS, seconds)
    launches = []
    for k in LINE_STEPS:
        plan = run([args.engine, "plan", "--recipe", "sada-jem", "--data", "cifar10", *shape(args, network, precision), "--device", "cpu",
                    "--sgld-steps", str(k), "--quiet", "--json"])
        launches.append(sum(phase["launches"] for phase in plan["phases"] if phase["name"] == "sample"))
    return {"network": network, "precision": precision, "steps": list(LINE_STEPS), "seconds": [round(s, 4) for s in seconds],
            "at_zero": round(at_zero, 4), "slope": round(slope, 4), "step_alone": round(medians["alone"] / 5, 4),
            "off_percent": [round(100 * (s / (at_zero + slope * k) - 1), 2) for k, s in zip(LINE_STEPS, seconds)], "launches": launches}


def measure_first_image(args, network, folder):
    """From a process's start until the file's own time. The first round only brings the files into memory."""
    sheet, checkpoint = os.path.join(folder, "sheet.png"), make_checkpoint(args, network, folder)
    programs = {
        "engine": [args.engine, "sample", "--checkpoint", checkpoint, "--from", "prior", "--data-dir", folder, "--count", "10", "--steps",
                   str(args.steps), "--device", "cpu", "--threads", str(args.threads), "--sheet", sheet, "--quiet", "--json"],
        "eager": peer(args, network, "f32", "--mode", "first-image", "--checkpoint", checkpoint, "--data-dir", folder, "--neg", "10",
                      "--sheet", sheet)}
    seconds = {name: [] for name in programs}
    for turn in range(1 + args.rounds):
        for name, command in programs.items():
            start = time.time()
            run(command)
            if turn > 0:
                seconds[name].append(round(os.stat(sheet).st_mtime_ns / 1e9 - start, 3))
            os.remove(sheet)
    return {"network": network, "steps": args.steps, "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help="the jem_engine program")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--networks", help=f"depth-width, separated by commas ({NETWORKS}; of --recipes {RECIPE_NETWORKS['jem']}). Those of depth "
                        f"{' and '.join(IGEBM_DEPTHS)} are recipe igebm's ({RECIPE_NETWORKS['igebm']}), all others Wide-ResNets")
    parser.add_argument("--precisions", default="f32,bf16", help="separated by commas (f32,bf16)")
    parser.add_argument("--steps", type=int, help=f"SGLD steps, K ({STEPS}; of --recipes {RECIPE_STEPS})")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--compiled-rounds", type=int, default=1, help="of them with torch.compile, which takes minutes to start (1)")
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations a round (3)")
    parser.add_argument("--warmup", type=int, default=1, help="iterations before the timed ones, of what is not compiled (1)")
    parser.add_argument("--images", type=int, default=2000, help="of --evaluation and --measurements (2000)")
    parser.add_argument("--attacked", type=int, default=256, help="images of --measurements that are attacked, in batches of 64 (256)")
    parser.add_argument("--drawn", type=int, default=128, help="images of --measurements that Inception sees (128; 0: none)")
    parser.add_argument("--recipes", default="", help=f"also an iteration by these, separated by commas (of {', '.join(RECIPES)})")
    parser.add_argument("--train", action="store_true", help="also `train` itself: its iterations, and its peak with the checkpoint written")
    parser.add_argument("--sampling", action="store_true", help="also the K sampling steps alone")
    parser.add_argument("--evaluation", action="store_true", help="also the accuracy on a test set")
    parser.add_argument("--measurements", action="store_true", help="also scores, gradients, attacks and Inception's features of images, in f32")
    parser.add_argument("--linearity", action="store_true", help="also an iteration by K, of the first network and precision")
    parser.add_argument("--first-image", action="store_true", help="also the time until the first network has drawn a picture")
    parser.add_argument("--no-iteration", action="store_true", help="without SADA-JEM's iterations")
    parser.add_argument("--history", help="file that one line of JSON is appended to")
    args = parser.parse_args()
    precisions, recipes = args.precisions.split(","), [name for name in args.recipes.split(",") if name]
    args.recipe_steps = RECIPE_STEPS if args.steps is None else args.steps
    args.steps = STEPS if args.steps is None else args.steps
    for recipe in recipes:
        if recipe not in RECIPES:
            parser.error(f"--recipes {recipe} has no peer in PyTorch. Give some of {', '.join(RECIPES)}.")

    def given_or(default, igebm):
        return [network for network in (args.networks or default).split(",") if is_igebm(network) == igebm]

    networks = given_or(NETWORKS, False)
    recipe_networks = {recipe: given_or(RECIPE_NETWORKS[recipe], recipe == "igebm") for recipe in recipes}
    for recipe, found in recipe_networks.items():
        if not found:
            parser.error(f"--networks {args.networks} has none for {recipe} (depth {' and '.join(IGEBM_DEPTHS)} are igebm's, all others "
                         f"Wide-ResNets). Add {RECIPE_NETWORKS[recipe]}.")
    if not networks and (not args.no_iteration or args.train or args.sampling or args.evaluation or args.measurements or args.linearity
                         or args.first_image):
        parser.error(f"--networks {args.networks} has no Wide-ResNet (which all but --recipes igebm needs). Add 10-2, or give --no-iteration and "
                     "--recipes igebm alone.")

    machine, amx = cpu()
    version = run([args.python, "-c", "import json, torch; print(json.dumps(torch.__version__))"])
    line = {"date": datetime.date.today().isoformat(), "commit": commit(), "cpu": machine, "threads": args.threads, "steps": args.steps,
            "torch": version, "rows": []}

    def rows_of(head, goals_of, compare_one):
        print(head)
        for network in networks:
            for precision in precisions:
                row = compare_one(network, precision)
                if row is None:
                    print(f"| {name_of(network)} | {precision} | not on this CPU | | | | | | |")
                    continue
                row["goals"] = goals_of(network, precision)
                print(table_row(row), flush=True)
                yield row

    def iteration_goals(network, precision):
        least, most = GOALS.get((network, precision), (0, 1))
        return [least[amx] if isinstance(least, dict) else least, most]

    if not args.no_iteration:
        line["rows"] += rows_of(TABLE_HEAD, iteration_goals, lambda network, precision: compare(
            args, "iteration", network, precision, bench(args, network, precision, args.steps), peer(args, network, precision)))
    if recipes:
        print(f"\n{RECIPE_HEAD}")
        line["recipes"] = []
    for recipe in recipes:
        for network, precision in itertools.product(recipe_networks[recipe], precisions):
            row = compare_recipe(args, recipe, network, precision)
            if row is not None:
                line["recipes"].append(row)
                print(table_row(row), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.train or args.evaluation or args.first_image:
            make_files(folder, args.images, TRAINING_IMAGES)
        if args.train:
            print()
            line["train"] = list(rows_of(TRAIN_HEAD, lambda *_: [1, 1],
                                         lambda network, precision: compare_train(args, network, precision, folder)))
        if args.sampling or args.evaluation:
            print(f"\n{FURTHER_HEAD}")
            line["further"] = []
        for network in networks:
            for precision in precisions:
                rows = [compare_sampling(args, network, precision)] if args.sampling else []
                rows += compare_evaluation(args, network, precision, folder) if args.evaluation else []
                for row in filter(None, rows):
                    line["further"].append(row)
                    print(further_row(row), flush=True)
        if args.measurements:
            small = os.path.join(folder, "small")
            os.mkdir(small)
            make_files(small, args.images // 2, SMALL_TRAINING_IMAGES)
            print(f"\n{MEASUREMENT_HEAD}")
            line["measurements"], line["costs"] = [], []
            for network in networks:
                for row in compare_measurements(args, network, small):
                    line["measurements"].append(row)
                    print(table_row(row), flush=True)
            if args.drawn:
                line["measurements"].append(compare_inception(args, networks[0], small))
                print(table_row(line["measurements"][-1]), flush=True)
            line["costs"] = [measure_costs(args, network, small) for network in networks]
            print("\n" + costs_text(line["costs"]))
        if args.linearity:
            line["linearity"] = measure_linearity(args, networks[0], precisions[0])
            print("\n" + linearity_text(line["linearity"]))
        if args.first_image:
            line["first_image"] = measure_first_image(args, networks[0], folder)
            print("\n" + first_image_text(line["first_image"]))
    of_recipes = f" ({args.recipe_steps} of other recipes)" if recipes else ""
    print(f"\n{machine}, {args.threads} threads, PyTorch {version}, K = {args.steps}{of_recipes}, commit {line['commit']}")
    if args.history and any(line.get(kind) for kind in ("rows", "recipes", "train", "further", "measurements", "linearity", "first_image")):
        with open(args.history, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def spread(values):
    if not values:
        return ""
    middle = f"{statistics.median(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"


def verdict(met):
    return "met" if met else "missed"


def table_row(row):
    met = "none"
    if row["goals"]:
        least, most = row["goals"]
        met = f"{least:g} {verdict(row['ratio'] >= least)}, {most:g} {verdict(row['share'] <= most)}"
    seconds, mib = row["seconds"], row["mib"]
    what = f"| {row['work']} " if "work" in row else ""
    return (f"{what}| {name_of(row['network'])} | {row['precision']} | {spread(seconds['eager'])} | {spread(seconds['compiled'])} | "
            f"{spread(seconds['engine'])} | {row['ratio']:.2f} | {mib['engine']} of {mib[row['best']]} | {row['share']:.2f} | {met} |")


def further_row(row):
    seconds, least = row["seconds"], row["goals"][0]
    return (f"| {row['work']} | WRN-{row['network']} | {row['precision']} | {spread(seconds['eager'])} | {spread(seconds['compiled'])} | "
            f"{spread(seconds['engine'])} | {row['ratio']:.2f} | {least:g} {verdict(row['ratio'] >= least)} |")


def costs_text(costs):
    return " ".join(
        f"Of WRN-{cost['network']}'s evaluation log p(x) and p(y|x) of an image take {cost['scores']:.2f} times as long as its pass forward alone, its "
        f"gradient {cost['pxgrad']:.2f} times as long as a sampling step (goals {COST_GOAL:g}: {verdict(cost['scores'] <= COST_GOAL)}, "
        f"{verdict(cost['pxgrad'] <= COST_GOAL)})." for cost in costs)


def linearity_text(line):
    if line is None:
        return "By K: not on this CPU."
    off = max(abs(percent) for percent in line["off_percent"])
    each = line["launches"][line["steps"].index(1)]
    exact = line["launches"] == [each * k for k in line["steps"]]
    return (f"An iteration of WRN-{line['network']} ({line['precision']}) by K: {', '.join(map(str, line['steps']))} steps take "
            f"{', '.join(f'{s:.3g}' for s in line['seconds'])} s, {line['at_zero']:.3g} + K * {line['slope']:.3g} s to within {off:.1f} %; a sampling "
            f"step alone takes {line['step_alone']:.3g} s. "
            + (f"Launches of sampling: {each} a step, none at K = 0." if exact else f"Launches of sampling, NOT linear: {line['launches']}."))


def first_image_text(first):
    ours, theirs = first["seconds"]["engine"], first["seconds"]["eager"]
    return (f"Ten images of WRN-{first['network']} from the prior after {first['steps']} steps, from the program's start to the file: "
            f"{spread(ours)} s, PyTorch {spread(theirs)} s (goal {FIRST_IMAGE_GOAL} s: {verdict(statistics.median(ours) <= FIRST_IMAGE_GOAL)}).")


if __name__ == "__main__":
    main()
