#!/usr/bin/env python3
"""Small valid files of every format, for the fuzz targets to begin with: make_seeds.py FOLDER writes FOLDER/TARGET/NAME."""
import base64
import gzip
import json
import os
import struct
import sys
import zlib

FOLDER = sys.argv[1]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OLD_RUN = os.path.join(ROOT, "tests", "cli", "old_run")


def seed(target, name, content):
    os.makedirs(os.path.join(FOLDER, target), exist_ok=True)
    with open(os.path.join(FOLDER, target, name), "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def read(path):
    with open(path, "rb") as file:
        return file.read()


# ---- images: of these four targets the first byte of a seed is an option ----

idx_images = struct.pack(">IIII", 0x803, 2, 28, 28) + bytes(i % 251 for i in range(2 * 784))
idx_labels = struct.pack(">II", 0x801, 5) + bytes([0, 9, 3, 1, 7])
for option, name, content in ((0, "images", idx_images), (1, "labels", idx_labels)):
    seed("idx", name, bytes([option]) + content)
    seed("idx", f"{name}_packed", bytes([option + 2]) + content)
    seed("idx", f"{name}_gz", bytes([option]) + gzip.compress(content[:8]) + gzip.compress(content[8:]))

seed("cifar", "ten", bytes([0, 9]) + bytes(3072) + bytes([3]) + bytes(i % 256 for i in range(3072)))
seed("cifar", "hundred", bytes([1, 19, 99]) + bytes(3072))


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def variable(name, kind, sizes, stored, content):
    """A MATLAB 5 matrix; what takes 4 bytes at most has a short tag."""
    if len(content) <= 4:
        data = struct.pack("<HH", stored, len(content)) + content.ljust(4, b"\0")
    else:
        data = element(stored, content)
    return element(14, element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(sizes)}i", *sizes)) +
                   element(1, name.encode()) + data)


def mat(*variables):
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(variables)


image = bytes(i % 253 for i in range(3072))
files = {
    "bytes": mat(variable("X", 9, (32, 32, 3, 2), 2, 2 * image), variable("y", 9, (2, 1), 2, b"\x0a\x01")),
    "doubles": mat(variable("y", 6, (1, 1), 9, struct.pack("<d", 3)), variable("X", 9, (32, 32, 3), 2, image)),
    "short_doubles": mat(variable("X", 9, (32, 32, 3, 1), 2, image), variable("y", 6, (1, 1), 2, b"\x07")),
    "others": mat(variable("Z", 7, (2, 2), 7, struct.pack("<4f", 1, 2, 3, 4)), variable("X", 9, (32, 32, 3, 1), 2, image)),
    "text": mat(variable("t", 4, (1, 9), 16, b"some text"), variable("y", 9, (1, 1), 2, b"\x01")),
    "cells": mat(element(14, element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<2i", 1, 1)) + element(1, b"c") +
                         variable("", 9, (1, 1), 2, b"\x01"))),
    "fields": mat(element(14, element(6, struct.pack("<II", 2, 0)) + element(5, struct.pack("<2i", 1, 1)) + element(1, b"s") +
                          struct.pack("<HHI", 5, 4, 8) + element(1, b"name\0\0\0\0") + variable("", 9, (1, 1), 2, b"\x01"))),
}
for name, content in files.items():
    seed("svhn", name, b"\0" + content)
    seed("svhn", f"{name}_packed", b"\1" + content)


def png(width, height, bits, colour, interlaced=0, more=()):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    def rows(columns, lines):
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        size = (columns * channels * bits + 7) // 8
        return b"".join(bytes([y % 5]) + bytes((x * 29 + y) % 256 if colour != 3 else 0 for x in range(size)) for y in range(lines))

    if interlaced:
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
        pixels = b"".join(rows(w, h) for w, h in sizes if w > 0 and h > 0)
    else:
        pixels = rows(width, height)
    packed = zlib.compress(pixels)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)) +
            b"".join(chunk(*c) for c in more) + chunk(b"IDAT", packed[:9]) + chunk(b"IDAT", packed[9:]) + chunk(b"IEND", b""))


