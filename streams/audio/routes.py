"""What a partition's owner answers about its sessions: their state, and the last minutes of their audio."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from streams.audio.containers.errors import BadAudio
from streams.audio.containers.window import window_wav
from streams.audio.fold import AudioFold
from streams.audio.objects import CONTENT_TYPES
from streams.runtime.routes import OwnedKeys, answer
from streams.runtime.worker import StreamWorker


class AudioRoutes:
    """`GET /audio/{session_id}` and `/audio/{session_id}/window` of one worker.

    404: the session is not known to its owner, which has `applied` all below that offset. 421: another worker owns its
    partition. 503: the partition is being restored. A window is a WAV, or with `?as=raw` the chunks' bytes; 204: nothing of
    the session is in memory; 422: what is there cannot be played.
    """

    def __init__(self, worker: StreamWorker) -> None:
        self._keys = OwnedKeys(worker, "session_id")

    def all(self) -> Sequence[web.RouteDef]:
        """The routes."""
        return [
            web.get("/audio/{session_id}", self._state),
            web.get("/audio/{session_id}/window", self._window),
        ]

    async def _state(self, request: web.Request) -> web.Response:
        session_id, partition, fold = self._owned(request)
        place = {"partition": partition, "applied": fold.applied}
        session = fold.session(session_id)
        if session is None:
            return answer({"session_id": session_id, "status": "unknown", **place}, 404)
        return answer({**fold.described(session), **place})

    async def _window(self, request: web.Request) -> web.Response:
        session_id, partition, fold = self._owned(request)
        session = fold.session(session_id)
        if session is None:
            return answer({"session_id": session_id, "status": "unknown", "partition": partition}, 404)
        held = _newest(fold.shelf.window(session_id), fold.state.rules.window_bytes(session.opened))
        headers = {"X-Seqs": f"{held[0][0]}-{held[-1][0]}" if held else "", "X-Deferred": str(session.deferred).lower()}
        chunks = [data for _, data in held]
        if not chunks:
            return web.Response(status=204, headers=headers)
        if request.query.get("as") == "raw":
            return web.Response(body=b"".join(chunks), headers=headers)
        try:
            body = await asyncio.to_thread(window_wav, session.opened, chunks)
        except BadAudio as error:
            return answer({"error": str(error)}, 422)
        return web.Response(body=body, content_type=CONTENT_TYPES["wav"], headers=headers)

    def _owned(self, request: web.Request) -> tuple[str, int, AudioFold]:
        session_id, partition, fold = self._keys.of(request)
        assert isinstance(fold, AudioFold)
        return session_id, partition, fold


def _newest(held: list[tuple[int, bytes]], size: int) -> list[tuple[int, bytes]]:
    """The last chunks that make up a window of so many bytes."""
    at = len(held)
    while at > 0 and (size := size - len(held[at - 1][1])) >= 0:
        at -= 1
    return held[at:]
