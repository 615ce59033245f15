"""The lists that a simulator offers: samplers, schedulers, upscalers, styles, options and the checkpoint table.

The names and the shapes of the entries are those of ``modules/sd_samplers_kdiffusion.py``, ``sd_schedulers.py``,
``modules/upscaler.py`` and ``modules/shared_options.py`` of the WebUI.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from app.webui.simulator.settings import Flavour

_PLAIN_SAMPLERS = (
    ("DPM++ 2M", "k_dpmpp_2m", "karras"),
    ("DPM++ SDE", "k_dpmpp_sde", "karras"),
    ("DPM++ 2M SDE", "k_dpmpp_2m_sde", "exponential"),
    ("DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun", "exponential"),
    ("DPM++ 2S a", "k_dpmpp_2s_a", "karras"),
    ("DPM++ 3M SDE", "k_dpmpp_3m_sde", "exponential"),
    ("Euler a", "k_euler_a", ""),
    ("Euler", "k_euler", ""),
    ("LMS", "k_lms", ""),
    ("Heun", "k_heun", ""),
    ("DPM2", "k_dpm_2", "karras"),
    ("DPM2 a", "k_dpm_2_a", "karras"),
    ("DPM fast", "k_dpm_fast", ""),
    ("DPM adaptive", "k_dpm_ad", ""),
    ("Restart", "restart", "karras"),
    ("DDIM", "ddim", ""),
    ("PLMS", "plms", ""),
    ("UniPC", "unipc", ""),
    ("LCM", "k_lcm", ""),
)
_COMBINED_SAMPLERS = (
    *("DPM++ 2M Karras", "DPM++ SDE Karras", "DPM++ 2M SDE Exponential", "DPM++ 2M SDE Karras", "Euler a", "Euler"),
    *("LMS", "Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun"),
    *("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun Exponential", "DPM++ 3M SDE", "DPM++ 3M SDE Karras"),
    *("DPM++ 3M SDE Exponential", "DPM fast", "DPM adaptive", "LMS Karras", "DPM2 Karras", "DPM2 a Karras"),
    *("DPM++ 2S a Karras", "Restart", "DDIM", "PLMS", "UniPC", "LCM"),
)
_SCHEDULERS = (
    ("automatic", "Automatic"),
    ("uniform", "Uniform"),
    ("karras", "Karras"),
    ("exponential", "Exponential"),
    ("polyexponential", "Polyexponential"),
    ("sgm_uniform", "SGM Uniform"),
    ("kl_optimal", "KL Optimal"),
    ("align_your_steps", "Align Your Steps"),
    ("simple", "Simple"),
    ("normal", "Normal"),
    ("ddim", "DDIM"),
    ("beta", "Beta"),
)
LATENT_MODES = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)
#: Name and factor; all of them work on pictures, those that stand for a neural network by plain interpolation.
_UPSCALERS = (
    *(("None", 4.0), ("Lanczos", 4.0), ("Nearest", 4.0), ("ESRGAN_4x", 4.0)),
    *(("R-ESRGAN 4x+", 4.0), ("R-ESRGAN 4x+ Anime6B", 4.0), ("SwinIR 4x", 4.0)),
)
UPSCALERS = tuple(name for name, _ in _UPSCALERS)
_STYLES = (
    ("anime", "anime artwork of {prompt}, vibrant, key visual", "photo, realism"),
    ("photo", "photograph of {prompt}, 35mm, film grain", "drawing, painting"),
    ("suffix", "masterpiece, best quality", "lowres"),
    # The heading that a server with several style files puts between them.
    ("------- more.csv -------", None, None),
)
#: Options that change what a generation does, and some that a client looks for; live previews are off, so that nobody
#: can ask a simulator for one.
_OPTIONS: MappingProxyType[str, Any] = MappingProxyType(
    {
        "samples_save": True,
        "samples_format": "png",
        "grid_save": True,
        "grid_only_if_multiple": True,
        "return_grid": True,
        "return_mask": False,
        "return_mask_composite": False,
        "jpeg_quality": 80,
        "webp_lossless": False,
        "save_incomplete_images": False,
        "upscaler_for_img2img": None,
        "face_restoration": False,
        "face_restoration_model": "CodeFormer",
        "api_enable_requests": True,
        "api_forbid_local_requests": True,
        "CLIP_stop_at_last_layers": 1,
        "tiling": False,
        "sd_vae": "Automatic",
        "img2img_fix_steps": False,
        "img2img_background_color": "#ffffff",
        "enable_pnginfo": True,
        "add_version_to_infotext": True,
        "live_previews_enable": False,
        "show_progress_every_n_steps": 10,
        "show_progress_type": "Approx cheap",
        "enable_prompt_comments": True,
    }
)


def samplers(flavour: Flavour) -> list[dict[str, Any]]:
    """The body of /samplers; from 1.9 on a sampler's own schedule is an option and not a part of its name."""
    if not flavour.schedulers:
        return [_combined(name) for name in _COMBINED_SAMPLERS]
    return [
        {"name": name, "aliases": [alias], "options": {"scheduler": schedule} if schedule else {}}
        for name, alias, schedule in _PLAIN_SAMPLERS
    ]


