"""The table of tokens, and the token book above it, over both engines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.gateway.tokens import TokenBook, TokenError, digest_of, id_of
from app.jobs.sql.database import Database
from app.jobs.tokens import HOUR, NewToken, Scope, Token, Tokens

#: Seconds that a slow machine may let pass between two steps of a test.
SLACK = 60.0


@pytest.fixture
def tokens(database: Database) -> Tokens:
    return Tokens(database)


@pytest.fixture
def book(tokens: Tokens) -> TokenBook:
    return TokenBook(tokens)


def new(
    token_id: str, *, scopes: Sequence[Scope] = ("read",), users: Sequence[str] = ("*",), seconds: float | None = None
) -> NewToken:
    return NewToken(token_id, f"digest of {token_id}", "an app", frozenset(scopes), tuple(users), seconds)


def add(tokens: Tokens, token_id: str, **fields: Any) -> None:
    tokens.add(new(token_id, **fields))


def found(tokens: Tokens, token_id: str) -> Token:
    token = tokens.find(token_id)
    assert token is not None
    return token


class TestTable:
    def test_an_added_token_is_found_as_it_was_added(self, tokens: Tokens) -> None:
        add(tokens, "AbCd1234", scopes=("generate", "read"), users=("shop-*", "灯塔", 'a"b'))
        token = found(tokens, "AbCd1234")
        assert (token.id, token.digest, token.name) == ("AbCd1234", "digest of AbCd1234", "an app")
        assert token.scopes == frozenset({"read", "generate"})
        assert token.users == ("shop-*", "灯塔", 'a"b')
        assert token.limits == {}
        assert token.lifetime is None
        assert token.valid is True
        assert (token.expires_at, token.seconds_left, token.revoked_at, token.used_at) == (None, None, None, None)
        # Both engines run on this machine's clock.
        assert token.created_at == pytest.approx(time.time(), abs=SLACK)

    def test_ids_are_compared_with_their_case(self, tokens: Tokens) -> None:
        add(tokens, "AbCd1234")
        assert tokens.find("abcd1234") is None

    def test_whether_there_are_any(self, tokens: Tokens) -> None:
        assert tokens.exist() is False
        assert tokens.all() == []
        add(tokens, "00000001")
        assert tokens.exist() is True

    @pytest.mark.parametrize("how", ["revoked", "expired"])
    def test_those_that_are_over_still_exist(self, tokens: Tokens, how: str) -> None:
        """Otherwise the gateway would be open again."""
        add(tokens, "00000001", seconds=-1.0 if how == "expired" else None)
        if how == "revoked":
            tokens.revoke("00000001")
        assert found(tokens, "00000001").valid is False
        assert tokens.exist() is True

    def test_all_are_listed_the_oldest_first(self, tokens: Tokens) -> None:
        for token_id in ("00000009", "00000001", "00000005"):
            add(tokens, token_id)
        tokens.revoke("00000001")
        assert [(token.id, token.valid) for token in tokens.all()] == [
            ("00000009", True),
            ("00000001", False),
            ("00000005", True),
        ]

    def test_its_end(self, tokens: Tokens) -> None:
        add(tokens, "00000001", seconds=3600)
        add(tokens, "00000002", seconds=-1.0)
        valid, expired = found(tokens, "00000001"), found(tokens, "00000002")
        assert valid.expires_at == pytest.approx(valid.created_at + 3600, abs=1)
        assert valid.valid is True
        assert 3600 - SLACK < (valid.seconds_left or 0) <= 3600
        assert expired.valid is False
        assert (expired.seconds_left or 0) < 0

    def test_those_that_are_invalid(self, tokens: Tokens) -> None:
        for token_id in ("00000001", "00000002", "00000003"):
            add(tokens, token_id, seconds=-1.0 if token_id == "00000003" else 3600)
        tokens.revoke("00000002")
        asked = {"00000001", "00000002", "00000003", "unknown"}
        assert tokens.invalid(asked) == {"00000002", "00000003", "unknown"}
        assert tokens.invalid({"00000001"}) == set()
        assert tokens.invalid(set()) == set()

    def test_a_revocation_is_for_good(self, tokens: Tokens) -> None:
        add(tokens, "00000001")
        add(tokens, "00000002")
        assert tokens.revoke("00000001") is True
        token = found(tokens, "00000001")
        assert token.valid is False
        assert token.revoked_at == pytest.approx(time.time(), abs=SLACK)
        assert tokens.revoke("00000001") is False
        assert found(tokens, "00000001") == token
        assert tokens.revoke("unknown") is False
        assert found(tokens, "00000002").valid is True

    @pytest.mark.parametrize(("seconds", "left"), [(None, 3600), (7200, 3600), (600, 600)])
    def test_a_replaced_token_expires_at_the_end_of_the_overlap_or_earlier(
        self, tokens: Tokens, seconds: float | None, left: float
    ) -> None:
        add(tokens, "00000001", seconds=seconds)
        add(tokens, "00000002")
        tokens.replace("00000001", 3600, new("00000003", seconds=60))
        assert left - SLACK < (found(tokens, "00000001").seconds_left or 0) <= left
        assert found(tokens, "00000001").lifetime == seconds
        assert found(tokens, "00000002").expires_at is None
        assert found(tokens, "00000003").lifetime == 60

    def test_a_replacement_is_made_wholly_or_not_at_all(self, tokens: Tokens) -> None:
        """Another token has the id: a bug, or once in 10^14 tokens."""
        for token_id in ("00000001", "00000002"):
            add(tokens, token_id)
        before = tokens.all()
        with pytest.raises(IntegrityError):
            tokens.replace("00000001", 60, new("00000002"))
        assert tokens.all() == before

    def test_its_use_is_noted_to_the_hour(self, tokens: Tokens) -> None:
        for token_id in ("00000001", "00000002", "00000003"):
            add(tokens, token_id)
        before = time.time() // HOUR * HOUR
        tokens.note_use({"00000001", "00000003", "unknown"})
        used = {token.id: token.used_at for token in tokens.all()}
        assert used["00000002"] is None
        assert used["00000001"] == used["00000003"]
        assert used["00000001"] in (before, before + HOUR)
        assert [token.unused_for_an_hour for token in tokens.all()] == [False, True, False]
        tokens.note_use(set())
        assert {token.id: token.used_at for token in tokens.all()} == used


class TestBook:
    def test_a_made_token_is_stored_by_its_digest_alone(self, book: TokenBook, database: Database) -> None:
        made = book.create(name="shop", users=["shop-*"], scopes=["generate"], seconds=None)
        assert id_of(made.text) == made.token.id
        assert made.token.digest == digest_of(made.text)
        assert made.token.scopes == frozenset({"read", "generate"})
        assert book.get(made.token.id) == made.token
        with database.read() as connection:
            [row] = connection.execute(text("SELECT * FROM tokens")).all()
        assert made.text.split("_")[2] not in repr(row)

    def test_both_are_valid_until_the_overlap_is_over(self, book: TokenBook) -> None:
        old = book.create(name="shop", users=["a", "b*"], scopes=["read", "admin"], seconds=None).token
        replacing = book.rotate(old.id, 3600).token
        assert replacing.id != old.id
        assert replacing.digest != old.digest
        assert (replacing.name, replacing.users, replacing.scopes) == (old.name, old.users, old.scopes)
        assert replacing.valid
        assert 3600 - SLACK < (book.get(old.id).seconds_left or 0) <= 3600
        # One that is not valid any more is not replaced, and nothing is made in its place.
        book.revoke(old.id)
        with pytest.raises(TokenError, match="not valid any more"):
            book.rotate(old.id, 3600)
        assert [token.id for token in book.all()] == [old.id, replacing.id]

    def test_an_overlap_makes_no_token_live_longer(self, book: TokenBook) -> None:
        old = book.create(name="shop", users=["*"], scopes=["read"], seconds=600).token
        book.rotate(old.id, 3600)
        assert 600 - SLACK < (book.get(old.id).seconds_left or 0) <= 600

    @pytest.mark.parametrize("seconds", [None, 3600.0])
    @pytest.mark.parametrize("again", ["the new one", "the old one"])
    def test_a_second_rotation_keeps_the_lifetime(self, book: TokenBook, seconds: float | None, again: str) -> None:
        """Also of the old one, whose end the first rotation has moved."""
        old = book.create(name="shop", users=["*"], scopes=["read"], seconds=seconds).token
        first = book.rotate(old.id, 600).token
        second = book.rotate(first.id if again == "the new one" else old.id, 600).token
        for token in (first, second):
            if seconds is None:
                assert token.expires_at is None
            else:
                assert token.expires_at == pytest.approx(token.created_at + seconds, abs=1)

    def test_what_there_is_not(self, book: TokenBook) -> None:
        for call in (book.get, book.revoke, lambda token_id: book.rotate(token_id, 60)):
            with pytest.raises(TokenError, match="no token with the id '00000000'"):
                call("00000000")
        assert book.all() == []
