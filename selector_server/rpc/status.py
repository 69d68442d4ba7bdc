"""Turns errors into gRPC status: the one table, and the interceptor that applies it and counts requests."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from selector_proto.tensors import WireError

from selector_server import errors
from selector_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the type stubs only
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

SERVICE = "selector.v1.SelectorService"
ADMIN_SERVICE = "selector.v1.AdminService"
INSPECTION_SERVICE = "selector.v1.InspectionService"
# Those whose calls are an operator's.
OPERATORS = (ADMIN_SERVICE, INSPECTION_SERVICE)
# The most specific come first.
_TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (WireError, code_pb2.INVALID_ARGUMENT, "MALFORMED"),
    (errors.Unauthenticated, code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (errors.PermissionDenied, code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (errors.InvalidRequest, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST"),
    (errors.Overloaded, code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (errors.LimitExceeded, code_pb2.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED"),
    (errors.StaleWeights, code_pb2.FAILED_PRECONDITION, "STALE_WEIGHTS"),
    (errors.GroupFailed, code_pb2.FAILED_PRECONDITION, "GROUP_FAILED"),
    (errors.NotPossible, code_pb2.FAILED_PRECONDITION, "NOT_POSSIBLE"),
    (errors.TooLate, code_pb2.DEADLINE_EXCEEDED, "TOO_LATE"),
    (errors.Abandoned, code_pb2.CANCELLED, "ABANDONED"),
    (errors.Unavailable, code_pb2.UNAVAILABLE, "UNAVAILABLE"),
)


def to_status(error: Exception) -> status_pb2.Status:
    """The status of an error: its message, its field, value and limit as an ErrorInfo (AIP-193), and a RetryInfo if
    the same request may succeed later.

    An unforeseen exception is INTERNAL and keeps its message to itself: the server's log has it.
    """
    for kind, code, reason in _TABLE:
        if isinstance(error, kind):
            assert isinstance(error, errors.SelectorError | WireError)
            info = error_details_pb2.ErrorInfo(reason=reason, domain="selector.v1")
            info.metadata.update(field=error.field, value=error.value, limit=error.limit)
            details = [_packed(info)]
            if isinstance(error, errors.Overloaded):
                delay = duration_pb2.Duration()
                delay.FromMicroseconds(round(error.retry_seconds * 1e6))
                details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
            return status_pb2.Status(code=code, message=str(error), details=details)
    return status_pb2.Status(code=code_pb2.INTERNAL, message="internal error; the server's log says more")


def code_of(error: Exception) -> str:
    """The name of an error's status."""
    return str(code_pb2.Code.Name(to_status(error).code))


def _packed(message: Message) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail


class _Timed:
    """A request's messages; `first` is when the first of them came."""

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages
        self.first: float | None = None

    def __aiter__(self) -> "_Timed":
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._messages)
        if self.first is None:
            self.first = time.perf_counter()
        return message


class StatusInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Wraps every method of our services: errors become status, and each request is counted and timed."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").rpartition("/")
        if handler is None or service not in (SERVICE, *OPERATORS):
            return handler
        if handler.response_streaming:
            pieces: Any = handler.unary_stream
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(method, pieces), handler.request_deserializer, handler.response_serializer
            )
        streamed = handler.request_streaming
        make = grpc.stream_unary_rpc_method_handler if streamed else grpc.unary_unary_rpc_method_handler
        behaviour: Any = handler.stream_unary if streamed else handler.unary_unary
        return make(self._wrap(method, behaviour), handler.request_deserializer, handler.response_serializer)

    def _wrap(self, method: str, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            messages = _Timed(request) if hasattr(request, "__aiter__") else None
            async with self._counted(method, context, messages):
                return await behaviour(request if messages is None else messages, context)

        return answer

    def _wrap_stream(
        self, method: str, behaviour: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._counted(method, context, None):
                async for message in behaviour(request, context):
                    yield message

        return answer

    @asynccontextmanager
    async def _counted(self, method: str, context: Any, messages: _Timed | None) -> AsyncIterator[None]:
        """Makes a status of an error, and counts and times the call."""
        started, code, refused_since = time.perf_counter(), "OK", None
        try:
            yield
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as error:
            status = to_status(error)
            code = code_pb2.Code.Name(status.code)
            if status.code == code_pb2.INTERNAL:
                log.exception("%s failed", method)
            if isinstance(error, errors.Overloaded) and error.at_once and messages is not None:
                refused_since = messages.first
            await context.abort_with_status(rpc_status.to_status(status))
        finally:
            self._metrics.requests.labels(method, code).inc()
            self._metrics.request_seconds.labels(method).observe(time.perf_counter() - started)
            if refused_since is not None:
                self._metrics.reject_seconds.observe(time.perf_counter() - refused_since)
