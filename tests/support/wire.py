"""Requests put together by hand, so that the server is not tested through the client it is tested with."""

import zlib
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from selector_proto.v1 import selector_pb2 as pb

FLOAT32, FLOAT16, BFLOAT16 = pb.DATA_TYPE_FP32, pb.DATA_TYPE_FP16, pb.DATA_TYPE_BF16
_CODES = {"<f4": FLOAT32, "<f2": FLOAT16, "|u1": pb.DATA_TYPE_U8, "<i4": pb.DATA_TYPE_I32, "<i8": pb.DATA_TYPE_I64}


@dataclass
class Request:
    """A selection and its payload; `cut` is the number of payload bytes in each message."""

    selection: pb.Selection = field(default_factory=pb.Selection)
    payload: bytes = b""
    cut: int = 1 << 20

    def add(self, array, dtype=None) -> pb.Tensor:
        """Appends an array; `dtype` names another type for the same bytes (BF16 has none in numpy)."""
        array = np.ascontiguousarray(array)
        self.payload += bytes(-len(self.payload) % 16)
        offset = len(self.payload)
        self.payload += array.tobytes()
        return pb.Tensor(dtype=_CODES[array.dtype.str] if dtype is None else dtype, shape=array.shape, offset=offset)

    def pack(self, items) -> pb.PackedBytes:
        lengths = self.add(np.array([len(item) for item in items], np.int32))
        return pb.PackedBytes(lengths=lengths, data=self.add(np.frombuffer(b"".join(items), np.uint8)))

    def set(self, **fields) -> "Request":
        self.selection.MergeFrom(pb.Selection(**fields))
        return self

    def with_crc(self) -> "Request":
        return self.set(payload_crc32=zlib.crc32(self.payload))

    def messages(self) -> list[pb.SelectRequest]:
        if not self.selection.payload_bytes:
            self.selection.payload_bytes = len(self.payload)
        pieces = [self.payload[i : i + self.cut] for i in range(0, len(self.payload), self.cut)] or [b""]
        first = pb.SelectRequest(selection=self.selection, payload=pieces[0])
        return [first, *(pb.SelectRequest(payload=piece) for piece in pieces[1:])]


def raw(pixels, tokens, **fields) -> Request:
    """Raw samples from pixels and token ids."""
    request = Request()
    request.selection.samples.pixels.CopyFrom(request.add(pixels))
    request.selection.samples.tokens.CopyFrom(request.add(tokens))
    return request.set(**fields)


def losses(learner=None, reference=None, **fields) -> Request:
    """Scalar losses; policy independent unless another one is given."""
    request = Request()
    for values, tensor in ((learner, "learner"), (reference, "reference")):
        if values is not None:
            getattr(request.selection.losses, tensor).CopyFrom(request.add(values))
    return request.set(**({"policy": "independent"} | fields))


def embeddings(learner=None, reference=None, *, dtype=None, **fields) -> Request:
    """Embeddings of (image, text, scale, bias) for each model; `dtype` as in `Request.add`."""
    request = Request()
    for model, name in ((learner, "learner"), (reference, "reference")):
        if model is not None:
            image, text, scale, bias = model
            part = getattr(request.selection.embeddings, name)
            part.image.CopyFrom(request.add(image, dtype))
            part.text.CopyFrom(request.add(text, dtype))
            part.logit_scale, part.logit_bias = scale, bias
    return request.set(**fields)


def some_losses(count=20, **fields) -> Request:
    """A small request that every server can answer."""
    values = np.random.default_rng(0).random((2, count), dtype=np.float32)
    return losses(values[0], values[1], **({"seed": 1} | fields))


def some_embeddings(count=40, width=8, seed=0):
    """(image, text, scale, bias) of a learner and of a reference, float32."""
    rng = np.random.default_rng(seed)
    image, text = rng.standard_normal((2, 2, count, width)).astype(np.float32)
    return (image[0], text[0] + image[0], 10.0, -10.0), (image[1], text[1] + image[1], 25.0, -7.5)


def bfloat16_bits(array) -> np.ndarray:
    """float32 to the upper 16 bits, rounded to nearest even by torch, as int16."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).bfloat16().view(torch.int16).numpy()


def error_info(error: grpc.RpcError) -> dict[str, str]:
    """Reason and metadata of the ErrorInfo that an error carries."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no details in {error}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "selector.v1"
    assert len(status.details) == 1 + (info.reason == "OVERLOADED")
    return {"reason": info.reason, **info.metadata}


def retry_seconds(error: grpc.RpcError) -> float | None:
    """What an error's RetryInfo says, None without one."""
    status, retry = rpc_status.from_call(error), error_details_pb2.RetryInfo()
    assert status is not None, f"no details in {error}"
    for detail in status.details:
        if detail.Unpack(retry):
            return retry.retry_delay.ToTimedelta().total_seconds()
    return None
