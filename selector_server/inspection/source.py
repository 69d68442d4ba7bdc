"""What views of an inspection ask, whoever answers: a sidecar's own memory, a sidecar elsewhere, or files."""

from collections.abc import Iterator
from typing import Protocol

from selector_proto.v1 import inspection_pb2 as pb


class Source(Protocol):
    """The calls of InspectionService as plain functions, which may take a while and are to be called off an event loop.
    All of them raise SelectorError for requests that cannot be answered."""

    def get_overview(self, request: pb.GetOverviewRequest) -> pb.GetOverviewResponse: ...

    def get_super_batch(self, request: pb.GetSuperBatchRequest) -> pb.GetSuperBatchResponse: ...

    def list_pictures(self, request: pb.ListPicturesRequest) -> pb.ListPicturesResponse: ...

    def get_sample(self, request: pb.GetSampleRequest) -> pb.GetSampleResponse: ...

    def list_slices(self, request: pb.ListSlicesRequest) -> pb.ListSlicesResponse: ...

    def download_super_batches(
        self, request: pb.DownloadSuperBatchesRequest
    ) -> Iterator[pb.DownloadSuperBatchesResponse]:
        """The parts of the file, in their order."""