palette = ((b"PLTE", bytes(range(48))), (b"tRNS", bytes(range(16))))
pictures = {
    "grey": png(5, 4, 8, 0), "grey1": png(9, 3, 1, 0), "grey16": png(3, 3, 16, 0, more=((b"tRNS", b"\0\x10"),)), "grey_alpha": png(3, 3, 8, 4),
    "rgb": png(4, 5, 8, 2), "rgb16": png(2, 2, 16, 2), "rgba": png(3, 4, 8, 6), "palette": png(4, 4, 4, 3, more=palette),
    "interlaced": png(9, 10, 8, 2, interlaced=1), "interlaced2": png(9, 3, 2, 0, interlaced=1), "thin": png(1, 300, 8, 0),
    "bmp24": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54 + 24, 0, 54, 40, 2, 3, 1, 24, 0, 24, 0, 0, 0, 0) + bytes(range(24)),
    "bmp8": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 62, 40, 3, -2, 1, 8, 0, 8, 0, 0, 2, 0) + bytes(range(8)) + bytes([0, 1, 0, 0] * 2),
    "bmp1": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 62, 40, 3, 2, 1, 1, 0, 8, 0, 0, 2, 0) + bytes(range(8)) + bytes([255, 1, 0, 0] * 2),
    "bmp_old": b"BM" + struct.pack("<IIIIHHHH", 0, 0, 26, 12, 2, 2, 1, 24) + bytes(range(16)),
    "bmp_fields": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 66, 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + struct.pack("<III", 0xf800, 0x7e0, 31) +
                  bytes([1, 2, 3, 4]),
    "bmp_v5": b"BM" + struct.pack("<IIIIiiHHIIiiIIIIII", 0, 0, 138, 124, 1, 2, 1, 32, 3, 8, 0, 0, 0, 0, 0xff0000, 0xff00, 0xff, 0xff000000) +
              bytes(68) + bytes(range(8)),
}
# of 9x9 and 17x9 pixels, by Pillow's writer: grey and in colours, the second of each progressive, the last with restart marks
jpegs = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/wAALCAAJAAkBAR"
    "EA/8QAFwAAAwEAAAAAAAAAAAAAAAAAAAIEBf/EACQQAAEDAQcFAAAAAAAAAAAAAAEAAgQSBRExQURRVIKTwtHw/9oACAEBAAA/ACKxsCC6QQKgLmA5uOH2wKz6p/Mk913tWWro"
    "evxTL//Z",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/wgALCAAJAAkBAR"
    "EA/8QAFwAAAwEAAAAAAAAAAAAAAAAAAAEDBP/aAAgBAQAAAAEz2f8A/8QAGBAAAgMAAAAAAAAAAAAAAAAAAiIAAxD/2gAIAQEAAQUCFAeW5//EABkQAAIDAQAAAAAAAAAAAAAA"
    "AAACEBIykf/aAAgBAQAGPwKxtuiR/8QAGxAAAQQDAAAAAAAAAAAAAAAAAQAQQcERceH/2gAIAQEAAT8hEHlG1nsK2m//2gAIAQEAAAAQD//EABwQAQABBAMAAAAAAAAAAAAAAA"
    "ERABAx8EFRwf/aAAgBAQABPxBUBAgvKxvQ1q3t6//Z",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE"
    "4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCAAJABEDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAEC"
    "/8QAIRAAAQMCBwEAAAAAAAAAAAAAAAECAzFxEhMjM0FhkbH/xAAVAQEBAAAAAAAAAAAAAAAAAAABA//EACARAAIABAcAAAAAAAAAAAAAAAABIUJRkQIREyNBUnH/2gAMAwEAAh"
    "EDEQA/AD9SRGpTmwkXG5GNovwsdZLEh33WCZqgQwt5SKHr5NZUXXoMAjqOruyO53d2f//Z",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE"
    "4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wgARCAAJABEDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAEC"
    "/8QAFQEBAQAAAAAAAAAAAAAAAAAAAQL/2gAMAwEAAhADEAAAAQCsoj//xAAXEAEBAQEAAAAAAAAAAAAAAAABADER/9oACAEBAAEFAtW4RG3/xAAYEQACAwAAAAAAAAAAAAAAAA"
    "AAIjFRgf/aAAgBAwEBPwGMGs//xAAWEQEBAQAAAAAAAAAAAAAAAAAAEkH/2gAIAQIBAT8B1T//xAAVEAEBAAAAAAAAAAAAAAAAAAAQAf/aAAgBAQAGPwJr/8QAGRAAAgMBAAAA"
    "AAAAAAAAAAAAARAAETEh/9oACAEBAAE/IThOjQYbr//aAAwDAQACAAMAAAAQLP8A/8QAGhEAAQUBAAAAAAAAAAAAAAAAAQARIUFxkf/aAAgBAwEBPxCCLVjTa16V/8QAGREAAg"
    "MBAAAAAAAAAAAAAAAAAAERQVGR/9oACAECAQE/ELLCWvrP/8QAHhAAAQMEAwAAAAAAAAAAAAAAAAExcRARIUGRobH/2gAIAQEAAT8QxENuBVppfCPkdA6VP//Z",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE"
    "4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCAAJAAkDAREAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAEC"
    "/8QAHRAAAQQCAwAAAAAAAAAAAAAAAAECAyMxcUFRkf/EABgBAAIDAAAAAAAAAAAAAAAAAAADAQIE/8QAKhEAAgADAREAAAAAAAAAAAAAAAEDBBJxESExMkFDUVJhYoGRobHB0f"
    "D/3QAEAAH/2gAMAwEAAhEDEQA/AD7JEamOdAlSr32j29gQUpeC4jw5LT//0N1dN8EVb76mK7Ma75s//9Gx5k0Vj4ysfZC5vNcfB//SCyD/2Q==",
)
pictures.update({f"jpeg{i}": base64.b64decode(text) for i, text in enumerate(jpegs)})
for i, (name, content) in enumerate(pictures.items()):
    seed("picture", name, bytes([i % 8]) + content)

