"""The routes of a simulated WebUI, and those by which a test leads it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import itertools
import json
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, NotFound

from app.simulator import extras, lists, pictures, validation
from app.simulator.engine import Engine, task_id
from app.simulator.errors import CrashError, HttpError, InvalidError, PlainError
from app.simulator.faults import (
    EXCEPTION_GROUP,
    EXTRAS_KINDS,
    FAULT_KINDS,
    GENERATION_KINDS,
    LIST_KINDS,
    NONSENSE_PROGRESS,
    PROGRESS_KINDS,
    REFUSE,
    START_KINDS,
    STREAMS,
    Fault,
    Faults,
)
from app.simulator.generation import Job, Studio, read_inputs
from app.simulator.responses import Delivery, as_json
from app.simulator.settings import FLAVOUR_TABLE, SimulatorSettings
from app.simulator.spoil import nonsense_progress, spoil_images, spoil_job, wrong_size
from app.simulator.stats import Stats

_GENERATIONS = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")
_EXTRAS = ("/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images")
#: Routes that --api-auth does not cover though they stand under /sdapi (an extension registers them).
_OPEN = ("/sdapi/v1/loras", "/sdapi/v1/refresh-loras")
_SCRIPTS = ("prompt matrix", "prompts from file or textbox", "x/y/z plot")
_ALWAYS_ON = ("extra options", "hypertile", "refiner", "seed")
#: Bytes from which an answer is compressed for a client that can take it (``initialize_util.setup_middleware``).
_GZIP_FROM = 1000


class Simulator:
    """One simulated server: its parts, and a view for every route.

    ``refuse`` is set by whoever listens on its behalf: it closes the listening socket for so many seconds.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.flavour = FLAVOUR_TABLE[settings.flavour]
        self.engine = Engine()
        self.stats = Stats()
        self.faults = Faults(settings.faults)
        self.studio = Studio(settings, self.flavour, self.engine, self.stats, self.faults)
        self._nonsense = itertools.count()
        self.refuse: Callable[[float], None] | None = None
        self._version = self.flavour.pydantic
        kinds = ("txt2img", "img2img")
        self._fields = {kind: validation.generation_fields(self.flavour, kind) for kind in kinds}

    # Before and after every request.

    def arrive(self) -> Response | None:
        """Count the request in, read all of it, and turn away what no view may see."""
        received = g.received = request.environ.get("simulator.received", time.perf_counter())
        if request.path.startswith(("/sdapi/", "/internal/")):
            fault = self.faults.take(START_KINDS)
            if fault is not None:
                request.get_data()
                return _start_window(fault)
        # Unread bytes would be taken for the next request of a kept connection. One that breaks off before its end goes no
        # further: the real server runs only what is complete.
        request.get_data()
        if request.method == "POST" and request.path in (*_GENERATIONS, *_EXTRAS):
            g.visit = self.stats.arrive(received, generation=request.path in _GENERATIONS)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return Response("Disallowed CORS origin", 400, content_type="text/plain; charset=utf-8")
        if request.method == "HEAD" and request.url_rule is not None:
            return _method_not_allowed("GET")
        self._check_credentials()
        return None

    def leave(self, response: Response) -> Response:
        """Compress, count and spoil what goes out; Forge compresses nothing."""
        fault: Fault | None = g.get("fault")
        plain = self.flavour.forge or (fault is not None and fault.effect in STREAMS)
        asked = "gzip" in request.headers.get("Accept-Encoding", "")
        if asked and not plain and len(response.get_data()) >= _GZIP_FROM:
            response.set_data(gzip.compress(response.get_data(), compresslevel=1))
            response.headers["Content-Encoding"] = "gzip"
            response.vary.add("Accept-Encoding")
        if "visit" in g:
            return Delivery(self.engine, g.visit, fault).send(response)
        return response

    def _check_credentials(self) -> None:
        guarded = request.path.startswith("/sdapi/") and request.path not in _OPEN and request.url_rule is not None
        if self.settings.auth is None or not guarded:
            return
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            raise HttpError(401, "Not authenticated")
        try:
            user, colon, password = base64.b64decode(text, validate=True).decode("ascii").partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise HttpError(401, "Invalid authentication credentials")
        given = f"{user}:{password}".encode()
        if not secrets.compare_digest(given, ":".join(self.settings.auth).encode()):
            raise HttpError(401, "Incorrect username or password")

    # Errors.

    def on_http_error(self, error: HttpError) -> Response:
        """An HTTPException of the API; A1111 rebuilds it and loses its header."""
        response = as_json(error.body(forge=self.flavour.forge), error.status)
        if error.status == 401 and self.flavour.forge:
            response.headers["WWW-Authenticate"] = "Basic"
        return response

    def on_crash(self, error: CrashError) -> Response:
        """An exception of the server."""
        fault: Fault | None = g.get("fault")
        forge = self.flavour.forge or (fault is not None and fault.effect == "error-forge")
        if request.path in _GENERATIONS and self.faults.take((EXCEPTION_GROUP,)) is not None:
            error = CrashError("ExceptionGroup", "unhandled errors in a TaskGroup (1 sub-exception)")
        return as_json(error.body(forge=forge), 500)

    def on_invalid(self, error: InvalidError) -> Response:
        """What pydantic says."""
        return as_json({"detail": error.errors}, 422)

    def on_plain(self, error: PlainError) -> Response:
        """What the ASGI server says when nobody caught it."""
        return Response(str(error), 500, content_type="text/plain; charset=utf-8")

    def on_routing(self, error: HTTPException) -> Response:
        """Unknown path, wrong method, or a slash too many, as the router of the server answers them."""
        if error.code == 405:
            return _method_not_allowed(*(getattr(error, "valid_methods", None) or ()))
        if error.code == 500:
            original = getattr(error, "original_exception", None) or error
            return self.on_crash(CrashError(type(original).__name__, str(original)))
        plain = request.path.rstrip("/")
        if plain != request.path and current_app.url_map.bind("simulator").allowed_methods(plain):
            return Response(b"", 307, {"Location": request.host_url.rstrip("/") + plain})
        return as_json({"detail": "Not Found"}, 404)

    # Generation and extras.

    def txt2img(self) -> Response:
        """POST /sdapi/v1/txt2img."""
        return self._generate("txt2img")

    def img2img(self) -> Response:
        """POST /sdapi/v1/img2img."""
        return self._generate("img2img")

    def _body(self) -> Any:
        return validation.read_body(request.get_data(), request.headers.get("Content-Type"), self._version)

    def _struck(self, kinds: tuple[str, ...], payload: Any) -> Fault | None:
        """The fault that strikes this request; those that need no work done first end it here."""
        batch_size = payload.get("batch_size") if isinstance(payload, dict) else None
        many = isinstance(batch_size, int) and batch_size > 1
        fault = self.faults.take(
            kinds, lambda fault: fault.kind != "lost-model" and (many or fault.kind != "oom-batch")
        )
        g.fault = fault
        _fail_early(fault)
        if fault is not None and fault.effect == "early-hints":
            _send_hints(fault.sized(2))
        return fault

    def _lost_model(self, payload: dict[str, Any] | None = None) -> str | None:
        """The model that has left the server; a request that names it uses the fault up by one."""
        fault = self.faults.find("lost-model")
        if fault is None:
            return None
        lost = fault.model or self.studio.models.last()
        alias = ((payload or {}).get("override_settings") or {}).get("sd_model_checkpoint")
        named = self.studio.models.named(lost)
        if named is not None and named.answers_to(alias):
            self.faults.take(("lost-model",))
        return lost

    def _generate(self, kind: str) -> Response:
        payload = self._body()
        self.stats.remember(request.path, payload, g.received)
        fault = self._struck(GENERATION_KINDS, payload)
        fields = validation.read_fields(self._fields[kind], payload, self._version)
        job = self._job(kind, fields)
        background = str(self.studio.options["img2img_background_color"])
        self.studio.run(
            job,
            fields["force_task_id"] or task_id(kind),
            lambda: None if kind == "txt2img" else read_inputs(job, self.flavour, background),
            fault,
            self._lost_model(fields),
        )
        return as_json(self._result(job, fields, fault))

    def _job(self, kind: str, fields: dict[str, Any]) -> Job:
        """What is checked before a request may queue, in the server's order."""
        if kind == "img2img":
            if fields["init_images"] is None:
                raise HttpError(404, "Init image not found")
            if fields["mask"]:
                pictures.decode(fields["mask"])
        self._check_scripts(fields)
        sampler = fields["sampler_name"] or fields["sampler_index"]
        found = lists.find_sampler(self.flavour, sampler, fields.get("scheduler"))
        if found is None:
            raise HttpError(404, "Sampler not found")
        return Job(kind, dict(fields), *found, masked=bool(fields.get("mask")), began=g.received)

    def _check_scripts(self, fields: dict[str, Any]) -> None:
        known = {fields["script_name"] or "": (*_SCRIPTS, "")} | dict.fromkeys(fields["alwayson_scripts"], _ALWAYS_ON)
        for name, names in known.items():
            if name.lower() not in names:
                raise HttpError(422, f"Script '{name}' not found")

    def _result(self, job: Job, fields: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
        """The body of a 200; pictures are encoded by the options as they are now, the lock long released."""
        effect = None if fault is None else fault.effect
        spoil_job(job, fault)
        echo = {**fields, "override_settings": job["override_settings"]}
        if not fields.get("include_init_images", True):
            echo |= {"init_images": None, "mask": None}
        other = effect if effect in ("jpeg", "webp") else None
        images = [self.studio.encode(picture, other) for picture in job.pictures] if fields["send_images"] else []
        return {
            "images": spoil_images(images, fault),
            "parameters": echo,
            "info": json.dumps(job.info),
        }

    def extra_single_image(self) -> Response:
        """POST /sdapi/v1/extra-single-image."""
        fields = self._extras_fields(batch=False)
        images, html_info = self._upscale(fields, [fields["image"] or ""])
        if not images:
            raise CrashError("IndexError", "list index out of range")
        return as_json({"html_info": html_info, "image": images[0]})

    def extra_batch_images(self) -> Response:
        """POST /sdapi/v1/extra-batch-images."""
        fields = self._extras_fields(batch=True)
        images, html_info = self._upscale(fields, [item["data"] for item in fields["imageList"]])
        return as_json({"html_info": html_info, "images": images})

    def _extras_fields(self, *, batch: bool) -> dict[str, Any]:
        payload = self._body()
        self.stats.remember(request.path, payload, g.received)
        self._struck(EXTRAS_KINDS, payload)
        return validation.read_fields(validation.extras_fields(self.flavour, batch=batch), payload, self._version)

    def _upscale(self, fields: dict[str, Any], sources: list[str]) -> tuple[list[str], str]:
        fault: Fault | None = g.get("fault")
        effect = None if fault is None else fault.effect
        if effect == "error-500":
            raise CrashError("RuntimeError", "simulated failure")
        images = [pictures.decode(source, upright=self.flavour.exif) for source in sources]
        hang = fault.lasts(3600) if fault is not None and effect == "hang" else 0.0
        seconds, notes = self.settings.seconds_per_upscale, not self.flavour.forge
        done, html_info = extras.run(self.engine, fields, images, seconds, hang=hang, notes=notes)
        if effect == "wrong-size":
            done = [wrong_size() for _ in done]
        if effect in ("jpeg", "webp"):
            done = [pictures.Picture(png, "").encode(effect, text=False) for png in done]
        return spoil_images([pictures.base64_text(data) for data in done], fault), html_info

    # What others may ask or tell while it works.

    def progress(self) -> Response:
        """GET /sdapi/v1/progress."""
        validation.read_flag("skip_current_image", request.args.get("skip_current_image"), self._version)
        fault = self.faults.take(PROGRESS_KINDS)
        if fault is not None:
            self.engine.wait_for_stop(fault.lasts(1))
        return self._progress(self.engine.progress())

    def internal_progress(self) -> Response:
        """POST /internal/progress."""
        fields = validation.read_fields(validation.PROGRESS_FIELDS, self._body(), self._version)
        return self._progress(self.engine.task_progress(fields["id_task"], fields["id_live_preview"]))

    def _progress(self, body: dict[str, Any]) -> Response:
        if self.faults.take((NONSENSE_PROGRESS,)) is None:
            return as_json(body)
        return Response(nonsense_progress(body, next(self._nonsense)), content_type="application/json")

    def pending_tasks(self) -> Response:
        """GET /internal/pending-tasks."""
        return as_json(self.engine.pending())

    def interrupt(self) -> Response:
        """POST /sdapi/v1/interrupt: whatever runs; lost when idle."""
        self.stats.count("interrupts")
        self.engine.interrupt()
        return as_json({})

    def skip(self) -> Response:
        """POST /sdapi/v1/skip."""
        self.engine.skip()
        return as_json(None)

    def options(self) -> Response:
        """GET /sdapi/v1/options."""
        self._check_lists()
        self.studio.settle()
        return as_json(self.studio.options.as_dict())

    def set_options(self) -> Response:
        """POST /sdapi/v1/options: an unknown key fails, those before it stay set; a model that cannot be loaded is ignored."""
        values = validation.read_object(self._body(), self._version)
        model = values.get("sd_model_checkpoint")
        checkpoint = self.studio.models.find(model)
        if model is not None and checkpoint is None:
            raise CrashError("RuntimeError", f"model {model!r} not found")
        for key, value in values.items():
            if key not in self.studio.options:
                raise CrashError("KeyError", repr(key))
            self.studio.options[key] = value
        if checkpoint is not None:
            with self.engine.queue_lock:
                with contextlib.suppress(CrashError):
                    self.studio.models.load(checkpoint)
                self.studio.options["sd_model_checkpoint"] = self.studio.models.loaded.title
        return as_json(None)

    # Lists.

    def _check_lists(self) -> None:
        fault = self.faults.take(LIST_KINDS)
        if fault is not None and fault.kind == "catalogue-500":
            raise CrashError("RuntimeError", "simulated failure")
        if fault is not None:
            raise NotFound

    def listing(self, body: Callable[[], Any]) -> Callable[[], Response]:
        """A GET route that answers with a list, unless a fault keeps it from that."""

        def view() -> Response:
            self._check_lists()
            return as_json(body())

        return view

    def models(self) -> list[dict[str, Any]]:
        """The body of /sd-models."""
        self.studio.settle()
        listed = self.studio.models.listed(self._lost_model())
        return [checkpoint.as_dict(forge=self.flavour.forge) for checkpoint in listed]

    def refresh_checkpoints(self) -> Response:
        """POST /sdapi/v1/refresh-checkpoints: it waits for the job that runs."""
        with self.engine.queue_lock:
            self.studio.models.refresh()
        return as_json(None)

    def png_info(self) -> Response:
        """POST /sdapi/v1/png-info."""
        fields = validation.read_fields(validation.PNG_INFO_FIELDS, self._body(), self._version)
        image = pictures.decode(fields["image"])
        texts = {name: text for name, text in image.info.items() if isinstance(text, str)}
        info = texts.pop("parameters", "")
        return as_json({"info": info, "items": texts, "parameters": _parse_infotext(info)})

    def interrogate(self) -> Response:
        """POST /sdapi/v1/interrogate."""
        fields = validation.read_fields(validation.INTERROGATE_FIELDS, self._body(), self._version)
        pictures.decode(fields["image"] or "")
        if fields["model"] not in ("clip", "deepdanbooru"):
            raise HttpError(404, "Model not found")
        return as_json({"caption": "a simulated picture"})

    # How a test leads it.

    def arm(self) -> Response:
        """POST /simulator/faults: ``{"kind": …, "count": 1, "seconds": …, "model": …, "size": …}``; 422 for anything else."""
        fault = _fault(request.get_json(force=True, silent=True))
        if isinstance(fault, str):
            return as_json({"error": fault}, 422)
        if fault.kind != REFUSE:
            self.faults.arm(fault)
        elif self.refuse is None:
            return as_json({"error": "only a listening simulator can refuse"}, 409)
        else:
            self.refuse(fault.lasts(fault.count))
        return self.armed()

    def armed(self) -> Response:
        """GET /simulator/faults."""
        return as_json({"armed": self.faults.armed()})

    def disarm(self) -> Response:
        """DELETE /simulator/faults, with ``?kind=…`` only those of that kind."""
        self.faults.clear(request.args.get("kind"))
        return self.armed()

    def change_models(self) -> Response:
        """POST /simulator/models: ``{"add": […], "remove": […]}``; 422 for anything else, or where no model is left."""
        body = request.get_json(force=True, silent=True)
        if not isinstance(body, dict) or not set(body) <= {"add", "remove"} or not all(map(_are_names, body.values())):
            return as_json({"error": "a JSON object with the lists of names add and remove is expected"}, 422)
        try:
            self.studio.models.change(body.get("add", []), body.get("remove", []))
        except ValueError as error:
            return as_json({"error": str(error)}, 422)
        return as_json({"models": [checkpoint.file for checkpoint in self.studio.models.listed()]})

    def reset(self) -> Response:
        """POST /simulator/reset: numbers and payloads start afresh."""
        self.stats.reset()
        return as_json(self.stats.as_dict())


def _fail_early(fault: Fault | None) -> None:
    effect = None if fault is None else fault.effect
    if effect == "error-http":
        raise HttpError(404, "simulated refusal")
    if effect == "error-422":
        item = {"loc": ["body", "steps"], "msg": "value is not a valid integer", "type": "type_error.integer"}
        raise InvalidError([item])
    if effect == "error-plain":
        raise PlainError("Internal Server Error")
    if effect == "error-forge":
        raise CrashError("RuntimeError", "simulated failure")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


#: What each member of a fault may be, beside its kind, and how that is said.
_FAULT_MEMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "count": (_is_count, "a whole number above 0"),
    "seconds": (lambda value: value is None or _is_duration(value), "a number from 0"),
    "model": (lambda value: value is None or isinstance(value, str), "a name"),
    "size": (lambda value: value is None or _is_count(value), "a whole number above 0"),
}


