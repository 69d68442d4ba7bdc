"""Writes what is installed beside this Python as a bill of materials: python sbom.py FILE

It is CycloneDX 1.6 in JSON and lists the interpreter, every Python package and every Debian package of the base. It has
no time and no random number, so that equal images have equal bills. Libraries inside a wheel are not listed apart.
"""

import json
import platform
import re
import sys
import uuid
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PRODUCT = "jest-selector"
DPKG_STATUS = Path("/var/lib/dpkg/status")
LICENSE_CLASSIFIER = "License :: "


def python_packages() -> dict[str, Distribution]:
    """Returns what is installed, by normalised name."""
    return {canonicalize_name(one.metadata["Name"]): one for one in distributions()}


def said(one: Distribution, field: str) -> str:
    """Returns what the package's metadata say, or an empty string."""
    return one.metadata[field].strip() if field in one.metadata else ""


def license_of(one: Distribution) -> list[dict[str, Any]]:
    """Returns what the package says of its licence: an SPDX expression, else its classifiers, else a short name."""
    if expression := said(one, "License-Expression"):
        return [{"expression": expression}]
    names = [
        c.rpartition(" :: ")[2] for c in one.metadata.get_all("Classifier") or [] if c.startswith(LICENSE_CLASSIFIER)
    ]
    text = said(one, "License")
    if not names and text and "\n" not in text:
        names = [text]
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def component(kind: str, name: str, version: str, purl: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl} | more


def of_python(name: str, one: Distribution) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{quote(one.version)}"
    licenses = license_of(one)
    return component("library", name, one.version, purl, **({"licenses": licenses} if licenses else {}))


def debian_packages(status: str) -> list[dict[str, Any]]:
    """Returns the installed packages from the text of dpkg's status file."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version|Architecture): (.*)$", paragraph, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}"
        found.append(component("library", name, version, purl))
    return found


def requires(one: Distribution, installed: dict[str, str]) -> list[str]:
    """Returns references to the installed packages that a package needs, its extras aside."""
    parsed = (Requirement(text) for text in one.requires or [])
    names = {canonicalize_name(r.name) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})}
    return sorted(installed[name] for name in names if name in installed)


def bill() -> dict[str, Any]:
    """Returns the whole document. The product depends on everything listed, packages on what they say they need."""
    packages = python_packages()
    libraries = {name: of_python(name, one) for name, one in sorted(packages.items())}
    references = {name: one["bom-ref"] for name, one in libraries.items()}
    product = libraries.pop(PRODUCT) | {"type": "application"}
    python = platform.python_version()
    status = DPKG_STATUS.read_text() if DPKG_STATUS.exists() else ""
    components = [
        component("application", "python", python, f"pkg:generic/python@{quote(python)}"),
        *libraries.values(),
        *debian_packages(status),
    ]
    edges = [{"ref": product["bom-ref"], "dependsOn": sorted(one["bom-ref"] for one in components)}]
    edges += [{"ref": one["bom-ref"], "dependsOn": requires(packages[n], references)} for n, one in libraries.items()]
    content = json.dumps([product, components, edges], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, content).urn,
        "version": 1,
        "metadata": {"component": product},
        "components": components,
        "dependencies": edges,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(bill(), indent=1) + "\n")
