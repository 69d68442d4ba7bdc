"""The demo's model as its bundles describe it."""

from pathlib import Path

from selector_server.encoding.bundle import ImageInput, Logit, TextInput
from selector_tools.demo.model import MAX_TOKENS, MEAN, SIDE, STD, SmallSigLip
from selector_tools.export.torch_model import TorchModel


def source(name: str, model: SmallSigLip, vocabulary: int, tokenizer: Path) -> TorchModel:
    """What the exporter takes; `tokenizer` is the file of the words that the model knows."""
    return TorchModel(
        name=name,
        module=model,
        image=ImageInput(height=SIDE, width=SIDE, channels=1, mean=(MEAN,), std=(STD,)),
        text=TextInput(max_tokens=MAX_TOKENS, vocabulary=vocabulary),
        logit=Logit(scale_parameter="log_scale", scale_is_log=True, bias_parameter="bias"),
        tokenizer=tokenizer,
    )
