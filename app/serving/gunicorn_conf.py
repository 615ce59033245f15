"""gunicorn's configuration: for ``sd-gateway serve``, and through gunicorn.conf.py for ``gunicorn wsgi:app`` in a checkout.

gunicorn runs this file again at SIGHUP. Each process is one of threads (gthread). After the fork each one starts its services:
exactly one of a host runs the worker. What stands above this package is known here by its name, as gunicorn knows an application.
"""

import ctypes
import gc
import os
import signal
import sys
from typing import Any, Final, NoReturn

from gunicorn.util import import_app  # type: ignore[import-untyped]

# Whatever is imported of app imports all of it: here in the master, once for all processes and before the first one is forked.
# Nothing is opened or started by that.
from app.config import CannotStart, load, read, sockets_are_handed_over
from app.runtime import audit, logs
from app.runtime.cors import CrossOrigin
from app.runtime.malloc import give_memory_back
from app.serving.checks import await_address, room_for_connections

# What was imported stays: a process that looked for garbage among it would get a copy of all of it by that.
gc.freeze()

try:
    _config = load()
    # For all processes: their limit of open files is the master's. What they need for their own files is left out.
    worker_connections = room_for_connections(_config)
except CannotStart as error:
    sys.exit(logs.last_words(read().config.log_format, f"sd-gateway: {error}"))

wsgi_app = "app:create_app()"
_TRIAL: Final = "app.startup:try_services"
_EXPOSURE: Final = "app.startup:check_exposure"
bind = _config.bind
workers = _config.web_concurrency
# gthread, with our way to end and to tell why it can't start.
worker_class = "app.serving.gunicorn_worker.Worker"
# gunicorn would obey SCRIPT_NAME and PATH_INFO as header fields of a client on this machine.
forwarder_headers = ""
# And the scheme, from any client on this machine. What a proxy says of its client is the application's to believe.
secure_scheme_headers: dict[str, str] = {}
# Its own access log, which its options may ask for, must show no secrets.
logger_class = "app.serving.gunicorn_worker.Logger"
threads = _config.threads
# Waiting clients hold their connection; the kernel's queue takes what arrives in a burst.
backlog = 2048
keepalive = 5
# The main thread of a gthread process tells the master by itself that it is alive, however long a request waits.
timeout = 30
# Of what gunicorn makes, which is the Unix socket: nobody but the user and the group of the gateway reaches it.
umask = 0o007
# Longer than draining may take, so that a stopping worker is never killed over it.
graceful_timeout = int(_config.drain_timeout) + 10
# Its default lies in the home folder, where two gateways of one user would meet.
control_socket_disable = True
accesslog = None
errorlog = "-"
logconfig_dict = logs.settings(_config.log_format, access_log=_config.access_log)
logs.catch_everything()
audit.keep(_config.instance, _config.log_format)


def _refuse(message: str) -> NoReturn:
    """End the master, which can't start."""
    sys.exit(logs.last_words(_config.log_format, message))


def on_starting(server: Any) -> None:
    """Refuse to start, in one line, with what no process could work with."""
    if server.cfg.is_ssl:
        _refuse("sd-gateway can't speak TLS: let nginx or another proxy in front of it do so.")
    if server.cfg.preload_app:
        # A database connection and the worker's threads do not survive the fork.
        _refuse("sd-gateway can't run with --preload: each process must open its own database connections.")
    # Sockets that systemd or an earlier master hands over are bound already.
    handed_over = server.master_pid != 0 or sockets_are_handed_over() or server.cfg.reuse_port
    try:
        for address in () if handed_over else server.cfg.address:
            await_address(address)
        # With --user the processes run as somebody else, to whom what is made here would not belong.
        if server.cfg.uid == os.geteuid():
            import_app(_TRIAL)(_config)
    except CannotStart as error:
        _refuse(f"sd-gateway: {error}")


def when_ready(server: Any) -> None:
    """Refuse to serve everybody unless that was written down. Let the first Ctrl-C do what SIGTERM does; a second one ends all."""
    try:
        for warning in import_app(_EXPOSURE)(_config, _addresses(server.LISTENERS)):
            server.log.warning("%s", warning)
    except CannotStart as error:
        _refuse(f"sd-gateway: {error}")
    interrupts = iter([signal.SIGTERM])
    signal.signal(signal.SIGINT, lambda *_: server.SIG_QUEUE.put_nowait(next(interrupts, signal.SIGINT)))


def _addresses(listeners: Any) -> list[Any]:
    """The addresses that the sockets of a server really have: host and port, or the path of a Unix socket."""
    return [listener.getsockname() for listener in listeners]


def post_worker_init(worker: Any) -> None:
    """Start the services of a new process."""
    _stop_with_the_master()
    # A thread that waits for the interpreter asks for it after this long. The runner of a WebUI waits while other threads decode
    # pictures and answer requests, and Python's own 5 ms would be most of the gap between two pictures.
    sys.setswitchinterval(0.0005)
    give_memory_back()
    services = worker.wsgi.extensions["sd-gateway"]
    services.listens_at(_addresses(worker.sockets))
    services.start(worker=_config.worker == "embedded")
    worker.on_stopping = services.drain_soon
    worker.cross_origin = CrossOrigin(_config.cors_origins)
    worker.sdg_services = services


def _stop_with_the_master() -> None:
    """Let the kernel send SIGTERM when the master dies: its processes would go on listening until their last waiter had gone, and a
    new server could not have the port.
    """
    if sys.platform == "linux":
        # prctl(2), PR_SET_PDEATHSIG. gunicorn itself notices a master that is dead already.
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)


def worker_exit(_server: Any, worker: Any) -> None:
    """Finish or give back what runs, before the process ends."""
    services = getattr(worker, "sdg_services", None)
    if services is not None:
        services.drain()
