"""The lists that a simulator offers: samplers, schedulers, upscalers, styles and options.

The names and the shapes of the entries are those of ``modules/sd_samplers_kdiffusion.py``, ``sd_schedulers.py``,
``modules/upscaler.py`` and ``modules/shared_options.py`` of the WebUI.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from app.simulator.models import Checkpoint
from app.simulator.settings import Flavour, SimulatorSettings

_KARRAS = {"scheduler": "karras"}
_EXPONENTIAL = {"scheduler": "exponential"}
_DISCARD = {"discard_next_to_last_sigma": "True"}
_ENSD = {"uses_ensd": "True"}
_SECOND = {"second_order": "True"}
_BROWNIAN = {"brownian_noise": "True"}
#: Name, aliases, options; 1.10.1 lists them in this order.
_K_SAMPLERS: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (
    ("DPM++ 2M", ("k_dpmpp_2m",), _KARRAS),
    ("DPM++ SDE", ("k_dpmpp_sde",), _KARRAS | _SECOND | _BROWNIAN),
    ("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), _EXPONENTIAL | _BROWNIAN),
    ("DPM++ 2M SDE Heun", ("k_dpmpp_2m_sde_heun",), _EXPONENTIAL | _BROWNIAN | {"solver_type": "heun"}),
    ("DPM++ 2S a", ("k_dpmpp_2s_a",), _KARRAS | _ENSD | _SECOND),
    ("DPM++ 3M SDE", ("k_dpmpp_3m_sde",), _EXPONENTIAL | _DISCARD | _BROWNIAN),
    ("Euler a", ("k_euler_a", "k_euler_ancestral"), _ENSD),
    ("Euler", ("k_euler",), {}),
    ("LMS", ("k_lms",), {}),
    ("Heun", ("k_heun",), _SECOND),
    ("DPM2", ("k_dpm_2",), _KARRAS | _DISCARD | _SECOND),
    ("DPM2 a", ("k_dpm_2_a",), _KARRAS | _DISCARD | _ENSD | _SECOND),
    ("DPM fast", ("k_dpm_fast",), _ENSD),
    ("DPM adaptive", ("k_dpm_ad",), _ENSD),
    ("Restart", ("restart",), _KARRAS | _SECOND),
)
#: Those of Forge's own.
_FORGE_SAMPLERS: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (
    ("HeunPP2", ("heunpp2",), {}),
    ("IPNDM", ("ipndm",), {}),
    ("IPNDM_V", ("ipndm_v",), {}),
    ("DEIS", ("deis",), {}),
)
#: They have no schedule; the name of one is only repeated in the infotext.
_TIMESTEP_SAMPLERS: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (
    ("DDIM", ("ddim",), {}),
    ("DDIM CFG++", ("ddim_cfgpp",), {}),
    ("PLMS", ("plms",), {}),
    ("UniPC", ("unipc",), {}),
)
_LCM: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (("LCM", ("k_lcm",), {}),)
_DDPM: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (("DDPM", ("ddpm",), {}),)
_COMBINED_SAMPLERS = (
    *("DPM++ 2M Karras", "DPM++ SDE Karras", "DPM++ 2M SDE Exponential", "DPM++ 2M SDE Karras", "Euler a", "Euler"),
    *("LMS", "Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun"),
    *("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun Exponential", "DPM++ 3M SDE", "DPM++ 3M SDE Karras"),
    *("DPM++ 3M SDE Exponential", "DPM fast", "DPM adaptive", "LMS Karras", "DPM2 Karras", "DPM2 a Karras"),
    *("DPM++ 2S a Karras", "Restart", "DDIM", "PLMS", "UniPC", "LCM"),
)
#: Name, label, default rho, and whether the schedule asks the model.
_SCHEDULERS = (
    ("automatic", "Automatic", -1.0, False),
    ("uniform", "Uniform", -1.0, True),
    ("karras", "Karras", 7.0, False),
    ("exponential", "Exponential", -1.0, False),
    ("polyexponential", "Polyexponential", 1.0, False),
    ("sgm_uniform", "SGM Uniform", -1.0, True),
    ("kl_optimal", "KL Optimal", -1.0, False),
    ("align_your_steps", "Align Your Steps", -1.0, False),
    ("simple", "Simple", -1.0, True),
    ("normal", "Normal", -1.0, True),
    ("ddim", "DDIM", -1.0, True),
    ("beta", "Beta", -1.0, True),
)
_FORGE_SCHEDULERS = (
    ("turbo", "Turbo", -1.0, True),
    ("align_your_steps_GITS", "Align Your Steps GITS", -1.0, False),
    ("align_your_steps_11", "Align Your Steps 11", -1.0, False),
    ("align_your_steps_32", "Align Your Steps 32", -1.0, False),
)
_SCHEDULER_ALIASES = MappingProxyType({"sgm_uniform": ["SGMUniform"]})
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
    *(("None", 4.0), ("Lanczos", 4.0), ("Nearest", 4.0), ("DAT x2", 2.0), ("DAT x3", 3.0), ("DAT x4", 4.0)),
    *(("ESRGAN_4x", 4.0), ("R-ESRGAN 4x+", 4.0), ("R-ESRGAN 4x+ Anime6B", 4.0)),
    *(("ScuNET GAN", 4.0), ("ScuNET PSNR", 4.0), ("SwinIR 4x", 4.0)),
)
UPSCALERS = tuple(name for name, _ in _UPSCALERS)
SCRIPTS = ("prompt matrix", "prompts from file or textbox", "x/y/z plot")
#: Scripts that run with every generation; ``alwayson_scripts`` names them.
ALWAYS_ON = ("extra options", "hypertile", "refiner", "seed")
_Style = tuple[str, str | None, str | None]
_STYLES: tuple[_Style, ...] = (
    ("anime", "anime artwork of {prompt}, vibrant, key visual", "photo, realism"),
    ("photo", "photograph of {prompt}, 35mm, film grain", "drawing, painting"),
    ("suffix", "masterpiece, best quality", "lowres"),
)
#: The heading that a server with several style files puts between them.
_A1111_STYLES: tuple[_Style, ...] = (*_STYLES, ("------- more.csv -------", None, None))
#: Forge has a heading in front and 213 styles of its own behind a second one; two stand for them here.
_FORGE_STYLES: tuple[_Style, ...] = (
    (" STYLES ".center(40, "-"), None, None),
    *_STYLES,
    (" STYLES_INTEGRATED ".center(40, "-"), None, None),
    ("Simulated Line Art", "line art of {prompt}, ink on white", "colour, shading"),
    ("Simulated Fog", "fog, low contrast", ""),
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
#: Of an extension that comes with 1.10.
_HYPERTILE = ("hypertile_enable_unet", "hypertile_enable_vae")
#: Registered by extensions and scripts, after the list that GET /options is built from may have been read.
_LATE_OPTIONS = ("enable_prompt_comments", *_HYPERTILE)
#: Integers that each family of servers shows as floats.
_FLOATS = ("show_progress_every_n_steps",)
_FORGE_FLOATS = (*_FLOATS, "jpeg_quality", "CLIP_stop_at_last_layers")


def samplers(flavour: Flavour) -> list[dict[str, Any]]:
    """The body of /samplers; from 1.9 on a sampler's own schedule is an option and not a part of its name."""
    if not flavour.schedulers:
        return [_combined(name) for name in _COMBINED_SAMPLERS]
    table = _samplers(flavour)
    return [{"name": name, "aliases": list(aliases), "options": options} for name, aliases, options in table]


