"""The dashboards: valid for Grafana's schema, and the rules of Grafana's dashboard linter.

That every query returns data is tested beside the real Prometheus, in `test_prometheus.py`.
"""

import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

GRAFANA = pathlib.Path(__file__).parent.parent / "deploy" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
BOARDS = [pytest.param(json.loads(file.read_text()), id=file.stem) for file in FILES]
PANELS = [
    pytest.param(panel, id=f"{file.stem}: {panel['title']}")
    for file in FILES
    for panel in json.loads(file.read_text())["panels"]
]
SCHEMA = json.loads((GRAFANA / "dashboard.schema.json").read_text())
# Grafana's own names of units, of those that are used here.
UNITS = {"short", "none", "rowsps", "bytes", "percentunit", "s"}
# Grafana keeps what only one data source knows beside what its schema has.
OF_THE_DATASOURCE = {"target", "titleFormat", "textFormat", "tagKeys"}


def faults(value, name):
    """Against one definition at a time: in an `anyOf`, one fault hides behind another."""
    schema = {"$ref": f"#/definitions/{name}", "definitions": SCHEMA["definitions"]}
    return [
        f"{fault.json_path}: {fault.message}"
        for fault in jsonschema.Draft7Validator(schema).iter_errors(value)
    ]


def test_what_is_checked_in_is_what_the_generator_writes(tmp_path):
    subprocess.run([sys.executable, GRAFANA / "generate.py", tmp_path], check=True)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in FILES}
    for file in FILES:
        assert file.read_text() == (tmp_path / file.name).read_text(), "run python deploy/grafana/generate.py"


@pytest.mark.parametrize("board", BOARDS)
def test_dashboard_is_valid_for_grafanas_schema(board):
    assert faults({**board, "panels": [], "annotations": {}}, "Dashboard") == []
    for entry in board["annotations"]["list"]:
        own = {key: value for key, value in entry.items() if key not in OF_THE_DATASOURCE}
        assert faults(own, "AnnotationQuery") == []
        assert entry["target"]["expr"]


@pytest.mark.parametrize("panel", PANELS)
def test_panel_is_valid_for_grafanas_schema(panel):
    assert faults(panel, "Panel") == []


def test_the_schema_finds_a_planted_fault():
    panel = json.loads(FILES[0].read_text())["panels"][0]
    assert faults({**panel, "titel": "x"}, "Panel")
    assert faults({**panel, "gridPos": {"x": 0}}, "Panel")


def test_dashboards_can_be_told_apart():
    boards = [param.values[0] for param in BOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == 4


@pytest.mark.parametrize("board", BOARDS)
def test_variables_choose_data_source_job_and_instance(board):
    known = {entry["name"]: entry for entry in board["templating"]["list"]}
    assert known["datasource"]["type"] == "datasource"
    assert known["datasource"]["query"] == "prometheus"
    assert known["datasource"]["label"] == "Data source"
    for name in ("job", "instance"):
        entry = known[name]
        assert entry["type"] == "query"
        assert entry["label"] == name.title()
        assert entry["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert entry["includeAll"]
        assert entry["multi"]
        assert entry["allValue"] == ".+"
    for entry in board["templating"]["list"]:
        if entry["type"] == "query":
            # 2: on a change of the time range, since daemons come and go.
            assert entry["refresh"] == 2
            assert re.fullmatch(r"label_values\(.+, \w+\)", entry["query"])
    assert not board["editable"], "a provisioned dashboard that can be edited loses the edits"


@pytest.mark.parametrize("panel", PANELS)
def test_panel_says_what_it_shows(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("panel", PANELS)
def test_queries_select_job_and_instance_and_follow_the_scrape_interval(panel):
    for target in panel["targets"]:
        expr = target["expr"]
        selectors = re.findall(r"[a-zA-Z_:][\w:]*\{([^}]*)\}", expr)
        assert selectors
        for selector in selectors:
            assert 'job=~"$job"' in selector
            assert 'instance=~"$instance"' in selector
        for function, window in re.findall(r"(\w+)\([^()]*\[([^\]]+)\]", expr):
            assert window == "$__rate_interval" or (function == "increase" and window == "$__range")
        assert not re.search(r"\[\d", expr), "a fixed window is empty when the scrape interval is longer"
        counters = re.findall(r"(\w*\()?(\w+_(?:total|bucket|sum|count))\{", expr)
        for function, counter in counters:
            assert function in ("rate(", "increase("), f"{counter} only ever rises"


@pytest.mark.parametrize("board", BOARDS)
def test_panels_neither_overlap_nor_leave_the_grid(board):
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_provisioning_names_the_data_source_that_prometheus_is():
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][
        0
    ]
    scraped = yaml.safe_load((GRAFANA.parent / "prometheus/prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/adaptd.yml").read_text())["providers"][0]
    assert provider["type"] == "file"
