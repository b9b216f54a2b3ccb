#!/usr/bin/env bash
# tools/get_data against a server of its own: what it gets, converts and refuses, and that the program reads it.
# Usage: test_get_data.sh PROGRAM, in an empty folder.
set -uo pipefail
export LC_ALL=C

program=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
get_data=$root/tools/get_data
python=/usr/bin/python3
[[ -x $python ]] || python=python3
fail() {
    printf 'FAILED: %s\n' "$1"
    [[ ! -s ${2:-} ]] || tail -n 12 "$2"
    exit 1
}

# Small sets in every published form, checksums.json beside them, and expected_*.bin, what the program is to read.
cat >make.py <<'PYTHON'
import gzip, hashlib, io, json, os, pickle, random, struct, sys, tarfile

random.seed(1)
os.makedirs("server")
PIXELS = 3072


class Array:
    """Pickles as numpy's array of bytes does."""

    def __init__(self, data, shape):
        self.data, self.shape = data, shape


def pickled(content, protocol):
    import numpy
    for key, value in content.items():
        if isinstance(value, Array):
            content[key] = numpy.frombuffer(value.data, numpy.uint8).reshape(value.shape)
    return pickle.dumps(content, protocol)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            add(tar, name, data)


sets = {"10": [("data_batch_%d" % i, "data_batch_%d.bin" % i) for i in range(1, 6)] + [("test_batch", "test_batch.bin")],
        "100": [("train", "train.bin"), ("test", "test.bin")]}
for digits, files in sets.items():
    binary, python = {}, {}
    for protocol, (name, bin_name) in enumerate(files):
        n = 20
        coarse, fine = [random.randrange(20) for _ in range(n)], [random.randrange(int(digits)) for _ in range(n)]
        images = random.randbytes(n * PIXELS)
        labels = [fine] if digits == "10" else [coarse, fine]
        binary[bin_name] = b"".join(bytes(v[i] for v in labels) + images[i * PIXELS:(i + 1) * PIXELS] for i in range(n))
        keys = {b"data": Array(images, (n, PIXELS)), b"filenames": [b"a.png"] * n}
        keys.update({b"labels": fine} if digits == "10" else {b"coarse_labels": coarse, b"fine_labels": fine})
        if protocol % 2:
            keys = {k.decode(): v for k, v in keys.items()}
        python[name] = pickled(keys, 2 + protocol % 3)
    folder = "cifar-10-batches-bin" if digits == "10" else "cifar-100-binary"
    source = "cifar-10-batches-py" if digits == "10" else "cifar-100-python"
    os.makedirs("expected/" + digits)
    os.makedirs("py%s/%s" % (digits, source))
    for name, data in binary.items():
        open("expected/%s/%s" % (digits, name), "wb").write(data)
    for name, data in python.items():
        open("py%s/%s/%s" % (digits, source, name), "wb").write(data)
    # besides what is wanted, what no archive should be able to write
    archive("server/cifar-%s-binary.tar.gz" % digits, {"../outside": b"x", "/tmp/outside_of_get_data": b"x", folder + "/../../up": b"x",
                                                       folder + "/batches.meta.txt": b"x",
                                                       **{folder + "/" + k: v for k, v in binary.items()},
                                                       **{"../" + k: b"x" for k in binary}, **{"elsewhere/" + k: b"x" for k in binary}})
    archive("server/cifar-%s-python.tar.gz" % digits, {source + "/" + k: v for k, v in python.items()})
for name, head, size in (("train-images-idx3-ubyte", (0x803, 30, 28, 28), 30 * 784), ("train-labels-idx1-ubyte", (0x801, 30), 30),
                         ("t10k-images-idx3-ubyte", (0x803, 20, 28, 28), 20 * 784), ("t10k-labels-idx1-ubyte", (0x801, 20), 20)):
    body = random.randbytes(size) if "images" in name else bytes(random.randrange(10) for _ in range(size))
    open("server/%s.gz" % name, "wb").write(gzip.compress(struct.pack(">%dI" % len(head), *head) + body))
for name in ("train_32x32.mat", "test_32x32.mat"):
    open("server/" + name, "wb").write(random.randbytes(5000))
checksums = {name: hashlib.md5(open("server/" + name, "rb").read()).hexdigest() for name in os.listdir("server")}
json.dump(checksums, open("checksums.json", "w"))
PYTHON
"$python" -c 'import numpy' 2>/dev/null || { echo "no numpy for $python (tools/setup installs it)" && exit 77; }
"$python" make.py || fail 'make.py'

