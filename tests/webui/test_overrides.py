"""The options that sequences of generations override and put back."""

import json

import pytest

from app.webui.overrides import PROMPT_COMMENTS, SAMPLES_FORMAT, OptionOverrides

FORMAT = {SAMPLES_FORMAT: "png"}
OFF, ON = FORMAT | {PROMPT_COMMENTS: False}, FORMAT | {PROMPT_COMMENTS: True}
PLAIN, HASH = ("a cat", "blurry"), ("a cat # 1", "")
NO_SUCH_OPTION = {"error": "KeyError", "detail": "", "body": "", "errors": f"'{PROMPT_COMMENTS}'"}
NO_SUCH_FORMAT = {"error": "KeyError", "detail": "", "body": "", "message": f"'{SAMPLES_FORMAT}'"}
SAYS_NOTHING = {"error": "ExceptionGroup", "errors": "unhandled errors in a TaskGroup (1 sub-exception)"}


class Webui:
    """Overrides, and each text that was kept of them."""

    def __init__(self, stored=None):
        self.kept = []
        self.overrides = OptionOverrides(stored, self.kept.append)

    def make(self, prompts, shown, *, ok=True):
        """One generation; returns its options."""
        options = self.overrides.of(prompts, shown)
        self.overrides.answered(options, ok=ok)
        return options

    @property
    def stored(self):
        """The kept text, as a process that starts now would read it."""
        return self.kept[-1] if self.kept else None


@pytest.fixture
def webui():
    return Webui()


def before(value):
    return json.dumps({PROMPT_COMMENTS: value})


@pytest.mark.parametrize(
    ("sequence", "sent", "stored"),
    [
        # Prompts, and what the options show; then what is sent, and what is kept at the end.
        ([(PLAIN, None)], [FORMAT], None),
        ([(PLAIN, True)], [FORMAT], None),
        ([(PLAIN, False)], [FORMAT], None),
        ([(HASH, True)], [OFF], before(True)),
        ([(("", "#"), None)], [OFF], before(True)),
        ([(HASH, True), (HASH, False)], [OFF, OFF], before(True)),
        ([(HASH, True), (PLAIN, True)], [OFF, ON], None),
        ([(HASH, None), (PLAIN, None)], [OFF, ON], None),
        # The options are looked at while the override stands: what they show then is our own value.
        ([(HASH, True), (PLAIN, False)], [OFF, ON], None),
        ([(HASH, True), (HASH, False), (PLAIN, False)], [OFF, OFF, ON], None),
        # What was off already needs no putting back.
        ([(HASH, False)], [OFF], None),
        ([(HASH, False), (PLAIN, False)], [OFF, FORMAT], None),
        # Put back once, and not again.
        ([(HASH, True), (PLAIN, True), (PLAIN, True)], [OFF, ON, FORMAT], None),
        ([(HASH, True), (PLAIN, True), (HASH, True), (PLAIN, True)], [OFF, ON, OFF, ON], None),
        # The options were last looked at while the override stood, and not since it was put back.
        ([(HASH, True), (PLAIN, False), (HASH, False)], [OFF, ON, OFF], before(True)),
        ([(HASH, True), (PLAIN, False), (HASH, False), (PLAIN, False)], [OFF, ON, OFF, ON], None),
        # Seen to be put back, and then switched off by a person.
        (
            [(HASH, True), (PLAIN, False), (PLAIN, True), (HASH, False), (PLAIN, False)],
            [OFF, ON, FORMAT, OFF, FORMAT],
            None,
        ),
    ],
)
def test_a_sequence_of_generations(webui, sequence, sent, stored):
    assert [webui.make(prompts, shown) for prompts, shown in sequence] == sent
    assert webui.stored == stored


def test_the_value_to_put_back_is_kept_before_the_override_is_sent(webui):
    assert webui.overrides.of(HASH, True) == OFF
    assert webui.kept == [before(True)]
    # A retry of the same job keeps nothing twice.
    webui.overrides.of(HASH, False)
    assert webui.kept == [before(True)]


def test_an_override_that_could_not_be_kept_is_not_sent():
    class Unwritable(Exception):
        pass

    def keep(_text):
        raise Unwritable

    overrides = OptionOverrides(None, keep)
    for _ in range(2):
        with pytest.raises(Unwritable):
            overrides.of(HASH, True)


def test_it_stays_to_be_put_back_until_a_good_answer(webui):
    webui.make(HASH, True)
    assert webui.make(PLAIN, True, ok=False) == ON
    assert webui.stored == before(True)
    assert webui.make(PLAIN, True) == ON
    assert webui.kept == [before(True), None]
    assert webui.make(PLAIN, True) == FORMAT


