"""Examples for the documentation: what the user ``demo`` posts, and the answers that a real WebUI's pictures lead to.

A system test posts the requests, follows the paths, and compares the members of each answer with the example of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from app.problems import PROBLEMS, problem

USER: Final = "demo"
#: The name of a record and those of its files; also the examples of path members.
NAME: Final = "20261122T061530123-9f2c4e7a"
IMAGE: Final = f"{NAME}-1-0.png"
EVENT_ID: Final = "1764140400-48211"
#: Streams, shortened: the data of `event: job` is the job as GET /jobs/… answers it.
JOB_EVENTS: Final = f"""retry: 2731

id: {EVENT_ID}
event: job
data: {{"id":"{USER}","type":"txt2img","name":"{NAME}","status":"running"}}

event: progress
data: {{"name":"{NAME}","type":"txt2img","progress":0.35,"eta":4.2,"position":null}}

id: 1764140400-48214
event: job
data: {{"id":"{USER}","type":"txt2img","name":"{NAME}","status":"succeeded"}}

event: end
data: {{}}

"""
USER_EVENTS: Final = f"""retry: 2731

id: {EVENT_ID}
event: snapshot
data: {{"jobs":[{{"id":"{USER}","type":"txt2img","name":"{NAME}","status":"running"}}],"more":false}}

id: 1764140400-48214
event: job
data: {{"id":"{USER}","type":"txt2img","name":"{NAME}","status":"succeeded"}}