def _samplers(flavour: Flavour) -> tuple[tuple[str, tuple[str, ...], dict[str, str]], ...]:
    if flavour.forge:
        return (*_K_SAMPLERS, *_FORGE_SAMPLERS, *_TIMESTEP_SAMPLERS, *_LCM, *_DDPM)
    return (*_K_SAMPLERS, *_TIMESTEP_SAMPLERS, *_LCM)


def _combined(name: str) -> dict[str, Any]:
    schedule = next((word.lower() for word in ("Karras", "Exponential") if name.endswith(word)), None)
    alias = "k_" + name.lower().replace("++", "pp").replace(" ", "_")
    return {"name": name, "aliases": [alias], "options": {"scheduler": schedule} if schedule else {}}


def _schedulers(flavour: Flavour) -> tuple[tuple[str, str, float, bool], ...]:
    return (*_SCHEDULERS, *_FORGE_SCHEDULERS) if flavour.forge else _SCHEDULERS


def schedulers(flavour: Flavour) -> list[dict[str, Any]]:
    """The body of /schedulers."""
    return [
        {
            "name": name,
            "label": label,
            "aliases": _SCHEDULER_ALIASES.get(name),
            "default_rho": rho,
            "need_inner_model": inner,
        }
        for name, label, rho, inner in _schedulers(flavour)
    ]


