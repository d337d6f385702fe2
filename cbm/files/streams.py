"""What is printed: no character stops a command because the terminal, or the file behind it, cannot show it."""

import io
import sys


def print_what_can_be() -> None:
    """Print characters that the output's encoding lacks as ``\\u2248``, rather than stop there with an error.

    A pipe on Windows takes the 256 characters of the system's language; a class may be called anything.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
