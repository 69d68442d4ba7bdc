"""Selections by ids first: views that count what they read, and sidecars whose cache is filled or that refuse."""

import time
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
from selector_client import (
    Selector,
)
from selector_proto.v1 import selector_pb2_grpc as rpc

from support.model import samples
from support.processes import eventually

COUNT, KNOWN, BATCH, PICKS, GOING = 120, 100, 40, 4, 8
PIXELS, TOKENS = samples(COUNT)
SETTINGS = {"prefilter": 2.0, "sub_batch_size": PICKS, "seed": 7, "gain": 0.1}


class View:
    """Shows samples by their indices, and counts those that it was asked for."""

    def __init__(self, first=0, change=lambda indices, shown: shown, wait=0.0):
        self.calls, self.first, self._change, self._wait = [], first, change, wait

    def __call__(self, rows):
        indices = np.asarray(rows) + self.first
        assert (np.diff(rows) > 0).all()
        self.calls.append(indices.tolist())
        time.sleep(self._wait)
        return self._change(indices, {"images": PIXELS[indices], "texts": TOKENS[indices]})

    @property
    def read(self):
        return sum(map(len, self.calls))


def fill(address, ids, rows=None):
    with Selector(address, criterion="easy-reference", on_error="raise") as selector:
        rows = ids if rows is None else rows
        asked = lambda: selector.select(PIXELS[rows], TOKENS[rows], ids=ids)  # noqa: E731
        eventually(lambda: asked().cached_references == len(ids))


def warmed(start, bundles, cache, known):
    """A sidecar whose cache knows the first samples, as many as `known` says."""
    server = start(bundles.flags | {"cache": cache, "access_log": True})
    fill(server.address, np.arange(known))
    return server


@contextmanager
def served(servicer):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    rpc.add_SelectorServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


class Passing(rpc.SelectorServiceServicer):
    """Passes requests on to a sidecar, and remembers them; `shortlist` is what is done in Shortlist's place."""

    def __init__(self, sidecar, shortlist=None, select=None):
        self.sidecar, self.asked = sidecar, []
        self._instead = {"Shortlist": shortlist, "Select": select}

    def GetServerInfo(self, request, context):
        return self.sidecar.info()

    def Shortlist(self, requests, context):
        return self._pass("Shortlist", requests, context)

    def Select(self, requests, context):
        return self._pass("Select", requests, context)

    def _pass(self, method, requests, context):
        messages = list(requests)
        self.asked.append((method, messages[0].selection))
        if self._instead[method] is not None:
            return self._instead[method](context)
        try:
            return getattr(self.sidecar.stub, method)(iter(messages), timeout=30)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


def refuse(code, words="no"):
    return lambda context: context.abort(code, words)


def old(sidecar):
    return Passing(sidecar, refuse(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
