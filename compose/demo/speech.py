"""The demo's sound: recorded speech where the data folder beside the repository has it, else what ffmpeg makes up."""

from __future__ import annotations

import subprocess
from pathlib import Path

from compose.audiofile import AudioFileError, ffmpeg_path

DATA = Path(__file__).parents[3] / "shared" / "data"
LONG = "speech_60s_16k_mono.wav"
SHORT = "speech_11s.flac"
MADE_S = {LONG: 30, SHORT: 11}
#: A voice of 115 Hz whose pitch wanders, with overtones, in syllables two a second and pauses between phrases, and some hiss.
_VOICE = (
    "(sin(2*PI*115*t+9*sin(2*PI*0.7*t))+0.6*sin(2*PI*240*t)+0.4*sin(2*PI*720*t)+0.3*sin(2*PI*1180*t))"
    "*max(0\\,sin(2*PI*2.1*t))*gt(mod(t\\,4)\\,0.7)"
)
_SOUND = f"aevalsrc=exprs='0.25*{_VOICE}+0.01*(random(0)-0.5)':s=16000:d="


def speech_file(name: str, folder: Path, data: Path = DATA) -> Path:
    """The recording of this name, or one made in `folder`. Raises AudioFileError."""
    recorded = data / name
    if recorded.is_file():
        return recorded
    made = folder / f"made-up-{MADE_S[name]}s.wav"
    command = [
        ffmpeg_path(),
        "-nostdin",
        "-v",
        "error",
        "-y",
        "-f",
        "lavfi",
        "-i",
        f"{_SOUND}{MADE_S[name]}",
        str(made),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AudioFileError(f"ffmpeg made no sound: {done.stderr.strip()[-300:]}")
    return made
