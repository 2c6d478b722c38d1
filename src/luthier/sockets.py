"""Where a server listens."""

import socket

from luthier.errors import UserError


def bind(host: str, port: int) -> socket.socket:
    """The socket to listen on, taken before anything slow; port 0 takes a free one.

    Raises:
        UserError: the address is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(f"cannot listen on {host}:{port}: {error}") from None
    return bound
