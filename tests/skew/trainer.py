"""What a trainer does, in the version that its environment has; only names that selector_client offers are used.

trainer.py select ADDRESS SAMPLES.npz         prints its picks as JSON, by form of the candidates and by transport
trainer.py publish URL RUN STEP WEIGHTS.npz   prints the version
"""

import json
import sys

import numpy as np
from selector_client import Canary, ModelEmbeddings, Selector, WeightPublisher


def select(address: str, file: str) -> dict[str, list[int]]:
    given = np.load(file)
    learner, reference = (
        ModelEmbeddings(given[f"{name}_image"], given[f"{name}_text"], logit_scale=10.0, logit_bias=-10.0)
        for name in ("learner", "reference")
    )
    found = {}
    for transport, shared in (("stream", False), ("shared memory", True)):
        settings = {"seed": 3, "filter_ratio": 0.8, "on_error": "raise", "timeout": 30.0, "shared_memory": shared}
        with Selector(address, policy="joint", **settings) as selector:
            picks = {
                "samples": selector.select(given["pixels"], given["tokens"], step=1),
                "embeddings": selector.select_embeddings(learner, reference),
            }
        with Selector(address, policy="independent", **settings) as selector:
            picks["losses"] = selector.select_losses(given["learner_losses"], given["reference_losses"])
        found |= {f"{form} by {transport}": one.indices.tolist() for form, one in picks.items()}
    return found


def publish(url: str, run: str, step: str, file: str) -> int:
    given = dict(np.load(file))
    canary = Canary(**{name: given.pop(f"canary_{name}") for name in ("pixels", "tokens", "image", "text")})
    with WeightPublisher(url, run, on_error="raise") as publisher:
        assert publisher.publish(int(step), given, canary)
        assert publisher.flush(20)
        return publisher.last_version


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    print(json.dumps({"select": select, "publish": publish}[verb](*arguments)))
