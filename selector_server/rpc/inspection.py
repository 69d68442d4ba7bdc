"""The inspection service: what an operator sees of selections. Each call is a look into bounded memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import grpc
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1 import inspection_pb2_grpc as rpc

from selector_server.engine.request import in_thread
from selector_server.errors import NotPossible
from selector_server.inspection.source import Source

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the type stubs only


class InspectionService(rpc.InspectionServiceServicer):
    """Answers from a source, one call at a time, so that many viewers take no more than a core. It is None where
    nothing is observed."""

    def __init__(self, source: Source | None) -> None:
        self._source = source
        self._turn = asyncio.Semaphore(1)

    async def GetOverview(self, request: pb.GetOverviewRequest, context: Context) -> pb.GetOverviewResponse:  # noqa: N802, ARG002
        async with self._turn:
            return await in_thread(lambda: self._there.get_overview(request))

    async def GetSuperBatch(self, request: pb.GetSuperBatchRequest, context: Context) -> pb.GetSuperBatchResponse:  # noqa: N802, ARG002
        async with self._turn:
            return await in_thread(lambda: self._there.get_super_batch(request))

    async def ListPictures(self, request: pb.ListPicturesRequest, context: Context) -> pb.ListPicturesResponse:  # noqa: N802, ARG002
        async with self._turn:
            return await in_thread(lambda: self._there.list_pictures(request))

    async def GetSample(self, request: pb.GetSampleRequest, context: Context) -> pb.GetSampleResponse:  # noqa: N802, ARG002
        async with self._turn:
            return await in_thread(lambda: self._there.get_sample(request))

    async def ListSlices(self, request: pb.ListSlicesRequest, context: Context) -> pb.ListSlicesResponse:  # noqa: N802, ARG002
        async with self._turn:
            return await in_thread(lambda: self._there.list_slices(request))

    async def DownloadSuperBatches(  # noqa: N802
        self,
        request: pb.DownloadSuperBatchesRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.DownloadSuperBatchesResponse]:
        pieces: Iterator[pb.DownloadSuperBatchesResponse] = iter(())

        def first() -> pb.DownloadSuperBatchesResponse | None:
            nonlocal pieces
            pieces = self._there.download_super_batches(request)
            return next(pieces, None)

        async with self._turn:
            piece = await in_thread(first)
        while piece is not None:
            yield piece
            piece = next(pieces, None)

    @property
    def _there(self) -> Source:
        if self._source is None:
            raise NotPossible("inspection", "off", "nothing is kept of selections; start the server with --inspect")
        return self._source
