#!/usr/bin/env bash
# Sets from folders of images and from SVHN's files: planned, trained on, evaluated and sampled from; what is wrong with them is told.
# Usage: test_images.sh PROGRAM, in an empty folder.
set -uo pipefail
export LC_ALL=C

program=$1
fail() {
    printf 'FAILED: %s\n' "$1"
    [[ ! -s ${2:-} ]] || tail -n 12 "$2"
    exit 1
}
run() { # CODE ARGUMENTS...
    local wanted=$1 code=0
    shift
    timeout 120 "$program" "$@" >out 2>err </dev/null || code=$?
    [[ $code == "$wanted" ]] || fail "exit code $code in place of $wanted: jem_engine $*" err
}
refused() { # PATTERN ARGUMENTS...
    local pattern=$1
    shift
    run 2 "$@"
    grep -q -e "^error: .*$pattern" err || fail "the error does not say \"$pattern\": jem_engine $*" err
}
has() { grep -q -e "$1" "${2:-out}" || fail "no $1" "${2:-out}"; }

# folders/{train,test}/{bright,dark}/*.png of several sizes, grey and colour, and digits/{train,test}_32x32.mat
python3 - <<'PYTHON' || fail 'the images were not made'
import os, random, struct, zlib

random.seed(1)


def png(path, height, width, channels, low, high):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + bytes(random.randint(low, high) for _ in range(width * channels)) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


for part, count in (("train", 12), ("test", 5)):
    for i in range(count):
        png("folders/%s/bright/%d.png" % (part, i), 9 + i, 20 - i, 1 + 2 * (i % 2), 150, 255)
        png("folders/%s/dark/%d.png" % (part, i), 20 - i, 9 + i, 3 - 2 * (i % 2), 0, 100)


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(name, sizes, data):
    body = element(6, struct.pack("<II", 9, 0)) + element(5, struct.pack("<%dI" % len(sizes), *sizes)) + element(1, name) + element(2, data)
    return struct.pack("<II", 14, len(body)) + body


os.makedirs("digits")
for part, count in (("train", 20), ("test", 10)):
    with open("digits/%s_32x32.mat" % part, "wb") as file:
        file.write(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM")
        file.write(matrix(b"X", (32, 32, 3, count), random.randbytes(3072 * count)))
        file.write(matrix(b"y", (count, 1), bytes(1 + i % 10 for i in range(count))))
PYTHON

small=(--recipe sada-jem --depth 10 --width 1 --batch-size 8 --gen-batch-size 4 --sgld-steps 1 --buffer-size 20 --warmup-iterations 0 --threads 1)
images=(--data images --data-dir folders --image-size 16)

# --- a folder a class ---------------------------------------------------------------------------------------------------------------
run 0 plan "${small[@]}" "${images[@]}" && ! grep -q 'assumed' out || fail 'the images of a folder that is there are not counted' out
run 0 plan "${small[@]}" --data images --image-size 16 --num-classes 3 && has 'assumed'
refused '--num-classes is needed' plan "${small[@]}" --data images --image-size 16
refused '--image-size is needed' train "${small[@]}" --data images --data-dir folders --out never
refused "nowhere' is no folder" train "${small[@]}" --data images --data-dir nowhere --image-size 16 --out never
refused 'of 3 classes' train "${small[@]}" "${images[@]}" --num-classes 3 --out never

run 0 train "${small[@]}" "${images[@]}" --iterations 2 --out run --quiet
run 0 evaluate --checkpoint run/checkpoints/last.safetensors --json --quiet && has '"images":10,'
run 0 sample --checkpoint run/checkpoints/last.safetensors --from prior --steps 1 --count 4 --sheet sheet.png && has 'bright\|dark'
run 0 train "${small[@]}" "${images[@]}" --in-channels 1 --flip on --iterations 1 --out grey --quiet
refused 'has no folders train and test' train "${small[@]}" --data images --data-dir folders/train --image-size 16 --out never
run 0 train "${small[@]}" --data images --data-dir folders/train --image-size 16 --n-valid 6 --iterations 1 --out whole --quiet
run 0 evaluate --checkpoint whole/checkpoints/last.safetensors --split auto --json --quiet && has '"split":"valid","images":6,'

echo nonsense >folders/train/dark/0a.png
refused 'dark/0a.png.*--skip-damaged' train "${small[@]}" "${images[@]}" --out never
run 0 train "${small[@]}" "${images[@]}" --skip-damaged --iterations 1 --out skipped
has 'Left out 1 of 25 images' err
mkdir folders/test/empty
refused 'train lacks empty' train "${small[@]}" "${images[@]}" --out never
[[ ! -e never ]] || fail 'a refused command made its folder'

# --- SVHN ---------------------------------------------------------------------------------------------------------------------------
digits=(--data svhn --data-dir digits)
if "$program" info --json | grep -q '"name":"libmatio"'; then
    refused 'libmatio' train "${small[@]}" "${digits[@]}" --out never
else
    run 0 train "${small[@]}" "${digits[@]}" --iterations 2 --out street --quiet
    run 0 evaluate --checkpoint street/checkpoints/last.safetensors --json --quiet && has '"images":10,'
    run 0 evaluate --checkpoint run/checkpoints/last.safetensors --data images --data-dir folders/train --skip-damaged --json && has '"images":24,'
    head -c 5000 digits/test_32x32.mat >cut && mv cut digits/test_32x32.mat
    refused 'test_32x32.mat' evaluate --checkpoint street/checkpoints/last.safetensors
fi
echo 'all as expected'
