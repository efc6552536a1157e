"""The converter as the settings have it: processes of this machine, or a service elsewhere."""

from __future__ import annotations

from compose.converter.limits import ConverterLimits
from compose.converter.pool import ProcessConverter
from compose.converter.remote import RemoteConverter
from compose.converter.scratch import Scratch
from compose.outbound import networks_of
from compose.settings import Settings
from streams.files.converting import Converter

_MB = 1 << 20


def converter_limits(settings: Settings) -> ConverterLimits:
    """What one conversion may take."""
    return ConverterLimits(
        source_bytes=settings.converter_source_mb * _MB,
        duration_s=settings.converter_duration_h * 3600,
        cpu_s=settings.converter_cpu_s,
        memory_bytes=settings.converter_memory_mb * _MB,
        wall_s=settings.converter_wall_s,
        output_bytes=settings.converter_result_mb * _MB,
        fetch_s=settings.converter_transfer_s,
        upload_s=settings.converter_transfer_s,
        threads=settings.converter_threads,
    )


def process_converter(settings: Settings) -> ProcessConverter:
    """Conversions on this machine; made inside a running event loop. Raises SettingError."""
    scratch = Scratch(settings.data_dir / "scratch")
    networks_of("FILES_URL_NETWORKS", settings.files_url_networks)
    return ProcessConverter(
        scratch,
        converter_limits(settings),
        settings.s3_endpoint,
        settings.converter_slots,
        settings.files_urls,
        settings.files_url_networks,
    )


def converter(settings: Settings) -> Converter:
    """Who converts for a worker: the service that the settings name, else processes of its own."""
    if settings.converter_url:
        limits = converter_limits(settings)
        longest_s = limits.fetch_s + limits.wall_s + limits.upload_s
        return RemoteConverter(settings.converter_url, settings.converter_key, longest_s)
    return process_converter(settings)
