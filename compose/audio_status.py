"""What `sluiceway status` says of audio: figures of all its workers and of the local gateway, beside their limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from compose.figures import bucket_quantile, buckets, total
from streams.audio.figures import HANDLING_LIMIT_S, MEMORY_SHARE_MAX, UPLOAD_SUCCESS_MIN, upload_success
from streams.web.metrics import DURABLE_LIMIT_S, RESPONSE_LIMIT_S

_MB = 1e6


def gateway_figures(metrics: str) -> dict[str, Any]:
    """A gateway's audio figures, from its metrics; times in seconds, None where nothing was measured."""
    durable = buckets(metrics, "sluiceway_gateway_audio_durable_seconds")
    asked = buckets(
        metrics, "sluiceway_gateway_request_seconds", lambda labels: labels["route"].startswith("/api/audio/")
    )
    return {
        "audio_connections": int(total(metrics, "sluiceway_gateway_audio_sockets")),
        "audio_connections_limit": int(total(metrics, "sluiceway_gateway_audio_sockets_limit")),
        "audio_chunks": int(total(metrics, "sluiceway_gateway_audio_frames_total")),
        "durable_p50_s": bucket_quantile(durable, 0.50),
        "durable_p99_s": bucket_quantile(durable, 0.99),
        "durable_limit_s": DURABLE_LIMIT_S,
        "response_p50_s": bucket_quantile(asked, 0.50),
        "response_p99_s": bucket_quantile(asked, 0.99),
        "response_limit_s": RESPONSE_LIMIT_S,
    }


def worker_figures(workers: Sequence[dict[str, Any]], metrics: Sequence[str] = ()) -> dict[str, Any] | None:
    """Audio's figures of all partitions together, and each worker's memory; `workers` as they answer at `/status`,
    `metrics` as those of audio do at `/metrics`. None without a worker of audio."""
    audio = [worker for worker in workers if worker["stream"] == "audio"]
    if not audio:
        return None
    sums = Counter[str]()
    for worker in audio:
        for part in worker["partitions"]:
            sums.update(part["figures"])
    ended = sums["sessions_ended"]
    handling = Counter[float]()
    for text in metrics:
        handling.update(buckets(text, "sluiceway_handling_seconds"))
    return {
        "sessions_live": int(sums["sessions_open"] + sums["sessions_closing"]),
        "sessions_refused": int(sums["outcome_refused"]),
        "sessions_deferred": int(sums["sessions_deferred"]),
        "session_mean_s": round(sums["session_ms"] / ended / 1000, 3) if ended else None,
        "segments_stored": int(sums["outcome_stored"]),
        "segments_failed": int(sums["outcome_failed"]),
        "recordings_made": int(sums["outcome_recorded"]),
        "recordings_failed": int(sums["outcome_unrecorded"]),
        "upload_success": upload_success(sums),
        "upload_success_limit": UPLOAD_SUCCESS_MIN,
        "integrity_failures": int(sums["integrity_failures"]),
        "handling_p50_s": bucket_quantile(handling, 0.50),
        "handling_p99_s": bucket_quantile(handling, 0.99),
        "handling_limit_s": HANDLING_LIMIT_S,
        "memory_limit": MEMORY_SHARE_MAX,
        "memory": [memory for worker in audio if (memory := _memory(worker))],
    }


def _memory(worker: dict[str, Any]) -> dict[str, Any] | None:
    # Each of a worker's partitions tells the same of their common memory.
    told = next((part["figures"] for part in worker["partitions"] if part["figures"]), None)
    return told and {
        "pid": worker["pid"],
        "held_bytes": int(told["worker_held_bytes"]),
        "promised_bytes": int(told["worker_reserved_bytes"]),
        "budget_bytes": int(told["worker_budget_bytes"]),
        "share": round(told["worker_memory_share"], 4),
        "high": bool(told["worker_memory_high"]),
    }


def gateway_line(gateway: dict[str, Any]) -> str:
    """The gateway's figures as text; what is beyond a limit is marked up."""
    taken = f"{gateway['audio_connections']:,} of {gateway['audio_connections_limit']:,} audio connections"
    said = [_timed("from a chunk to Kafka", gateway, "durable"), _timed("questions answered in", gateway, "response")]
    return "; ".join([f"gateway: {taken}", *filter(None, said)])


def _timed(what: str, gateway: dict[str, Any], name: str) -> str:
    if gateway[f"{name}_p99_s"] is None:
        return ""
    p50_ms, p99_ms, limit_ms = (gateway[f"{name}_{which}_s"] * 1000 for which in ("p50", "p99", "limit"))
    return f"{what} {p50_ms:.0f} ms (p50), {p99_ms:.0f} ms (p99, {_verdict(p99_ms < limit_ms, f'{limit_ms:.0f} ms')})"


def worker_lines(audio: dict[str, Any]) -> list[str]:
    """The workers' figures as text; what is beyond a limit is marked up."""
    sessions = [f"{audio['sessions_live']:,} live"]
    if audio["session_mean_s"] is not None:
        sessions.append(f"{_length(audio['session_mean_s'])} long on average")
    if audio["sessions_deferred"]:
        sessions.append(f"{audio['sessions_deferred']:,} read from Kafka for want of memory")
    sessions.append(f"{audio['sessions_refused']:,} refused")
    uploads = [
        f"{audio['segments_stored']:,} segments and {audio['recordings_made']:,} recordings stored",
        f"{audio['segments_failed'] + audio['recordings_failed']:,} failed",
    ]
    if (success := audio["upload_success"]) is not None:
        limit = audio["upload_success_limit"]
        # Rounded down: what is below the limit must not read as if it met it.
        shown = int(success * 1e5) / 1e3
        uploads[-1] += f" ({shown:g} % success, {_verdict(success >= limit, f'{limit:.1%}', 'below')})"
    damaged = audio["integrity_failures"]
    uploads.append(f"[bold]{damaged:,} integrity failures[/bold]" if damaged else "no integrity failure")
    lines = [f"audio: sessions {', '.join(sessions)}", f"audio: {', '.join(uploads)}"]
    if handling := _timed("from a fetch to folded", audio, "handling"):
        lines.append(f"audio: {handling}")
    for memory in audio["memory"]:
        held, promised, budget = (memory[f"{name}_bytes"] / _MB for name in ("held", "promised", "budget"))
        verdict = _verdict(not memory["high"], f"{audio['memory_limit']:.0%}")
        lines.append(
            f"audio: worker {memory['pid']} holds {held:,.1f} MB and has promised {promised:,.1f} MB of {budget:,.1f} MB "
            f"({memory['share']:.0%}, {verdict})"
        )
    return lines


def _verdict(met: bool, limit: str, missed: str = "above") -> str:
    return f"within the limit of {limit}" if met else f"[bold]{missed} the limit of {limit}[/bold]"


def _length(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