"""
_IMG2IMG_NAME: Final = "20261122T061612480-41d07be2"
_QUEUED_NAME: Final = "20261122T061655907-c85b1d03"
#: What follows the URL of a picture in that of its thumbnail, with the sizes of the default settings.
_THUMBNAIL: Final = "?size=160&format=webp"
_MODEL: Final = "v1-5-pruned-emaonly"
#: What the WebUI writes of every picture that this model makes.
_INFOTEXT: Final = (
    "{prompt}\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 7.0, Seed: {seed}, "
    f"Size: 512x512, Model hash: 6ce0161689, Model: {_MODEL}, {{more}}Version: v1.10.1"
)

TXT2IMG_REQUEST: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "id": USER,
        "prompt": "a lighthouse on a cliff at dusk, 灯塔",
        "negative_prompt": "blurry",
        "width": 512,
        "height": 512,
        "seed": "-1",
        "steps": 20,
        "hr_upscaler": "",
        "cfg_scale": 7.0,
        "style": "",
        "batch_size": 1,
    }
)
#: 64 × 64 pixels, four bands of colour.
_REFERENCE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAMAAACdt4HsAAAADFBMVEUYKFBgWIzmlm4UHjCDtQPfAAAAL0lEQVR42u3MMREAIAwEsEL9e2bBwW9/iYDM"
    "AHwnJBAIeoIbEggEPcGGBAJBTfAA1t8YAcvRfzcAAAAASUVORK5CYII="
)
IMG2IMG_REQUEST: Final[Mapping[str, Any]] = MappingProxyType({**TXT2IMG_REQUEST, "init_images": _REFERENCE})

#: The parameters of a finished txt2img job, ready to be posted again.
TXT2IMG_ARGS: Final[Mapping[str, Any]] = MappingProxyType(
    {**TXT2IMG_REQUEST, "seed": "2771437912", "sampler_name": "Euler", "model": _MODEL}
)
_IMG2IMG_ARGS: Final[Mapping[str, Any]] = MappingProxyType(
    {**TXT2IMG_ARGS, "seed": "1094612387", "denoising_strength": 0.75, "resize_mode": "stretch"}
)


def _image(kind: str, name: str, args: Mapping[str, Any], size: int, more: str = "") -> dict[str, Any]:
    filename = f"{name}-1-0.png"
    return {
        "filename": filename,
        "url": f"/get_images/{USER}/{kind}/{filename}",
        "thumbnail_url": f"/get_images/{USER}/{kind}/{filename}{_THUMBNAIL}",
        "seed": args["seed"],
        "width": 512,
        "height": 512,
        "bytes": size,
        "media_type": "image/png",
        "infotext": _INFOTEXT.format(prompt=args["prompt"], seed=args["seed"], more=more),
    }


TXT2IMG_JOB: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "id": USER,
        "type": "txt2img",
        "name": NAME,
        "status": "succeeded",
        "cancel_requested": False,
        "simulated": False,
        "created_at": "2026-11-22T06:15:30.123Z",
        "started_at": "2026-11-22T06:15:30.151Z",
        "finished_at": "2026-11-22T06:15:33.842Z",
        "position": None,
        "progress": 1.0,
        "eta": None,
        "args": dict(TXT2IMG_ARGS),
        "images": [_image("txt2img", NAME, TXT2IMG_ARGS, 412874)],
        "init_image": None,
        "webui": {"model": _MODEL, "sampler": "Euler", "version": "v1.10.1"},
        "error": None,
        "url": f"/jobs/{USER}/txt2img/{NAME}",
    }
)
IMG2IMG_JOB: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **TXT2IMG_JOB,
        "type": "img2img",
        "name": _IMG2IMG_NAME,
        "created_at": "2026-11-22T06:16:12.480Z",
        "started_at": "2026-11-22T06:16:12.514Z",
        "finished_at": "2026-11-22T06:16:15.607Z",
        "args": dict(_IMG2IMG_ARGS),
        "images": [_image("img2img", _IMG2IMG_NAME, _IMG2IMG_ARGS, 398051, "Denoising strength: 0.75, ")],
        "init_image": {
            "filename": f"{_IMG2IMG_NAME}-init.png",
            "url": f"/get_images/{USER}/img2img/{_IMG2IMG_NAME}-init.png",
            "thumbnail_url": f"/get_images/{USER}/img2img/{_IMG2IMG_NAME}-init.png{_THUMBNAIL}",
            "width": 64,
            "height": 64,
            "bytes": 256,
            "media_type": "image/png",
        },
        "url": f"/jobs/{USER}/img2img/{_IMG2IMG_NAME}",
    }
)
#: Accepted, and behind another job.
QUEUED_TXT2IMG_JOB: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **TXT2IMG_JOB,
        "name": _QUEUED_NAME,
        "status": "queued",
        "created_at": "2026-11-22T06:16:55.907Z",
        "started_at": None,
        "finished_at": None,
        "position": 2,
        "progress": 0.0,
        "eta": 7.4,
        "images": [],
        "webui": None,
        "url": f"/jobs/{USER}/txt2img/{_QUEUED_NAME}",
    }
)
QUEUED_IMG2IMG_JOB: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **QUEUED_TXT2IMG_JOB,
        "type": "img2img",
        "args": dict(_IMG2IMG_ARGS),
        "init_image": {
            **IMG2IMG_JOB["init_image"],
            "filename": f"{_QUEUED_NAME}-init.png",
            "url": f"/get_images/{USER}/img2img/{_QUEUED_NAME}-init.png",
        },
        "url": f"/jobs/{USER}/img2img/{_QUEUED_NAME}",
    }
)

_OWN: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "redacted": False,
        **{
            member: QUEUED_TXT2IMG_JOB[member]
            for member in ("id", "type", "name", "created_at", "position", "progress", "eta")
        },
        "waits_for": None,
        "url": QUEUED_TXT2IMG_JOB["url"],
    }
)
QUEUES: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "two users": {
            "running": [{"redacted": True, "position": None, "progress": 0.35, "eta": 2.1, "waits_for": None}],
            "waiting": [
                {"redacted": True, "position": 1, "progress": 0.0, "eta": 4.7, "waits_for": None},
                dict(_OWN),
            ],
            "counts": {"running": 1, "waiting": 2},
            "oldest_wait": 1.204,
            "seconds_to_empty": 7.4,
            "paused": False,
            "next": None,
        },
        "empty": {
            "running": [],
            "waiting": [],
            "counts": {"running": 0, "waiting": 0},
            "oldest_wait": None,
            "seconds_to_empty": 0.0,
            "paused": False,
            "next": None,
        },
    }
)
WEBUIS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "webuis": [
            {
                "name": "big",
                "state": "held",
                "health": "up",
                "model": _MODEL,
                "since": "2026-11-22T05:58:02.411Z",
                "seconds_per_cost": 7.1e-07,
            }
        ]
    }
)
DELETED: Final[Mapping[str, Any]] = MappingProxyType({"deleted": [IMAGE, f"{NAME}-1.json"]})
OPTIONS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "samplers": ["DPM++ 2M", "DPM++ SDE", "Euler a", "Euler", "Heun", "DDIM", "UniPC", "LCM"],
        "schedulers": ["Automatic", "Uniform", "Karras", "Exponential", "SGM Uniform", "Simple", "Beta"],
        "upscalers": ["None", "Lanczos", "Nearest", "ESRGAN_4x", "R-ESRGAN 4x+", "SwinIR 4x"],
        "latent_modes": ["Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (nearest)"],
        "styles": ["oil painting", "水墨"],
        "models": [_MODEL, "sd_xl_base_1.0"],
        "default_model": _MODEL,
    }
)
READINESS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "ok": {"status": "ok", "reasons": []},
        "paused": {
            "status": "ok",
            "reasons": ["The queue is paused: requests are accepted and wait until 'sd-gateway queue resume'."],
        },
        "degraded": {"status": "degraded", "reasons": ["No WebUI answers."]},
    }
)

_LIGHTHOUSE_URL: Final = f"/jobs/{USER}/txt2img/{NAME}"
#: Of each slug, the members of an example besides type, title and status.
_PROBLEMS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "invalid-json": {"detail": "Expecting ',' delimiter: line 3 column 5."},
        "invalid-request": {"detail": "The query is not UTF-8, percent-encoded."},
        "token-missing": {"detail": "Send the token as 'Authorization: Bearer sdg_…'."},
        "token-invalid": {"detail": "The token is malformed, unknown, expired or revoked."},
        "scope-missing": {"detail": "This needs the scope delete, which the token does not have."},
        "open-only-to-this-machine": {
            "detail": "No token was made yet, so only programs on this machine are served. Make one: sd-gateway tokens create."
        },
        "cross-site-request": {
            "detail": "A request that changes something and has no token but a cookie must come from our own page."
        },
        "url-expired": {"detail": "The time of this URL is up. Ask for a new one."},
        "bad-signature": {"detail": "The URL was changed after it was signed, or its key is not known any more."},
        "not-found": {"detail": "The filename 'picture.png' is none that the gateway gives."},
        "unknown-type": {"detail": "The type 'inpaint' is none; the types are txt2img and img2img."},
        "job-not-found": {"detail": "This user has no such job."},
        "file-missing": {"detail": "There is no such file."},
        "key-of-deleted-job": {"detail": "The job that this Idempotency-Key made was deleted."},
        "method-not-allowed": {"detail": "The Allow header lists the methods of this path."},
        "request-timeout": {"detail": "The head of the request did not arrive in time."},
        "deadline-passed": {
            "detail": "The job had not ended within the time that its Cancel-After allows.",
            "url": _LIGHTHOUSE_URL,
        },
        "job-cancelled": {"detail": "The job was cancelled before it had a picture.", "url": _LIGHTHOUSE_URL},
        "precondition-failed": {"detail": "The file has another ETag than If-Match names."},
        "body-too-large": {"detail": "The body is larger than 32 MiB."},
        "uri-too-long": {"detail": "The request can't be read as HTTP/1.1: Request Line is too large (5012 > 4094)"},
        "unsupported-media-type": {"detail": "The Content-Type must be application/json, in UTF-8."},
        "range-not-satisfiable": {"detail": "The Range header asks for bytes that the file does not have."},
        "expectation-failed": {"detail": "The only expectation that can be met is 100-continue."},
        "validation-failed": {
            "detail": "Refused: width, promt. The messages are in errors.",
            "errors": {
                "width": ["Must be a multiple of 8 from 64 to 2048."],
                "promt": ["Unknown field; did you mean prompt?"],
            },
        },
        "unknown-name": {
            "detail": "The request uses names that no WebUI offers.",
            "errors": {"sampler_name": ["No WebUI has the sampler 'Eular'."]},
            "accepted": {"sampler_name": OPTIONS["samplers"]},
        },
        "bad-image": {
            "detail": "The image is broken or truncated.",
            "errors": {"init_images": ["The image is broken or truncated."]},
        },
        "webui-cannot": {"detail": "The WebUI can't make these pictures.", "url": _LIGHTHOUSE_URL},
        "idempotency-key-reused": {"detail": "This Idempotency-Key was used with another request body."},
        "too-many-failures": {"detail": "Too many requests with bad tokens came from this address."},
        "user-queue-full": {"detail": "Too many jobs of this user are waiting."},
        "headers-too-large": {"detail": "The request can't be read as HTTP/1.1: limit request headers fields size"},
        "internal-error": {"detail": "The gateway failed in an unexpected way; its log says why."},
        "file-damaged": {"detail": "The stored image is damaged."},
        "webui-refused": {"detail": "The WebUI refused the request.", "url": _LIGHTHOUSE_URL},
        "webui-out-of-memory": {
            "detail": "The WebUI ran out of GPU memory, also one picture at a time. Ask for smaller pictures or less upscaling.",
            "url": _LIGHTHOUSE_URL,
        },
        "webui-error": {
            "detail": "The WebUI failed while it made the pictures. Its own log says why.",
            "url": _LIGHTHOUSE_URL,
        },
        "webui-bad-answer": {"detail": "The WebUI's answer could not be read.", "url": _LIGHTHOUSE_URL},
        "webui-interrupted": {
            "detail": "Somebody interrupted the WebUI while it made the pictures. Don't use that WebUI by hand.",
            "url": _LIGHTHOUSE_URL,
        },
        "webui-wrong-model": {
            "detail": "The WebUI used another model than the one asked for; it may no longer have that model.",
            "url": _LIGHTHOUSE_URL,
        },
        "webui-unreachable": {"detail": "The WebUI cannot be reached.", "url": _LIGHTHOUSE_URL},
        "webui-disconnected": {
            "detail": "The connection to the WebUI broke before its answer was complete.",
            "url": _LIGHTHOUSE_URL,
        },
        "no-longer-available": {
            "detail": "No WebUI offers any more what this job was accepted with.",
            "url": _LIGHTHOUSE_URL,
        },
        "worker-lost": {
            "detail": "The gateway was stopped again and again while it worked at this job.",
            "url": _LIGHTHOUSE_URL,
        },
        "queue-full": {"detail": "Too many jobs are waiting."},
        "job-lost": {
            "detail": "The job was accepted, but the database has lost it. Look at the history, or post the request again with "
            "the same Idempotency-Key.",
        },
        "no-free-waiter": {
            "detail": "Too many clients are waiting for a picture. Try again later, or send 'Prefer: respond-async' to be "
            "answered at once.",
        },
        "variants-busy": {"detail": "Too many smaller images are being made now. Ask for this one again."},
        "no-signing-key": {"detail": "This gateway has no key to sign with; its log says why."},
        "no-free-stream": {"detail": "Too many clients are watching jobs. Try again later."},
        "not-acceptable": {"detail": "This path answers with text/event-stream, which the Accept header excludes."},
        "no-catalogue": {"detail": "No WebUI has answered yet, so what it offers is unknown."},
        "no-default-model": {
            "detail": "The request names no model, and no default model is known. Name one in `model`.",
        },
        "database-unavailable": {"detail": "The job database can't be used at the moment."},
        "no-room-for-body": {"detail": "The gateway has no room for a large body now; a small one may pass."},
        "storage-unavailable": {"detail": "The disk of the data folder is full."},
        "storage-failed": {
            "detail": "A file of the record could not be written because its disk is full.",
            "url": _LIGHTHOUSE_URL,
        },
        "webui-timeout": {
            "detail": "The WebUI did not finish in time. Ask for fewer or smaller pictures, or for fewer steps.",
            "url": _LIGHTHOUSE_URL,
        },
    }
)


def problem_example(slug: str) -> dict[str, Any]:
    """A problem as a client may get it.

    :param slug: a key of :data:`app.problems.PROBLEMS`.
    """
    return problem(slug, **_PROBLEMS[slug], request="5f0c7a1e9b3d2468", retry_after=PROBLEMS[slug].retry_after)
