"""The whole translation, client to pictures, over every flavour of the simulator."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from app.config import WebuiAddress
from app.simulator import FLAVOURS, SimulatorServer, SimulatorSettings
from app.webui import bounds, errors, payloads
from app.webui.answers import generation_images_base64, read_generation, read_upscaled
from app.webui.client import Webui
from app.webui.presets import Preset, Presets
from app.webui.resolve import choose_default_model, merge_options, resolve
from tests.webui.samples import fields, overrides

PNG = b"\x89PNG\r\n\x1a\n"
PRESETS = Presets({"oil": Preset(prompt="oil painting of {prompt}", negative_prompt="photo")})
MODELS = ("simulated-one", "folder/simulated-two")
#: A request that is quick to make.
SMALL = {"width": 64, "height": 64, "steps": 4, "batch_size": 1}


class Bench:
    """A simulator, the client of it, and the way of a job through both."""

    def __init__(self, server: SimulatorServer, **limits: float) -> None:
        self.server = server
        self.webui = Webui(WebuiAddress("main", server.url), **{"job_timeout": 60.0, "query_timeout": 30.0} | limits)
        self.catalogue = self.webui.catalogue()
        self.overrides = overrides()

    def resolve(self, type_="txt2img", **changes):
        default = choose_default_model("", None, [self.catalogue])
        return resolve(type_, fields(**SMALL | changes), [self.catalogue], PRESETS, default)

    def target(self, args):
        return payloads.Target(self.catalogue, self.model(args), PRESETS, self.overrides)

    def send(self, type_="txt2img", task_id="task-1", one_by_one=False, init=None, **changes):
        args = self.resolve(type_, **changes).args
        if type_ == "txt2img":
            payload = payloads.txt2img(args, self.target(args), task_id, one_by_one=one_by_one)
        else:
            payload = payloads.img2img(args, init, self.target(args), task_id, one_by_one=one_by_one)
        return args, self.webui.generate(type_, payload, bounds.of_generation(args).size)

    def model(self, args):
        return self.catalogue.model(args["model"])

    def make(self, type_="txt2img", **changes):
        return self.read(*self.send(type_, **changes))

    def read(self, args, reply):
        """Read the answer to a generation as strictly as the gateway does."""
        return read_generation(
            reply,
            bounds.of_generation(args),
            expected=args["batch_size"],
            model=self.model(args),
            first_seed=int(args["seed"]),
        )

    def fault(self, kind, **values):
        requests.post(
            self.server.url + "/simulator/faults", json={"kind": kind, **values}, timeout=30
        ).raise_for_status()

    def until(self, seen):
        """Poll the state of the server until ``seen`` accepts it."""
        pause = threading.Event()
        for _ in range(1000):
            state = self.webui.server_state()
            if seen(state):
                return state
            pause.wait(0.02)
        raise AssertionError(state)


@pytest.fixture(scope="module", params=FLAVOURS)
def server(request):
    with SimulatorServer(SimulatorSettings(flavour=request.param, seconds_per_image=0, models=MODELS)) as started:
        yield started


@pytest.fixture
def bench(server):
    requests.delete(server.url + "/simulator/faults", timeout=30)
    return Bench(server)


@pytest.fixture(params=FLAVOURS)
def slow(request):
    with SimulatorServer(SimulatorSettings(flavour=request.param, seconds_per_image=60, models=MODELS)) as server:
        yield Bench(server)


def size(png):
    """Width and height, which a PNG holds at bytes 16 and 20."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_the_catalogue(bench):
    found = bench.catalogue
    assert "Euler" in found.samplers
    assert {"None", "Lanczos", "Nearest"} <= set(found.upscalers)
    assert len(found.latent_modes) == 6
    assert "anime" in found.styles
    assert not any("---" in style for style in found.styles)
    assert [model.model_name for model in found.models] == ["simulated-one", "folder_simulated-two"]
    assert found.loaded_model == "simulated-one.safetensors"


@pytest.mark.parametrize(
    ("flavour", "schedulers", "task_ids", "forge"),
    [
        ("a1111-1.7", False, True, False),
        ("a1111-1.10", True, True, False),
        ("forge", True, True, True),
        ("nowebui", True, False, False),
    ],
)
def test_the_traits_of_each_flavour(flavour, schedulers, task_ids, forge):
    with SimulatorServer(SimulatorSettings(flavour=flavour, seconds_per_image=0)) as server:
        found = Bench(server).catalogue
        assert (bool(found.schedulers), found.task_ids, found.forge) == (schedulers, task_ids, forge)


