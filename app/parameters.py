"""The table of request fields, and the facts about requests that several packages share.

A field of ``POST /txt2img`` and ``POST /img2img`` is one row of :data:`PARAMETERS`. From it follow the schema that checks the
field and the OpenAPI document (``app/api/schemas``), the job's stored ``args`` (:func:`effective`), what the WebUI is sent
(:func:`passed_on`) and the table in docs/api.md, which a test compares with this one.

To add a field that the WebUI takes as it was posted, add a row with ``passed_on``; no other module changes. A field with rules of
its own (a seed, a name of ``GET /options``, the reference image) takes its type, bounds, default and sentences from its row too;
its rules stand in ``app/api/schemas/fields.py``, ``app/webui/resolve.py`` or ``app/webui/payloads.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

Type = Literal["txt2img", "img2img"]
"""The type of a job."""

TYPES: Final[tuple[Type, ...]] = get_args(Type)

Kind = Literal["user id", "text", "integer", "number", "boolean", "choice", "seed", "image"]
"""The type of a field's value. The last two are strings with rules of their own."""

#: Posted as ``hr_upscaler``, these mean no upscaling; the second is the WebUI's own word for it.
NO_UPSCALING: Final = ("", "None")
#: Posted as ``seed``, these mean a random one.
RANDOM_SEEDS: Final = ("", "-1")
#: A WebUI's seeds are numbers of 32 bits.
LARGEST_SEED: Final = 2**32 - 1
#: The default of the WebUI's API.
DEFAULT_SAMPLER: Final = "Euler"
DEFAULT_HR_SCALE: Final = 2

#: Lengths, in characters.
LONGEST_USER_ID: Final = 64
#: Every user id fits this, as JSON Schema and JavaScript read it; what Unicode calls printable it can't say.
USER_ID_PATTERN: Final = r"^(?!\.{1,2}$)[^/\\\x00-\x1f\x7f-\xa0\xad]+$"
LONGEST_NAME: Final = 255


@dataclass(frozen=True, slots=True)
class Parameter:
    """One request field.

    A sentence says what the field means; ``title`` is its name for people, "English · 中文".
    """

    name: str
    kind: Kind
    title: str
    english: str
    chinese: str
    #: The bounds: of a number itself, of a text its length in characters. A string names the setting that holds the bound.
    lowest: float = 0
    highest: float | str = 0
    #: An integer is a multiple of it.
    step: int = 1
    #: The words that a choice takes, each with what the WebUI takes for it.
    choices: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False
    #: Stored where the field was left out: a value, or one for each type of job. None stores nothing.
    default: Any = None
    #: Shown in place of ``default``, where that depends on more than the type of the job.
    shown_default: str = ""
    #: The types of jobs that take the field.
    types: tuple[Type, ...] = TYPES
    #: The types for which the field takes effect only together with upscaling.
    only_upscaled: tuple[Type, ...] = ()
    #: The field of the WebUI's payload that it ends up in; empty where it is not sent.
    payload: str = ""
    #: Whether it is sent as it is (a choice: as ``choices`` says), without code of its own.
    passed_on: bool = False

    @property
    def description(self) -> str:
        """Both sentences, as two paragraphs; the Chinese one says a ``shown_default`` itself."""
        english = f"{self.english} Default: {self.shown_default}." if self.shown_default else self.english
        return f"{english}\n\n{self.chinese}"

    def default_of(self, type_: Type) -> Any:
        """Return what a job of this type stores where the field was left out; None stores nothing."""
        return self.default.get(type_) if isinstance(self.default, Mapping) else self.default

    def takes_effect(self, type_: Type, args: Mapping[str, Any]) -> bool:
        """Whether the field makes a difference for a job of this type with these ``args``."""
        return type_ in self.types and (type_ not in self.only_upscaled or upscales(args))


Parameters = Sequence[Parameter]

_NAME: Final[Mapping[str, Any]] = {"lowest": 1, "highest": LONGEST_NAME}

