"""Exclusive locks on open files between processes: flock, or what Windows has in its place."""

import os
import sys
import time

if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        """Take the lock if nobody has it; closing the file gives it back."""
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def lock(descriptor: int) -> None:
        """Wait for the lock; closing the file gives it back."""
        while not try_lock(descriptor):
            time.sleep(0.02)  # short beside a trial; Windows has no wait without a limit

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Take the lock if nobody has it; closing the file gives it back."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(descriptor: int) -> None:
        """Wait for the lock; closing the file gives it back."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)
