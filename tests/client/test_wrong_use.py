"""Mistakes of the caller: always raised, whatever on_error says."""

import numpy as np
import pytest
from selector_client import ModelEmbeddings, Selector
from support.model import samples
from support.selectors import LEARNER, REFERENCE, independent, losses
from support.wire import some_embeddings

PIXELS, IDS = samples(60)


@pytest.mark.parametrize(
    ("settings", "kind", "named"),
    [
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"timeout": float("nan")}, ValueError, "timeout is nan"),
        ({"on_error": "ignore"}, ValueError, "on_error is 'ignore'"),
        ({"polcy": "joint"}, TypeError, "polcy"),
        ({"sub_batch_size": 3, "filter_ratio": 0.5}, ValueError, "not both"),
        ({"filter_ratio": 1.0}, ValueError, "filter_ratio is 1.0"),
        ({"filter_ratio": 0.0}, ValueError, "filter_ratio is 0.0"),
        ({"filter_ratio": float("nan")}, ValueError, "filter_ratio is nan"),
        ({"criterion": "learnable"}, ValueError, "criterion is 'learnable'; must be one of learnability"),
        ({"criterion": "unspecified"}, ValueError, "criterion is 'unspecified'"),
        ({"draw": "all"}, ValueError, "draw is 'all'; must be one of sample, top-k"),
        ({"max_excluded_share": 0}, ValueError, "max_excluded_share is 0; must be above 0 and at most 1"),
        ({"max_excluded_share": float("nan")}, ValueError, "max_excluded_share is nan"),
        ({"warn_excluded_share": 1.5}, ValueError, "warn_excluded_share is 1.5; must be 0 to 1"),
    ],
)
def test_wrong_settings(settings, kind, named):
    with pytest.raises(kind, match=named):
        Selector("localhost:1", **settings)


@pytest.mark.parametrize(
    ("images", "texts", "kind", "named"),
    [
        (PIXELS.astype(np.float32), IDS, TypeError, "images has dtype float32; must be uint8"),
        (PIXELS[:, 0, 0], IDS, ValueError, r"images has shape \[60, 3\]"),
        (PIXELS[:0], IDS[:0], ValueError, r"images has shape \[0, 8, 8, 3\]"),
        (PIXELS, IDS[:59], ValueError, "texts has 59 entries, images has 60"),
        (PIXELS, IDS.astype(np.float64), TypeError, "texts has dtype float64"),
        (PIXELS, IDS[0], ValueError, r"texts has shape \[6\]"),
        (PIXELS, ["w1"] * 59, ValueError, "texts has 59 entries, images has 60"),
        (PIXELS, ["w1", None] * 30, TypeError, "texts"),
        ([b"file"] * 3, ["w1"] * 4, ValueError, "texts has 4 entries, images has 3"),
        ([b"file", None], ["w1"] * 2, TypeError, "images"),
        ([], [], TypeError, "images"),
        ("image", "text", TypeError, "images"),
    ],
)
def test_wrong_samples(images, texts, kind, named):
    with pytest.raises(kind, match=named):
        Selector("localhost:1", strict=True).select(images, texts)


def test_wrong_embeddings_losses_and_sizes():
    (image, text, *logit), reference = some_embeddings()
    selector = Selector("localhost:1")
    learner = ModelEmbeddings(image, text, *logit)
    with pytest.raises(ValueError, match="same number of rows"):
        selector.select_embeddings(learner, ModelEmbeddings(reference[0][:9], reference[1][:9], 1.0))
    with pytest.raises(ValueError, match="same number of rows"):
        selector.select_embeddings(ModelEmbeddings(image, text[:9], 1.0), None)
    with pytest.raises(ValueError, match="same number of rows"):
        selector.select_embeddings(None, None)
    with pytest.raises(TypeError, match="dtype float64 cannot be sent"):
        selector.select_embeddings(ModelEmbeddings(image.astype(np.float64), text, 1.0), None)
    with pytest.raises(ValueError, match="same length"):
        selector.select_losses(LEARNER, REFERENCE[:9])
    with pytest.raises(ValueError, match="same length"):
        selector.select_losses(None, None)
    with pytest.raises(TypeError, match="dtype float64 cannot be sent"):
        selector.select_losses(LEARNER.astype(np.float64), None)
    with pytest.raises(ValueError, match=r"[Oo]ut of range|-1"):
        losses(selector, step=-1)
    for size in (0, 51, -1):
        with pytest.raises(ValueError, match=f"{size} picks of 50 candidates"):
            losses(independent("localhost:1", sub_batch_size=size))
    with pytest.raises(ValueError, match="0 picks of 50 candidates"):
        losses(independent("localhost:1", filter_ratio=0.99))
    assert selector.statistics.requests == 0
