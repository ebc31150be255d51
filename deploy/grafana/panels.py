"""What Grafana wants to be told of a panel, a variable, an annotation, a dashboard.

Every query selects by the variables `$job` and `$instance`, so that one dashboard serves all daemons.
"""

from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECT = 'job=~"$job", instance=~"$instance"'
# Grafana's grid is 24 units wide.
GRID_WIDTH = 24
STAT_HEIGHT, GRAPH_HEIGHT = 4, 8
SCHEMA_VERSION = 39

# One daemon on a page needs no instance in its legend; several do.
Query = tuple[str, str]
Panel = dict[str, Any]


def chosen(metric: str, *matchers: str) -> str:
    """`metric` of the daemons that the variables choose."""
    return f"{metric}{{{', '.join([SELECT, *matchers])}}}"


def per_second(metric: str, *matchers: str) -> str:
    return f"rate({chosen(metric, *matchers)}[$__rate_interval])"


def quantile(q: float, histogram: str, labels: str) -> str:
    return f"histogram_quantile({q}, sum by ({labels}) ({per_second(histogram + '_bucket')}))"


def panel(
    kind: str, title: str, description: str, unit: str, queries: list[Query], width: int, **more: Any
) -> Panel:
    """One panel without its place. `more`: `custom` and `options` of the kind, `defaults` of the field."""
    targets = [
        {"refId": chr(ord("A") + k), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
        for k, (expr, legend) in enumerate(queries)
    ]
    if kind in ("stat", "table"):
        targets = [{**target, "instant": True, "range": False} for target in targets]
    if kind == "table":
        targets = [{**target, "format": "table"} for target in targets]
    defaults = {"unit": unit, "custom": more.get("custom", {}), **more.get("defaults", {})}
    height = STAT_HEIGHT if kind == "stat" else GRAPH_HEIGHT
    made = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": more.get("options", {}),
        "targets": targets,
    }
    if "transformations" in more:
        made["transformations"] = more["transformations"]
    return made


def graph(
    title: str, description: str, unit: str, queries: list[Query], width: int = 12, **look: Any
) -> Panel:
    """A time series. look: `stacked`, `bars`, `logarithmic`, `floor` (the axis begins at 0)."""
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 0, "showPoints": "never", "spanNulls": False}
    if look.get("stacked"):
        custom |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 60, "lineWidth": 0}
    if look.get("bars"):
        custom |= {"drawStyle": "bars", "fillOpacity": 60}
    if look.get("logarithmic"):
        custom |= {"scaleDistribution": {"type": "log", "log": 10}}
    defaults: dict[str, Any] = {"min": 0} if look.get("floor") else {}
    if look.get("share"):
        defaults = {"min": 0, "max": 1}
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel(
        "timeseries",
        title,
        description,
        unit,
        queries,
        width,
        custom=custom,
        options=options,
        defaults=defaults,
    )


def stat(
    title: str, description: str, unit: str, expr: str, legend: str = "", width: int = 4, **more: Any
) -> Panel:
    """One number. more: `mappings`; `steps` of (value, colour); `text`: what is shown."""
    steps = [{"value": value, "color": colour} for value, colour in more.get("steps", [(None, "text")])]
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": more.get("text", "auto"),
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
    }
    defaults = {
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": more.get("mappings", []),
        "noValue": "none",
    }
    return panel(
        "stat", title, description, unit, [(expr, legend)], width, options=options, defaults=defaults
    )


def timeline(
    title: str, description: str, queries: list[Query], words: dict[str, str], width: int = 24
) -> Panel:
    """Bands that show which state holds when. words: text by value."""
    mappings = [
        {
            "type": "value",
            "options": {value: {"text": text, "index": k} for k, (value, text) in enumerate(words.items())},
        }
    ]
    options = {"mergeValues": True, "showValue": "never", "rowHeight": 0.8}
    return panel(
        "state-timeline",
        title,
        description,
        "none",
        queries,
        width,
        options=options,
        defaults={"mappings": mappings},
    )


def table(title: str, description: str, unit: str, expr: str, hidden: list[str], width: int = 12) -> Panel:
    """The newest values. hidden: labels that are no column."""
    organize = {"excludeByName": dict.fromkeys(["Time", *hidden], True)}
    return panel(
        "table",
        title,
        description,
        unit,
        [(expr, "")],
        width,
        options={"showHeader": True},
        transformations=[{"id": "organize", "options": organize}],
    )


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice of label values, looked up again when the time range changes."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def annotation(name: str, colour: str, expr: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": colour,
        "target": {"refId": name, "expr": expr, "interval": "", "legendFormat": text},
        "titleFormat": name,
        "textFormat": text,
        "tagKeys": "instance",
    }


# `changes` sees a counter move, and does not take the drop at a restart for a million drifts.
ANNOTATIONS = [
    annotation(
        "Concept drift",
        "red",
        f"changes({chosen('adaptd_drifts_total')}[$__rate_interval]) > 0",
        "concept drift was detected on {{instance}}",
    ),
    annotation(
        "Champion changed",
        "blue",
        f"changes({chosen('adaptd_switches_total')}[$__rate_interval]) > 0",
        "another learner is champion on {{instance}}",
    ),
    annotation(
        "Learner set aside",
        "orange",
        f"changes({chosen('adaptd_learner_set_aside')}[$__rate_interval]) > 0",
        "{{learner}} on {{instance}} was set aside",
    ),
    annotation(
        "Started",
        "green",
        f"changes({chosen('process_start_time_seconds')}[$__rate_interval]) > 0",
        "adaptd on {{instance}} was started",
    ),
]


def dashboard(uid: str, title: str, description: str, panels: list[Panel], *variables: Any) -> dict[str, Any]:
    """Panels fill rows from left to right in their order."""
    x = y = height = 0
    for number, made in enumerate(panels, 1):
        place = made["gridPos"]
        if x + place["w"] > GRID_WIDTH:
            x, y, height = 0, y + height, 0
        made["id"], place["x"], place["y"] = number, x, y
        x, height = x + place["w"], max(height, place["h"])
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["adaptd"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "timezone": "browser",
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "links": [
            {
                "type": "dashboards",
                "title": "adaptd",
                "tags": ["adaptd"],
                "icon": "external link",
                "tooltip": "The other dashboards of adaptd",
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
            }
        ],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "default", "value": "default"},
                    "refresh": 1,
                },
                variable("job", "Job", "label_values(adaptd_build_info, job)"),
                variable("instance", "Instance", 'label_values(adaptd_build_info{job=~"$job"}, instance)'),
                *variables,
            ]
        },
        "annotations": {"list": ANNOTATIONS},
        "panels": panels,
    }