def _fault(value: Any) -> Fault | str:
    """The fault that a body asks for, or what is wrong with it."""
    if not isinstance(value, dict) or not set(value) <= {"kind", *_FAULT_MEMBERS}:
        return "a JSON object with kind, count, seconds, model and size is expected"
    if value.get("kind") not in FAULT_KINDS:
        return "unknown kind; known: " + ", ".join(FAULT_KINDS)
    for name, (accepts, words) in _FAULT_MEMBERS.items():
        if name in value and not accepts(value[name]):
            return f"{name} must be {words}"
    return Fault(**value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _send_hints(count: int) -> None:
    """Informational answers ahead of the real one; only a server that listens can send them."""
    send = request.environ.get("simulator.send")
    if send is not None:
        with contextlib.suppress(OSError):
            send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" * count)


def _start_window(fault: Fault) -> Response:
    """The 404 of a server whose API routes are still missing."""
    if fault.kind == "start-window":
        return as_json({"detail": "Not Found"}, 404)
    return Response("<html><body><h1>Not Found</h1></body></html>", 404, content_type="text/html; charset=utf-8")


def _method_not_allowed(*allowed: str) -> Response:
    response = as_json({"detail": "Method Not Allowed"}, 405)
    response.headers["Allow"] = ", ".join(sorted(set(allowed) - {"HEAD", "OPTIONS"}))
    return response


def _parse_infotext(text: str) -> dict[str, str]:
    """Prompt, negative prompt and the facts of the last line."""
    prompt, _, facts = text.rpartition("\n")
    prompt, _, negative = prompt.partition("\nNegative prompt: ")
    found = {"Prompt": prompt, "Negative prompt": negative}
    for fact in facts.split(", "):
        name, _, value = fact.partition(": ")
        if name == "Size":
            found["Size-1"], _, found["Size-2"] = value.partition("x")
        elif value:
            found[name] = value
    return found


def _lists(simulator: Simulator) -> dict[str, Callable[[], Any]]:
    """Path under /sdapi/v1 -> body, for the routes of this flavour that do nothing but list."""
    flavour = simulator.flavour
    bodies: dict[str, Callable[[], Any]] = {
        "samplers": lambda: lists.samplers(flavour),
        "upscalers": lists.upscalers,
        "latent-upscale-modes": lambda: [{"name": name} for name in lists.LATENT_MODES],
        "sd-models": simulator.models,
        "prompt-styles": lambda: lists.prompt_styles(flavour),
        "face-restorers": lambda: [{"name": name, "cmd_dir": None} for name in ("CodeFormer", "GFPGAN")],
        "embeddings": lambda: {"loaded": {}, "skipped": {}},
        "scripts": lambda: {"txt2img": [*_SCRIPTS, *_ALWAYS_ON], "img2img": [*_SCRIPTS, *_ALWAYS_ON]},
        "memory": lambda: {"ram": {"free": 1, "used": 1, "total": 2}, "cuda": {"error": "unavailable"}},
    }
    bodies |= dict.fromkeys(("hypernetworks", "realesrgan-models", "extensions", "loras", "script-info"), list)
    bodies["sd-modules" if flavour.forge else "sd-vae"] = list
    if flavour.schedulers:
        bodies["schedulers"] = lambda: lists.schedulers(flavour)
    return bodies


def _views(simulator: Simulator) -> list[tuple[str, str, Callable[[], Response]]]:
    """Method, path and view of every route but the lists."""
    null, empty = (lambda: as_json(None)), (lambda: as_json({}))
    internal = [
        ("POST", "/internal/progress", simulator.internal_progress),
        ("GET", "/internal/pending-tasks", simulator.pending_tasks),
        ("GET", "/internal/ping", empty),
    ]
    refreshes = ("vae", "embeddings", "loras")
    return [
        ("POST", "/sdapi/v1/txt2img", simulator.txt2img),
        ("POST", "/sdapi/v1/img2img", simulator.img2img),
        ("POST", "/sdapi/v1/extra-single-image", simulator.extra_single_image),
        ("POST", "/sdapi/v1/extra-batch-images", simulator.extra_batch_images),
        ("POST", "/sdapi/v1/png-info", simulator.png_info),
        ("POST", "/sdapi/v1/interrogate", simulator.interrogate),
        ("GET", "/sdapi/v1/progress", simulator.progress),
        ("POST", "/sdapi/v1/interrupt", simulator.interrupt),
        ("POST", "/sdapi/v1/skip", simulator.skip),
        ("GET", "/sdapi/v1/options", simulator.options),
        ("POST", "/sdapi/v1/options", simulator.set_options),
        ("POST", "/sdapi/v1/refresh-checkpoints", simulator.refresh_checkpoints),
        *(("POST", f"/sdapi/v1/refresh-{name}", null) for name in refreshes),
        *(("POST", f"/sdapi/v1/{name}-checkpoint", empty) for name in ("unload", "reload")),
        *(internal if simulator.flavour.internal else []),
        ("GET", "/simulator/stats", lambda: as_json(simulator.stats.as_dict())),
        ("GET", "/simulator/requests", lambda: as_json(simulator.stats.payloads())),
        ("POST", "/simulator/reset", simulator.reset),
        ("GET", "/simulator/faults", simulator.armed),
        ("POST", "/simulator/faults", simulator.arm),
        ("DELETE", "/simulator/faults", simulator.disarm),
        ("POST", "/simulator/models", simulator.change_models),
    ]


def create_simulator(settings: SimulatorSettings) -> Flask:
    """A WSGI application that behaves as a WebUI; its :class:`Simulator` is ``app.extensions["simulator"]``."""
    app = Flask("simulator", static_folder=None)
    simulator = Simulator(settings)
    app.extensions["simulator"] = simulator
    for path, body in _lists(simulator).items():
        view = simulator.listing(body)
        app.add_url_rule(f"/sdapi/v1/{path}", f"list {path}", view, methods=["GET"], provide_automatic_options=False)
    for method, path, view in _views(simulator):
        app.add_url_rule(path, f"{method} {path}", view, methods=[method], provide_automatic_options=False)
    app.before_request(simulator.arrive)
    app.after_request(simulator.leave)
    app.register_error_handler(HttpError, simulator.on_http_error)
    app.register_error_handler(CrashError, simulator.on_crash)
    app.register_error_handler(InvalidError, simulator.on_invalid)
    app.register_error_handler(PlainError, simulator.on_plain)
    app.register_error_handler(HTTPException, simulator.on_routing)
    return app
