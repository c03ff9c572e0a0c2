"""Decoding JPEG frames by the libraries at hand, on one core, interleaved in one run: python benchmarks/jpeg.py"""

import io
import itertools
import statistics
import time

import cv2
import numpy as np
from PIL import Image

from physion.data.shards import decode_jpeg, encode_frames
from physion.simulation import make_clip

ROUNDS = 9
SIZES = (64, 128)
LIBRARIES = {
    "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data))),
    "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
    "simplejpeg (ours)": decode_jpeg,
}


def main():
    cv2.setNumThreads(1)
    print("| pixels | library | frames/s of CPU time | against Pillow | largest difference |\n|---|---|---|---|---|")
    for size in SIZES:
        encoded = encode_frames(make_clip("Collide", 0, 0, size=size, antialias=2).frames, 95)
        data = encoded["jpeg"].tobytes()
        frames = [data[start:end] for start, end in itertools.pairwise(encoded["offsets"])]
        seconds = {name: [] for name in LIBRARIES}
        for _ in range(ROUNDS):
            for name, decode in LIBRARIES.items():
                started = time.process_time()
                for frame in frames:
                    decode(frame)
                seconds[name].append(time.process_time() - started)
        for name, decode in LIBRARIES.items():
            ratio = statistics.median(a / b for a, b in zip(seconds["Pillow"], seconds[name], strict=True))
            rate = len(frames) / statistics.median(seconds[name])
            difference = max(int(np.abs(decode(f).astype(int) - LIBRARIES["Pillow"](f)).max()) for f in frames)
            print(f"| {size} | {name} | {rate:,.0f} | {ratio:.1f}x | {difference} |", flush=True)


if __name__ == "__main__":
    main()
