"""Spoken words to spike trains, as ST-RSBP's authors prepared TI46: Lyon's ear model, then BSA; 78 trains a recording.

    pip install 'snn-rules[speech]'
    python benchmarks/audio_to_spikes.py recordings data
    snn-rules train --rule strsbp --dataset spoken-digits --data-root data --network 200-10 --T 300

The first folder holds wavs named LABEL_SPEAKER_INDEX.wav, as those of the Free Spoken Digit Dataset; `--name` is the pattern of
other names. Recordings with an index below 5 are for the test, that data set's own split. What is known of the authors' front
end is the ear and the encoder; rates, filter and threshold here are ours.
"""

import re
from pathlib import Path
from typing import Annotated

import lyon.calc
import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from scipy.io import wavfile
from scipy.signal import resample_poly
from scipy.signal.windows import gaussian

from snn_rules.events import SPOKEN

RATE, DECIMATION = 12_500, 200  # Hz; samples a frame of the ear model: 78 channels, 62.5 frames a second
GAIN, HOLD = 2000, 10  # of the ear's output, which is small; steps a frame
FILTER, THRESHOLD = gaussian(24, 4.0) / gaussian(24, 4.0).sum(), 0.6


def main(
    recordings: Annotated[Path, typer.Argument(help="Folder of the wavs, at any depth.")],
    data_root: Annotated[Path, typer.Argument(help=f"Where to write {SPOKEN}, for --data-root.")],
    name: Annotated[str, typer.Option(help="Regular expression of a file's name, with the groups label, speaker and index.")] = (
        r"(?P<label>\d+)_(?P<speaker>[^_]+)_(?P<index>\d+)"
    ),
    test: Annotated[int, typer.Option(help="Recordings with a smaller index are for the test.")] = 5,
) -> None:
    """Turn recordings of spoken words into the file of spike trains that the data set spoken-digits is read from."""
    found = [(path, re.fullmatch(name, path.stem)) for path in sorted(recordings.rglob("*.wav"))]
    matched = [(path, match) for path, match in found if match]
    if not matched:
        raise SystemExit(f"audio_to_spikes: {len(found)} wavs beneath {str(recordings)!r}, none named {name!r}; pass another folder, or --name")
    ear = lyon.calc.LyonCalc()
    trains = [encode(*wavfile.read(path), ear) for path, _ in track(matched, description="listening")]
    index = np.array([int(match["index"]) for _, match in matched])
    data_root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        data_root / SPOKEN,
        spikes=np.packbits(np.concatenate(trains), axis=1),
        offsets=np.cumsum([0, *map(len, trains)]),
        labels=np.array([int(match["label"]) for _, match in matched]),
        speaker=np.array([match["speaker"] for _, match in matched]),
        index=index,
        test=index < test,
    )
    mean = np.mean([train.sum() for train in trains])
    typer.echo(f"{len(trains)} recordings of {np.mean([*map(len, trains)]):.0f} steps and {mean:.0f} spikes on average; wrote {data_root / SPOKEN}")


def encode(rate: int, sound: NDArray[np.int16], ear: lyon.calc.LyonCalc) -> NDArray[np.uint8]:
    """`[steps, 78]` spikes of a 16-bit sound, one channel."""
    up, down = RATE // (common := np.gcd(RATE, rate)), rate // common
    heard = ear.lyon_passive_ear(resample_poly(sound / 2**15, up, down), RATE, DECIMATION)
    return bsa(np.repeat(GAIN * heard, HOLD, axis=0))


def bsa(signal: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Spikes whose filtered sum is the signal `[steps, channels]` (Schrauwen, Van Campenhout 2003).

    At each step, a spike is sent where taking the filter away brings what is left nearer to zero, by more than the threshold.
    """
    left = signal.copy()
    spikes = np.zeros(signal.shape, np.uint8)
    for t in range(len(signal)):
        ahead = left[t : t + len(FILTER)]
        h = FILTER[: len(ahead), None]
        spikes[t] = np.abs(ahead - h).sum(0) <= np.abs(ahead).sum(0) - THRESHOLD
        ahead -= h * spikes[t]
    return spikes


if __name__ == "__main__":
    typer.run(main)