PARAMETERS: Final[tuple[Parameter, ...]] = (
    Parameter(
        "id",
        "user id",
        "User id · 用户id",
        "Printable characters without slash and backslash; not `.` or `..`.",
        "可打印字符，不含斜杠和反斜杠，不能是 `.` 或 `..`。",
        lowest=1,
        highest=LONGEST_USER_ID,
        required=True,
    ),
    Parameter(
        "prompt",
        "text",
        "Prompt · 正向提示词",
        "What to see; may be empty.",
        "希望出现在画面中的内容，可以为空。",
        highest="SDG_MAX_PROMPT_CHARS",
        required=True,
        payload="prompt",
    ),
    Parameter(
        "negative_prompt",
        "text",
        "Negative prompt · 反向提示词",
        "What not to see; may be empty.",
        "不希望出现在画面中的内容，可以为空。",
        highest="SDG_MAX_PROMPT_CHARS",
        required=True,
        payload="negative_prompt",
    ),
    Parameter(
        "width",
        "integer",
        "Width · 宽",
        "Pixels, before upscaling.",
        "放大之前的像素数。",
        lowest=64,
        highest="SDG_MAX_SIDE",
        step=8,
        required=True,
        payload="width",
        passed_on=True,
    ),
    Parameter(
        "height",
        "integer",
        "Height · 高",
        "Pixels, before upscaling.",
        "放大之前的像素数。",
        lowest=64,
        highest="SDG_MAX_SIDE",
        step=8,
        required=True,
        payload="height",
        passed_on=True,
    ),
    Parameter(
        "seed",
        "seed",
        "Seed · 种子",
        '`""` or `"-1"`: a random one; else its number, as a string or an integer. Each further image of a batch has the next one.',
        '`""` 或 `"-1"` 表示随机，否则为种子的数值（字符串或整数）。同一批中后面的每张图依次加一。',
        highest=LARGEST_SEED,
        required=True,
        payload="seed",
    ),
    Parameter(
        "steps",
        "integer",
        "Steps · 采样步数",
        "Sampling steps.",
        "采样的步数。",
        lowest=1,
        highest="SDG_MAX_STEPS",
        required=True,
        payload="steps",
        passed_on=True,
    ),
    Parameter(
        "hr_upscaler",
        "text",
        "Upscaler · 高清化采样器",
        '`""` or `"None"`: no upscaling. txt2img: the hires fix, by an upscaler or a latent mode of `GET /options`; '
        "img2img: the results are enlarged, by upscalers only.",
        '`""` 或 `"None"` 表示不放大。文生图：高清修复，可用 `GET /options` 中的放大器或潜空间模式；'
        "图生图：放大生成结果，只能用放大器。",
        highest=LONGEST_NAME,
        required=True,
        payload="hr_upscaler",
    ),
    Parameter(
        "cfg_scale",
        "number",
        "CFG scale · 提示词关联程度",
        "How closely the prompt is followed.",
        "画面与提示词的关联程度。",
        highest=100,
        required=True,
        payload="cfg_scale",
        passed_on=True,
    ),
    Parameter(
        "style",
        "text",
        "Style · 风格",
        '`""`: none; else a style of `GET /options`.',
        '`""` 表示无，否则为 `GET /options` 中的一种风格。',
        highest=LONGEST_NAME,
        required=True,
        payload="styles",
    ),
    Parameter(
        "batch_size",
        "integer",
        "Batch size · 作图数量",
        "How many images.",
        "生成图片的张数。",
        lowest=1,
        highest="SDG_MAX_BATCH_SIZE",
        required=True,
        payload="batch_size",
    ),
    Parameter(
        "init_images",
        "image",
        "Reference image · 参考图",
        "One PNG, JPEG or WebP in base64, plain or as a data URI, or a list of one; a URL is never fetched.",
        "一张 base64 编码的 PNG、JPEG 或 WebP 图片，可以是纯文本或 data URI，也可以是只含一张图的列表；不会下载网址。",
        required=True,
        types=("img2img",),
        payload="init_images",
    ),
    Parameter(
        "sampler_name",
        "text",
        "Sampler · 采样器",
        "A sampler of `GET /options`.",
        f"`GET /options` 中的一种采样器。默认为风格所指定的，否则为 `{DEFAULT_SAMPLER}`。",
        **_NAME,
        default=DEFAULT_SAMPLER,
        shown_default=f"the style's, else `{DEFAULT_SAMPLER}`",
        payload="sampler_name",
    ),
    Parameter(
        "model",
        "text",
        "Model · 模型",
        "A model of `GET /options`.",
        "`GET /options` 中的一个模型。默认为风格所指定的，否则为 `GET /options` 的 `default_model`。",
        **_NAME,
        shown_default="the style's, else `default_model` of `GET /options`",
        payload="override_settings.sd_model_checkpoint",
    ),
    Parameter(
        "scheduler",
        "text",
        "Scheduler · 调度器",
        "A scheduler of `GET /options`.",
        "`GET /options` 中的一种调度器。默认由 WebUI 决定。",
        **_NAME,
        shown_default="the WebUI's own",
        payload="scheduler",
    ),
    Parameter(
        "denoising_strength",
        "number",
        "Denoising strength · 重绘幅度",
        "How much may change: of the reference image, or with txt2img of what the hires fix enlarges (ignored without).",
        "允许改变的程度：图生图针对参考图，文生图针对高清修复所放大的图。不放大时，文生图忽略此项。",
        highest=1,
        # Sent without, the WebUI fails the second pass of the hires fix after the first one's work is done.
        default={"txt2img": 0.7, "img2img": 0.75},
        only_upscaled=("txt2img",),
        payload="denoising_strength",
        passed_on=True,
    ),
    Parameter(
        "hr_scale",
        "number",
        "Upscaling factor · 放大倍数",
        "Factor of the upscaling; ignored without upscaling.",
        "放大的倍数；不放大时忽略此项。",
        lowest=1,
        highest=4,
        default=DEFAULT_HR_SCALE,
        only_upscaled=TYPES,
        payload="hr_scale",
    ),
    Parameter(
        "resize_mode",
        "choice",
        "Resize mode · 缩放模式",
        "How the reference image is brought to width × height.",
        "将参考图调整为 宽 × 高 的方式。",
        # The WebUI numbers its modes (modules/images.py, resize_image).
        choices={"stretch": 0, "crop": 1, "fill": 2},
        default="stretch",
        types=("img2img",),
        payload="resize_mode",
        passed_on=True,
    ),
)


