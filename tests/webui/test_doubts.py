"""The doubt about a loaded model: when it begins, what lifts it, what can be tried against it."""

import json

import pytest

from app.webui.doubts import ModelDoubt, is_hopeless
from tests.webui.samples import model

MODELS = [model("alpha"), model("beta"), model("gamma")]
ALPHA, BETA, GAMMA = (one.checkpoint for one in MODELS)


class Kept:
    """A doubt, and each text that was kept of it."""

    def __init__(self, stored=None):
        self.texts = []
        self.doubt = ModelDoubt(stored, self.texts.append)

    @property
    def stored(self):
        """The kept text, as a process that starts now would read it."""
        return self.texts[-1] if self.texts else None


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def doubted(kept):
    """A doubt about the model alpha."""
    kept.doubt.begin_switch(ALPHA)
    return kept


def candidates(doubt):
    return [one.checkpoint for one in doubt.candidates(MODELS)]


def test_at_first_nothing_is_doubted(kept):
    assert (kept.doubt.model, kept.doubt.hopeless, kept.doubt.stored) == (None, False, None)
    assert candidates(kept.doubt) == [ALPHA, BETA, GAMMA]


def test_a_switch_puts_the_loaded_model_in_doubt_before_it_is_sent(kept):
    assert kept.doubt.begin_switch(ALPHA)
    assert kept.doubt.model == ALPHA
    assert kept.texts == [kept.doubt.stored]
    assert json.loads(kept.stored) == {"model": ALPHA}
    assert candidates(kept.doubt) == [BETA, GAMMA]


def test_an_older_doubt_stays(doubted):
    assert not doubted.doubt.begin_switch(BETA)
    assert doubted.doubt.model == ALPHA
    assert len(doubted.texts) == 1


def test_a_picture_of_another_model_lifts_it(doubted):
    doubted.doubt.loads(BETA, doubted.doubt.number)
    assert doubted.doubt.model is None
    assert doubted.texts[1:] == [None]


def test_a_picture_of_the_doubted_model_proves_nothing(doubted):
    # A1111 makes other pixels with a broken model and calls them good.
    doubted.doubt.loads(ALPHA, doubted.doubt.number)
    assert doubted.doubt.model == ALPHA
    assert len(doubted.texts) == 1


def test_a_picture_changes_nothing_where_there_is_no_doubt(kept):
    kept.doubt.loads(ALPHA, kept.doubt.number)
    assert kept.texts == []


def withdraw(doubt):
    doubt.withdraw(doubt.number)


@pytest.mark.parametrize("end", [withdraw, ModelDoubt.forget])
def test_a_switch_that_was_not_tried_and_a_restart_lift_it(doubted, end):
    end(doubted.doubt)
    assert doubted.doubt.model is None
    assert doubted.stored is None


@pytest.mark.parametrize("end", [withdraw, ModelDoubt.forget])
def test_nothing_is_kept_where_there_is_no_doubt(kept, end):
    end(kept.doubt)
    assert kept.texts == []


@pytest.mark.parametrize("learned", [False, True])
def test_what_was_asked_for_before_a_doubt_does_not_lift_it(kept, learned):
    """Answers are judged late: a large one may still be decoded when two switches have followed."""
    before = kept.doubt.number
    if learned:
        kept.doubt.learn(json.dumps({"model": ALPHA}))
    else:
        kept.doubt.begin_switch(ALPHA)
    kept.doubt.loads(BETA, before)
    kept.doubt.withdraw(before)
    assert kept.doubt.model == ALPHA


def test_a_model_with_which_a_job_failed_is_tried_last(doubted):
    doubted.doubt.suspect(BETA)
    assert candidates(doubted.doubt) == [GAMMA, BETA]
    doubted.doubt.loads(BETA, doubted.doubt.number)
    assert candidates(doubted.doubt) == [ALPHA, BETA, GAMMA]


def test_a_model_that_failed_meanwhile_is_not_tried_again(doubted):
    doubted.doubt.fails(BETA)
    assert candidates(doubted.doubt) == [GAMMA]
    doubted.doubt.loads(BETA, doubted.doubt.number)
    assert candidates(doubted.doubt) == [ALPHA, BETA, GAMMA]


def test_a_restart_gives_every_model_a_new_chance(doubted):
    doubted.doubt.fails(BETA)
    doubted.doubt.fails(GAMMA)
    assert candidates(doubted.doubt) == []
    doubted.doubt.forget()
    assert candidates(doubted.doubt) == [ALPHA, BETA, GAMMA]


def test_when_nothing_is_left_to_be_tried_only_a_restart_helps(doubted):
    doubted.doubt.fails(BETA)
    doubted.doubt.give_up()
    assert doubted.doubt.hopeless
    assert doubted.doubt.model == ALPHA
    assert is_hopeless(doubted.stored)
    # A file may have been repaired meanwhile.
    doubted.doubt.try_again()
    assert (doubted.doubt.model, doubted.doubt.hopeless) == (ALPHA, False)
    assert BETA in [model.checkpoint for model in doubted.doubt.candidates(MODELS)]
    doubted.doubt.give_up()
    doubted.doubt.forget()
    assert not doubted.doubt.hopeless


def test_a_picture_of_another_model_ends_hopelessness_too(doubted):
    doubted.doubt.give_up()
    doubted.doubt.loads(GAMMA, doubted.doubt.number)
    assert (doubted.doubt.model, doubted.doubt.hopeless) == (None, False)


def test_without_a_doubt_there_is_nothing_to_give_up(kept):
    kept.doubt.give_up()
    kept.doubt.try_again()
    assert kept.texts == []


def test_the_next_process_has_the_same_doubt(doubted):
    doubted.doubt.give_up()
    after = Kept(doubted.stored)
    assert (after.doubt.model, after.doubt.hopeless) == (ALPHA, True)
    assert not is_hopeless(json.dumps({"model": ALPHA}))


def test_another_processs_doubt_is_learned_and_not_kept_again(kept, doubted):
    other = Kept()
    other.doubt.learn(doubted.stored)
    assert other.doubt.model == ALPHA
    other.doubt.learn(None)
    assert other.doubt.model is None
    assert other.texts == []


def test_a_doubt_that_could_not_be_kept_stops_the_switch():
    class Unwritable(Exception):
        pass

    def keep(_text):
        raise Unwritable

    doubt = ModelDoubt(None, keep)
    for _ in range(2):
        with pytest.raises(Unwritable):
            doubt.begin_switch(ALPHA)
    assert doubt.model is None
