"""Makes a learner of the studies out of a model as the exporter takes it."""

import copy
from dataclasses import replace

from torch import Tensor, nn

from selector_server.errors import SetupError
from selector_tools.export.torch_model import TorchModel
from selector_tools.reference.training import CRITERIA, batch_loss


class OwnLearner(nn.Module):
    """A copy of a user's model on `device`, with the loss that its bundle names. The names in its state_dict are those
    of the bundle but for "module.", which a publisher takes for a wrapper's and leaves out. Raises SetupError for a
    loss that nothing is trained with here."""

    def __init__(self, model: TorchModel, device: str = "cpu") -> None:
        super().__init__()
        if model.loss not in CRITERIA:
            raise SetupError("--loss", model.loss, f"must be one of {', '.join(CRITERIA)}")
        self.module = copy.deepcopy(model.module).to(device).train()
        self._device = device
        # What is called is the copy, not the module that the model came with.
        self._model = replace(model, module=self.module, state={}, resizes={})

    def encode_image(self, images: Tensor) -> Tensor:
        """Takes float [B, C, H, W], normalised, and returns [B, D]."""
        return self._model.encode_image(self.module, images.to(self._device))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Takes int64 [B, T] and returns [B, D]."""
        return self._model.encode_text(self.module, tokens.to(self._device))

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Takes uint8 [B, H, W, C] and int64 [B, T] and returns embeddings [B, D] of any length."""
        images = self._model.normalised(pixels.to(self._device))
        return self.encode_image(images), self.encode_text(tokens)

    def loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Returns the loss of a batch, float []."""
        return batch_loss(self._model, *self(pixels, tokens))
