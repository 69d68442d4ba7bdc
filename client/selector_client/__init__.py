"""The trainer's side: pick sub-batches, feed the trainer with them, publish its weights.

selector = Selector("localhost:50051", run="my-run")
publisher = WeightPublisher("redis://localhost:6379", run="my-run", every=10)
for step, batch in enumerate(SelectingLoader(super_batches, selector)):
    train_step(batch)
    publisher.publish(step, model)
"""

from selector_proto.weights.link import LinkOptions

from selector_client.access import Access
from selector_client.aio import AsyncSelector
from selector_client.errors import Denied, PublishError, RemoteError, SelectorClientError, Unreachable, Untrusted
from selector_client.loader import SelectingLoader
from selector_client.publisher import Canary, WeightPublisher
from selector_client.request import ModelEmbeddings, Settings
from selector_client.selection import Selection, Statistics
from selector_client.selector import Selector

__all__ = [
    "Access",
    "AsyncSelector",
    "Canary",
    "Denied",
    "LinkOptions",
    "ModelEmbeddings",
    "PublishError",
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
