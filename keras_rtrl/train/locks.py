"""A lock on a folder, which one process at a time can hold."""

import contextlib
import errno
import fcntl
import os
import struct
import sys

from keras_rtrl._errors import UsageError

_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none


class Lock:
    """A lock on a folder: a POSIX record lock on a small file in it. Folder and file are made if they do not exist.

    The kernel releases the lock when the process ends, however it ends. No child process inherits it. Over a network
    file system it excludes the processes of other machines, if that file system has locks.

    Args:
      path: of the file; it is removed again by `release`.
      doing: what its holder does, for the message to others: "is training".

    Raises:
      UsageError: another process holds the lock; names it.
      OSError: the file cannot be made.
    """

    def __init__(self, path, doing):
        self._path, self._made = path, []
        try:
            self._acquire(os.path.dirname(path), doing)
        except (UsageError, OSError):
            self._remove_made()
            raise

    def _acquire(self, folder, doing):
        for _ in range(100):
            self._make(folder)
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # who made the folder has removed it
                continue
            if self._locked(folder, doing):
                return
            os.close(self._file)
        raise UsageError(f"{folder}: cannot be locked: its lock comes and goes")

    def _make(self, folder):
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder) or "."
        for made in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(made)
                self._made.append(made)

    def _locked(self, folder, doing):
        """Whether this process holds the lock now; not if the file was removed, or the lock released, meanwhile."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(self._file, fcntl.F_GETLK, _asked()))
            if kind == fcntl.F_UNLCK:
                return False
            os.close(self._file)
            holder = f"process {pid}" if pid > 0 else "another process"
            raise UsageError(f"{folder}: {holder} {doing}; wait for its end, or choose another folder") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"keras-rtrl: {folder}: this file system has no locks; see to it that no other process writes here",
                  file=sys.stderr)  # fmt: skip
            return True
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self):
        """Releases the lock, and removes its file, and the folders made for it if they are empty."""
        with contextlib.suppress(OSError):
            os.remove(self._path)
        self._remove_made()
        os.close(self._file)

    def _remove_made(self):
        with contextlib.suppress(OSError):  # something else is in it
            for folder in reversed(self._made):
                os.rmdir(folder)


def _asked():
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
