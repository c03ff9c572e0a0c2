"""Turns errors of the local disk into errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from physion.errors import ConfigError, PhysionError, TransientError


@contextlib.contextmanager
def clear_errors(doing: str) -> Iterator[None]:
    """Turn an OSError of the local disk into a clear error: what was being done, why it failed, what to do."""
    try:
        yield
    except OSError as error:
        raise explained(error, doing) from error


def explained(error: OSError, doing: str) -> PhysionError:
    """An OSError of the local disk as an error that a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TransientError(f"{doing}: no space left on the disk; free some and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"{doing}: {error.strerror}; give this user write access or choose another --store")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):
        return ConfigError(f"{doing}: {error.strerror} ({error.filename}); choose another --store")
    return TransientError(f"{doing}: {error.strerror or error}")
