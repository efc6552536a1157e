"""What must have become of the demo's conversions: the gateway's word, Kafka's, ClickHouse's, the bucket's, and what plays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compose.demo.clip import Media

#: The containers and codecs that jobs ask for, as ffmpeg names them: container, sound, picture.
WANTED = {"mp4": ("mov,mp4,m4a,3gp,3g2,mj2", "aac", "h264"), "mp3": ("mp3", "mp3", None)}
#: Containers round, and encoders fill up their last frame.
SECONDS_OFF = 0.5
COMPLETED = "JobCompleted"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """A result as it came by its link."""

    media: Media
    size_bytes: int
    md5: str


@dataclass(frozen=True)
class FoundFiles:
    """Conversions, by job, as the gateway tells of them, `file_jobs`, what was downloaded, the keys below `converted/`, and
    the final events in Kafka."""

    states: Mapping[str, Row] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    results: Mapping[str, Result] = field(default_factory=dict)
    objects: frozenset[str] = frozenset()
    ends: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def row(self, job_id: str) -> Row:
        """A job's row in `file_jobs`, empty if it has none."""
        return next((row for row in self.rows if row["job_id"] == job_id), {})

    @property
    def winners(self) -> frozenset[str]:
        """The keys of results, by the gateway's word."""
        return frozenset(state["r2_key"] for state in self.states.values() if state.get("r2_key"))


def file_differences(jobs: Mapping[str, str], source: Media, found: FoundFiles) -> list[str]:
    """What is wrong, a line each: every job (its format by its id) is to be completed once, though its worker was killed,
    with a result that plays as long as its source."""
    counts = Counter(row["job_id"] for row in found.rows)
    problems = [f"{job_id}: file_jobs has it, and nobody submitted it" for job_id in counts if job_id not in jobs]
    for job_id, format in jobs.items():
        name = f"{format} ({job_id})"
        if counts[job_id] != 1:
            problems.append(f"{name}: file_jobs has {counts[job_id]} rows of it, not 1")
        if (ends := list(found.ends.get(job_id, ()))) != [COMPLETED]:
            problems.append(f"{name}: files.progress.v1 has the ends {ends}, not one {COMPLETED}")
        problems += [
            f"{name}: {what} is {is_!r}, not {due!r}"
            for what, (is_, due) in _facts(job_id, format, source, found).items()
            if is_ != due
        ]
    if not any(row.get("lost_attempts") for row in found.rows):
        problems.append("the end of their worker has interrupted no conversion")
    problems += [f"{key}: lies in the bucket, and is no job's result" for key in sorted(found.objects - found.winners)]
    problems += [f"{key}: is a job's result, and not in the bucket" for key in sorted(found.winners - found.objects)]
    return problems


def _facts(job_id: str, format: str, source: Media, found: FoundFiles) -> dict[str, tuple[Any, Any]]:
    state, row, result = found.states.get(job_id, {}), found.row(job_id), found.results.get(job_id)
    facts: dict[str, tuple[Any, Any]] = {"the gateway's status": (state.get("status"), "completed")}
    if row:
        facts["file_jobs.status"] = (row["status"], "completed")
        facts["file_jobs.r2_key"] = (row["r2_key"], state.get("r2_key"))
    if result is None:
        return {**facts, "the result": (None, "what its link leads to")}
    for whose, told in (("the gateway's", state), ("file_jobs'", row)):
        if told:
            facts[f"{whose} size_bytes"] = (told.get("size_bytes"), result.size_bytes)
            facts[f"{whose} checksum"] = (told.get("checksum"), result.md5)
            facts[f"{whose} duration_ms / 1000"] = _length(told.get("duration_ms", 0) / 1_000, source)
    media = result.media
    facts["container, sound and picture"] = ((media.container, media.audio, media.video), WANTED[format])
    facts["its length in seconds"] = _length(media.seconds, source)
    return facts


def _length(seconds: float, source: Media) -> tuple[float, float]:
    """What is near enough to the source's is as good as that."""
    near = abs(seconds - source.seconds) <= SECONDS_OFF
    return (source.seconds if near else seconds), source.seconds
