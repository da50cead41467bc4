"""Makes the data file of ``spoken_digits.py`` from a folder of Free Spoken Digit Dataset recordings.

    python examples/make_spoken_digits.py free-spoken-digit-dataset/recordings spoken_digits.npz

Recordings are 8 kHz mono 16-bit wav files named {digit}_{speaker}_{take}.wav. Each becomes 100 frames of 10 ms (cut or
padded with silence) with 40 log-mel channels from 60 to 4000 Hz.
"""

from __future__ import annotations

import argparse
import math
import re
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE, WINDOW, HOP = 8000, 256, 80
FRAMES, CHANNELS = 100, 40
LOWEST, HIGHEST = 60.0, 4000.0
FLOOR = 1e-4
NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")


def read_wav(path: Path) -> NDArray[np.float64]:
    """Returns the samples of a mono 16-bit recording at 8 kHz, in -1 to 1."""
    with wave.open(str(path), "rb") as recording:
        shape = (recording.getframerate(), recording.getnchannels(), recording.getsampwidth())
        if shape != (RATE, 1, 2):
            raise ValueError(f"{path.name} is not 8000 Hz, mono, 16 bit but (rate, channels, bytes) = {shape}")
        samples = np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2")
    return samples.astype(np.float64) / 32768.0


def mel_filters() -> NDArray[np.float64]:
    """Returns triangular filters [channels, frequencies], equally wide on the mel scale 2595 log10(1 + f / 700)."""
    lowest, highest = (2595.0 * math.log10(1.0 + frequency / 700.0) for frequency in (LOWEST, HIGHEST))
    corners = 700.0 * (10.0 ** (np.linspace(lowest, highest, CHANNELS + 2) / 2595.0) - 1.0)
    frequencies = np.fft.rfftfreq(WINDOW, 1.0 / RATE)
    low, middle, high = (corners[k : k + CHANNELS, None] for k in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters


def log_mel(samples: NDArray[np.float64], filters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns log(power + floor) - log(floor), [frames, channels], 0 where it is silent."""
    needed = (FRAMES - 1) * HOP + WINDOW
    samples = np.pad(samples[:needed], (0, max(0, needed - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP][:FRAMES]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)) ** 2
    result: NDArray[np.float64] = np.log(power @ filters.T + FLOOR) - np.log(FLOOR)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the npz file and returns the number of recordings in it."""
    parser = argparse.ArgumentParser(description="Log-mel features of the Free Spoken Digit Dataset.")
    parser.add_argument("recordings", type=Path, help="folder of {digit}_{speaker}_{take}.wav files")
    parser.add_argument("output", type=Path, help="npz file to write")
    options = parser.parse_args(argv)
    found = [(path, match) for path in sorted(options.recordings.glob("*.wav")) if (match := NAME.fullmatch(path.name))]
    if not found:
        parser.error(f"{options.recordings} holds no files named like 7_jackson_32.wav")
    speakers = sorted({match[2] for _, match in found})
    filters = mel_filters()
    features = np.stack([log_mel(read_wav(path), filters) for path, _ in found])
    np.savez_compressed(
        options.output,
        features=np.round(features / max(features.max(), 1e-12) * 255).astype(np.uint8),
        digit=np.array([int(match[1]) for _, match in found], dtype=np.uint8),
        speaker=np.array([speakers.index(match[2]) for _, match in found], dtype=np.uint8),
        take=np.array([int(match[3]) for _, match in found], dtype=np.uint8),
    )
    print(f"{len(found)} recordings of {len(speakers)} speakers ({', '.join(speakers)}) written to {options.output}")
    return len(found)


if __name__ == "__main__":
    main()
