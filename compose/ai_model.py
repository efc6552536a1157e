"""The models of AI tasks as the settings have them: the client, the prompts, what may be called and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from compose.settings import PREFIX, SettingError, Settings
from streams.ai.model import Endpoint, OpenAIModel
from streams.ai.prompts import ShippedPrompts
from streams.ai.rules import Price


def ai_model(settings: Settings) -> OpenAIModel:
    """The client of the endpoint. Raises SettingError for an address that is none."""
    url = settings.ai_endpoint
    if not url.startswith(("http://", "https://")):
        raise SettingError(f"{PREFIX}AI_BASE_URL={url} is no http:// or https:// URL")
    return OpenAIModel(Endpoint(base_url=url, key=settings.ai_api_key, probe_again_s=settings.ai_probe_again_s))


def ai_prompts(settings: Settings) -> ShippedPrompts:
    """The prompts, with the model of each task type. Raises SettingError for a type that there is not."""
    models = dict(_pairs("AI_TASK_MODELS", settings.ai_task_models, "summary=NAME"))
    try:
        return ShippedPrompts(settings.ai_default_model, models)
    except ValueError as error:
        raise SettingError(f"{PREFIX}AI_TASK_MODELS: {error}") from None


def ai_model_names(settings: Settings) -> tuple[str, ...]:
    """All models that may be called: the default, the task types' own, and what a task may name beside them."""
    types = [kind.model for kind in ai_prompts(settings).task_types.values()]
    further = [name.strip() for name in settings.ai_models.split(",") if name.strip()]
    return tuple(dict.fromkeys([settings.ai_default_model, *types, *further]))


def ai_prices(settings: Settings) -> dict[str, Price]:
    """Prices by model. Raises SettingError for one that is not to be understood."""
    found = {}
    for name, text in _pairs("AI_PRICES", settings.ai_prices, "NAME=4/16"):
        prompt, _, completion = text.partition("/")
        try:
            micros = [int(Decimal(price) * 1_000_000) for price in (prompt, completion)]
        except (InvalidOperation, ValueError, OverflowError):
            micros = [-1]
        if min(micros) < 0:
            raise SettingError(f"{PREFIX}AI_PRICES: {name}={text} is not of the form NAME=4/16")
        found[name] = Price(*micros)
    return found


def _pairs(setting: str, text: str, form: str) -> Iterator[tuple[str, str]]:
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name and value:
            yield name, value
        elif pair.strip():
            raise SettingError(f"{PREFIX}{setting}: {pair.strip()} is not of the form {form}")
