"""The settings of AI tasks' models: presets, task types, prices, and what cannot be used."""

from __future__ import annotations

import pytest

from compose.ai_model import ai_model, ai_model_names, ai_prices, ai_prompts
from compose.settings import SettingError, Settings, load
from streams.ai.rules import Price


def test_without_settings_it_is_the_stand_in() -> None:
    found = load({})
    assert (found.ai_endpoint, found.ai_default_model) == ("http://127.0.0.1:8090/v1", "stand-in")


def test_a_preset_leads_to_a_real_model_and_single_settings_go_before_it() -> None:
    found = load({"SLUICEWAY_AI_PRESET": "siliconflow"})
    assert (found.ai_endpoint, found.ai_default_model) == (
        "https://api.siliconflow.cn/v1",
        "Pro/deepseek-ai/DeepSeek-R1",
    )
    found = load({"SLUICEWAY_AI_PRESET": "siliconflow", "SLUICEWAY_AI_MODEL": "deepseek-ai/DeepSeek-V3"})
    assert (found.ai_endpoint, found.ai_default_model) == ("https://api.siliconflow.cn/v1", "deepseek-ai/DeepSeek-V3")


def test_models_by_type_and_by_name() -> None:
    settings = Settings(ai_model="large", ai_task_models="summary=small, question = small", ai_models="other, large")
    models = {name: kind.model for name, kind in ai_prompts(settings).task_types.items()}
    assert models == {"analysis": "large", "question": "small", "summary": "small", "translation": "large"}
    assert ai_model_names(settings) == ("large", "small", "other")


def test_prices_are_millionths_for_a_million_tokens() -> None:
    assert ai_prices(Settings(ai_prices="a/b=4/16, c=0.14/0.28")) == {
        "a/b": Price(4_000_000, 16_000_000),
        "c": Price(140_000, 280_000),
    }


@pytest.mark.parametrize("text", ["a", "a=", "a=4", "a=4/", "a=x/y", "a=-1/2", "a=nan/1", "a=inf/1", "=4/16"])
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"^SLUICEWAY_AI_PRICES: .* is not of the form NAME=4/16"):
        ai_prices(Settings(ai_prices=text))


def test_what_else_cannot_be_used() -> None:
    with pytest.raises(SettingError, match="AI_PRESET='open' is none of stand-in, siliconflow"):
        Settings(ai_preset="open")
    with pytest.raises(SettingError, match="AI_TASK_MODELS: no task type is called horoscope"):
        ai_prompts(Settings(ai_task_models="horoscope=m"))
    with pytest.raises(SettingError, match="AI_TASK_MODELS: summary is not of the form"):
        ai_prompts(Settings(ai_task_models="summary"))
    with pytest.raises(SettingError, match=r"AI_BASE_URL=api\.example is no http"):
        ai_model(Settings(ai_base_url="api.example"))


def test_the_key_is_shown_nowhere() -> None:
    model = ai_model(Settings(ai_api_key="sk-secret"))
    assert "sk-secret" not in repr(vars(model))