# a server that answers Range, notes what it was asked for, and cuts one answer short where a file server/cut says so
cat >serve.py <<'PYTHON'
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = "server/" + os.path.basename(self.path)
        if not os.path.isfile(path):
            return self.send_error(404)
        data, start = open(path, "rb").read(), 0
        asked = self.headers.get("Range")
        open("asked", "a").write("%s %s\n" % (self.path, asked))
        if asked:
            start = int(asked[len("bytes="):-1])
            if start >= len(data):
                return self.send_error(416)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", "bytes %d-%d/%d" % (start, len(data) - 1, len(data)))
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if os.path.exists("server/cut"):
            os.remove("server/cut")
            return self.wfile.write(data[start:start + len(data) // 3])
        self.wfile.write(data[start:])
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
open("port.new", "w").write(str(server.server_address[1]))
os.rename("port.new", "port")
server.serve_forever()
PYTHON
"$python" serve.py 2>serve.err &
trap 'kill %1 2>/dev/null' EXIT
for ((poll = 0; poll < 500; ++poll)); do
    [[ ! -e port ]] || break
    sleep 0.02
done
[[ -e port ]] || fail 'the server did not start' serve.err
url=http://127.0.0.1:$(<port)

get() { "$python" "$get_data" "$@" >out 2>err </dev/null; }
made() { get "$@" --from "$url" --checksums checksums.json || fail "exit code $? of get_data $*" err; }
refused() { # CODE PATTERN ARGUMENTS...
    local code=$1 pattern=$2 status=0
    shift 2
    get "$@" || status=$?
    ((status == code)) || fail "exit code $status in place of $code: get_data $*" err
    [[ $(grep -c '^error: ' err) == 1 && $(grep -c Traceback err) == 0 ]] || fail "not one error: get_data $*" err
    grep -q "^error: .*$pattern" err || fail "the error does not say \"$pattern\": get_data $*" err
}
same() { # EXPECTED FOLDER
    local file
    for file in "$1"/*; do cmp "$file" "$2/$(basename "$file")" || fail "$2/$(basename "$file") is not what was published"; done
}
reads() { # NAME DIR: the program reads every record
    local small=(--recipe softmax --depth 10 --width 1 --batch-size 4 --iterations 1 --threads 1 --n-valid 0)
    "$program" train --data "$1" --data-dir "$2" "${small[@]}" --out "run_$1_${2//\//_}" --quiet >read.out 2>read.err </dev/null ||
        fail "train does not read $2: exit code $?" read.err
}
nothing_else() { # DIR NAME...: DIR holds these names alone
    local folder=$1
    shift
    [[ $(ls -A "$folder") == "$(printf '%s\n' "$@" | sort)" ]] || fail "$folder holds $(ls -A "$folder" | tr '\n' ' ')"
}

# --- downloads ----------------------------------------------------------------------------------------------------------------------
made cifar10 d10
same expected/10 d10/cifar-10-batches-bin
nothing_else d10 cifar-10-batches-bin
nothing_else d10/cifar-10-batches-bin data_batch_{1,2,3,4,5}.bin test_batch.bin
[[ ! -e outside && ! -e up && ! -e /tmp/outside_of_get_data ]] || fail 'an archive wrote outside of its folder'
reads cifar10 d10
made cifar100 d100
same expected/100 d100/cifar-100-binary
reads cifar100 d100
made mnist dm
reads mnist dm
made fashion-mnist df
reads fashion-mnist df
made svhn ds
nothing_else ds test_32x32.mat train_32x32.mat
for file in ds/*; do cmp "$file" "server/${file#ds/}" || fail "$file is not what was published"; done
# what is there is left alone
: >asked
made cifar10 d10
made mnist dm
made svhn ds
[[ ! -s asked ]] || fail 'asked for files that were there' asked

# --- faults -------------------------------------------------------------------------------------------------------------------------
refused 1 'is not the published file' cifar10 wrong --from "$url"
nothing_else wrong
mv server/cifar-100-binary.tar.gz aside
refused 1 'the server says 404' cifar100 wrong --from "$url"
mv aside server/cifar-100-binary.tar.gz
refused 1 'cannot get' mnist wrong --from http://127.0.0.1:1
refused 2 'cannot read no.json' cifar10 wrong --checksums no.json
# an answer that is cut short is gone on with where it ended
touch server/cut
refused 1 'came in part' cifar10 cut --from "$url" --checksums checksums.json
[[ ! -e cut/cifar-10-binary.tar.gz && -s cut/cifar-10-binary.tar.gz.part ]] || fail 'a part of an archive has the name of the whole'
: >asked
made cifar10 cut
grep -q "bytes=[1-9]" asked || fail 'a download did not go on where it ended' asked
same expected/10 cut/cifar-10-batches-bin
nothing_else cut cifar-10-batches-bin
# a part that is whole, and one of something else
mkdir whole other
cp server/cifar-10-binary.tar.gz whole/cifar-10-binary.tar.gz.part
made cifar10 whole
same expected/10 whole/cifar-10-batches-bin
head -c 100 /dev/zero >other/cifar-10-binary.tar.gz.part
refused 1 'is not the published file' cifar10 other --from "$url" --checksums checksums.json
made cifar10 other
same expected/10 other/cifar-10-batches-bin

# --- what lies there ----------------------------------------------------------------------------------------------------------------
: >asked
mkdir archive && cp server/cifar-100-binary.tar.gz archive
made cifar100 archive
same expected/100 archive/cifar-100-binary
[[ -e archive/cifar-100-binary.tar.gz ]] || fail 'an archive of the user is gone'
mkdir strange && cp server/cifar-100-binary.tar.gz strange/cifar-10-binary.tar.gz
refused 2 'is not the published archive' cifar10 strange
for digits in 10 100; do
    made cifar$digits py$digits
    folder=cifar-10-batches-bin
    [[ $digits == 10 ]] || folder=cifar-100-binary
    same expected/$digits py$digits/$folder
    mkdir packed$digits && cp server/cifar-$digits-python.tar.gz packed$digits
    made cifar$digits packed$digits
    same expected/$digits packed$digits/$folder
done
# a pickle calls nothing
mkdir -p evil/cifar-100-python
"$python" - <<'PYTHON'
import os, pickle
class Evil:
    def __reduce__(self):
        return os.system, ("touch called",)
pickle.dump({b"data": Evil(), b"fine_labels": [1], b"coarse_labels": [1]}, open("evil/cifar-100-python/train", "wb"), 2)
pickle.dump({b"data": [1], b"fine_labels": [1], b"coarse_labels": [1]}, open("evil/cifar-100-python/test", "wb"), 2)
PYTHON
refused 2 'it asks for posix.system' cifar100 evil
[[ ! -e called ]] || fail 'a pickle ran a command'
nothing_else evil cifar-100-python
cp py100/cifar-100-python/test evil/cifar-100-python/train
refused 2 "test is not of CIFAR's Python version" cifar100 evil
nothing_else evil cifar-100-python
[[ ! -s asked ]] || fail 'downloaded what lay there' asked

# --- folders of images --------------------------------------------------------------------------------------------------------------
if "$python" -c 'import PIL' 2>/dev/null; then
    "$python" - <<'PYTHON'
import os
from PIL import Image
for root, classes, size, mode in (("img10", ["airplane", "Automobile", "9"], 32, "RGB"), ("imgm", ["0", "7"], 28, "L")):
    for split, count in (("train", 4), ("test", 2)):
        for label in classes:
            os.makedirs(f"{root}/{split}/{label}")
            for i in range(count):
                colour = (10 * i, 20, 30) if mode == "RGB" else 10 * i
                image = Image.new(mode, (size, size), colour)
                image.putpixel((1, 0), (1, 2, 3) if mode == "RGB" else 1)  # column 1 of row 0
                image.save(f"{root}/{split}/{label}/{i}.png")
PYTHON
    made cifar10 img10
    "$python" - <<'PYTHON' || fail 'images became other records'
records = []
for i in range(1, 6):
    data = open(f"img10/cifar-10-batches-bin/data_batch_{i}.bin", "rb").read()
    records += [data[k:k + 3073] for k in range(0, len(data), 3073)]
assert [r[0] for r in records] == [0, 1, 9] * 4, [r[0] for r in records]
for k, r in enumerate(records):
    red, green, blue = r[1:1025], r[1025:2049], r[2049:]
    assert (red[0], green[0], blue[0]) == (10 * (k // 3), 20, 30) and (red[1], green[1], blue[1]) == (1, 2, 3) and red[32] == red[0]
PYTHON
    reads cifar10 img10
    made mnist imgm
    reads mnist imgm
    mkdir -p big/train/0 big/test/0 && cp img10/train/9/0.png big/train/0 && cp img10/train/9/0.png big/test/0
    refused 2 'has 32x32 pixels (28x28 are expected)' mnist big
    mkdir -p unknown/train/zebra unknown/test/zebra
    refused 2 'is no class of the set' cifar10 unknown
else
    echo 'without Pillow folders of images were not tried'
fi
echo 'all as expected'
