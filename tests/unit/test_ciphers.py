"""Keys and what they do: E3 (32 bytes, a wrong length is refused) and E1 (encrypted, equal ones become one, users never share)."""

from __future__ import annotations

import base64
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from runner.ciphers import KEY_BYTES, Algorithm, Cipher, WrongKey, key_bytes, named
from runner.errors import Permanent

ONE, OTHER = "k" * KEY_BYTES, "o" * KEY_BYTES
ALGORITHMS: list[Algorithm] = ["aes-256-gcm", "fernet"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PARTS = st.lists(st.none() | st.booleans() | st.integers() | TEXTS, min_size=1, max_size=4)
CIPHERS = {(name, key): Cipher("credentials", name, key) for name in ALGORITHMS for key in (ONE, OTHER)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(plain=TEXTS)
def test_what_was_encrypted_comes_back_with_its_key_only(algorithm: Algorithm, plain: str) -> None:
    cipher, other = CIPHERS[algorithm, ONE], CIPHERS[algorithm, OTHER]
    text = cipher.encrypt(plain)
    assert cipher.decrypt(text) == plain
    assert text != cipher.encrypt(plain)
    assert cipher.is_own(text)
    assert not other.is_own(text)
    assert not other.is_own(plain)
    with pytest.raises(WrongKey):
        other.decrypt(text)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(plain=TEXTS, data=st.data())
def test_a_changed_value_is_noticed(algorithm: Algorithm, plain: str, data: st.DataObject) -> None:
    cipher = CIPHERS[algorithm, ONE]
    raw = bytearray(base64.urlsafe_b64decode(cipher.encrypt(plain).replace("+", "-").replace("/", "_")))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    encode = base64.b64encode if algorithm == "aes-256-gcm" else base64.urlsafe_b64encode
    assert not cipher.is_own(encode(bytes(raw)).decode())


@given(text=TEXTS)
def test_any_text_is_either_of_a_key_or_not(text: str) -> None:
    assert not any(cipher.is_own(text) for cipher in CIPHERS.values())


def test_others_can_read_it() -> None:
    """The form that docs/howto describes: base64(nonce ‖ ciphertext ‖ tag)."""
    data = base64.b64decode(CIPHERS["aes-256-gcm", ONE].encrypt("sk-äöü"))
    assert AESGCM(ONE.encode()).decrypt(data[:12], data[12:], None).decode() == "sk-äöü"


@given(one=PARTS, other=PARTS)
def test_ids_are_equal_where_the_parts_are(one: list[object], other: list[object]) -> None:
    cipher, stranger = CIPHERS["aes-256-gcm", ONE], CIPHERS["aes-256-gcm", OTHER]
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (cipher.named(one) == cipher.named(other)) is same
    assert (named(one) == named(other)) is same
    assert cipher.named(one) != stranger.named(one) != named(one)
    assert cipher.named(one).version == 8


def test_a_check_tells_keys_apart_and_nothing_else() -> None:
    assert CIPHERS["aes-256-gcm", ONE].check == Cipher("x", "fernet", ONE).check
    assert CIPHERS["aes-256-gcm", ONE].check != CIPHERS["aes-256-gcm", OTHER].check
    assert len(CIPHERS["aes-256-gcm", ONE].check) == 16


@given(raw=st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_a_key_in_every_form(raw: bytes) -> None:
    forms = [base64.b64encode(raw), base64.urlsafe_b64encode(raw), base64.urlsafe_b64encode(raw).rstrip(b"=")]
    assert {key_bytes("k", form.decode()) for form in forms} == {raw}
    assert key_bytes("k", raw.hex()) == key_bytes("k", raw.hex().upper()) == raw
    assert key_bytes("k", os.fsdecode(raw)) == raw  # as it comes out of an environment variable


@pytest.mark.parametrize("length", [0, 1, 16, 24, 31, 33, 64])
def test_a_wrong_length_is_refused_and_not_shown(length: int) -> None:
    for secret in ("x" * length, base64.b64encode(b"\xfe" * length).decode(), (b"\xfe" * length).hex()):
        if len(secret) == KEY_BYTES:  # 24 bytes in base64 and 16 in hexadecimal are a text of 32
            continue
        with pytest.raises(Permanent, match="does not have 32 bytes") as caught:
            Cipher("credentials", "aes-256-gcm", secret)
        assert length < 16 or secret not in str(caught.value)


def test_half_of_a_character_is_refused_and_not_shown() -> None:
    with pytest.raises(Permanent, match="half of a character") as caught:
        CIPHERS["aes-256-gcm", ONE].encrypt("sk-secret\ud800")
    assert "sk-secret" not in str(caught.value)
