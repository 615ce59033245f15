"""How gunicorn serves the gateway; read from the current folder, so start it in the checkout.

Each process is one of threads (gthread). After the fork each one starts its services: exactly one of a host runs the worker.
"""

import ctypes
import signal
import sys

from gunicorn.glogging import CONFIG_DEFAULTS

# Whatever is imported of app imports all of it: here in the master, once for all processes and before the first one is forked.
# Nothing is opened or started by that.
from app import config as settings
from app.allocator import give_memory_back

_config = settings.load()

wsgi_app = "wsgi:app"
bind = _config.bind
workers = _config.web_concurrency
# gthread whose threads stay with a connection for a moment, and no work for an access log that is not written.
worker_class = "app.api.serving.Worker"
logger_class = "app.api.serving.Logger"
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
        "app": {"level": "INFO", "handlers": ["app"], "propagate": False, "qualname": "app"},
    },
}


def on_starting(server):
    """Refuse --preload: a database connection and the worker's threads do not survive the fork."""
    if server.cfg.preload_app:
        sys.exit("sd-gateway can't run with --preload: each process must open its own database connections.")


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
