"""The inspector's page as one file, with what a sidecar said at one moment: for reports, and it asks nobody."""

import base64
import json
import re
from importlib import resources
from importlib.resources.abc import Traversable

from google.protobuf.message import Message
from selector_proto.v1 import inspection_pb2 as pb

from selector_server.inspection.source import Source
from selector_server.inspection.web.page import SERVICE
from selector_server.inspection.web.schema import schema_of

_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
# A data URL has no neighbours: modules name each other by a prefix that the import map knows.
_PREFIX = "inspector/"
_POLICY = "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline' data:; img-src data:"


def told_by(source: Source) -> dict[str, bytes]:
    """What the page asks for, by the call's name; of candidates that have a picture, also what became of them. Raises
    what the source raises."""
    pictures = source.list_pictures(pb.ListPicturesRequest())
    number = pictures.point.super_batch
    places = {one.index for gallery in pictures.galleries for one in gallery.candidates}
    answers: dict[str, Message] = {
        "GetOverview": source.get_overview(pb.GetOverviewRequest()),
        "GetSuperBatch": source.get_super_batch(pb.GetSuperBatchRequest()),
        "ListPictures": pictures,
        "ListSlices": source.list_slices(pb.ListSlicesRequest()),
    } | {
        f"GetSample/{number}/{place}": source.get_sample(pb.GetSampleRequest(super_batch=number, index=place))
        for place in sorted(places)
    }
    return {name: answer.SerializeToString() for name, answer in answers.items()}


def page_of(answers: dict[str, bytes]) -> str:
    """Returns the page as HTML."""
    static = resources.files("selector_server.inspection.web") / "static"
    modules = {one.name: one.read_text("utf-8") for one in static.iterdir() if one.name.endswith(".js")}
    modules["api.js"] = (resources.files("selector_tools.inspector") / "snapshot_api.js").read_text("utf-8")
    imports = {_PREFIX + name: _data("text/javascript", _renamed(code)) for name, code in modules.items()}
    told = {
        "schema": schema_of(SERVICE),
        "answers": {name: base64.b64encode(answer).decode() for name, answer in answers.items()},
    }
    # Neither holds a "<": one is Base64, the other one has names of the contract besides.
    head = (
        f'<meta http-equiv="content-security-policy" content="{_POLICY}">\n'
        f'<script type="importmap">{json.dumps({"imports": imports})}</script>\n'
        f'<script type="application/json" id="told">{json.dumps(told)}</script>\n'
        "<style>#link, .stepper button { display: none; }</style>\n"
    )

    def inlined(found: re.Match[str]) -> str:
        path = found["path"]
        data = imports.get(_PREFIX + path) or _data(_TYPES[path.rpartition(".")[2]], _file(static, path))
        return f'{found["name"]}="{data}"'

    page = (static / "index.html").read_text("utf-8")
    page = re.sub(r'(?P<name>href|src)="/(?P<path>[^"]+)"', inlined, page)
    return page.replace("<title", head + "<title", 1)


def _file(folder: Traversable, path: str) -> str:
    return folder.joinpath(*path.split("/")).read_text("utf-8")


def _renamed(code: str) -> str:
    return re.sub(r'(?<= from ")\./', _PREFIX, code)


def _data(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
