"""What need not travel again: the parameters that a trainer has frozen, once a whole version has them.

A parameter counts as frozen while it needs no gradient and a sample of its values is what it was in the whole version
that the others rest on. So one that is trained, loaded or averaged meanwhile is published again.
"""

from typing import Any

from selector_client.publishing.model_state import ModelState, is_sharded

_SAMPLED = 64


def samples(state: ModelState) -> dict[str, bytes]:
    """Returns a few values of each frozen parameter, by name. Sharded ones count as not frozen."""
    return {
        name: _sample(value)
        for name in state.frozen
        if hasattr(value := state.tensors[name], "detach") and not is_sharded(value)
    }


def _sample(value: Any) -> bytes:
    flat = value.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // _SAMPLED)].double().cpu().numpy()
    return bytes(some.tobytes())
