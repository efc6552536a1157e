"""Every setting, its default and its meaning: the only reader of the environment (`SLUICEWAY_*`)."""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

PREFIX = "SLUICEWAY_"
LOG_LEVELS = ("debug", "info", "warning", "error")
#: Endpoint and model of AI tasks, by name.
AI_PRESETS = {
    "stand-in": ("http://127.0.0.1:8090/v1", "stand-in"),
    "siliconflow": ("https://api.siliconflow.cn/v1", "Pro/deepseek-ai/DeepSeek-R1"),
}


class SettingError(ValueError):
    """A setting that cannot be used; the message names the variable and what to do."""


def _s(default: Any, help: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One immutable set of settings, made by `load` and passed down by compose."""

    # where things are
    data_dir: Path = _s(Path(".sluiceway"), "folder of the local stack, spilled ids and locks")
    cache_dir: Path = _s(Path("~/.cache/sluiceway"), "folder of what the local stack downloads once")
    kafka_bootstrap: str = _s("127.0.0.1:9092", "Kafka bootstrap servers, comma-separated")
    kafka_security_protocol: str = _s("PLAINTEXT", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    kafka_sasl_mechanism: str = _s("PLAIN", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, with a SASL protocol")
    kafka_username: str = _s("", "SASL user")
    kafka_password: str = _s("", "SASL password", secret=True)
    clickhouse_url: str = _s("http://127.0.0.1:8123", "ClickHouse HTTP endpoint")
    clickhouse_user: str = _s("default", "ClickHouse user")
    clickhouse_password: str = _s("", "ClickHouse password", secret=True)
    clickhouse_database: str = _s("sluiceway", "database of all tables and views")
    s3_endpoint: str = _s("http://127.0.0.1:9000", "S3 endpoint; for R2 https://<account>.r2.cloudflarestorage.com")
    s3_bucket: str = _s("sluiceway", "bucket of all objects")
    s3_access_key: str = _s("sluiceway", "S3 access key id")
    s3_secret_key: str = _s("sluiceway-secret", "S3 secret access key", secret=True)
    s3_region: str = _s("auto", "S3 region; R2 wants auto")

    s3_cors_origins: str = _s(
        "", "origins whose pages may use presigned URLs, comma-separated; set on the bucket at start"
    )
    public_base_url: str = _s("", "own domain or CDN before the bucket, to which download links then lead")
    public_link_secret: str = _s("", "key of the timed token on links to that domain; open links without", secret=True)

    # listening
    gateway_host: str = _s("127.0.0.1", "address the gateway listens on; off loopback an API key is required")
    gateway_port: int = _s(8080, "port of the gateway")
    api_key: str = _s("", "key that clients send as `Authorization: Bearer ...`", secret=True)
    worker_host: str = _s("127.0.0.1", "address a worker's status port listens on")
    worker_port: int = _s(
        0, "port of a worker's status page, further streams take the next; 0 takes free ones, announced"
    )

    # topics
    partitions: int = _s(4, "partitions of the source topics when they are made")
    replication_factor: int = _s(1, "replication factor of topics when they are made")
    traffic_retention_h: int = _s(168, "retention of traffic.events.v1, hours")
    deadletter_retention_h: int = _s(720, "retention of dead-letter topics, hours")
    max_record_bytes: int = _s(1_048_576, "largest record of the traffic topic, bytes")

    # the runtime
    flush_interval_s: float = _s(0.5, "a partition's open fold is flushed at least this often, seconds")
    flush_rows: int = _s(50_000, "a partition is flushed early at this many open rows; one of many KiB counts as many")
    unwritten_mb: int = _s(
        256, "rows of tasks and jobs that ClickHouse has not, of all workers; past it no more is read, MB"
    )
    flush_deadline_s: float = _s(7.5, "a flush at revoke or shutdown is abandoned past this, seconds")
    transaction_timeout_s: float = _s(10.0, "Kafka's transaction time-out, seconds")
    session_timeout_s: float = _s(10.0, "Kafka's group session time-out, seconds")
    watchdog_s: float = _s(60.0, "a partition that stands still this long behind its end stops the worker, seconds")

    # traffic
    traffic_lateness_h: int = _s(72, "an event older than the partition's clock by more than this is refused, hours")
    traffic_dedup_h: int = _s(72, "how long an event id is remembered, hours; not below the lateness")
    traffic_early_h: int = _s(24, "an event ahead of its append time by more than this is refused, hours")
    traffic_templates: bool = _s(False, "fold ids, UUIDs and hashes in paths to {id}")
    traffic_paths_max: int = _s(10_000, "distinct paths per partition and hour; more are counted under {other}")
    traffic_dimensions: str = _s("", "up to 3 names of `dimensions` to roll up by, comma-separated")
    traffic_hot_days: int = _s(3, "days that traffic_events keeps rows, by event time")
    dedup_memory_mb: int = _s(512, "a worker's memory for event ids; more spill to the data folder, MB")
    rollup_interval_s: float = _s(0.7, "changed rollups are written to ClickHouse this often, seconds")

    # file conversion
    files_retention_h: int = _s(168, "retention of files.jobs.v1, hours")
    files_events_retention_h: int = _s(168, "retention of files.progress.v1, hours")
    files_concurrency: int = _s(8, "conversions at once, of all workers together; at least one a partition")
    files_per_user: int = _s(2, "conversions of one user at once, a partition")
    files_waiting: int = _s(1_000, "conversions of one user that may wait, a partition; further ones are refused")
    files_retries: int = _s(2, "how often a conversion is made again after an error that may pass")
    files_progress_s: float = _s(1.0, "a conversion's progress is told this often at most, seconds")
    files_url_s: int = _s(3_600, "how long the signed URLs of a conversion are good, at most 604800, seconds")
    files_sweep_s: float = _s(
        4_500.0, "what attempts have left is removed at a job's end and again so long after, seconds"
    )
    files_parts_above_mb: int = _s(100, "a source of more may give a result that is uploaded in parts, MB")
    files_part_mb: int = _s(16, "parts of a result, at least 5 MB")
    files_urls: bool = _s(False, "sources may be http(s) URLs, at public addresses")
    files_url_networks: str = _s("", "networks that such URLs may lead to though they are not public, as 10.1.0.0/16")
    files_remember_h: float = _s(168.0, "how long an ended job is known to its worker, hours; ClickHouse keeps it")
    converter_url: str = _s("", "converter service that workers ask; without one each converts in processes of its own")
    converter_key: str = _s("", "key of the converter service; off loopback it is required", secret=True)
    converter_host: str = _s("127.0.0.1", "address the converter service listens on")
    converter_port: int = _s(8091, "port of the converter service")
    converter_slots: int = _s(2, "conversions of one converter, and of one worker, at once; further ones wait")
    converter_source_mb: int = _s(2048, "largest source of a conversion, MB")
    converter_result_mb: int = _s(2048, "largest result of a conversion, MB")
    converter_duration_h: float = _s(4.0, "how long a source may play, hours")
    converter_cpu_s: int = _s(3600, "CPU time of one conversion, seconds")
    converter_memory_mb: int = _s(2048, "memory of one conversion, MB")
    converter_wall_s: float = _s(1800.0, "how long ffmpeg may take over one conversion, seconds")
    converter_transfer_s: float = _s(600.0, "how long a source or a result may be on its way, seconds")
    converter_threads: int = _s(2, "threads of one conversion")

    # uploads of clients' own files
    upload_parts_above_mb: int = _s(64, "a client's file of more goes up in parts, MB")
    upload_part_mb: int = _s(16, "parts of a client's file, at least 5 MB")
    upload_url_s: int = _s(3_600, "how long a client has for its upload, at most 604800, seconds")
    files_relay: bool = _s(
        False, "serve POST /api/relay, an upload through the gateway; to compare, for demonstrations"
    )
    files_relays: int = _s(2, "files relayed at once; further ones are refused")

    # audio
    audio_retention_h: int = _s(24, "retention of audio.chunks.v1, hours")
    audio_events_retention_h: int = _s(168, "retention of audio.segments.v1, hours")
    audio_upload_after_s: float = _s(60.0, "a segment holds so much audio, and no chunk waits longer for one, seconds")
    audio_silence_s: float = _s(30.0, "what is there is stored after so long without a chunk, seconds")
    audio_session_idle_s: float = _s(600.0, "a session ends by itself after so long without a chunk, seconds")
    audio_reorder_s: float = _s(2.0, "the newest audio that is kept out of a segment, for late chunks to join, seconds")
    audio_remember_h: float = _s(24.0, "how long an ended session's id cannot be opened again, hours")
    audio_window_s: float = _s(120.0, "the window of a session of tier standard, seconds")
    audio_premium_window_s: float = _s(300.0, "the window of a session of tier premium, seconds")
    audio_memory_mb: int = _s(
        0, "a worker's memory for audio, 200 bytes a chunk with it; 0 takes a quarter of the machine's, MB"
    )
    audio_keep_segments: bool = _s(False, "leave a session's segments beside its recording")
    audio_uploads: int = _s(4, "segments of a worker on their way at once")
    audio_recordings: int = _s(4, "recordings of a worker made at once; each takes about four parts of memory")
    audio_attempts: int = _s(20, "attempts to store a segment before it becomes a dead letter")
    audio_attempt_s: float = _s(30.0, "how long one attempt may take, seconds")
    audio_part_mb: int = _s(8, "parts of a recording, at least 5 MB")
    audio_ping_s: float = _s(15.0, "audio connections are pinged this often, and ended when two go unanswered, seconds")
    audio_connection_idle_s: float = _s(300.0, "an audio connection is ended after so long without a chunk, seconds")
    audio_resume_s: float = _s(30.0, "how long a new audio connection waits for its session's worker, seconds")
    audio_write_s: float = _s(10.0, "an audio client that takes nothing for so long is cut off, seconds")
    audio_connections: int = _s(2_000, "audio connections of a gateway at once; further ones are told to come again")
    audio_unconfirmed_kb: int = _s(1024, "audio of one connection that may wait for Kafka before no more is read, kB")
    audio_link_h: int = _s(24, "how long the link to a recording is good, at most 168, hours")

    storage_price_per_gb_month: float = _s(
        0.015, "price of a GB (10^9 bytes) in the object store for a month; R2's in USD"
    )

    # the model of AI tasks
    ai_preset: str = _s("stand-in", "endpoint and model of AI tasks: stand-in (the local stack's) or siliconflow")
    ai_base_url: str = _s("", "endpoint of the models, any that speaks OpenAI's protocol; empty takes the preset's")
    ai_api_key: str = _s("", "key of that endpoint", secret=True)
    ai_model: str = _s("", "model of AI tasks; empty takes the preset's")
    ai_models: str = _s("", "further models that a task may name, comma-separated")
    ai_task_models: str = _s("", "models of single task types, as summary=NAME, comma-separated")
    ai_prices: str = _s("", "prices of a million tokens, as NAME=PROMPT/COMPLETION, comma-separated")
    ai_probe_again_s: float = _s(
        600.0, "that a model does not stream its answers is tried again after so long, seconds"
    )
    ai_webhook_networks: str = _s("", "networks that webhooks may reach though they are not public, as 10.1.0.0/16")
    ai_webhook_secret: str = _s("", "key by which webhooks are signed, any text or whsec_ and base64", secret=True)

    # AI tasks
    ai_retention_h: int = _s(168, "retention of ai.tasks.v1, hours")
    ai_events_retention_h: int = _s(168, "retention of ai.results.v1, hours")
    ai_flush_interval_s: float = _s(0.1, "as SLUICEWAY_FLUSH_INTERVAL_S, for AI tasks: their answers are watched")
    ai_block_s: float = _s(0.2, "what a model says within this time is told as one block, seconds")
    ai_batch_size: int = _s(3, "tasks of a batch, which begin together")
    ai_batch_wait_s: float = _s(30.0, "a batch that is not full begins after so long, seconds")
    ai_eager: bool = _s(True, "a batch begins at once while a slot is idle, so that a lone task does not wait")
    ai_concurrency: int = _s(64, "calls of a model at once, of all workers together")
    ai_calls_per_minute: int = _s(0, "calls of a model a minute, of all workers together; 0 for no limit")
    ai_limits: str = _s("", "other limits of single models, as NAME=CONCURRENCY/PER_MINUTE, comma-separated")
    ai_deadline_s: float = _s(300.0, "how long a task may take from the start of its work, seconds")
    ai_lease_s: float = _s(600.0, "an attempt that has no outcome after so long is given up, seconds")
    ai_retries: int = _s(2, "how often a call is made again after an error that may pass")
    ai_segment_chars: int = _s(12_000, "a longer question is split into segments of at most so many characters")
    ai_segment_overlap_chars: int = _s(200, "characters that a segment repeats of the one before")
    ai_texts_mb: int = _s(
        256, "all workers' memory for texts of finished tasks; older ones are read from ClickHouse, MB"
    )
    ai_remember_h: float = _s(168.0, "how long a finished task is known to its worker, hours; ClickHouse keeps it")

    # files and processes
    log_level: str = _s("info", "debug, info, warning or error")
    log_json: bool = _s(False, "logs as JSON lines")
    accept_loss: bool = _s(False, "go on after records were removed before they were read; a worker stops otherwise")
    faults: str = _s("", "for tests: points at which a worker kills or stops itself, as point=action@n")

    def __post_init__(self) -> None:
        if self.traffic_dedup_h < self.traffic_lateness_h:
            raise SettingError(
                f"{PREFIX}TRAFFIC_DEDUP_H={self.traffic_dedup_h} is shorter than "
                f"{PREFIX}TRAFFIC_LATENESS_H={self.traffic_lateness_h}: an id would be forgotten while an event bearing "
                "it is still accepted, and counted twice. Raise the first or lower the second."
            )
        if self.audio_memory_mb < 0:
            raise SettingError(f"{PREFIX}AUDIO_MEMORY_MB={self.audio_memory_mb} is below 0")
        if not 0 <= self.storage_price_per_gb_month < math.inf:
            raise SettingError(
                f"{PREFIX}STORAGE_PRICE_PER_GB_MONTH={self.storage_price_per_gb_month} is no price: 0 or more"
            )
        if not 5 <= self.audio_part_mb <= 5_000:
            raise SettingError(f"{PREFIX}AUDIO_PART_MB={self.audio_part_mb} is not within 5 to 5000")
        if not 5 <= self.files_part_mb <= 5_000 or self.converter_result_mb > 1_000 * self.files_part_mb:
            raise SettingError(
                f"{PREFIX}FILES_PART_MB={self.files_part_mb} is not within 5 to 5000, or so small that a result of "
                f"{PREFIX}CONVERTER_RESULT_MB={self.converter_result_mb} has more than 1000 parts"
            )
        if not 1 <= self.files_url_s <= 604_800:
            raise SettingError(f"{PREFIX}FILES_URL_S={self.files_url_s} is not within 1 to 604800")
        if self.files_sweep_s < self.files_url_s + self.converter_transfer_s:
            raise SettingError(
                f"{PREFIX}FILES_SWEEP_S={self.files_sweep_s} is shorter than {PREFIX}FILES_URL_S and "
                f"{PREFIX}CONVERTER_TRANSFER_S together: a converter that nobody waits for could upload after it"
            )
        if self.files_retries < 0:
            raise SettingError(f"{PREFIX}FILES_RETRIES must not be below 0")
        if not 5 <= self.upload_part_mb <= 5_000 or self.converter_source_mb > 10_000 * self.upload_part_mb:
            raise SettingError(
                f"{PREFIX}UPLOAD_PART_MB={self.upload_part_mb} is not within 5 to 5000, or so small that a source of "
                f"{PREFIX}CONVERTER_SOURCE_MB={self.converter_source_mb} has more than 10000 parts"
            )
        if not 1 <= self.upload_url_s <= 604_800:
            raise SettingError(f"{PREFIX}UPLOAD_URL_S={self.upload_url_s} is not within 1 to 604800")
        if self.audio_link_h > 168:
            raise SettingError(f"{PREFIX}AUDIO_LINK_H={self.audio_link_h} is more than a link can last: 168 hours")
        if self.audio_window_s < self.audio_upload_after_s + self.audio_reorder_s:
            raise SettingError(
                f"{PREFIX}AUDIO_WINDOW_S={self.audio_window_s} is shorter than a segment and what is kept out of it "
                f"({PREFIX}AUDIO_UPLOAD_AFTER_S and {PREFIX}AUDIO_REORDER_S): a session would not fit its own window"
            )
        if self.ai_segment_chars < 500 or not 0 <= self.ai_segment_overlap_chars <= self.ai_segment_chars // 2:
            raise SettingError(
                f"{PREFIX}AI_SEGMENT_CHARS={self.ai_segment_chars} must be at least 500, and "
                f"{PREFIX}AI_SEGMENT_OVERLAP_CHARS={self.ai_segment_overlap_chars} at most half of it"
            )
        if self.ai_lease_s < self.ai_deadline_s:
            raise SettingError(
                f"{PREFIX}AI_LEASE_S={self.ai_lease_s} is shorter than {PREFIX}AI_DEADLINE_S={self.ai_deadline_s}: a call "
                "that has its time still would be made a second time"
            )
        if min(self.ai_retries, self.ai_calls_per_minute) < 0:
            raise SettingError(f"{PREFIX}AI_RETRIES and {PREFIX}AI_CALLS_PER_MINUTE must not be below 0")
        if len(self.dimensions) > 3:
            raise SettingError(
                f"{PREFIX}TRAFFIC_DIMENSIONS names {len(self.dimensions)} dimensions; at most 3 are kept"
            )
        for name in (
            "flush_interval_s",
            "flush_deadline_s",
            "transaction_timeout_s",
            "session_timeout_s",
            "files_progress_s",
            "files_remember_h",
            "converter_duration_h",
            "converter_wall_s",
            "converter_transfer_s",
            "audio_upload_after_s",
            "audio_silence_s",
            "audio_session_idle_s",
            "audio_attempt_s",
            "audio_ping_s",
            "audio_connection_idle_s",
            "audio_resume_s",
            "audio_write_s",
            "ai_flush_interval_s",
            "ai_block_s",
            "ai_batch_wait_s",
            "ai_deadline_s",
            "ai_lease_s",
        ):
            if getattr(self, name) <= 0:
                raise SettingError(f"{PREFIX}{name.upper()} must be above 0")
        if self.log_level.lower() not in LOG_LEVELS:
            raise SettingError(f"{PREFIX}LOG_LEVEL={self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        if self.ai_preset not in AI_PRESETS:
            raise SettingError(f"{PREFIX}AI_PRESET={self.ai_preset!r} is none of {', '.join(AI_PRESETS)}")
        for name in ("gateway_port", "worker_port", "converter_port"):
            if not 0 <= getattr(self, name) <= 65_535:
                raise SettingError(f"{PREFIX}{name.upper()}={getattr(self, name)} is no port: 0 to 65535")
        for name in (
            "partitions",
            "replication_factor",
            "flush_rows",
            "unwritten_mb",
            "traffic_paths_max",
            "files_concurrency",
            "files_per_user",
            "files_waiting",
            "files_parts_above_mb",
            "converter_slots",
            "converter_source_mb",
            "converter_result_mb",
            "converter_cpu_s",
            "converter_memory_mb",
            "converter_threads",
            "upload_parts_above_mb",
            "files_relays",
            "audio_uploads",
            "audio_recordings",
            "audio_attempts",
            "audio_connections",
            "audio_unconfirmed_kb",
            "audio_link_h",
            "ai_batch_size",
            "ai_concurrency",
        ):
            if getattr(self, name) < 1:
                raise SettingError(f"{PREFIX}{name.upper()} must be at least 1")

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The configured dimension names, in order."""
        return tuple(d.strip() for d in self.traffic_dimensions.split(",") if d.strip())

    @property
    def ai_endpoint(self) -> str:
        """The base URL of AI tasks' models."""
        return self.ai_base_url or AI_PRESETS[self.ai_preset][0]

    @property
    def ai_default_model(self) -> str:
        """The model of AI tasks that name none, and whose type has none of its own."""
        return self.ai_model or AI_PRESETS[self.ai_preset][1]

    def environ(self) -> dict[str, str]:
        """These settings as environment variables, for a child process."""
        return {PREFIX + f.name.upper(): str(getattr(self, f.name)) for f in fields(self)}


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings from `environ` (default: the process's). Raises SettingError for an unusable value."""
    env = os.environ if environ is None else environ
    hints = typing.get_type_hints(Settings)
    known = {PREFIX + f.name.upper(): f.name for f in fields(Settings)}
    for name in env:
        if name.startswith(PREFIX) and name not in known:
            raise SettingError(f"{name} is not a setting; `sluiceway settings` lists them")
    values: dict[str, Any] = {}
    for variable, name in known.items():
        if variable in env:
            values[name] = _parse(variable, env[variable], hints[name])
    return Settings(**{**values, **overrides})


def _parse(variable: str, text: str, kind: Any) -> Any:
    assert not isinstance(kind, types.UnionType)
    try:
        if kind is bool:
            return {
                "1": True,
                "true": True,
                "yes": True,
                "on": True,
                "0": False,
                "false": False,
                "no": False,
                "off": False,
            }[text.strip().lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise SettingError(f"{variable}={text!r} is not a {kind.__name__}") from None
