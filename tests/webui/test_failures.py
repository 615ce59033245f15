"""Errors as WebUIs sent them, and what is made of each."""

import json

import pytest

from app.webui import errors, failures
from app.webui.answers import read_generation
from app.webui.exchange import Reply
from tests.webui.samples import ROOMY, model


def a1111(error, errors="", detail=""):
    """The body of a 500 of A1111 1.8 and 1.10.1."""
    return {"error": error, "detail": detail, "body": "", "errors": errors}


def forge(error, message=""):
    """The body of a 500 of Forge."""
    return {"error": error, "detail": "", "body": "", "message": message}


NAN_CHECK = "Use --disable-nan-check commandline argument to disable this check."
TASK_GROUP = "unhandled errors in a TaskGroup (1 sub-exception)"
DETERMINISTIC = [
    # A1111 1.8 and 1.10.1 word it differently.
    (a1111("NansException", f"A tensor with all NaNs was produced in Unet. {NAN_CHECK}"), "invalid numbers"),
    (a1111("NansException", f"A tensor with NaNs was produced in Unet. {NAN_CHECK}"), "invalid numbers"),
    (a1111("ExceptionGroup", f"A tensor with NaNs was produced in VAE. {NAN_CHECK}"), "invalid numbers"),
    (a1111("AssertionError", "UniPC order must be < sampling steps"), "more steps"),
    (forge("AssertionError", "UniPC order must be < sampling steps"), "more steps"),
    # resize_mode fill with a reference image of 3000 x 1.
    (a1111("ValueError", "height and width must be > 0"), "resize_mode"),
    (forge("ValueError", "height and width must be > 0"), "resize_mode"),
    (a1111("SystemError", "tile cannot extend outside image"), "resize_mode"),
    (a1111("ZeroDivisionError", "integer division or modulo by zero"), "so few steps"),
    (forge("ZeroDivisionError", "integer division or modulo by zero"), "so few steps"),
    (forge("ZeroDivisionError"), "so few steps"),
    (
        a1111(
            "RuntimeError",
            "Calculated padded input size per channel: (10 x 2). Kernel size: (3 x 3). Kernel size can't be greater than actual "
            "input size",
        ),
        "Change the size",
    ),
    (
        a1111("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (77x768 and 2048x320)"),
        "extra networks",
    ),
    (
        forge(
            "RuntimeError", "The size of tensor a (9) must match the size of tensor b (8) at non-singleton dimension 3"
        ),
        "Change the size",
    ),
    (a1111("RuntimeError", "Sizes of tensors must match except in dimension 1."), "Change the size"),
    (a1111("RuntimeError", "Given groups=1, weight of size [320, 4, 3, 3], expected input"), "another model"),
    (a1111("Exception", "could not find upscaler named Nope"), "hr_upscaler"),
    (a1111("AssertionError", "could not find upscaler named Nope"), "hr_upscaler"),
    (forge("AssertionError", "could not find upscaler named Nope"), "hr_upscaler"),
    # samples_format gif or avif; Forge's HTTPException has no class.
    (a1111("HTTPException", detail="Invalid image format"), "samples_format"),
    ({"detail": "Invalid image format"}, "samples_format"),
]
CHANCE = [
    a1111("TypeError", "'>' not supported between instances of 'NoneType' and 'int'"),
    a1111("IndexError", "list index out of range"),
    a1111("HTTPException", detail="Invalid encoded image"),
    a1111("RuntimeError", "CUDA error: an illegal memory access was encountered"),
    a1111("ExceptionGroup", TASK_GROUP),
    forge("AttributeError", "'NoneType' object has no attribute 'sd_checkpoint_info'"),
    forge("ValueError", "Failed to recognize model type!"),
    {"detail": "Invalid encoded image"},
    {"message": "Internal Server Error"},
    {"message": None},
    {"detail": [{"loc": ["body"], "msg": "division by zero"}]},
    {"error": 5, "errors": ["division by zero"]},
    {},
]
OUT_OF_MEMORY = [
    a1111(
        "OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
    ),
    forge(
        "OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
    ),
    a1111("OutOfMemoryError"),
    a1111("torch.cuda.OutOfMemoryError"),
    a1111("ExceptionGroup", "CUDA out of memory. Tried to allocate 20.00 MiB"),
    a1111("RuntimeError", "CUDA error: out of memory"),
    a1111("RuntimeError", "HIP out of memory. Tried to allocate 2.00 GiB"),
    a1111("RuntimeError", "MPS backend out of memory (MPS allocated: 5.05 GB, max allowed: 6.80 GB)"),
    a1111("RuntimeError", "Invalid buffer size: 24.00 GB"),
    a1111(
        "RuntimeError",
        "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ),
    a1111("RuntimeError", "DefaultCPUAllocator: not enough memory: you tried to allocate 34359738368 bytes."),
    a1111("OSError", "[Errno 12] Cannot allocate memory"),
    a1111("MemoryError"),
    a1111("_ArrayMemoryError", "Unable to allocate 2.00 GiB for an array with shape (1, 2)"),
    a1111("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    a1111("HTTPException", detail="CUDA out of memory."),
    {"message": "CUDA out of memory."},
]


@pytest.mark.parametrize(("body", "said"), DETERMINISTIC)
def test_a_deterministic_error_says_what_to_change(body, said):
    assert said in failures.advice(body)
    with pytest.raises(errors.Cannot, match=said):
        read_generation(_reply(body), ROOMY, expected=1, model=model("alpha"), first_seed=1)


@pytest.mark.parametrize("body", CHANCE)
def test_what_may_be_chance_is_tried_again(body):
    assert failures.advice(body) is None
    assert not failures.says_out_of_memory(body)
    with pytest.raises(errors.WebuiFailed) as caught:
        read_generation(_reply(body), ROOMY, expected=1, model=model("alpha"), first_seed=1)
    assert caught.value.retryable


@pytest.mark.parametrize("body", OUT_OF_MEMORY)
def test_a_lack_of_memory_is_told(body):
    assert failures.says_out_of_memory(body)
    with pytest.raises(errors.OutOfMemory):
        read_generation(_reply(body), ROOMY, expected=1, model=model("alpha"), first_seed=1)


@pytest.mark.parametrize("body", [body for body, _ in DETERMINISTIC])
def test_no_other_error_counts_as_a_lack_of_memory(body):
    assert not failures.says_out_of_memory(body)


def test_the_advice_holds_nothing_of_the_webuis_text():
    path = "/home/somebody/models/private.safetensors"
    said = {}
    for body, _ in DETERMINISTIC:
        marked = {key: f"{path} {value} {path}" if key != "error" else value for key, value in body.items()}
        advice = failures.advice(marked)
        assert advice == failures.advice(body)
        said[advice] = marked
    for advice in said:
        assert path not in advice
        assert all(word not in advice for word in ("Unet", "mat1", "Nope", "commandline", "tensor"))
    assert len(said) == 7


def test_a_client_error_is_never_read_for_advice():
    # A refused request may echo the prompt.
    body = {"detail": "Invalid image format, out of memory, division by zero"}
    with pytest.raises(errors.Refused):
        read_generation(Reply(422, json.dumps(body).encode()), ROOMY, expected=1, model=model("alpha"), first_seed=1)


def test_only_the_beginning_of_an_errors_text_is_looked_at():
    assert failures.advice({"errors": "x" * 8000 + " division by zero"}) is not None
    assert failures.advice({"errors": "x" * 10_000_000 + " division by zero"}) is None


SENT = {"samples_format": "png", "enable_prompt_comments": False}


@pytest.mark.parametrize(
    ("body", "option"),
    [
        (a1111("KeyError", "'enable_prompt_comments'"), "enable_prompt_comments"),
        (forge("KeyError", "'enable_prompt_comments'"), "enable_prompt_comments"),
        (a1111("KeyError", "'samples_format'"), "samples_format"),
        (a1111("KeyError", "enable_prompt_comments"), "enable_prompt_comments"),
        # Another key, or another error that names the option.
        (a1111("KeyError", "'zzz'"), None),
        (a1111("KeyError", "'my enable_prompt_comments'"), None),
        (a1111("ValueError", "'enable_prompt_comments'"), None),
        (a1111("ExceptionGroup", TASK_GROUP), None),
        ({"message": "Internal Server Error"}, None),
        ({}, None),
    ],
)
def test_an_unknown_option_is_named_by_its_key_error(body, option):
    assert failures.unknown_option(body, SENT) == option
    assert failures.unknown_option(body, {}) is None


@pytest.mark.parametrize(
    ("body", "nothing"),
    [
        # anyio 4 wraps every error of A1111 and hides it.
        (a1111("ExceptionGroup", TASK_GROUP), True),
        (a1111("BaseExceptionGroup", "unhandled errors in a TaskGroup (2 sub-exceptions)"), True),
        (forge("ExceptionGroup", TASK_GROUP), True),
        (a1111("ExceptionGroup"), True),
        ({"message": "Internal Server Error"}, True),
        ({"message": ""}, True),
        ({}, True),
        (a1111("ExceptionGroup", "A tensor with NaNs was produced"), False),
        (a1111("KeyError", "'zzz'"), False),
        (a1111("RuntimeError"), False),
        (a1111("HTTPException", detail="Invalid image format"), False),
        ({"detail": "Not authenticated"}, False),
        ({"message": "<h1>Internal Server Error</h1>"}, False),
    ],
)
def test_whether_an_error_says_anything(body, nothing):
    assert failures.says_nothing(body) is nothing


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        (forge("AttributeError", "'NoneType' object has no attribute 'sd_checkpoint_info'"), True),
        (forge("AttributeError", "'NoneType' object has no attribute 'forge_objects'"), False),
        (forge("ValueError", "Failed to recognize model type!"), False),
        ({}, False),
    ],
)
def test_a_forge_whose_model_is_gone_says_so(body, broken):
    assert failures.says_model_broken(body) is broken


def _reply(body):
    return Reply(500, json.dumps(body).encode())
