"""Seconds of steps and of the augmentation in them."""

import torch

from groupcam_aug.callbacks.records import step_timer
from groupcam_aug.callbacks.records.step_timer import StepTimer


def test_seconds_of_steps_and_of_their_augmentation(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 10.0, 11.0])
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: next(now))
    cpu, timer = torch.device("cpu"), StepTimer()
    assert timer.seconds is None
    timer.begin(cpu)
    with timer.measure(cpu):
        pass
    assert timer.seconds == 2.0, "known while the step goes on"
    timer.end(cpu)
    timer.begin(cpu)
    timer.end(cpu)
    timer.end(cpu)  # of a step that never began here: nothing
    assert list(timer.steps()) == [(7.0, 2.0), (1.0, None)] and list(timer.steps()) == []


class Event:
    """A moment on a GPU that passes when it is told to."""

    passed = 0  # how many have
    recorded = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.number = Event.recorded
        Event.recorded += 1

    def query(self):
        return self.number < Event.passed

    def elapsed_time(self, end):
        assert self.query() and end.query(), "nothing is waited for"
        return 1000.0 * (end.number - self.number)


def test_events_on_a_gpu_are_read_once_they_have_passed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "recorded", 0)
    gpu, timer = torch.device("cuda"), StepTimer()
    for _ in range(2):  # events 0 to 3: begin, augmentation from 1 to 2, end; then 4 to 7
        timer.begin(gpu)
        with timer.measure(gpu):
            pass
        timer.end(gpu)
    assert timer.seconds is None and list(timer.steps()) == []
    monkeypatch.setattr(Event, "passed", 4)
    assert list(timer.steps()) == [(3.0, 1.0)], "the second step is still under way"
    monkeypatch.setattr(Event, "passed", 8)
    assert list(timer.steps()) == [(3.0, 1.0)]