def find_sampler(flavour: Flavour, name: str, scheduler: str | None) -> tuple[str, str | None] | None:
    """The sampler and scheduler label that a server goes on with; None where it refuses the name.

    From 1.10 on a schedule at the end of the name is split off, an unknown sampler becomes the first and an unknown
    scheduler becomes Automatic (``sd_samplers.get_sampler_and_scheduler``); a sampler's own schedule is called Automatic too.
    """
    if not flavour.schedulers:
        return (name, None) if name in _COMBINED_SAMPLERS else None
    label = next((label for plain, label, *_ in _schedulers(flavour) if scheduler in (plain, label)), "Automatic")
    for plain, known, *_ in _schedulers(flavour):
        words = (known, plain, *_SCHEDULER_ALIASES.get(plain, ()))
        suffix = next((" " + word for word in words if name.endswith(" " + word)), "")
        if suffix:
            name, label = name.removesuffix(suffix), known
    found, _, options = next((entry for entry in _samplers(flavour) if entry[0] == name), _K_SAMPLERS[0])
    return found, "Automatic" if label.lower() == options.get("scheduler") else label


def schedule_used(flavour: Flavour, sampler: str, label: str | None) -> str | None:
    """The label that ``info`` notes as "Schedule type"; None where no schedule was chosen (``KDiffusionSampler.get_sigmas``)."""
    table = {name: options for name, _, options in _samplers(flavour)}
    if not flavour.schedulers or sampler in (name for name, *_ in _TIMESTEP_SAMPLERS):
        return None
    if label not in (None, "Automatic"):
        return label
    own = table[sampler].get("scheduler")
    return next((label for plain, label, *_ in _SCHEDULERS if plain == own), None)


def has_sampler(flavour: Flavour, name: str) -> bool:
    """Whether this is the exact name of a sampler, as the second pass of a hires fix needs it."""
    if not flavour.schedulers:
        return name in _COMBINED_SAMPLERS
    return name in (known for known, *_ in _samplers(flavour))


def upscalers() -> list[dict[str, Any]]:
    """The body of /upscalers."""
    empty = {"model_name": None, "model_path": None, "model_url": None}
    return [{"name": name, **empty, "scale": scale} for name, scale in _UPSCALERS]


def _styles(flavour: Flavour) -> tuple[_Style, ...]:
    return _FORGE_STYLES if flavour.forge else _A1111_STYLES


def prompt_styles(flavour: Flavour) -> list[dict[str, Any]]:
    """The body of /prompt-styles, the dividers included."""
    names = ("name", "prompt", "negative_prompt")
    return [dict(zip(names, style, strict=True)) for style in _styles(flavour)]


def style(flavour: Flavour, name: str) -> tuple[str | None, str | None]:
    """Prompt and negative prompt of a style; an unknown one is empty and nobody is told."""
    return next(((prompt, negative) for known, prompt, negative in _styles(flavour) if known == name), ("", ""))


class Options:
    """The option store: defaults, and above them what was set (``modules/options.py``).

    A key that was never set is not in the server's config data; an override of it stays for good.
    """

    def __init__(self, settings: SimulatorSettings, flavour: Flavour, checkpoint: Checkpoint | None) -> None:
        """Begin with the model of config.json; None where there is no config.json yet."""
        lacking = settings.lacks_options
        tiles = dict.fromkeys(_HYPERTILE if flavour.schedulers and not flavour.forge else (), False)
        defaults = {**_OPTIONS, **tiles, "sd_model_checkpoint": None, "sd_checkpoint_hash": ""}
        self._defaults = {key: value for key, value in defaults.items() if key not in lacking}
        self._hidden = _LATE_OPTIONS if settings.frozen_options else ()
        self._floats = _FORGE_FLOATS if flavour.forge else _FLOATS if flavour.schedulers else ()
        self._data: dict[str, Any] = {}
        if flavour.schedulers and "samples_format" in self._defaults:
            # Somebody saved this setting, so that an override of it is taken back.
            self._data["samples_format"] = "png"
        if checkpoint is not None:
            self.note_model(checkpoint)

    def note_model(self, checkpoint: Checkpoint) -> None:
        """The loaded model's title and hash."""
        self._data |= {"sd_model_checkpoint": checkpoint.title, "sd_checkpoint_hash": checkpoint.sha256}

    def __contains__(self, key: str) -> bool:
        return key in self._defaults

    def __getitem__(self, key: str) -> Any:
        return self._data.get(key, self._defaults.get(key, _OPTIONS.get(key)))

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def switched_on(self, key: str) -> bool:
        """The value of a switch; False where the server does not have it."""
        return key in self and bool(self[key])

    def stored(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of the keys that restoring after an override can bring back."""
        return {key: self._data[key] for key in keys if key in self._data}

    def as_dict(self) -> dict[str, Any]:
        """The body of GET /options."""
        values = self._defaults | self._data
        values |= {key: float(values[key]) for key in self._floats if isinstance(values.get(key), int)}
        return {key: value for key, value in values.items() if key not in self._hidden}
