"""Where runs lie: every directory at or below the given ones, links followed, each but once."""

import os
from collections.abc import Sequence
from pathlib import Path

from rl_runner.errors import UserError


def places(directories: Sequence[Path]) -> tuple[dict[Path, set[str]], dict[Path, str]]:
    """The names in every directory that is not hidden, and the directories that cannot be read, with the reason."""
    roots = [_checked(directory) for directory in directories]
    found: dict[Path, tuple[Path, set[str]]] = {}
    unreadable: dict[Path, str] = {}
    for root in roots:
        walk = os.walk(root, followlinks=True, onerror=lambda e: unreadable.update({Path(e.filename): str(e.strerror)}))
        for here, folders, files in walk:
            real = Path(os.path.realpath(here))
            names = {*folders, *files}
            # A loop of links, a second way to the same place, or a link to a folder that holds the given ones.
            known = real in found or any(real in given.parents for given in roots)
            folders[:] = [] if known else sorted(name for name in folders if not name.startswith("."))
            if not known:
                found[real] = (real if any(real.is_relative_to(given) for given in roots) else Path(here), names)
    return dict(sorted(found.values(), key=lambda item: item[0])), unreadable


def _checked(directory: Path) -> Path:
    try:
        if directory.is_dir():
            return directory.resolve()
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}") from error
    raise UserError(f"{directory} is not a directory")