def test_pictures_come_back_with_their_seeds(bench):
    found = bench.make(batch_size=3, seed="100")
    assert [picture.seed for picture in found.pictures] == [100, 101, 102]
    assert all(picture.data.startswith(PNG) and size(picture.data) == (64, 64) for picture in found.pictures)
    assert all("Seed: 10" in picture.infotext for picture in found.pictures)
    assert found.simulated
    assert (found.model, found.sampler) == ("simulated-one", "Euler")
    assert len({picture.data for picture in found.pictures}) == 3


def test_one_by_one_makes_the_same_seeds(bench):
    found = bench.make(batch_size=3, seed="100", one_by_one=True)
    assert [picture.seed for picture in found.pictures] == [100, 101, 102]


def test_the_same_args_make_the_same_pictures(bench):
    first, again = (bench.make(prompt="一只猫 # not a comment").pictures for _ in range(2))
    assert first == again
    assert bench.make(prompt="x").pictures[0].data != bench.make(prompt="y").pictures[0].data


def test_the_prompt_is_kept_whole(bench):
    assert "# not a comment" in bench.make(prompt="a cat # not a comment").pictures[0].infotext


@pytest.mark.parametrize("model", ["folder_simulated-two", "folder/simulated-two.safetensors", "simulated-one"])
def test_each_job_runs_on_its_own_model(bench, model):
    found = bench.make(model=model)
    assert found.model == ("simulated-one" if model == "simulated-one" else "simulated-two")
    # The same job again, now that the override of the last one is left behind.
    assert bench.make(model=model).pictures == found.pictures


def test_the_loaded_model_follows_and_the_names_stay(bench):
    bench.make(model="folder_simulated-two")
    again = Bench(bench.server).catalogue
    assert again.loaded_model == "folder/simulated-two.safetensors"
    assert choose_default_model("", "simulated-one", [again]) == "simulated-one"
    assert bench.make(model="simulated-one").model == "simulated-one"


def test_styles_of_the_webui_and_of_the_gateway(bench):
    assert "anime artwork of a cat" in bench.make(style="anime").pictures[0].infotext
    infotext = bench.make(style="oil").pictures[0].infotext
    assert infotext.startswith("oil painting of a cat\n")
    assert "blurry, photo" in infotext


@pytest.mark.parametrize("upscaler", ["Latent", "Latent (nearest-exact)", "Lanczos"])
def test_the_hires_fix(bench, upscaler):
    found = bench.make(hr_upscaler=upscaler, hr_scale=1.5)
    assert size(found.pictures[0].data) == (96, 96)


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
def test_img2img(bench, mode):
    init = bench.make().pictures[0].data
    found = bench.make("img2img", init=init, width=96, resize_mode=mode, denoising_strength=0.4, batch_size=2)
    assert [size(picture.data) for picture in found.pictures] == [(96, 64)] * 2
    assert found.pictures[0].data != bench.make("img2img", init=found.pictures[0].data, width=96).pictures[0].data


@pytest.mark.parametrize(("upscaler", "scale", "side"), [("Lanczos", 2, 128), ("Nearest", 1.5, 96), ("Lanczos", 1, 64)])
def test_img2img_is_upscaled_by_the_extras(bench, upscaler, scale, side):
    init = bench.make().pictures[0].data
    args, reply = bench.send("img2img", init=init, batch_size=2, hr_upscaler=upscaler, hr_scale=scale)
    generation = bench.read(args, reply)
    images = generation_images_base64(reply, bounds.of_generation(args), 2)
    limits = bounds.of_generation(args, scale=scale)
    upscaled = bench.webui.upscale(payloads.upscale(images, args), limits.size)
    pictures = read_upscaled(upscaled, limits, generation.pictures)
    assert [size(picture.data) for picture in pictures] == [(side, side)] * 2
    assert [(one.seed, one.infotext) for one in pictures] == [(one.seed, one.infotext) for one in generation.pictures]


@pytest.mark.soak
def test_every_offered_sampler_and_scheduler_is_taken(bench):
    found = bench.catalogue
    for sampler in found.samplers:
        assert bench.make(sampler_name=sampler).pictures
    for scheduler in found.schedulers:
        by_name, by_label = bench.make(scheduler=scheduler.name), bench.make(scheduler=scheduler.label)
        assert by_name.pictures == by_label.pictures


@pytest.mark.parametrize(
    ("field", "payload"),
    [
        ("style", {"styles": ["no such style"]}),
        ("model", {"override_settings": {"sd_model_checkpoint": "no such model"}}),
        ("sampler_name", {"sampler_name": "no such sampler"}),
        ("scheduler", {"scheduler": "no such scheduler"}),
    ],
)
def test_what_a_webui_ignores_silently_is_refused_before_it_is_sent(bench, field, payload):
    value = payload.get(field, f"no such {field}")
    with pytest.raises(errors.UnknownNames) as caught:
        bench.resolve(**{field: value})
    assert set(caught.value.errors) == {field}
    plain = {"prompt": "x", "width": 64, "height": 64, "steps": 1, "seed": 1}
    status = bench.webui.generate("txt2img", plain | payload, bounds.OF_PROBE.size).status
    # The older flavour alone refuses a sampler; it has no schedulers, and drops that field like any unknown one.
    assert status == (404 if field == "sampler_name" and not bench.catalogue.schedulers else 200)


