"""All targets, by what their bytes come from."""

from fuzz.targets import cache, client, images, select, settings, shared_memory, texts, weights, weights_store

TARGETS = (
    *select.TARGETS,
    *shared_memory.TARGETS,
    *images.TARGETS,
    *texts.TARGETS,
    *weights.TARGETS,
    *weights_store.TARGETS,
    *cache.TARGETS,
    *settings.TARGETS,
    *client.TARGETS,
)
