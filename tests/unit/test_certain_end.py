"""The end that always comes, on a stand-in for the host's process_images; tests/webui/test_ends.py has the real one."""

import copy
from types import SimpleNamespace

import pytest

from sdxl_optim.hosts.webui import certain_end


def process_images(p, work=lambda: None):
    """As the host's, as far as the end relies on it. Returns whether the options were put back."""
    restored = False
    try:
        work()
    finally:
        if p.override_settings_restore_afterwards:
            restored = True
    return restored


@pytest.fixture(params=[True, False])
def answer(request):
    return request.param


@pytest.fixture
def p(answer):
    return SimpleNamespace(override_settings_restore_afterwards=answer)


def test_it_comes_once_and_the_host_has_its_answer(p, answer):
    ends = []
    certain_end.at_the_end_of(p, lambda: ends.append("end"))
    assert process_images(p) is answer
    assert ends == ["end"]
    assert p.override_settings_restore_afterwards is answer
    assert process_images(p) is answer
    assert ends == ["end"]


def test_it_comes_after_an_exception(p, answer):
    def fail():
        raise RuntimeError("as planned")

    ends = []
    certain_end.at_the_end_of(p, lambda: ends.append("end"))
    with pytest.raises(RuntimeError, match="as planned"):
        process_images(p, fail)
    assert ends == ["end"]
    assert p.override_settings_restore_afterwards is answer


def test_a_copy_generated_inside_does_not_end_it(p, answer):
    ends, answers = [], []

    def inside():
        answers.append(process_images(copy.copy(p)))
        assert ends == []

    certain_end.at_the_end_of(p, lambda: ends.append("end"))
    assert process_images(p, inside) is answer
    assert answers == [answer]
    assert ends == ["end"]


def test_others_may_ask_meanwhile(p, answer):
    def asks(their_request):
        return bool(their_request.override_settings_restore_afterwards)

    ends = []
    certain_end.at_the_end_of(p, lambda: ends.append("end"))
    assert asks(p) is answer
    assert ends == []


def test_forgotten_on_the_request_and_on_its_copy(p, answer):
    ends = []
    certain_end.at_the_end_of(p, lambda: ends.append("end"))
    copied = copy.copy(p)
    for one in (copied, p):
        certain_end.forget(one)
        assert one.override_settings_restore_afterwards is answer
    assert process_images(p) is answer
    assert ends == []
