"""All targets."""

from fuzz.targets import (
    cache,
    client,
    images,
    select,
    settings,
    shared_memory,
    shortlist,
    tensors,
    texts,
    weights,
    weights_store,
)

TARGETS = (
    *tensors.TARGETS,
    *select.TARGETS,
    *shortlist.TARGETS,
    *shared_memory.TARGETS,
    *images.TARGETS,
    *texts.TARGETS,
    *weights.TARGETS,
    *weights_store.TARGETS,
    *cache.TARGETS,
    *settings.TARGETS,
    *client.TARGETS,
)
