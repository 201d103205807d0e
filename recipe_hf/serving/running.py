"""A server as a program: from settings to a process that listens, until it is told to stop."""

from __future__ import annotations

import logging
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from .access import check_address
from .app import create_app
from .generating import TransformersEngine
from .keys import Keys
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..knowledge import KnowledgeBase
    from ..modeling.model import RecipeForCausalLM

logger = logging.getLogger(__name__)


def listening(settings: ServerSettings) -> socket.socket:
    """A socket with the address of a server, which nobody can connect to before it is served.

    Raises:
        OSError: If the address is taken, or not of this machine.
        ValueError: If others can reach it, and there are no keys.
    """
    check_address(settings.host, None if settings.keys is None else Keys(settings.keys))
    try:
        family, kind, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"host and port {settings.host}:{settings.port} cannot be listened on: {error}.") from error
    return listener


def open_knowledge(settings: ServerSettings, dim: int) -> KnowledgeBase | None:
    """The facts that a server keeps apart from its checkpoint, in a file or in Qdrant; None for the checkpoint's own.

    Raises:
        BlockingIOError: If another process writes the file.
        OSError: If they cannot be reached.
        ValueError: If they are of another width, or damaged.
    """
    if settings.knowledge is None:
        return None
    if "://" in settings.knowledge:
        from ..knowledge.qdrant import QdrantKnowledgeBase

        key = settings.qdrant_api_key
        options: dict[str, Any] = {} if key is None else {"api_key": key.get_secret_value()}
        return QdrantKnowledgeBase(
            settings.knowledge, settings.collection, dim, read_only=settings.read_only, **options
        )
    from ..knowledge import KnowledgeBase

    return KnowledgeBase.open(settings.knowledge, dim, read_only=settings.read_only)


def run(settings: ServerSettings, model: RecipeForCausalLM, listener: socket.socket) -> None:
    """Serves a model until SIGTERM or SIGINT: then answers that run end, and nothing acknowledged is lost.

    Args:
        settings: How.
        model: The model. Its `knowledge` is closed in the end.
        listener: Where; see `listening`.

    Raises:
        SystemExit: When it has been told to stop.
    """
    engine = TransformersEngine(model, settings.max_batch_size, settings.max_waiting, settings.batch_wait)
    config = uvicorn.Config(
        create_app(settings, model, engine),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
        lifespan="on",
    )
    # uvicorn gives a signal back once everything is shut down.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    host, port, *_ = listener.getsockname()
    fields = {"model": settings.model_name, "facts": len(model.knowledge), "address": f"{host}:{port}"}
    logger.info("serving", extra={"fields": fields})
    with model.knowledge:
        uvicorn.Server(config).run(sockets=[listener])
    raise SystemExit(1)  # It could not start; why is in the log.


def _leave(*_: Any) -> NoReturn:
    raise SystemExit(0)
