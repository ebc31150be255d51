"""The container files, as far as they can be judged without a container engine."""

import pathlib
import re

import yaml

from adaptd import config as configuration

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "deploy/docker"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def copied_from_the_context() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    return [source for line in lines for source in line.split()[:-1]]


def test_what_the_image_copies_is_there_and_let_through():
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    assert copied_from_the_context()
    for source in copied_from_the_context():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source


def test_the_image_does_not_run_as_root():
    stage = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.findall(r"^USER (\S+)", stage, re.M) == ["10001:10001"]


def test_images_are_pinned():
    images = [service["image"] for service in COMPOSE["services"].values() if service["image"] != "adaptd"]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert len(images) >= 6
    for image in images:
        assert re.search(r":v?\d+\.\d+", image), image


def test_ports_are_published_on_loopback_only():
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_file_and_volume_and_service_that_is_named_exists():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        if "build" in service:
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_prometheus_and_grafana_are_set_up_as_elsewhere_but_for_the_hosts():
    own = yaml.safe_load(COMPOSE["configs"]["datasource"]["content"])
    other = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    for datasource in (*own["datasources"], *other["datasources"]):
        datasource.pop("url")
    assert own == other
    own = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])
    other = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert own["global"] == other["global"]
    assert [job["job_name"] for job in own["scrape_configs"]] == ["adaptd"]


def test_the_configuration_in_the_container_is_good():
    # Not by `adaptd check`, which would look for the broker of that network.
    config = configuration.load(str(FOLDER / "config.toml"))
    created = re.search(r"for topic in (.+); do", COMPOSE["services"]["topics"]["command"][0])
    assert {config.source["topic"], config.sink["topic"], config.sink["dead_letters_topic"]} == set(
        created[1].split()
    )
    assert (
        config.source["servers"] in COMPOSE["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    )
