"""The demo's sound: recorded speech where the data folder beside the repository has it, else what ffmpeg makes up."""

from __future__ import annotations

from pathlib import Path

from compose.ffmpeg import ffmpeg

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


async def speech_file(name: str, folder: Path, data: Path = DATA) -> Path:
    """The recording of this name, or one made in `folder`. Raises FfmpegFailed."""
    recorded = data / name
    if recorded.is_file():
        return recorded
    made = folder / f"made-up-{MADE_S[name]}s.wav"
    await _run("-f", "lavfi", "-i", f"{_SOUND}{MADE_S[name]}", str(made))
    return made


async def opus_file(source: Path, folder: Path) -> Path:
    """A file's sound as Opus in one channel, made in `folder`. Raises FfmpegFailed."""
    made = folder / f"{source.stem}.opus"
    await _run("-i", f"file:{source}", "-map", "0:a:0", "-ac", "1", "-c:a", "libopus", str(made))
    return made


async def _run(*arguments: str) -> None:
    async with ffmpeg("-y", *arguments) as running:
        await running.check()