def _combined(name: str) -> dict[str, Any]:
    schedule = next((word.lower() for word in ("Karras", "Exponential") if name.endswith(word)), None)
    alias = "k_" + name.lower().replace("++", "pp").replace(" ", "_")
    return {"name": name, "aliases": [alias], "options": {"scheduler": schedule} if schedule else {}}


def schedulers() -> list[dict[str, Any]]:
    """The body of /schedulers."""
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
        for name, label in _SCHEDULERS
    ]


def find_sampler(flavour: Flavour, name: str, scheduler: str | None) -> tuple[str, str | None] | None:
    """The sampler and scheduler label that a server would really use; None where it refuses the name.

    From 1.10 on a schedule at the end of the name is split off, an unknown sampler becomes the first and an unknown
    scheduler becomes Automatic (``sd_samplers.get_sampler_and_scheduler``).
    """
    if not flavour.schedulers:
        return (name, None) if name in _COMBINED_SAMPLERS else None
    label = next((known for plain, known in _SCHEDULERS if scheduler in (plain, known)), "Automatic")
    for plain, known in _SCHEDULERS:
        suffix = next((" " + word for word in (known, plain) if name.endswith(" " + word)), "")
        if suffix:
            name, label = name.removesuffix(suffix), known
            break
    found, _, own = next((entry for entry in _PLAIN_SAMPLERS if entry[0] == name), _PLAIN_SAMPLERS[0])
    return found, "Automatic" if label.lower() == own else label


def upscalers() -> list[dict[str, Any]]:
    """The body of /upscalers."""
    empty = {"model_name": None, "model_path": None, "model_url": None}
    return [{"name": name, **empty, "scale": scale} for name, scale in _UPSCALERS]


def prompt_styles() -> list[dict[str, Any]]:
    """The body of /prompt-styles, the divider included."""
    return [{"name": name, "prompt": prompt, "negative_prompt": negative} for name, prompt, negative in _STYLES]


def style(name: str) -> tuple[str | None, str | None]:
    """Prompt and negative prompt of a style; an unknown one is empty and nobody is told."""
    return next(((prompt, negative) for known, prompt, negative in _STYLES if known == name), ("", ""))


class Checkpoint:
    """One model file, under all the names that a server knows it by (``sd_models.CheckpointInfo``)."""

    def __init__(self, name: str) -> None:
        base = name.removesuffix(".safetensors").removesuffix(".ckpt")
        self.file = f"{base}.safetensors"
        self.model_name = base.replace("/", "_")
        #: What ``info`` calls it: the stem of the file's own name, without the folder.
        self.shown = base.rpartition("/")[2]
        self.sha256 = hashlib.sha256(f"simulated checkpoint {base}".encode()).hexdigest()
        self.hash = self.sha256[:10]
        #: A server hashes a file when it first loads it; until then the title has no hash.
        self.hashed = False

    @property
    def title(self) -> str:
        """The name that the UI shows and that the option holds."""
        return f"{self.file} [{self.hash}]" if self.hashed else self.file

    def answers_to(self, alias: Any) -> bool:
        """Whether this is the checkpoint that an option or an override means."""
        names = {self.file, self.model_name, self.shown, self.title, f"{self.file} [{self.hash}]"}
        return alias in names or (self.hashed and alias in (self.hash, self.sha256))

    def as_dict(self) -> dict[str, Any]:
        """One entry of /sd-models."""
        return {
            "title": self.title,
            "model_name": self.model_name,
            "hash": self.hash if self.hashed else None,
            "sha256": self.sha256 if self.hashed else None,
            "filename": f"/simulated/models/Stable-diffusion/{self.file}",
            "config": "/simulated/configs/v1-inference.yaml",
        }


class Options:
    """The option store: defaults, and above them what was set (``modules/options.py``).

    A key that was never set is not in the server's config data; an override of it stays for good.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._defaults = {**_OPTIONS, "sd_model_checkpoint": None, "sd_checkpoint_hash": ""}
        self._data: dict[str, Any] = {
            "sd_model_checkpoint": checkpoint.title,
            "sd_checkpoint_hash": checkpoint.sha256,
        }

    def __contains__(self, key: str) -> bool:
        return key in self._defaults

    def __getitem__(self, key: str) -> Any:
        return self._data.get(key, self._defaults[key])

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def stored(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of the keys that restoring after an override can bring back."""
        return {key: self._data[key] for key in keys if key in self._data}

    def as_dict(self) -> dict[str, Any]:
        """The body of GET /options."""
        return self._defaults | self._data
