"""Flexi-JEST's step: the literal computation, one image at a time, has the same loss and the same gradients."""

import copy

import pytest
import torch
from selector_client.flexi import MixedResolution, at_size
from torch.nn.functional import normalize, softplus

PICKS = 11


class Towers(torch.nn.Module):
    """Takes images of any size."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.project = torch.nn.Linear(8, 5)
        self.words = torch.nn.Embedding(20, 5)

    def encode_image(self, images):
        return self.project(torch.tanh(self.conv(images)).mean(dim=(2, 3)))

    def encode_text(self, tokens):
        return self.words(tokens).mean(dim=1)


def sigmoid_loss(image, text):
    logits = 10 * normalize(image, dim=1) @ normalize(text, dim=1).T - 5
    return softplus((1 - 2 * torch.eye(len(logits))) * logits).sum() / len(logits)


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return Towers().double()


def pairs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(PICKS, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 20, (PICKS, 4), generator=generator)


def halved(image):
    """Each pixel the mean of four."""
    rows, columns = [], image.shape[-1]
    for y in range(0, columns, 2):
        rows.append(torch.stack([image[:, y : y + 2, x : x + 2].mean(dim=(1, 2)) for x in range(0, columns, 2)], dim=1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_loss_and_gradients_are_those_of_the_literal_computation(towers, share):
    images, tokens = pairs()
    literal = copy.deepcopy(towers)
    flexi = MixedResolution(towers.encode_image, at_size(towers.encode_image, 8), share=share, seed=3)
    loss = sigmoid_loss(flexi(images, step=7), towers.encode_text(tokens))
    loss.backward()

    _, low = flexi.parts(PICKS, 7)
    rows = []
    for i, image in enumerate(images):
        seen = halved(image) if i in low else image
        rows.append(literal.encode_image(seen[None])[0])
    wanted = sigmoid_loss(torch.stack(rows), literal.encode_text(tokens))
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    for (name, found), oracle in zip(towers.named_parameters(), literal.parameters(), strict=True):
        assert oracle.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(found.grad, oracle.grad, msg=name)


def test_the_low_resolution_encoder_may_be_the_users_own():
    """It gets images at full resolution, of the low part only, and each row lands where its image was."""
    images = torch.arange(float(PICKS)).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    flexi = MixedResolution(lambda part: part[:, :2, 0, 0], lambda part: -part[:, :2, 0, 0], share=0.5)
    found = flexi(images, step=0)
    _, low = flexi.parts(PICKS, 0)
    wanted = torch.arange(float(PICKS))
    wanted[low] *= -1
    assert torch.equal(found, wanted[:, None].expand(-1, 2))


def test_parts_are_random_complete_and_repeatable():
    flexi = MixedResolution(None, None, share=0.5, seed=1)
    counts = torch.zeros(PICKS)
    for step in range(400):
        full, low = flexi.parts(PICKS, step)
        assert len(low) == flexi.low_picks(PICKS) == 6
        assert sorted([*full, *low]) == list(range(PICKS))
        counts[low] += 1
    assert (counts / 400 - 6 / PICKS).abs().max() < 0.1  # four standard deviations
    again = MixedResolution(None, None, share=0.5, seed=1)
    other = MixedResolution(None, None, share=0.5, seed=2)
    assert [again.parts(99, s)[1].tolist() for s in (5, 6)] == [flexi.parts(99, s)[1].tolist() for s in (5, 6)]
    assert other.parts(99, 5)[1].tolist() != flexi.parts(99, 5)[1].tolist() != flexi.parts(99, 6)[1].tolist()


@pytest.mark.parametrize("settings", [{"share": -0.1}, {"share": 1.1}, {"seed": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"must (lie between 0 and 1|not be negative)"):
        MixedResolution(None, None, **settings)
