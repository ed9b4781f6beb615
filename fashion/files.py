"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes) -> None:
    """Write a file to a neighbour and move it, so that an interruption leaves the old one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    write(path, (json.dumps(content, indent=2) + "\n").encode())
