"""nginx: alone on files, and as ``deploy/nginx/`` has it in front of a gateway."""

from __future__ import annotations

import os
import shutil
from http import HTTPStatus
from pathlib import Path
from typing import Any

from benchmarks.harness import CHECKOUT, Gateway, Server, Stage, free_port, until

#: Debian puts it where only root's PATH looks. None: it is not installed.
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
#: Of nginx, and of a gateway behind it.
PROCESSES = 2
#: Of each process of the gateway.
THREADS = 8
_CONF = """
daemon off;
{user}worker_processes {processes};
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {site}
}}
"""
_FILES_ONLY = """
    sendfile on;
    tcp_nopush on;
    types {{ image/png png; }}
    server {{ listen 127.0.0.1:{port}; root {root}; }}
"""


def alone(stage: Stage, folder: Path) -> Server:
    """An nginx that serves the files of a folder."""
    port = free_port()
    return _nginx(stage, port, _FILES_ONLY.format(port=port, root=folder))


def accelerated(stage: Stage, gateway: Gateway, **settings: Any) -> Gateway:
    """A second gateway over the same records, as ``deploy/`` has it behind nginx: on a Unix socket, with ``SDG_ACCEL=nginx``.

    nginx serves nobody through it until :func:`in_front` is called.
    """
    shared = {
        name: gateway.environ[name] for name in ("SDG_INSTANCE", "SDG_DATA_DIR", "SDG_DATABASE_URL", "SDG_WEBUI_URLS")
    }
    few = {"WEB_CONCURRENCY": PROCESSES, "SDG_THREADS": THREADS, "SDG_MAX_WAITERS": THREADS // 2}
    bind = f"unix:{stage.folder}/gateway.sock"
    behind = {"SDG_WORKER": "external", "SDG_ACCEL": "nginx", "SDG_TRUSTED_PROXIES": "unix", "SDG_BIND": bind}
    second = stage.gateway([], **shared, **few, **behind, **settings)
    second.launch()
    return second


def in_front(stage: Stage, gateway: Gateway) -> Server:
    """The nginx of ``deploy/nginx/`` in front of a gateway, as soon as both answer."""
    port = free_port()
    text = (CHECKOUT / "deploy/nginx/sd-gateway.conf").read_text("utf-8")
    changes = {
        "server unix:/run/sd-gateway/gateway.sock;": f"server {gateway.environ['SDG_BIND']};",
        "listen 80 default_server": f"listen 127.0.0.1:{port} default_server",
        "alias /var/lib/sd-gateway/data/;": f"alias {gateway.environ['SDG_DATA_DIR']}/;",
        "proxy_cache_path /var/lib/nginx/sd-gateway ": f"proxy_cache_path {stage.folder}/kept-{port} ",
        # Every client here has the same address, and asks as fast as it can.
        "rate=300r/s;": "rate=1000000r/s;",
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    nginx = _nginx(stage, port, text)
    with nginx.line() as line:
        until(lambda: line.send("GET", "/readyz").status == HTTPStatus.OK, "the gateway behind nginx answers")
    return nginx


def _nginx(stage: Stage, port: int, site: str) -> Server:
    """Nginx with these server blocks, one of which listens on the port."""
    prefix = stage.folder / f"nginx-{port}"
    prefix.mkdir()
    # Started by root it would change to a user that may not read the temporary folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    conf = prefix / "nginx.conf"
    conf.write_text(_CONF.format(user=user, processes=PROCESSES, site=site))
    return stage.server("nginx", port, [str(PROGRAM), "-p", str(prefix), "-c", str(conf), "-e", "stderr"])