def upscales(args: Mapping[str, Any]) -> bool:
    """Whether a job asks for upscaling: the hires fix for txt2img, the extras for img2img."""
    return args["hr_upscaler"] not in NO_UPSCALING


def effective(parameters: Parameters, type_: Type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's ``args``: every value that makes a difference for it, in the order of the table.

    The reference image is left out; it is kept as a file.

    :param values: the checked request, with its names resolved; a field that is absent or None has its default.
    """
    args: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind == "image" or not parameter.takes_effect(type_, values):
            continue
        value = values.get(parameter.name)
        value = parameter.default_of(type_) if value is None else value
        if value is not None:
            args[parameter.name] = value
    return args


def passed_on(parameters: Parameters, type_: Type, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a WebUI's payload that needs no other code, from a job's ``args``.

    A field that ``args`` lacks is left out: a job may have been accepted before the field was known.
    """
    return {
        parameter.payload: parameter.choices[args[parameter.name]] if parameter.choices else args[parameter.name]
        for parameter in parameters
        if parameter.passed_on and parameter.name in args and parameter.takes_effect(type_, args)
    }


def user_id_fault(text: str) -> str | None:
    """The reason why a text is no user id, or ``None`` when it is one.

    Printable is what Unicode's categories call neither Other nor Separator, and the ASCII space. Ids are compared by code
    point: nothing is normalised.
    """
    if not 1 <= len(text) <= LONGEST_USER_ID:
        return f"Must be 1 to {LONGEST_USER_ID} characters long."
    if not text.isprintable():
        return "Must consist of printable characters."
    if "/" in text or "\\" in text:
        return "Must not contain a slash or a backslash."
    return "Must not be . or .." if text in (".", "..") else None