# ---- tensors ----


def safetensors(tensors, metadata=None):
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


floats = struct.pack("<4f", 1, -2, 3e30, float("nan"))
config = read(os.path.join(OLD_RUN, "config.json"))
seed("safetensors", "weights", safetensors({"module.conv.weight": ("F32", [2, 2], floats), "n": ("I64", [], struct.pack("<q", 7))},
                                           {"config": '{"seed": 1}', "progress": '{"iteration": 3}'}))
seed("safetensors", "types", safetensors({"a": ("F64", [1], bytes(8)), "b": ("BF16", [2], b"\x80\x3f\0\0"), "c": ("F16", [1, 1], b"\0\x3c"),
                                          "d": ("U8", [3], b"abc"), "e": ("I32", [1], bytes(4)), "f": ("U32", [1], b"\xff" * 4),
                                          "g": ("BOOL", [1], b"\1"), "h": ("F32", [0, 7], b"")}, {}))
seed("safetensors", "none", safetensors({}, None))
size, count, rank = 2, 9, 1
statistics = {"count": ("I64", [1], struct.pack("<q", count)), "mean": ("F64", [size], bytes(8 * size)),
              "covariance": ("F64", [size, size], struct.pack("<4d", 1, 0, 0, 1)), "factor": ("F64", [rank, size], struct.pack("<2d", 1, 0))}
form = {"form": "jem_engine reference statistics 1", "key": "", "checksum": ""}
seed("features", "statistics", b"\0" + safetensors(statistics, form))
seed("features", "plausible", b"\1" + safetensors(statistics, form))

# ---- text ----

seed("settings", "run", config)
EXAMPLES = os.path.join(ROOT, "docs", "examples")
for name in os.listdir(EXAMPLES):
    seed("settings", name, read(os.path.join(EXAMPLES, name)))
seed("settings", "method", json.dumps({"recipe": "dat", "method": {
    "running_statistics": True, "nesterov": True, "chains_take_labels": True, "attacks_start_apart": False, "steps": [
        {"term": "a", "batch": "real", "objectives": [{"name": "binary-energy-real", "weight": "p_x_weight"}]},
        {"chain": "b", "climbs": "class-logit", "stepper": "normalised", "evaluation_mode": True},
        {"term": "c", "batch": "chain", "objectives": [{"name": "binary-energy-sampled", "weight": "p_x_weight"}], "head": "lse"},
        {"chain": "d", "makes": "labelled-chain", "climbs": "class-logit"},
        {"term": "e", "batch": "labelled-chain", "objectives": [{"name": "adversarial-cross-entropy", "weight": 1e-3}]}]}}))
seed("settings", "recipe", '{"recipe": "softmax", "split_seed": 3, "gen_augment": "flip", "init": "gaussian", "lr_milestones": [1, 2]}')
names = json.loads(config)
for key, value in names.items():
    seed("settings", key, json.dumps({key: value}))
device = {"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "multiProcessorCount": 132,
          "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
          "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0,
          "isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 85029158912, "smClockRateKHz": 1980000, "memClockRateKHz": 2619000,
          "l2CacheSize": 52428800, "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000, "deviceName": "a GPU", "bandwidth": 3.35e12,
          "flopsF32": 67e12, "flopsTF32": 4e14, "flopsBF16": 9e14}
seed("gpu", "all", json.dumps(device))
seed("gpu", "few", json.dumps({key: value for key, value in device.items() if key in ("maxGridSize", "deviceName", "flopsF32")}))
plans = {"gpu | 1 | conv": {"choice": "engine 3", "seconds": 1e-5}, "other | 2 | conv": {"choice": "", "seconds": 0}}
seed("choices", "two", json.dumps({"format": 2, "choices": plans}))
seed("choices", "none", json.dumps({"format": 2, "choices": {}}))
seed("metrics", "log", read(os.path.join(OLD_RUN, "metrics.jsonl"))[:1500])
seed("metrics", "lines", '{"iteration": 1}\n{"iteration": 9}\n{"event": "x", "iteration": 2, "values": [1, null]}\n{"iteration": 3')
seed("metrics", "config", config)
seed("journal", "pieces", '{"of":"these weights"}\n{"piece":"one","values":[1,null,1e300]}\n{"piece":"two","values":[]}\n{"piece":"cut')
seed("journal", "others", '{"of":"other weights"}\n{"piece":"one","values":[1]}\n')
