"""Values that several tests of this folder start from: WebUIs, a request, a job's args."""

from typing import Any

from app.webui.bounds import AnswerBounds
from app.webui.catalogue import Catalogue, Scheduler
from app.webui.models import Model
from app.webui.overrides import OptionOverrides

#: Of answers that are too small to come near them.
ROOMY = AnswerBounds(size=1 << 24, values=100_000, infotext=100_000)


def model(name: str, **changes: Any) -> Model:
    file = f"{name}.safetensors"
    values = {
        "title": f"{file} [0123456789]",
        "bare_title": file,
        "model_name": name,
        "stem": name,
        "digest": "0123456789",
    }
    return Model(**values | {"checkpoint": file} | changes)


def catalogue(**changes: Any) -> Catalogue:
    values = {
        "samplers": ("DPM++ 2M", "Euler"),
        "schedulers": (Scheduler("automatic", "Automatic"), Scheduler("karras", "Karras")),
        "upscalers": ("None", "Lanczos", "Nearest"),
        "latent_modes": ("Latent", "Latent (nearest)"),
        "styles": ("anime", "photo"),
        "models": (model("alpha"), model("beta")),
        "loaded_model": "alpha.safetensors",
    }
    return Catalogue(**values | changes)


def fields(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "u1",
        "prompt": "a cat",
        "negative_prompt": "blurry",
        "width": 512,
        "height": 768,
        "seed": "42",
        "steps": 20,
        "hr_upscaler": "",
        "cfg_scale": 7.5,
        "style": "",
        "batch_size": 2,
    }
    return values | changes


def args(**changes: Any) -> dict[str, Any]:
    return fields(sampler_name="Euler", model="alpha") | changes


def overrides(stored: str | None = None) -> OptionOverrides:
    """Overrides that nobody keeps."""
    return OptionOverrides(stored, lambda _text: None)
