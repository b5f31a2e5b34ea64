import gc
import weakref

import pytest

from mister_e_hf.base.collection import loading


class Pair:
    """Two that know each other, which only the collector removes."""

    def __init__(self):
        self.other = self


@pytest.fixture(autouse=True)
def unfrozen():
    yield
    gc.unfreeze()


def test_nothing_is_collected_while_loading_and_what_was_loaded_not_looked_at_again():
    with loading():
        assert not gc.isenabled()
        loaded = Pair()
        before = gc.get_freeze_count()
    assert gc.isenabled() and gc.get_freeze_count() > before
    assert not any(each is loaded for each in gc.get_objects())


def test_an_error_while_loading_leaves_the_collector_on():
    with pytest.raises(KeyError), loading():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_an_earlier_call_left_is_collected():
    with loading():
        loaded = Pair()
        left = weakref.ref(loaded)
    del loaded
    gc.collect()
    assert left() is not None
    with loading():
        assert left() is None
