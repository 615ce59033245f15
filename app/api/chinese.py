"""The documentation in Chinese: a catalogue by the English sentences that stand in the code.

So the code is read in one language, and the Chinese stands in one place. A test compares the catalogue with the OpenAPI document:
every sentence of that has a translation, and every translation here is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_HAN: Final = re.compile(r"[\u4e00-\u9fff]")
#: What separates the languages, by the member of an OpenAPI document that holds the text.
_SEPARATORS: Final = MappingProxyType({"summary": " · ", "title": " · ", "description": "\n\n"})
#: Members whose value is data of the interface and not a part of the document.
_DATA: Final = frozenset({"example", "value", "enum", "default"})

CHINESE: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The introduction and the table of errors
        "Pictures from Stable Diffusion WebUIs by user id: checked, queued, and kept with their parameters.": (
            "按用户 id 提供 Stable Diffusion WebUI 作图服务：校验请求、排队执行，并保存图片及其参数。"
        ),
        "To try the endpoints, begin with POST /txt2img: its example is a request of the user `demo`. Then load this page again: "
        "the paths of all other examples name the picture that was made. The table of all errors stands at the end.": (
            "试用时请先执行 POST /txt2img，其示例是用户 `demo` 的请求；然后刷新本页，其余示例的路径便会指向刚生成的图片。"
            "全部错误列于页末。"
        ),
        "Every error is a problem (RFC 9457, `application/problem+json`). Its `type` is one of these words, which never change; "
        "`detail` says what went wrong this time.": (
            "每个错误都是一个 problem 对象（RFC 9457，`application/problem+json`）。`type` 取下列固定值之一，不会改变；"
            "`detail` 说明本次出错的原因。"
        ),
        # The groups
        "Ask for pictures": "请求作图",
        "What was made": "作图历史",
        "Jobs in any state": "任意状态的任务",
        "Changes of jobs as they happen": "任务变化的实时通知",
        "The files of records": "作图记录的文件",
        "What a request may choose from": "请求中可选的内容",
        "The state of the gateway": "网关状态",
        "The session of a browser": "浏览器会话",
        "URLs that need no token": "无需令牌的链接",
        # The id of a request
        "The id of the request, 1 to 64 letters, digits, dots, dashes or underscores; otherwise one is made.": (
            "请求的编号：1 到 64 个字母、数字、点、连字符或下划线；否则由网关生成。"
        ),
        "The id of the request, which the log of the gateway names too.": "请求的编号，网关日志中同样标明。",
        "The id of the request that was answered with it, as in X-Request-ID; absent in a job's error.": (
            "以此 problem 应答的请求的编号，与 X-Request-ID 相同；任务的 error 中没有此项。"
        ),
        # Texts of the endpoints: summaries, descriptions, parameters and answers
        "The seconds for which the URLs of the pictures are to be valid without a token.": "图片链接无需令牌即可使用的秒数。",
        "Make URLs of pictures and of event streams that are valid without a token, for some time. Whether they exist is not "
        "looked up. Those of pictures are valid for up to a quarter longer, and stay so if the token is revoked.": (
            "生成图片和事件流的链接，在一段时间内无需令牌即可使用。不查询其是否存在。图片链接的有效期最多延长四分之一；令牌被撤销后仍然有效。"
        ),
        "The same URLs, signed, in the same order.": "按相同顺序返回签名后的链接。",
        "The `url`, `thumbnail_url` or path of pictures, and the paths of event streams.": (
            "图片的 `url`、`thumbnail_url` 或路径，以及事件流的路径。"
        ),
        "For how long they are to be valid; at most 3600 for event streams.": "有效秒数；事件流最多 3600。",
        "Valid until `exp`, seconds since 1970.": "有效至 `exp`（自 1970 年起的秒数）。",
        "Exchange a token for a cookie, which browsers send by themselves.": "用令牌换取 Cookie，浏览器会自动发送它。",
        "Have the browser forget the cookie. The token stays valid.": "让浏览器删除 Cookie；令牌仍然有效。",
        "The session has begun; the cookie stands for the token.": "会话已开始，Cookie 代表该令牌。",
        "The browser forgets the cookie.": "浏览器删除该 Cookie。",
        "`sdg_session`, which a page can't read.": "`sdg_session`，网页脚本无法读取。",
        "The token, as it was shown when it was made.": "创建时显示的令牌。",
        "The users of the token; a `*` at the end stands for all that begin so.": "令牌的用户；末尾的 `*` 表示所有以此开头的用户。",
        "What it allows.": "所允许的操作。",
        "How long the session lasts.": "会话时长。",
        "Make pictures from a prompt.": "根据提示词作图。",
        "Make pictures from a prompt and a reference image.": "根据提示词和参考图作图。",
        "List the succeeded txt2img jobs of a user.": "列出用户已成功的文生图任务。",
        "List the succeeded img2img jobs of a user.": "列出用户已成功的图生图任务。",
        "List the jobs of a user in any state, or in one.": "列出用户的任务，可为任意状态，也可只列某一状态。",
        "Get one job in any state, for example to follow its progress.": "查询单个任务，无论其状态；可用于跟踪进度。",
        "The job as it is now, or at the end of the wait.": "任务的当前状态，或等待结束时的状态。",
        "The job has not changed within the wait.": "等待期间任务没有变化。",
        "`wait=30`: answer at the end of the job, after 30 seconds at the latest (RFC 7240).": (
            "`wait=30`：任务结束时应答，最迟 30 秒后应答（RFC 7240）。"
        ),
        "With `Prefer: wait`: answer as soon as the job has another version than this ETag, or 304 after the wait.": (
            "与 `Prefer: wait` 同用：任务版本与此 ETag 不同时立即应答，否则等待结束后返回 304。"
        ),
        "Follow one job by server-sent events. The first `event: job` tells its present state; the stream ends with the job.": (
            "以服务器推送事件（SSE）跟踪单个任务。首个 `event: job` 给出当前状态；任务结束时事件流随之结束。"
        ),
        "Follow all jobs of a user by server-sent events. `event: snapshot` lists the unfinished ones first.": (
            "以服务器推送事件（SSE）跟踪用户的全部任务。首先由 `event: snapshot` 列出未完成的任务。"
        ),
        "The events, as they happen.": "实时事件。",
        "The client has seen the end of the job already; a browser asks no more.": (
            "客户端已收到该任务的结束事件；浏览器不会再次请求。"
        ),
        "The `id` of the last event that the client has seen, which a browser sends by itself: the stream goes on behind it.": (
            "客户端收到的最后一个事件的 `id`，浏览器会自动发送；事件流从其后继续。"
        ),
        "Get the bytes of an image, or of a smaller one, or in another format.": (
            "获取图片的字节内容，也可获取缩小的图片或其他格式的图片。"
        ),
        "The longest side in pixels. A picture is never enlarged.": "最长边的像素数。图片不会被放大。",
        "The format; by default that of the stored file. With `size` or `format` the picture has no metadata.": (
            "图片格式；默认与存储的文件相同。带 `size` 或 `format` 时，图片不含元数据。"
        ),
        "`true`: a browser saves the picture instead of showing it.": "`true`：浏览器保存图片而不是显示图片。",
        "Get the parameters of a record, or of one of its images.": "获取一条记录或其中一张图片的作图参数。",
        "Delete a whole record by its name, or one image by its file name. An unfinished job is cancelled and leaves nothing.": (
            "按记录名删除整条记录，或按文件名删除单张图片。未完成的任务会被取消，不留任何内容。"
        ),
        "List the names that a request may use.": "列出请求中可以使用的名称。",
        "Whether the process answers.": "进程是否应答。",
        "Whether pictures can be made. It reads the stored state and calls no WebUI.": (
            "当前能否作图。只读取已存储的状态，不访问 WebUI。"
        ),
        "`respond-async`: answer 202 at once. `wait=30`: answer 202 if the job is not finished within 30 seconds. Without it the "
        "gateway waits for as long as its settings say (RFC 7240).": (
            "`respond-async`：立即返回 202。`wait=30`：30 秒内未完成则返回 202。不带此请求头时，按网关设置的时间等待（RFC 7240）。"
        ),
        "Makes it safe to repeat the request: for 24 hours the same key and body of a user answer with the same job.": (
            "使请求可以安全重发：24 小时内，同一用户的相同键和相同请求体返回同一任务。"
        ),
        "The user id.": "用户 id。",
        "How the picture was made.": "作图方式。",
        "The name of a job; a record has the name of its job.": "任务名；记录与其任务同名。",
        "The name of a record or of one of its image files.": "记录名，或其中一个图片文件的文件名。",
        "The bytes that are wanted (RFC 9110, section 14).": "所需的字节范围（RFC 9110 第 14 节）。",
        "The ETag of the copy that the client has (RFC 9110, section 13).": "客户端已有副本的 ETag（RFC 9110 第 13 节）。",
        "Jobs of a page.": "每页任务数。",
        "The cursor of a next URL.": "`next` 网址中的游标。",
        "Only jobs in this state.": "只列出此状态的任务。",
        "The finished job.": "已完成的任务。",
        "The job as it is now. It goes on; `url` and `Location` say where to ask for it again.": (
            "任务的当前状态。任务会继续执行；可按 `url` 或 `Location` 再次查询。"
        ),
        "The preferences of `Prefer` that were honoured.": "`Prefer` 中已被采纳的选项。",
        "The URL of the job.": "任务的网址。",
        "The seconds after which to try again.": "多少秒后可重试。",
        "Newest first; empty for an unknown user.": "最新的在前；未知用户返回空列表。",
        "The job as it is now.": "任务的当前状态。",
        "The job as it is now; a finished one as it ended.": "任务的当前状态；已结束的任务保持其结果。",
        "Cancel a job that waits, or have one that runs stopped: that ends when its WebUI has replied.": (
            "取消排队中的任务，或停止正在执行的任务；后者在 WebUI 应答后结束。"
        ),
        "Cancel all jobs of a user that wait.": "取消用户所有排队中的任务。",
        "How many jobs were cancelled.": "被取消的任务数。",
        "Which jobs: only those that wait can be cancelled all at once.": "要取消的任务：只能一次取消所有排队中的任务。",
        "Cancel the job unless it has ended so long after its acceptance: seconds, or hours, minutes and seconds such as `1h30m`; "
        "5 seconds to 24 hours.": (
            "接受请求后超过此时长任务仍未结束则取消：秒数，或如 `1h30m` 的时、分、秒组合；5 秒到 24 小时。"
        ),
        "The version of the job: another one after each change of it but `position`, `progress` and `eta`.": (
            "任务的版本：除 `position`、`progress` 和 `eta` 外，任务每次变化后该值都会改变。"
        ),
        "The file.": "图片文件。",
        "The bytes that Range names.": "Range 所指定的字节。",
        "The copy that the client has is current.": "客户端已有的副本仍然有效。",
        "An image never changes under its name, so neither does this.": "同名图片的内容不会改变，因此该值也不会改变。",
        "The parameters, ready to be posted again. Those of one image have its own seed, and batch_size 1.": (
            "作图参数，可直接用于再次请求。单张图片的参数带有该图片自己的种子，且 batch_size 为 1。"
        ),
        "The deleted files: those of the whole record, or of one image. A record goes with its last image.": (
            "已删除的文件：整条记录的文件，或单张图片的文件。最后一张图片删除后，记录随之删除。"
        ),
        "The names that all WebUIs together offer.": "所有 WebUI 合计提供的名称。",
        "The process answers; nothing else was checked.": "进程有应答；未做其他检查。",
        "ok: pictures can be made, or the queue is paused, as the reasons say then. degraded: not now; the reasons say whether "
        "requests are accepted meanwhile.": (
            "ok：可以作图，或队列已暂停（此时 reasons 会说明）。degraded：暂时不能作图；reasons 说明此时是否仍接受请求。"
        ),
        # The queue and the WebUIs
        "The queue and the WebUIs": "队列与 WebUI",
        "See what runs and what waits. The jobs of the user `id` are named; of all others it is told that they are there. A token "
        "with the scope `admin` names all.": (
            "查看正在执行和等待的任务。用户 `id` 自己的任务会显示名称；其他用户的任务只显示其存在。"
            "具有 `admin` 权限的令牌可看到所有名称。"
        ),
        "The running jobs, and a page of the waiting ones in the order in which they will start.": (
            "正在执行的任务，以及一页等待中的任务，按将要开始的顺序排列。"
        ),
        "See whether the WebUIs answer, and how fast they are. It calls no WebUI.": (
            "查看各 WebUI 是否应答及其速度。不访问 WebUI。"
        ),
        "The configured WebUIs.": "已配置的 WebUI。",
        "The user whose jobs are named.": "要显示其任务名称的用户。",
        "It is the job of another user.": "这是其他用户的任务。",
        "Why it is not started: the queue is paused, no worker is running, no WebUI answers, or none that answers offers what it "
        "needs; null: it only waits for its turn.": (
            "尚未开始的原因：队列已暂停、没有工作进程、没有 WebUI 应答，或应答的 WebUI 都不能提供所需内容；null 表示仅在排队。"
        ),
        "Jobs that run or are being stored.": "正在执行或正在保存的任务数。",
        "Jobs that wait.": "等待中的任务数。",
        "All jobs that run.": "所有正在执行的任务。",
        "The jobs of all pages.": "所有页合计的任务数。",
        "For how many seconds the oldest waiting job has waited; null: none waits.": (
            "等待最久的任务已等待的秒数；null 表示没有等待的任务。"
        ),
        "Seconds until all of them have ended, if none is added; null: unknown.": (
            "若不再增加任务，全部结束还需的秒数；null 表示未知。"
        ),
        "No job is started at present.": "目前不开始任何任务。",
        "Its name in the settings, or its address without credentials.": "设置中的名称，或不含凭据的地址。",
        "The state of its slot.": "其槽位的状态。",
        "Whether it answered when it was asked last.": "最近一次查询时是否应答。",
        "The model of the job that runs there, else the loaded one; null: unknown.": (
            "正在执行的任务所用的模型，否则为已加载的模型；null 表示未知。"
        ),
        "Since when it has this health; null: unknown.": "从何时起处于该状态；null 表示未知。",
        "Seconds that it takes with this model for a unit of cost, which is one step for one pixel; null: not measured yet.": (
            "使用该模型时每单位工作量（一个像素一步）所需的秒数；null 表示尚未测量。"
        ),
        "In the order of the settings.": "按设置中的顺序。",
        # The members of the answers
        "Which error it is: a word that never changes.": "错误类型：固定的标识，不会改变。",
        "What the type means; the same for every occurrence.": "该类型的含义；每次出现都相同。",
        "The HTTP status code.": "HTTP 状态码。",
        "What went wrong this time.": "本次出错的原因。",
        "With 422: what is wrong, by field.": "状态码为 422 时：各字段的错误说明。",
        "With unknown-name: what would be accepted, by field.": "类型为 unknown-name 时：各字段可接受的名称。",
        "Of a POST whose job failed: the URL of the job.": "POST 的任务失败时：该任务的网址。",
        "With 429 and 503: the seconds after which to try again, as in Retry-After.": (
            "状态码为 429 和 503 时：多少秒后可重试，与 Retry-After 相同。"
        ),
        "The user.": "用户。",
        "Pixels.": "像素。",
        "What was posted with the seed really used, and every optional field that took effect.": (
            "提交的参数，含实际使用的种子，以及所有起作用的可选项。"
        ),
        "The seed of the first image.": "第一张图片的种子。",
        "The sampler.": "采样器。",
        "The scheduler, named or the end of the sampler's name; absent: none.": (
            "调度器，由请求指定或取自采样器名的末尾；没有此项则未指定。"
        ),
        "The shortest name that means this model's file and no other.": "能唯一确定该模型文件的最短名称。",
        "img2img: a data URI.": "仅用于 img2img：data URI。",
        "The file name.": "文件名。",
        "The URL of the image.": "图片的网址。",
        "The URL of a small image in WebP.": "WebP 格式缩略图的网址。",
        "The seed of this image.": "该图片的种子。",
        "The size of the file in bytes.": "文件大小（字节）。",
        "image/png, image/jpeg or image/webp.": "image/png、image/jpeg 或 image/webp。",
        "Always image/png.": "总是 image/png。",
        "The parameters as the WebUI writes them into its pictures.": "WebUI 写入图片的参数文本。",
        "The model.": "模型。",
        "The version of the WebUI.": "WebUI 的版本。",
        "What was asked for.": "请求的类型。",
        "The name of the job and its record.": "任务及其记录的名称。",
        "The state of the job.": "任务的状态。",
        "Its end was asked for; a running job ends when its WebUI has replied.": (
            "已请求取消；正在执行的任务在 WebUI 应答后结束。"
        ),
        "The pictures come from a simulator.": "图片来自模拟器。",
        "When it was accepted.": "接受请求的时间。",
        "Start of the last attempt; null: there was none.": "最近一次尝试的开始时间；null 表示尚未开始。",
        "When the job ended; null: it has not.": "任务结束的时间；null 表示尚未结束。",
        "The place in the queue: 1 starts next; null: not queued.": "队列中的位置：1 表示下一个开始；null 表示不在队列中。",
        "How much of it is done, 0 to 1.": "完成进度，0 到 1。",
        "Seconds until the job ends; null: unknown.": "预计还需多少秒结束；null 表示未知。",
        "Empty until it succeeded.": "任务成功之前为空。",
        "img2img: the reference image.": "仅用于 img2img：参考图。",
        "What made the pictures; null until it is known.": "作图所用的 WebUI；未知之前为 null。",
        "Why the job failed.": "任务失败的原因。",
        "The jobs of this page.": "本页的任务。",
        "The URL of the next page; null on the last one.": "下一页的网址；最后一页为 null。",
        "The names of the deleted files.": "已删除文件的文件名。",
        "For sampler_name.": "用于 sampler_name。",
        "For scheduler; empty where the WebUI has none.": "用于 scheduler；WebUI 没有调度器时为空。",
        "For hr_upscaler.": "用于 hr_upscaler。",
        "For hr_upscaler of txt2img.": "用于 txt2img 的 hr_upscaler。",
        "For style: the gateway's presets, then the WebUI's.": "用于 style：先列网关的预设，再列 WebUI 的风格。",
        "For model.": "用于 model。",
        "The model of requests that name none; null: none is known.": "请求未指定模型时使用的模型；null 表示未知。",
        "Always ok.": "总是 ok。",
        "ok, or degraded for the reasons given.": "ok，或因所列原因为 degraded。",
        # The titles of the problems
        "The body is not readable JSON": "请求体不是可读的 JSON",
        "The request is malformed": "请求格式错误",
        "One sentence each. Left out where the request has no token and needs one.": (
            "每条原因一句话。请求需要令牌而未携带时省略。"
        ),
        "A token that an operator has made. Without any, programs on this machine are served.": (
            "由运维人员创建的令牌。没有任何令牌时，只服务本机上的程序。"
        ),
        "The cookie of POST /session.": "POST /session 设置的 Cookie。",
        "The request needs a token": "请求需要令牌",
        "The token is not valid": "令牌无效",
        "The token may not do this": "令牌无权执行此操作",
        "Without tokens only this machine is served": "尚无令牌时只服务本机",
        "The request comes from another site": "请求来自其他站点",
        "The signed URL has expired": "签名链接已过期",
        "The signature of the URL is wrong": "链接签名错误",
        "Nothing is here": "此处没有资源",
        "There is no such type of job": "没有这种任务类型",
        "There is no such job": "没有此任务",
        "There is no such file": "没有此文件",
        "The job of this Idempotency-Key was deleted": "该 Idempotency-Key 对应的任务已被删除",
        "The path does not take this method": "此路径不支持该方法",
        "The path has nothing that the Accept header takes": "该路径没有 Accept 头可接受的内容",
        "The request arrived too slowly": "请求到达过慢",
        "The job was cancelled": "任务已取消",
        "The job's time was up": "任务已超过时限",
        "A condition of the request does not hold": "请求的前提条件不成立",
        "The body is too large": "请求体过大",
        "The request line is too long": "请求行过长",
        "The body must be application/json": "请求体必须是 application/json",
        "The file has no such range": "文件没有此字节范围",
        "The Expect header cannot be met": "无法满足 Expect 请求头",
        "The request breaks the contract": "请求不符合接口约定",
        "A name is not known to any WebUI": "没有 WebUI 认识该名称",
        "The reference image cannot be used": "参考图无法使用",
        "The WebUI can't make these pictures": "WebUI 无法生成这些图片",
        "The Idempotency-Key belongs to another request": "该 Idempotency-Key 属于另一个请求",
        "No URL can be signed": "无法签名链接",
        "Too many requests with bad tokens": "无效令牌的请求过多",
        "The user has too many unfinished jobs": "该用户未完成的任务过多",
        "The header is too large": "请求头过大",
        "The gateway failed": "网关出错",
        "The stored file is damaged": "存储的文件已损坏",
        "The WebUI refused the job": "WebUI 拒绝了任务",
        "The WebUI ran out of memory": "WebUI 内存不足",
        "The WebUI failed": "WebUI 出错",
        "The WebUI sent an unreadable answer": "WebUI 的应答无法读取",
        "The WebUI was interrupted": "WebUI 被中断",
        "The WebUI used another model": "WebUI 使用了其他模型",
        "The WebUI cannot be reached": "无法连接 WebUI",
        "The connection to the WebUI broke": "与 WebUI 的连接中断",
        "No WebUI can serve the job any more": "已没有 WebUI 能执行该任务",
        "The worker was lost too often": "工作进程多次中断",
        "The queue is full": "队列已满",
        "The accepted job was lost": "已接受的任务丢失",
        "Too many clients are waiting": "等待的客户端过多",
        "Too many clients are watching": "事件流过多",
        "No WebUI was ever seen": "从未连接到 WebUI",
        "No default model is known": "没有已知的默认模型",
        "The database is not available": "数据库不可用",
        "There is no room for the body": "没有空间存放请求体",
        "Too many variants of images are being made": "正在生成的缩图过多",
        "The data folder is not available": "数据文件夹不可用",
        "The pictures could not be stored": "图片无法保存",
        "The WebUI took too long": "WebUI 耗时过长",
    }
)


def chinese(english: str) -> str:
    """The translation of a sentence; the sentence itself where there is none yet."""
    return CHINESE.get(english, english)


def in_both_languages(english: str, separator: str = "\n\n") -> str:
    """A sentence and its translation; the sentence alone where there is none yet, or where it holds Chinese already."""
    translation = CHINESE.get(english)
    return english if translation is None or _HAN.search(english) else f"{english}{separator}{translation}"


def translate(node: Any, member: str = "") -> Any:
    """An OpenAPI document, or the part of it that ``member`` holds, with every text in both languages."""
    if member in _DATA:
        return node
    if isinstance(node, Mapping):
        return {name: translate(value, str(name)) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [translate(item, member) for item in node]
    if isinstance(node, str) and member in _SEPARATORS:
        return in_both_languages(node, _SEPARATORS[member])
    return node
