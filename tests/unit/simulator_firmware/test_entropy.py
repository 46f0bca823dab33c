"""Randomness: seeded streams repeat and are independent; unseeded ones do not repeat."""

from __future__ import annotations

import pytest

from sevd.simulator.entropy import REQUEST_MAX, Entropy, HmacDrbg


def test_hmac_drbg_of_a_published_vector() -> None:
    """NIST CAVP, HMAC_DRBG SHA-256, no reseed, no personalisation, first case: entropy and nonce, second output."""
    drbg = HmacDrbg(
        bytes.fromhex("ca851911349384bffe89de1cbdc46e6831e44d34a4fb935ee285dd14b71a7488")
        + bytes.fromhex("659ba96c601dc69fc902940805ec0ca8")
    )
    drbg.generate(128)
    assert drbg.generate(128).hex() == (
        "e528e9abf2dece54d47c7e75e5fe302149f817ea9fb4bee6f4199697d04d5b89d54fbb978a15b5c443c9ec21036d2460"
        "b6f73ebad0dc2aba6e624abf07745bc107694bb7547bb0995f70de25d6b29e2d3011bb19d27676c07162c8b5ccde0668"
        "961df86803482cb37ed6d5c0bb8d50cf1f50d476aa0458bdaba806f48be9dcb8"
    )


def test_the_same_seed_repeats() -> None:
    assert Entropy(7).bytes(100) == Entropy(7).bytes(100)
    assert Entropy(7).bytes(100) != Entropy(8).bytes(100)
    assert Entropy(7).bytes(32) != Entropy(-7).bytes(32)
    assert Entropy(1 << 300).bytes(32) != Entropy(0).bytes(32)


def test_streams_are_independent_of_each_other() -> None:
    first, second = Entropy(7), Entropy(7)
    first.stream("a").bytes(1000)
    assert first.stream("b").bytes(32) == second.stream("b").bytes(32)
    assert first.stream("a").bytes(32) != first.stream("b").bytes(32)


def test_without_a_seed_nothing_repeats() -> None:
    assert Entropy().bytes(32) != Entropy().bytes(32)
    assert not Entropy().repeatable


def test_sizes() -> None:
    assert Entropy(1).bytes(0) == b""
    assert len(Entropy(1).bytes(REQUEST_MAX)) == REQUEST_MAX
    with pytest.raises(ValueError, match="at most"):
        Entropy(1).bytes(REQUEST_MAX + 1)
