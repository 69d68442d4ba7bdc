"""A real Prometheus with the rules of deploy/monitoring, their time running faster; and what its queries name."""

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import yaml

from support import programs
from support.processes import eventually, free_port, spawn

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
# What Prometheus and its client library add to our metrics.
FOREIGN = {"up", "ALERTS", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def needs(program: str) -> str:
    """Path of a program of Debian's package prometheus; skips the test without it."""
    return programs.optional(program, "prometheus")


def alerts() -> list[dict]:
    [group] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def queries() -> list[tuple[str, str]]:
    """(panel's title, expression) of the dashboard."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]


def substituted(expression: str, interval: str = "5m") -> str:
    """As Grafana sends it with everything chosen."""
    return re.sub(r"\$(job|instance|trainer)\b", ".*", expression.replace("$__rate_interval", interval))


def selectors(expression: str) -> list:
    """The vector selectors in an expression. Raises ValueError if it is no PromQL."""
    return list(_selectors(promql_parser.parse(expression)))


def _selectors(node) -> Iterator:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from _selectors(child)
    for child in getattr(node, "args", []):
        yield from _selectors(child)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def faster(rules: str, scale: int, thresholds: dict[str, tuple[str, str]]) -> str:
    """The text of a rule file whose windows and `for` are `scale` times shorter; and in the expression of each alert
    named, the first text (a threshold in seconds) becomes the second."""

    def shorter(match: re.Match) -> str:
        return f"{int(match[1]) * _UNITS[match[2]] * 1000 // scale}ms"

    content = yaml.safe_load(rules)
    for rule in content["groups"][0]["rules"]:
        expression = re.sub(r"(?<=\[)(\d+)([smhd])(?=\])", shorter, rule["expr"])
        old, new = thresholds.get(rule["alert"], ("", ""))
        assert not old or expression.count(old) == 1, expression
        rule["expr"] = expression.replace(old, new) if old else expression
        if "for" in rule:
            rule["for"] = re.sub(r"^(\d+)([smhd])$", shorter, rule["for"])
    return yaml.safe_dump(content)


class Prometheus:
    """Scrapes `targets` (job -> addresses) every second, by deploy/monitoring/prometheus.yaml; dies with us."""

    def __init__(self, folder: Path, targets: dict[str, list[str]], rules: str) -> None:
        program = needs("prometheus")
        config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
        assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": targets[job["job_name"]]}]
        config["global"] = dict.fromkeys(config["global"], "1s") | {"scrape_timeout": "1s"}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        (folder / config["rule_files"][0]).write_text(rules)
        subprocess.run([needs("promtool"), "check", "config", folder / "prometheus.yaml"], check=True)
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "prometheus.log"
        flags = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
        flags.append(f"--web.listen-address=127.0.0.1:{port}")
        with self.log.open("wb") as stream:
            self.process = spawn(*flags, program=program, stdout=stream, stderr=stream)
        eventually(self._ready, 30, self.log.read_text)

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series that an instant query returns."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=10
        ) as reply:
            data = json.load(reply)["data"]
        rows = data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]
        return [(row["metric"], float(row["value"][1])) for row in rows]

    def alerts(self, state: str = "firing") -> set[tuple[str, str]]:
        """(alert, instance) of what is in this state now."""
        with urllib.request.urlopen(f"{self.url}/api/v1/alerts", timeout=10) as reply:
            found = json.load(reply)["data"]["alerts"]
        return {(a["labels"]["alertname"], a["labels"]["instance"]) for a in found if a["state"] == state}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False