def test_a_failed_generation_may_have_overridden_it_all_the_same(webui):
    webui.make(HASH, True, ok=False)
    assert webui.make(PLAIN, False) == ON


@pytest.mark.parametrize("value", [True, False])
def test_the_next_process_puts_back_what_the_one_before_overrode(value):
    webui = Webui(before(value))
    assert webui.make(PLAIN, False) == FORMAT | {PROMPT_COMMENTS: value}
    assert webui.kept == [None]
    assert webui.make(PLAIN, False) == FORMAT


def test_a_webui_that_was_down_comes_back_with_its_own_options(webui):
    webui.make(HASH, True)
    webui.make(PLAIN, False)
    webui.make(HASH, False)
    webui.overrides.is_unknown(SAMPLES_FORMAT)
    webui.overrides.forget()
    assert webui.stored is None
    # What it shows now is its own.
    assert webui.make(PLAIN, False) == FORMAT
    assert webui.make(HASH, False) == OFF
    assert webui.make(PLAIN, False) == FORMAT


def test_nothing_is_kept_where_nothing_is_to_be_forgotten(webui):
    webui.overrides.forget()
    assert webui.kept == []


def test_an_unknown_option_is_left_out_from_then_on(webui):
    options = webui.overrides.of(HASH, None)
    assert webui.overrides.refused(options, NO_SUCH_OPTION) == FORMAT
    assert webui.stored is None
    assert webui.make(HASH, None) == FORMAT
    assert webui.make(PLAIN, None) == FORMAT
    assert webui.kept == [before(True), None]


def test_an_unknown_picture_format_leaves_the_other_option(webui):
    options = webui.overrides.of(HASH, True)
    assert webui.overrides.refused(options, NO_SUCH_FORMAT) == {PROMPT_COMMENTS: False}
    assert webui.make(HASH, True) == {PROMPT_COMMENTS: False}
    assert webui.make(PLAIN, True) == {PROMPT_COMMENTS: True}
    assert webui.make(PLAIN, True) == {}


def test_an_error_that_says_nothing_leaves_the_option_out_once(webui):
    options = webui.overrides.of(HASH, None)
    assert webui.overrides.refused(options, SAYS_NOTHING) == FORMAT
    # Nobody knows yet whether that was it.
    assert webui.overrides.of(HASH, None) == OFF
    assert webui.stored == before(True)


def test_an_option_without_which_it_worked_twice_is_unknown(webui):
    webui.overrides.of(HASH, None)
    webui.overrides.seems_unknown(PROMPT_COMMENTS)
    # Once may be chance.
    assert webui.overrides.of(HASH, None) == OFF
    webui.overrides.seems_unknown(PROMPT_COMMENTS)
    assert webui.overrides.of(HASH, None) == FORMAT
    assert webui.stored is None
    # A cut prompt shows that the WebUI knows it after all.
    webui.overrides.is_known(PROMPT_COMMENTS)
    assert webui.overrides.of(HASH, None) == OFF


@pytest.mark.parametrize("end", ["a good answer with it", "a restart"])
def test_a_suspicion_ends(webui, end):
    webui.overrides.seems_unknown(PROMPT_COMMENTS)
    if end == "a restart":
        webui.overrides.forget()
    else:
        webui.make(HASH, None)
    webui.overrides.seems_unknown(PROMPT_COMMENTS)
    assert webui.make(HASH, None) == OFF


def test_a_good_answer_without_the_option_ends_no_suspicion(webui):
    webui.overrides.seems_unknown(PROMPT_COMMENTS)
    webui.make(PLAIN, None)
    webui.overrides.seems_unknown(PROMPT_COMMENTS)
    assert webui.make(HASH, None) == FORMAT


@pytest.mark.parametrize(
    ("options", "error"),
    [
        # Without the option in it, an error that says nothing has another reason.
        (FORMAT, SAYS_NOTHING),
        (FORMAT, NO_SUCH_OPTION),
        (OFF, {"error": "KeyError", "errors": "'zzz'"}),
        (OFF, {"error": "OutOfMemoryError", "errors": "CUDA out of memory."}),
        (OFF, {"message": "<h1>bad gateway</h1>"}),
    ],
)
def test_any_other_error_changes_nothing(webui, options, error):
    assert webui.overrides.refused(options, error) is None
    assert webui.overrides.of(HASH, True) == OFF
