"""Where a server listens: which hosts are this machine's own, which ports are free."""

import socket

from imod_core.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def local_url(host: str, port: int) -> str:
    """How clients on this machine reach a server that listens on `host`."""
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_host(host: str, api_key: str | None) -> None:
    """Raises InputError where other machines could ask without a key."""
    if host not in LOOPBACK and not api_key:
        raise InputError(
            f"Listening on {host} lets other machines ask: set IMOD_API_KEY or give --api-key-file, "
            f"or stay on 127.0.0.1."
        )


def check_port(host: str, port: int) -> None:
    """Raises InputError where nobody can listen now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"Cannot listen on {host}, port {port} ({error.strerror}): choose another.") from None


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as chosen:
        chosen.bind((host, 0))
        return chosen.getsockname()[1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
