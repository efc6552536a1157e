"""What a client may submit: the body of `POST /api/tasks`, looked at before anything is recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from streams.runtime.addresses import Network, url_problem
from streams.web.ai.identity import new_task_id
from streams.web.idempotency import id_of_key
from streams.web.problems import Problem
from topics.ai import MAX_SUBMIT_BYTES, Submit, encode, new_submit
from topics.malformed import Malformed
from topics.typed import Reason


class NewTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task as a client submits it. `language` is the answer's; without a `model` the task type's own is called."""

    task_type: str
    user: str
    language: str
    question: str
    model: str | None = None
    webhook_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What may be asked for. Without `webhooks` none are sent; they reach public addresses and `webhook_networks`."""

    task_types: Sequence[str]
    models: Sequence[str]
    webhooks: bool = False
    webhook_networks: Sequence[Network] = field(default=())


_new_task = msgspec.json.Decoder(NewTask).decode


async def submission(body: bytes, key: str | None, asking: Asking) -> Submit:
    """The task of a request's body and its idempotency key. Raises Problem, with what is wrong and what to do."""
    if len(body) > MAX_SUBMIT_BYTES:
        raise Problem(413, f"The task has {len(body)} bytes; at most {MAX_SUBMIT_BYTES} are taken.", kind="too-large")
    try:
        asked = _new_task(body)
        fields = msgspec.structs.asdict(asked)
        task_id = new_task_id() if key is None else id_of_key(asked.user, key)
    except msgspec.ValidationError as error:
        raise Problem(400, f"The task is not valid: {error}.", kind="invalid-task") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Problem(400, f"The body is not a JSON object in UTF-8: {error}.", kind="invalid-task") from None
    submit = new_submit({**fields, "task_id": task_id, "submitted_ms": time.time_ns() // 1_000_000})
    if isinstance(submit, Malformed):
        too_large = submit.reason == Reason.TOO_LARGE
        kind = "too-large" if too_large else "invalid-task"
        raise Problem(413 if too_large else 400, f"The task is not valid: {submit.error}.", kind=kind)
    if len(encode(submit).value) > MAX_SUBMIT_BYTES:
        raise Problem(413, f"The task takes more than {MAX_SUBMIT_BYTES} bytes as JSON.", kind="too-large")
    await _refuse_what_may_not_be_asked(submit, asking)
    return submit


async def _refuse_what_may_not_be_asked(submit: Submit, asking: Asking) -> None:
    if submit.task_type not in asking.task_types:
        known = ", ".join(asking.task_types)
        raise Problem(400, f"Task type {submit.task_type} is none of {known}.", kind="unknown-type")
    if submit.model is not None and submit.model not in asking.models:
        known = ", ".join(asking.models)
        raise Problem(400, f"Model {submit.model} is none of {known}.", kind="model-not-allowed")
    if submit.webhook_url is None:
        return
    if not asking.webhooks:
        raise Problem(400, "Webhooks are not sent here: no secret to sign them is set.", kind="webhook-not-allowed")
    trouble = await url_problem(submit.webhook_url, asking.webhook_networks)
    if trouble is not None:
        raise Problem(400, f"webhook_url is not taken: {trouble}.", kind="webhook-not-allowed")
