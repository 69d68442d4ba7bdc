"""Reads the files beside the weights in a folder of transformers. `flag` is the one that named the folder."""

import json
from pathlib import Path
from typing import Any

from selector_server.errors import SetupError
from selector_tools.mistakes import in_one_line

BILINEAR = 2  # Pillow's number for it, which preprocessor_config.json has


def read(flag: str, file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises SetupError."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SetupError(flag, file, f"cannot be read: {in_one_line(error)}") from error
    if not isinstance(content, dict):
        raise SetupError(flag, file, "must be a JSON object")
    return content


def optional(flag: str, file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, and an empty one where there is no file. Raises SetupError."""
    return read(flag, file) if file.exists() else {}


def token_ids(flag: str, folder: Path, roles: tuple[str, ...]) -> list[int | None]:
    """Returns the ids of the tokens that have these roles (pad_token) in tokenizer_config.json, None where the folder
    does not tell. Raises SetupError."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return [None for _ in roles]
    from tokenizers import Tokenizer  # noqa: PLC0415 - only where there is one

    settings = optional(flag, folder / "tokenizer_config.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise SetupError(flag, file, f"cannot be read: {in_one_line(error)}") from error
    words = [settings.get(role) for role in roles]
    words = [word.get("content") if isinstance(word, dict) else word for word in words]
    return [None if word is None else tokenizer.token_to_id(word) for word in words]
