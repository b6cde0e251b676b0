"""`replaced`: exact restore, and restraint where somebody else wrapped the attribute meanwhile."""

from __future__ import annotations

import gc
import weakref

import pytest
from torch import nn

from sdxl_optim.unet.patching import replaced


class Thing:
    def act(self, x):
        return x


def plus(amount):
    def make(original):
        return lambda *args, **kwargs: original(*args, **kwargs) + amount

    return make


def test_the_attribute_is_the_instances_and_the_restore_exact():
    thing, other = Thing(), Thing()
    before = dict(vars(thing))
    with replaced(thing, "act", plus(1)):
        assert (thing.act(1), thing.act(x=1), other.act(1)) == (2, 2, 1)
    assert vars(thing) == before
    assert thing.act(1) == 1
    assert "act" in vars(Thing)


def test_an_attribute_that_was_the_instances_own_is_put_back():
    thing = Thing()
    own = lambda x: 10 * x  # noqa: E731
    thing.act = own
    with replaced(thing, "act", plus(1)):
        assert thing.act(1) == 11
    assert thing.act is own


def test_restored_after_an_exception():
    thing = Thing()
    with pytest.raises(KeyError), replaced(thing, "act", plus(1)):
        raise KeyError
    assert vars(thing) == {}


def test_two_of_ours_nest():
    thing = Thing()
    with replaced(thing, "act", plus(1)):
        with replaced(thing, "act", plus(10)):
            assert thing.act(0) == 11
        assert thing.act(0) == 1
    assert vars(thing) == {}


def test_a_later_wrapper_stays_and_ours_goes_inert_below_it():
    thing = Thing()
    with replaced(thing, "act", plus(1)):
        ours = thing.act
        theirs = lambda x: ours(x) + 100  # noqa: E731
        thing.act = theirs
        assert thing.act(0) == 101
    assert thing.act is theirs
    assert thing.act(0) == 100
    assert ours(0) == 0  # should they put back what they had found, it does nothing


def test_closing_in_the_wrong_order_leaves_the_stock_behaviour():
    thing = Thing()
    first, second = replaced(thing, "act", plus(1)), replaced(thing, "act", plus(10))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert thing.act(0) == 10
    second.__exit__(None, None, None)
    assert thing.act(0) == 0


def test_an_inert_layer_does_not_grow_over_runs():
    thing = Thing()
    for _ in range(3):
        with replaced(thing, "act", plus(1)):
            theirs = thing.act
            thing.act = lambda x, below=theirs: below(x)
        thing.act = theirs  # they restore what they had saved: our inert layer
    inert = thing.act
    with replaced(thing, "act", plus(1)):
        assert thing.act(0) == 1
    assert thing.act is inert
    assert thing.act(0) == 0


def test_deleted_meanwhile_is_left_deleted():
    thing = Thing()
    with replaced(thing, "act", plus(1)):
        del thing.act
    assert vars(thing) == {}


def test_a_missing_attribute_is_an_error_before_anything_is_done():
    thing = Thing()
    with pytest.raises(AttributeError), replaced(thing, "absent", plus(1)):
        pass
    assert vars(thing) == {}


def test_a_modules_forward_is_replaced_below_its_hooks():
    layer, seen = nn.Identity(), []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with replaced(layer, "forward", plus(1)):
        assert layer(1) == 2
    assert layer(1) == 1
    assert seen == [1, 1]
    assert "forward" not in vars(layer)


def test_nothing_of_the_target_is_kept_alive():
    thing = Thing()
    with replaced(thing, "act", plus(1)):
        pass
    seen = weakref.ref(thing)
    del thing
    gc.collect()
    assert seen() is None
