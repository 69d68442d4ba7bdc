"""Asks the Hugging Face hub for models, or its cache where the hub cannot be reached; what goes wrong is one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from selector_server.errors import SetupError
from selector_tools.mistakes import in_one_line

_Found = TypeVar("_Found")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# All that `selector export` reads of a model of transformers, but for its weights.
_DESCRIPTION = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def folder(flag: str, name: str) -> Path:
    """Returns a folder with the model `name` of transformers: description, tokenizer and weights. Raises SetupError."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - takes a second

    if not _NAME.fullmatch(name):
        raise SetupError(flag, name, "must be a path that exists, or a name such as openai/clip-vit-base-patch32")

    def fetch(*weights: str) -> Path:
        return Path(snapshot_download(name, allow_patterns=[*_DESCRIPTION, *weights]))

    def found() -> Path:
        place = fetch("model*.safetensors", "model.safetensors.index.json")
        if not any(place.glob("model*.safetensors")):
            place = fetch("pytorch_model*.bin", "pytorch_model.bin.index.json")
        return place

    place = asked(flag, name, found)
    if not any([*place.glob("model*.safetensors"), *place.glob("pytorch_model*.bin")]):
        raise SetupError(
            flag, name, f"no weights of it are on the hub or in {place}; give a config.json for random ones"
        )
    return place


def asked(flag: str, name: str, ask: Callable[[], _Found]) -> _Found:
    """Returns what `ask` gets from the hub. Raises SetupError, whatever it or a library around it raises."""
    try:
        return ask()
    except Exception as error:
        raise SetupError(flag, name, _reason(error)) from error


def _reason(error: BaseException) -> str:
    """Says why the hub did not give something. open_clip puts errors of its own around the hub's."""
    from huggingface_hub import constants, errors  # noqa: PLC0415

    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if is_a(errors.GatedRepoError):
        return "its owner asks for consent first: agree on its page, then log in by `hf auth login`"
    if is_a(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return f"{why}, and its cache, {constants.HF_HUB_CACHE}, does not hold it"
    if is_a(errors.RepositoryNotFoundError):
        return "the hub has no such model, or it is private: log in by `hf auth login`"
    if is_a(errors.EntryNotFoundError):
        return f"the hub's model lacks a file: {in_one_line(chain[-1])}"
    return f"cannot be had: {in_one_line(error)}"
