"""Files that survive a kill and a power cut: written beside their place, brought to the disk, then renamed."""

import os
from pathlib import Path


def replace(path: Path, content: bytes, sync: bool = True) -> None:
    """Give a file new content: readers see the old one or the new one, never a part of it.

    With `sync=False` the disk may learn of it later, which is enough against the end of the process alone.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, content, 0)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk must not stay full of what could not be finished
        raise
    if sync:
        sync_directory(path.parent)


def write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset; OSError if the disk does not take them."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Bring the names of a directory's files to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
