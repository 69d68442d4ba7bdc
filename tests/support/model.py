"""A tiny two-tower model, its bundles, and what torch alone would pick with it: the oracle of the server's tests."""

import math
from pathlib import Path

import numpy as np
import torch
from selector_tools.export.bundle_writer import export_learner, export_reference
from selector_tools.export.torch_model import TorchModel
from torch import nn

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_server.sampling import Criterion, Draw, Embedded, PairScores, Plan, chunk_sizes, load_policies

POLICIES = load_policies()
SIDE, TOKENS, WIDTH = 8, 6, 16
WORDS = ["[UNK]", *(f"w{i}" for i in range(1, 64))]  # word i has id i
IMAGE = ImageInput(height=SIDE, width=SIDE, channels=3)
TEXT = TextInput(max_tokens=TOKENS, vocabulary=len(WORDS), pad_token=0)
# Two weights are large enough (1024 values) to travel as BF16, the others travel as they are.
LOGIT = Logit(scale_parameter="logit_scale", scale_is_log=True, bias_parameter="logit_bias")


class TwoTower(nn.Module):
    """Linear image tower, mean-of-embeddings text tower; pairs of `samples` below fit together somewhat."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.image = nn.Linear(SIDE * SIDE * 3, WIDTH)
            self.words = nn.Embedding(len(WORDS), WIDTH)
            self.text = nn.Linear(WIDTH, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))

    def encode_image(self, images):
        return torch.tanh(self.image(images.flatten(1)))

    def encode_text(self, tokens):
        return self.text(self.words(tokens).mean(dim=1))


def source(name, module, tokenizer=None, **more) -> TorchModel:
    settings = {"image": IMAGE, "text": TEXT, "logit": LOGIT, "tokenizer": tokenizer} | more
    return TorchModel(name=name, module=module, **settings)


class Models:
    """The exported bundles and the torch modules that they came from, which are the same in every process."""

    def __init__(self, shared_folder) -> None:
        self.learner, self.reference = TwoTower(1).eval(), TwoTower(2).eval()
        with torch.no_grad():
            self.reference.logit_scale.fill_(math.log(20.0))
            self.reference.logit_bias.fill_(-9.0)
        folder = shared_folder("bundles", self._export)
        self.tokenizer = folder / "tokenizer.json"
        self.learner_path, self.reference_path = folder / "learner", folder / "reference"

    def _export(self, folder: Path) -> None:
        tokenizer = write_tokenizer(folder / "tokenizer.json")
        export_learner(source("tiny", self.learner, tokenizer), folder / "learner")
        export_reference(source("tiny-ref", self.reference, tokenizer), folder / "reference")

    @property
    def flags(self) -> dict[str, str]:
        return {"learner": str(self.learner_path), "reference": str(self.reference_path)}

    def scores(self, pixels, tokens, criterion=Criterion.LEARNABILITY, learner=None) -> PairScores:
        seen_by_learner = embed(learner or self.learner, pixels, tokens)
        seen_by_reference = embed(self.reference, pixels, tokens)
        return PairScores(criterion, seen_by_learner, seen_by_reference)

    def picks(self, pixels, tokens, plan, *, criterion=Criterion.LEARNABILITY, policy="joint", learner=None):
        """Indices that the sampler picks from torch's own embeddings: what the server must answer."""
        with torch.no_grad():
            return POLICIES[policy].pick(self.scores(pixels, tokens, criterion, learner), plan).indices.tolist()


def embed(model, pixels, tokens, scale=None, bias=None) -> Embedded:
    """uint8 [B, H, W, C] and int [B, T] through a torch model; scale and bias are its own unless given."""
    with torch.no_grad():
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5
        padded = torch.zeros((len(tokens), TOKENS), dtype=torch.int64)
        padded[:, : tokens.shape[1]] = torch.from_numpy(tokens.astype(np.int64))
        scale = float(model.logit_scale.exp()) if scale is None else scale
        bias = float(model.logit_bias) if bias is None else bias
        return Embedded.normalise(model.encode_image(images), model.encode_text(padded), scale, bias)


def samples(count, seed=0):
    """Pixels uint8 [count, SIDE, SIDE, 3] and token ids int32 [count, TOKENS]."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return pixels, rng.integers(1, len(WORDS), (count, TOKENS), dtype=np.int32)


def plan(picks, chunks=16, *, gain=100.0, draw=Draw.SAMPLE, seed=0) -> Plan:
    return Plan(chunk_sizes(picks, min(chunks, picks)), gain, draw, seed)


def as_published(model) -> TwoTower:
    """The model as a sidecar sees it after a publication: large tensors rounded to BF16 by torch itself."""
    rounded = TwoTower(0).eval()
    state = model.state_dict()
    rounded.load_state_dict({k: v.bfloat16().float() if v.numel() >= 1024 else v for k, v in state.items()})
    return rounded


def write_tokenizer(file: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(file))
    return file
