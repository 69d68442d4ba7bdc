"""The trainer's side: it picks sub-batches, feeds the trainer with them, and publishes the trainer's weights.

selector = Selector("localhost:50051", run="my-run")
publisher = WeightPublisher("redis://localhost:6379", run="my-run", every=10)
for step, batch in enumerate(SelectingLoader(super_batches, selector)):
    train_step(batch)
    publisher.publish(step, model)
"""

from selector_proto.weights.link import LinkOptions

from selector_client.errors import (
    Denied,
    Misrouted,
    PublishError,
    RemoteError,
    SelectorClientError,
    Unreachable,
    Untrusted,
)
from selector_client.loading.interleaving import InterleavedShards
from selector_client.loading.loader import SelectingLoader
from selector_client.loading.reference import Reference
from selector_client.publishing.canary import Canary
from selector_client.publishing.publisher import WeightPublisher
from selector_client.selecting.async_selector import AsyncSelector
from selector_client.selecting.candidates import ModelEmbeddings
from selector_client.selecting.credentials import Access
from selector_client.selecting.selection import Selection, Statistics
from selector_client.selecting.selector import Selector
from selector_client.selecting.settings import Settings

__all__ = [
    "Access",
    "AsyncSelector",
    "Canary",
    "Denied",
    "InterleavedShards",
    "LinkOptions",
    "Misrouted",
    "ModelEmbeddings",
    "PublishError",
    "Reference",
    "RemoteError",
    "SelectingLoader",
    "Selection",
    "Selector",
    "SelectorClientError",
    "Settings",
    "Statistics",
    "Unreachable",
    "Untrusted",
    "WeightPublisher",
]
