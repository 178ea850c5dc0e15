"""Files that survive a kill and a power cut: written beside their place, brought to the disk, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_directory(directory: Path) -> None:
    """Make a directory that a power cut leaves in its place; those that lead there may be as new, whoever made them."""
    directory.mkdir(parents=True, exist_ok=True)
    for parent in directory.absolute().parents:
        with suppress(PermissionError):  # then it was there before
            sync_directory(parent)


def replace(path: Path, content: bytes, sync: bool = True) -> None:
    """Give a file new content: readers see the old one or the new one, never a part of it.

    With `sync=False` the disk may learn of it later, which is enough against the end of the process alone.
    """
    temporary = path.with_name(path.name + ".tmp")
    with named(path):
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
            with suppress(OSError):
                temporary.unlink(missing_ok=True)  # a full disk must not stay full of what could not be finished
            raise
        if sync:
            sync_directory(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let every OSError say which file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


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
