"""The studies' two-tower SigLIP: small enough that 600 steps take seconds on one CPU core."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu, softplus

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_tools.datasets.pairs import MAX_TOKENS, PAD
from selector_tools.export.torch_model import TorchModel

SIDE = 32
MEAN, STD = 0.25, 0.41  # of the ink (0 to 1) in the pool's pictures


class SmallSigLip(nn.Module):
    """A convolutional image tower and a bag-of-words text tower, 128 wide, about 1.3 M parameters."""

    def __init__(self, vocabulary: int, width: int = 128) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 6, stride=4, padding=1)  # 8 x 8
        self.conv = nn.Conv2d(32, 64, 3, stride=2, padding=1)  # 4 x 4
        self.norm = nn.LayerNorm(64 * 16)
        self.project = nn.Linear(64 * 16, width)
        self.words = nn.Embedding(vocabulary, width, padding_idx=PAD)
        # Words that do not start far apart bring the reference to 26 % instead of 17 % zero-shot.
        nn.init.normal_(self.words.weight, std=0.02)
        self.skip = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        # -log(128) is about -5, the prior that fits a batch of 128 as the paper's -10 fits 32,768.
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, 1, 32, 32], normalised by MEAN and STD, and returns float [B, D]."""
        hidden = relu(self.conv(relu(self.stem(images))))
        out: Tensor = self.project(self.norm(hidden.flatten(1)))
        return out

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] and returns float [B, D]."""
        present = (tokens != PAD).to(self.words.weight.dtype).unsqueeze(-1)
        count = present.sum(dim=1).clamp(min=1.0)
        bag = (self.words(tokens) * present).sum(dim=1) / count.sqrt()
        out: Tensor = self.skip(bag) + self.mlp(bag)
        return out

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Takes uint8 [B, 32, 32, 1] and int64 [B, T] and returns embeddings of length one, float [B, D]."""
        images = (pixels.permute(0, 3, 1, 2).float() / 255.0 - MEAN) / STD
        return normalize(self.encode_image(images), dim=1), normalize(self.encode_text(tokens), dim=1)

    def loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Returns the sigmoid loss, summed over each image's texts and averaged over images."""
        image, text = self(pixels, tokens)
        logits = self.log_scale.exp() * image @ text.T + self.bias
        signs = 1 - 2 * torch.eye(len(logits), device=logits.device)
        return softplus(signs * logits).sum(dim=1).mean()


def exportable(name: str, model: SmallSigLip, vocabulary: int, tokenizer: Path) -> TorchModel:
    """Returns what the exporter takes; `tokenizer` is the file of the words that the model knows."""
    return TorchModel(
        name=name,
        module=model,
        image=ImageInput(height=SIDE, width=SIDE, channels=1, mean=(MEAN,), std=(STD,)),
        text=TextInput(max_tokens=MAX_TOKENS, vocabulary=vocabulary),
        logit=Logit(scale_parameter="log_scale", scale_is_log=True, bias_parameter="bias"),
        tokenizer=tokenizer,
    )
