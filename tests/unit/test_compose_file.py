"""The compose file and the Dockerfile hold together: their schema, their names, and what each refers to."""

from __future__ import annotations

import importlib.resources
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from compose.local.kafka import Kafka
from compose.settings import load

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "compose" / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The compose file with its anchors merged and its variables at their defaults."""
    text = (ROOT / "compose" / "docker-compose.yaml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    text = re.sub(r"\$\{\w+:\?[^}]*\}", "given", text)
    assert "${" not in text
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_it_meets_the_published_schema(document: dict[str, Any]) -> None:
    """The schema of the Compose Specification, as the package check-jsonschema carries it."""
    schema = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    published = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    published.validate(document)
    assert not published.is_valid(document | {"services": {"kafka": {"imagine": 1}}})


def test_the_services_are_the_systems(document: dict[str, Any]) -> None:
    assert set(document["services"]) == {"kafka", "clickhouse", "s3", "gateway", "worker-1", "worker-2"}
    commands = [service["command"][0] for service in document["services"].values() if "command" in service]
    assert sorted(commands) == ["gateway", "worker", "worker"]


def test_every_image_has_a_version(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        if "build" not in service:
            assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?", service["image"])
    for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", image)


def test_every_setting_named_exists_and_is_usable(document: dict[str, Any]) -> None:
    own = [service["environment"] for service in document["services"].values() if "build" in service]
    assert len(own) == 3
    for environment in own:
        settings = load({name: str(value) for name, value in environment.items()})
        assert settings.kafka_bootstrap == "kafka:19092"
    dockerfile = dict(re.findall(r"(SLUICEWAY_\w+)=(\S+)", DOCKERFILE))
    assert load(dockerfile).data_dir == Path("/var/lib/sluiceway")


def test_both_ends_of_a_credential_agree(document: dict[str, Any]) -> None:
    services = document["services"]
    for name in ("gateway", "worker-1", "worker-2"):
        settings = load({key: str(value) for key, value in services[name]["environment"].items()})
        clickhouse, s3 = services["clickhouse"]["environment"], services["s3"]["environment"]
        assert (settings.clickhouse_user, settings.clickhouse_password) == (
            clickhouse["CLICKHOUSE_USER"],
            clickhouse["CLICKHOUSE_PASSWORD"],
        )
        assert (settings.s3_access_key, settings.s3_secret_key) == (s3["ROOT_ACCESS_KEY"], s3["ROOT_SECRET_KEY"])
        assert f"mkdir -p /objects/{settings.s3_bucket} " in services["s3"]["entrypoint"][-1]


def test_addresses_lead_to_listeners(document: dict[str, Any]) -> None:
    services = document["services"]
    settings = load({key: str(value) for key, value in services["gateway"]["environment"].items()})
    kafka = services["kafka"]["environment"]
    assert f"PLAINTEXT://{settings.kafka_bootstrap}" in kafka["KAFKA_ADVERTISED_LISTENERS"]
    assert "PLAINTEXT://:19092" in kafka["KAFKA_LISTENERS"]
    assert settings.clickhouse_url == "http://clickhouse:8123"
    assert settings.s3_endpoint == f"http://s3{services['s3']['environment']['VGW_PORT']}"


def test_every_worker_is_reachable_and_keeps_its_own_data(document: dict[str, Any]) -> None:
    folders = set()
    for name in ("worker-1", "worker-2"):
        worker = document["services"][name]
        assert worker["hostname"] == worker["environment"]["SLUICEWAY_WORKER_HOST"] == name
        folders.add(worker["volumes"][0])
    assert len(folders) == 2


def test_what_is_waited_for_has_a_health_check(document: dict[str, Any]) -> None:
    services = document["services"]
    for service in services.values():
        assert "healthcheck" in service
        for other, condition in service.get("depends_on", {}).items():
            assert other in services
            assert condition == {"condition": "service_healthy"}


def test_volumes_are_declared_and_ports_open_on_this_machine_only(document: dict[str, Any]) -> None:
    used = set()
    for service in document["services"].values():
        used |= {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert used == set(document["volumes"])


def test_kafka_is_set_up_as_the_local_one(document: dict[str, Any], tmp_path: Path) -> None:
    properties = Kafka(tmp_path, 9092).properties()
    theirs = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
        for name, value in document["services"]["kafka"]["environment"].items()
        if name.startswith("KAFKA_")
    }
    assert set(theirs) <= set(properties)
    for name in theirs:
        if "listener" not in name and name not in ("log.dirs", "controller.quorum.voters"):
            assert theirs[name] == properties[name], name


def test_the_dockerfile_copies_what_exists_and_runs_as_nobody_special() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ignore = (ROOT / "compose" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignore
    assert {"topics", "streams", "sinks", "compose"} <= set(re.findall(r"^COPY (\w+) ", DOCKERFILE, re.MULTILINE))
    assert re.search(r"^USER sluiceway$", DOCKERFILE, re.MULTILINE)
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[0])[0] in project["project"]["scripts"]
