import asyncio
import io
import signal
import threading

import numpy as np
import pytest
import soundfile

from mister_e_hf.base.interrupts import delayed_interrupts
from mister_e_hf.media import audio
from mister_e_hf.media.audio import encode_flac, load_audio
from mister_e_hf.media.video import load_frames
from support.small_corpora import noise


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda sent: sent.name)
def test_interrupt_comes_at_the_end(sent):
    seen = []
    before = signal.signal(sent, lambda number, frame: seen.append(number))
    try:
        with delayed_interrupts():
            signal.raise_signal(sent)
            assert seen == []
        assert seen == [sent]
        signal.raise_signal(sent)
        assert seen == [sent, sent]  # the handler is there again
    finally:
        signal.signal(sent, before)


def test_interrupt_replaces_the_error_that_it_met():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), delayed_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("cut short")
    assert signal.getsignal(signal.SIGINT) is handler


def test_second_interrupt_comes_at_once_and_only_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), delayed_interrupts():
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]


@pytest.mark.parametrize("order", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)], ids=str)
def test_no_interrupt_is_lost_to_another(order):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))  # ends nothing by itself
    try:
        with pytest.raises(KeyboardInterrupt), delayed_interrupts():
            for each in order:
                signal.raise_signal(each)
        if order[0] == signal.SIGTERM:
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_event_loop_is_called_once():
    called = []

    async def run():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, called.append, "ended")
        with delayed_interrupts():
            signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert called == ["ended"]


def test_handler_that_a_handler_sets_remains():
    def ignoring(number, frame):
        signal.signal(number, signal.SIG_IGN)  # as a command's does, whose clean-up must not be interrupted
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ignoring)
    try:
        with pytest.raises(KeyboardInterrupt), delayed_interrupts():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("change", range(4))
def test_interrupt_between_two_changes_of_handlers_leaves_none_behind(monkeypatch, change):
    def stop(number, frame):
        raise KeyboardInterrupt

    change_handler, changes = signal.signal, []
    own = {number: change_handler(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupted(number, handler):
        changes.append(number)
        if len(changes) == change + 1:
            signal.raise_signal(signal.SIGTERM if change < 2 else signal.SIGINT)
        return change_handler(number, handler)

    try:
        monkeypatch.setattr(signal, "signal", interrupted)
        with pytest.raises(KeyboardInterrupt), delayed_interrupts():
            pass
        assert all(signal.getsignal(number) is stop for number in own)
    finally:
        for number, handler in own.items():
            change_handler(number, handler)


def test_signals_that_are_ignored_or_end_the_process_are_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with delayed_interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_have_none():
    found = []

    def read():
        with delayed_interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


class _Interrupted(io.BytesIO):
    """An interrupt comes while C calls it, in the first of its reads or writes of that length."""

    sent = False

    def _interrupt(self):
        if not self.sent:
            self.sent = True
            signal.raise_signal(signal.SIGINT)

    def readinto(self, buffer):
        if len(buffer) > 1000:
            self._interrupt()
        return super().readinto(buffer)

    def read(self, size=-1):
        if size > 1000:
            self._interrupt()
        return super().read(size)

    def write(self, data):
        self._interrupt()
        return super().write(data)


@pytest.mark.parametrize("form", ["FLAC", "WAV"])
def test_interrupt_while_audio_is_read_is_raised(monkeypatch, form):
    file = io.BytesIO()
    soundfile.write(file, noise(5), 16_000, format=form)
    interrupted, lost = _Interrupted(file.getvalue()), []
    monkeypatch.setattr("sys.unraisablehook", lost.append)
    with pytest.raises(KeyboardInterrupt):
        load_audio(interrupted)
    assert interrupted.sent and not lost
    np.testing.assert_allclose(load_audio(interrupted) * 32768, noise(5), atol=1e-3)


def test_interrupt_while_video_is_read_is_raised(monkeypatch):
    pytest.importorskip("av")
    from support.small_videos import clip

    interrupted, lost = _Interrupted(clip(40)), []
    monkeypatch.setattr("sys.unraisablehook", lost.append)
    with pytest.raises(KeyboardInterrupt):
        load_frames(interrupted)
    assert interrupted.sent and not lost
    np.testing.assert_array_equal(load_frames(interrupted), load_frames(clip(40)))


def test_interrupt_while_audio_is_encoded_is_raised(monkeypatch):
    files, lost = [], []

    class Memory:
        @staticmethod
        def BytesIO():
            files.append(_Interrupted())
            return files[-1]

    monkeypatch.setattr("sys.unraisablehook", lost.append)
    monkeypatch.setattr(audio, "io", Memory)
    with pytest.raises(KeyboardInterrupt):
        encode_flac(noise(5))
    assert files[0].sent and not lost
    monkeypatch.undo()
    assert files[0].getvalue() == encode_flac(noise(5))  # nothing of it is lost
