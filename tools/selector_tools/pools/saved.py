"""What a folder says in which Hugging Face's datasets saved a data set."""

import json

from selector_server.errors import SetupError
from selector_tools.mistakes import in_one_line
from selector_tools.pools import storage

PARQUET, ARROW = ".parquet", ".arrow"


def data_files(folder: str) -> list[str]:
    """Returns the Arrow files of a data set that Hugging Face's datasets saved in a folder, in their order. Raises
    SetupError if it has several splits, or is damaged."""
    state = storage.joined(folder, "state.json")
    try:
        with storage.opened(state) as file:
            names = [str(each["filename"]) for each in json.loads(file.read())["_data_files"]]
        if any("/" in name or not name.endswith(ARROW) for name in names):
            raise ValueError(f"{names[:3]} are no names of its Arrow files")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError("--pool", state, f"is no state of a data set: {in_one_line(error, kind=True)}") from error
    return [storage.joined(folder, name) for name in names]
