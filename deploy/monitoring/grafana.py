"""Makes the panels of a Grafana dashboard from few words."""

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Every query selects these labels: S those of sidecars, T those of trainers.
S, T = 'job=~"$job", instance=~"$instance"', 'instance=~"$trainer"'
R = "[$__rate_interval]"

Query = tuple[str, str]  # expression, legend


def rate(metric: str, more: str = "", by: str = "", of: str = S) -> str:
    """Returns the query for a counter's rate per second, summed over everything but the labels `by`."""
    labels = ", ".join(part for part in (of, more) if part)
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}{R}))"


def rate_by(metric: str, label: str, of: str = S) -> Query:
    """Returns the query for a counter's rate by one label, which is the legend, too."""
    return rate(metric, by=label, of=of), f"{{{{{label}}}}}"


def mean(metric: str, by: str = "", of: str = S) -> str:
    """Returns the query for the mean of a histogram's observations."""
    return f"{rate(f'{metric}_sum', by=by, of=of)} / {rate(f'{metric}_count', by=by, of=of)}"


def each(metric: str, what: str = "", of: str = S) -> Query:
    """Returns the query for a metric of each instance; the legend is `what` with the instance in place of {}."""
    return f"{metric}{{{of}}}", (what or "{}").format("{{instance}}")


def quantile(q: float, metric: str, more: str = "", by: str = "") -> str:
    """Returns the query for a quantile of a histogram's observations."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', more, ', '.join(filter(None, (by, 'le'))))})"


def panel(
    kind: str, title: str, text: str, unit: str, *queries: Query, width: int = 8, height: int = 7, **options: Any
) -> dict[str, Any]:
    heat = kind == "heatmap"
    targets = [
        {
            "refId": chr(ord("A") + at),
            "datasource": SOURCE,
            "expr": expr,
            "legendFormat": legend,
            "format": "heatmap" if heat else "table" if kind == "table" else "time_series",
            "instant": kind == "table",
            "range": kind != "table",
        }
        for at, (expr, legend) in enumerate(queries)
    ]
    custom = {"fillOpacity": 10, "showPoints": "never"} if kind == "timeseries" else {}
    if options.pop("stack", False):
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    defaults = {"unit": unit, "custom": custom} | options.pop("defaults", {})
    if heat:
        options = {"calculate": False, "yAxis": {"unit": unit}, "color": {"scheme": "Oranges", "mode": "scheme"}}
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0},
    }


def stat(title: str, text: str, unit: str, expr: str, *steps: tuple[float | None, str], **more: Any) -> dict[str, Any]:
    thresholds = {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}
    defaults = {"thresholds": thresholds} | more
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return panel("stat", title, text, unit, (expr, ""), width=4, height=4, defaults=defaults, reduceOptions=reduce)


def series(title: str, text: str, unit: str, *queries: Query, **more: Any) -> dict[str, Any]:
    return panel("timeseries", title, text, unit, *queries, **more)


def laid_out(rows: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns all rows and their panels, with ids and places."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in rows.items():
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        )
        y, x, high = y + 1, 0, 0
        for one in row:
            place = one["gridPos"]
            if x + place["w"] > WIDTH:
                x, y, high = 0, y + high, 0
            place |= {"x": x, "y": y}
            x, high = x + place["w"], max(high, place["h"])
            panels.append(one)
        y += high
    return [{"id": at, **one} for at, one in enumerate(panels, 1)]


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    values = {"refId": name, "query": query}
    every = {"text": ["All"], "value": ["$__all"]}
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": values,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": every,
        "sort": 1,
    }
