import contextlib
import threading

import pytest

from mister_e_hf.encoders.ahead import made_ahead


def test_items_are_made_in_order_by_another_thread():
    threads = set()

    def make(item: int) -> int:
        threads.add(threading.current_thread())
        return 2 * item

    assert list(made_ahead(make, range(20))) == list(range(0, 40, 2))
    assert len(threads) == 1 and threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)
    assert list(made_ahead(make, [])) == []


def test_an_error_is_raised_in_the_place_of_its_item():
    found = []
    with pytest.raises(ZeroDivisionError):
        for each in made_ahead(lambda item: 6 // item, [3, 2, 0, 1]):
            found.append(each)
    assert found == [2, 3]


def test_no_more_than_two_items_wait():
    made = []
    running = made_ahead(lambda item: made.append(item), iter(range(100)))
    for number in range(5):
        next(running)
        assert number < len(made) <= number + 3 or len(made) == number + 1
    running.close()
    assert len(made) <= 8


def test_an_interrupt_ends_the_thread():
    made, go_on = [], threading.Event()

    def make(item: int) -> int:
        made.append(item)
        if item:
            go_on.wait(10)
        return item

    with pytest.raises(KeyboardInterrupt), contextlib.closing(made_ahead(make, range(100))) as running:
        for _ in running:
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt
    assert made == [0, 1] and not any(thread.name.startswith("batches") for thread in threading.enumerate())
