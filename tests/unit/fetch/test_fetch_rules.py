"""Which addresses are asked, whoever wants it, and what questions and replies may be."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev import products
from sev.abi.tcb import TcbVersion
from sev.errors import MalformedInput, NotPermitted, UsageError
from sev.kds import urls
from sevd.fetch.rules import Rules
from sevd.fetch.wire import BODY_MAX, Question, Reply

CHIP = bytes(range(1, 65))
MIRROR = "https://kds.example:8443/amd"
TCB = {
    products.GENOA: TcbVersion.of(products.GENOA, bootloader=9, tee=0, snp=23, microcode=72),
    products.TURIN: TcbVersion.of(products.TURIN, fmc=1, bootloader=1, tee=1, snp=4, microcode=255),
}


@pytest.mark.parametrize("service", [urls.AMD, MIRROR])
@pytest.mark.parametrize("product", list(TCB), ids=lambda one: one.name)
def test_everything_that_a_kds_has_is_asked(service: str, product: products.Product) -> None:
    rules = Rules([service])
    tcb = TCB[product]
    chip = CHIP[: product.chip_id_bytes]
    assert not rules.check(urls.vcek(product, chip, tcb, service=service)).provider
    for key in urls.KEYS:
        assert not rules.check(urls.ca(product, key, service=service)).provider
        assert not rules.check(urls.crl(product, key, service=service)).provider
    assert not rules.check(urls.cek(CHIP, service=service)).provider
    assert rules.check(urls.vlek(product, tcb, service=service)).provider
    assert rules.check(urls.hash_sticks(product, tcb, service=service), posts=True).provider


GOOD = urls.ca(products.GENOA)
ELSEWHERE = [
    "https://kdsintf.amd.com.evil/vcek/v1/Genoa/cert_chain",
    "https://kdsintf.amd.com@evil/vcek/v1/Genoa/cert_chain",
    "https://evil/vcek/v1/Genoa/cert_chain",
    "http://kdsintf.amd.com/vcek/v1/Genoa/cert_chain",
    "https://kdsintf.amd.com:8080/vcek/v1/Genoa/cert_chain",
    "https://kdsintf.amd.com:444/vcek/v1/Genoa/cert_chain",
    "https://kdsintf.amd.com/vcek/v1/Genoa/../../secret",
    "https://kdsintf.amd.com//evil/cert_chain",
    "https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain?x=http://evil",
    "https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain#f",
    "https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain\r\nHost: evil",
    "https://kdsintf.amd.com/cek/id/00",
    "file:///etc/passwd",
    "",
    f"{GOOD}{'x' * 2000}",
]


@pytest.mark.parametrize("url", ELSEWHERE)
def test_nothing_else_is_asked(url: str) -> None:
    with pytest.raises(NotPermitted):
        Rules([urls.AMD]).check(url)


def test_whoever_is_told_of_no_service_asks_nobody() -> None:
    with pytest.raises(NotPermitted, match="nothing that this process asks for"):
        Rules([]).check(GOOD)
    with pytest.raises(UsageError):
        Rules(["file:///etc"])


def test_only_hash_sticks_are_posted_for() -> None:
    rules = Rules([urls.AMD])
    with pytest.raises(NotPermitted):
        rules.check(GOOD, posts=True)
    with pytest.raises(NotPermitted):
        rules.check(urls.hash_sticks(products.GENOA, TCB[products.GENOA]))


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 0},
        {"limit": BODY_MAX + 1},
        {"seconds": 61},
        {"seconds": True},
        {"headers": {"Host": "evil"}},
        {"headers": {"If-None-Match": "a\r\nHost: evil"}},
        {"headers": {"If-None-Match": 5}},
        {"headers": {"If-None-Match": "x" * 257}},
        {"content": "zz"},
        {"content": "00" * (16 * 1024 + 1)},
        {"url": None},
    ],
    ids=str,
)
def test_questions_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(MalformedInput):
        Question.of({**Question(GOOD).message(), **change})


def test_a_question_travels_as_it_is() -> None:
    question = Question(GOOD, 100, 7, (("If-None-Match", '"abc"'),), b"{}")
    assert Question.of(question.message()) == question
    reply = Reply(200, {"etag": '"abc"'}, b"\0\xff")
    assert Reply.of(reply.message()) == reply


@given(
    st.dictionaries(
        st.sampled_from(["url", "limit", "seconds", "headers", "content", "status", "body"]),
        st.none() | st.integers() | st.text(max_size=20) | st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    )
)
def test_any_message_is_a_question_or_malformed(message: dict[str, object]) -> None:
    for kind in (Question, Reply):
        with contextlib.suppress(MalformedInput):
            kind.of(message)
