"""A Source that asks a running sidecar by its admin calls."""

from collections.abc import Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from selector_client import Denied, RemoteError, Untrusted
from selector_client.selecting.call_errors import error_of
from selector_client.selecting.channel import open_channel
from selector_client.selecting.credentials import Access
from selector_proto.v1 import inspection_pb2 as pb
from selector_proto.v1.inspection_pb2_grpc import InspectionServiceStub

from selector_server.errors import NotPossible, SelectorError, Unavailable

CALL_SECONDS, DOWNLOAD_SECONDS = 15.0, 600.0
# A sidecar that went away without a word is noticed.
KEEPALIVE_SECONDS = 20.0
T = TypeVar("T", bound=Message)


class RemoteSource:
    """Asks over one channel, with the token that the file holds at each call. Raises Untrusted for files of `access`
    that cannot be read."""

    def __init__(self, address: str, access: Access) -> None:
        self._address, self._access = address, access
        self._channel = open_channel(address, access, KEEPALIVE_SECONDS)
        self._stub: Any = InspectionServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._channel.close()

    def get_overview(self, request: pb.GetOverviewRequest) -> pb.GetOverviewResponse:
        return self._ask("GetOverview", request, pb.GetOverviewResponse)

    def get_super_batch(self, request: pb.GetSuperBatchRequest) -> pb.GetSuperBatchResponse:
        return self._ask("GetSuperBatch", request, pb.GetSuperBatchResponse)

    def list_pictures(self, request: pb.ListPicturesRequest) -> pb.ListPicturesResponse:
        return self._ask("ListPictures", request, pb.ListPicturesResponse)

    def get_sample(self, request: pb.GetSampleRequest) -> pb.GetSampleResponse:
        return self._ask("GetSample", request, pb.GetSampleResponse)

    def list_slices(self, request: pb.ListSlicesRequest) -> pb.ListSlicesResponse:
        return self._ask("ListSlices", request, pb.ListSlicesResponse)

    def download_super_batches(
        self, request: pb.DownloadSuperBatchesRequest
    ) -> Iterator[pb.DownloadSuperBatchesResponse]:
        try:
            yield from self._stub.DownloadSuperBatches(request, timeout=DOWNLOAD_SECONDS, metadata=self._token())
        except grpc.RpcError as error:
            raise self._told(error) from error

    def _ask(self, method: str, request: Message, kind: type[T]) -> T:
        try:
            answer = getattr(self._stub, method)(request, timeout=CALL_SECONDS, metadata=self._token())
        except grpc.RpcError as error:
            raise self._told(error) from error
        assert isinstance(answer, kind)
        return answer

    def _token(self) -> list[tuple[str, str]]:
        try:
            return self._access.metadata()
        except Untrusted as error:
            raise NotPossible("token_file", self._access.token_file, str(error)) from error

    def _told(self, error: grpc.RpcError) -> SelectorError:
        """The page's reader cannot log in to the sidecar: what this side's token does not open is this side's error."""
        found = error_of(error, self._address, self._access)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            limit = "it has no inspection here: start it with --inspect true; admin calls may have their own address"
            return NotPossible("address", self._address, f"{limit} (--admin-listen)")
        if isinstance(found, Denied | RemoteError):
            return NotPossible("sidecar", self._address, " ".join(str(found).split()))
        return Unavailable("sidecar", self._address, " ".join(str(found).split()))