def test_what_is_offered_resolves(bench):
    offered = merge_options([bench.catalogue], PRESETS, "simulated-one")
    assert offered["styles"][0] == "oil"
    for style in offered["styles"]:
        bench.resolve(style=style)
    for upscaler in offered["latent_modes"] + offered["upscalers"]:
        bench.resolve(hr_upscaler=upscaler)
    for upscaler in offered["upscalers"]:
        bench.resolve("img2img", hr_upscaler=upscaler)
    for model in offered["models"]:
        bench.resolve(model=model)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("error-500", errors.WebuiFailed),
        ("error-http", errors.Refused),
        ("error-422", errors.Refused),
        ("error-plain", errors.WebuiFailed),
        ("error-forge", errors.WebuiFailed),
        ("oom", errors.OutOfMemory),
        ("bad-json", errors.BadAnswer),
        ("bad-base64", errors.BadAnswer),
        ("no-images", errors.BadAnswer),
        ("fewer-images", errors.BadAnswer),
        ("torn", errors.ConnectionBroken),
        ("close", errors.ConnectionBroken),
        ("wrong-model", errors.WrongModel),
    ],
)
def test_each_fault_is_told(bench, kind, error):
    bench.fault(kind)
    with pytest.raises(errors.WebuiError) as caught:
        bench.make(batch_size=2)
    assert type(caught.value) is error
    assert bench.make(batch_size=2).pictures


def test_out_of_memory_only_as_a_batch(bench):
    bench.fault("oom-batch", count=2)
    with pytest.raises(errors.OutOfMemory):
        bench.make(batch_size=2)
    assert len(bench.make(batch_size=2, one_by_one=True).pictures) == 2


@pytest.mark.parametrize(("kind", "magic"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
def test_other_formats_come_through(bench, kind, magic):
    bench.fault(kind)
    assert bench.make().pictures[0].data.startswith(magic)


def test_a_grid_in_front_is_left_out(bench):
    plain = bench.make(batch_size=2)
    bench.fault("grid")
    assert bench.make(batch_size=2).pictures == plain.pictures


def test_a_model_that_left_is_noticed_by_its_result(bench):
    bench.make(model="simulated-one")
    bench.fault("lost-model")
    args, reply = bench.send(model="folder_simulated-two")
    with pytest.raises(errors.WrongModel):
        bench.read(args, reply)


def test_the_catalogue_is_not_read_from_a_webui_that_is_not_ready(bench):
    for kind in ("slow-start", "catalogue-500"):
        bench.fault(kind)
        with pytest.raises(errors.NotAnswering):
            bench.webui.catalogue()
    assert bench.webui.catalogue().samplers == bench.catalogue.samplers


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_credentials(flavour):
    settings = SimulatorSettings(flavour=flavour, seconds_per_image=0, auth=("user", "p@ss"))
    with SimulatorServer(settings) as server:
        with pytest.raises(errors.NotAnswering, match="credentials"):
            Webui(WebuiAddress("main", server.url), job_timeout=30).catalogue()
        url = server.url.replace("://", "://user:p%40ss@")
        webui = Webui(WebuiAddress("main", url), job_timeout=30)
        assert webui.catalogue().samplers
        webui.interrupt()


def test_progress_and_interrupt_of_a_running_job(slow):
    assert slow.webui.server_state().job_count == 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow.send)
        slow.until(lambda state: state.job_count > 0)
        task = slow.webui.task("task-1")
        if slow.catalogue.task_ids:
            assert (task.active, task.queued, task.completed) == (True, False, False)
            assert slow.webui.task("another").active is False
        else:
            assert task is None
        slow.webui.interrupt()
        args, reply = running.result(timeout=30)
    # The half picture comes as if nothing had happened.
    assert slow.read(args, reply).pictures
    assert slow.webui.server_state().job_count == 0


def test_abort_stops_the_waiting_and_not_the_webui(slow):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow.send)
        slow.until(lambda state: state.job_count > 0)
        slow.webui.abort()
        with pytest.raises(errors.ConnectionBroken):
            running.result(timeout=30)
    assert slow.webui.server_state().job_count > 0
    slow.webui.interrupt()
    slow.until(lambda state: state.job_count == 0)


def test_an_answer_that_never_comes(bench):
    impatient = Bench(bench.server, job_timeout=0.5)
    bench.fault("hang-idle", seconds=5)
    with pytest.raises(errors.JobTimeout):
        impatient.make()
