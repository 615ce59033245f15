"""How gunicorn serves the gateway; read from the current folder, so start it in the checkout.

Each process is one of threads (gthread). After the fork each one starts its services: exactly one of a host runs the worker.
"""

import ctypes
import gc
import os
import signal
import sys

from gunicorn.glogging import CONFIG_DEFAULTS

# Whatever is imported of app imports all of it: here in the master, once for all processes and before the first one is forked.
# Nothing is opened or started by that.
from app import config as settings
from app import startup
from app.runtime.malloc import give_memory_back

# What was imported stays: a process that looked for garbage among it would get a copy of all of it by that.
gc.freeze()

try:
    _config = settings.load()
    # For all processes: their limit of open files is the master's. What they need for their own files is left out.
    worker_connections = startup.room_for_connections(_config)
except (settings.ConfigError, startup.CannotStart) as error:
    sys.exit(f"sd-gateway: {' '.join(str(error).split())}")

wsgi_app = "wsgi:app"
bind = _config.bind
workers = _config.web_concurrency
# gthread, with our way to end and to tell why it can't start.
worker_class = "app.serving.gunicorn_worker.Worker"
# No work for an access log that is not written.
logger_class = "app.serving.gunicorn_worker.Logger"
threads = _config.threads
# Waiting clients hold their connection; the kernel's queue takes what arrives in a burst.
backlog = 2048
keepalive = 5
# The main thread of a gthread process beats by itself, however long a request waits.
timeout = 30
# Longer than draining may take, so that a stopping worker is never killed over it.
graceful_timeout = int(_config.drain_timeout) + 10
# Its default lies in the home folder, where two gateways of one user would meet.
control_socket_disable = True
accesslog = None
errorlog = "-"
# gunicorn's own loggers as they are, and the gateway's beside them, whose lines name the module.
logconfig_dict = {
    "formatters": {
        "generic": CONFIG_DEFAULTS["formatters"]["generic"],
        "app": {
            "format": "%(asctime)s [%(process)d] [%(levelname)s] %(name)s: %(message)s",
            "datefmt": "[%Y-%m-%d %H:%M:%S %z]",
        },
    },
    "handlers": {
        **CONFIG_DEFAULTS["handlers"],
        "app": {"class": "logging.StreamHandler", "formatter": "app", "stream": "ext://sys.stderr"},
    },
    "loggers": {
        "gunicorn.error": {
            "level": "INFO",
            "handlers": ["error_console"],
            "propagate": False,
            "qualname": "gunicorn.error",
        },
        # The database itself says when it was migrated.
        "alembic": {"level": "WARNING", "handlers": ["error_console"], "propagate": False, "qualname": "alembic"},
        "app": {"level": "INFO", "handlers": ["app"], "propagate": False, "qualname": "app"},
    },
}


def on_starting(server):
    """Refuse to start, in one line, with what no process could work with."""
    if server.cfg.is_ssl:
        sys.exit("sd-gateway can't speak TLS: let nginx or another proxy in front of it do so.")
    if server.cfg.preload_app:
        # A database connection and the worker's threads do not survive the fork.
        sys.exit("sd-gateway can't run with --preload: each process must open its own database connections.")
    # Sockets that systemd or an earlier master hands over are bound already.
    handed_over = server.master_pid != 0 or "LISTEN_PID" in os.environ or server.cfg.reuse_port
    try:
        for address in () if handed_over else server.cfg.address:
            startup.await_address(address)
        # With --user the processes run as somebody else, to whom what is made here would not belong.
        if server.cfg.uid == os.geteuid():
            startup.open_services(_config).database.close()
    except startup.CannotStart as error:
        sys.exit(f"sd-gateway: {error}")


def when_ready(server):
    """Let the first Ctrl-C do what SIGTERM does; a second one ends all at once."""
    interrupts = iter([signal.SIGTERM])
    signal.signal(signal.SIGINT, lambda *_: server.SIG_QUEUE.put_nowait(next(interrupts, signal.SIGINT)))


def post_worker_init(worker):
    """Start the services of a new process."""
    _stop_with_the_master()
    # A thread that waits for the interpreter asks for it after this long. The runner of a WebUI waits while other threads decode
    # pictures and answer requests, and Python's own 5 ms would be most of the gap between two pictures.
    sys.setswitchinterval(0.0005)
    give_memory_back()
    services = worker.wsgi.extensions["sd-gateway"]
    services.start(worker=_config.worker == "embedded")
    services.drain_on(signal.SIGTERM)
    worker.sdg_services = services


def _stop_with_the_master():
    """Let the kernel send SIGTERM when the master dies: its processes would go on listening until their last waiter had gone, and a
    new server could not have the port.
    """
    if sys.platform == "linux":
        # prctl(2), PR_SET_PDEATHSIG. gunicorn itself notices a master that is dead already.
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)


def worker_exit(_server, worker):
    """Finish or give back what runs, before the process ends."""
    services = getattr(worker, "sdg_services", None)
    if services is not None:
        services.drain()
