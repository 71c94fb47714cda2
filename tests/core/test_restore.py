"""Changes are undone whatever ends them: an interrupt wherever Python may raise one, real ones at many moments."""

import contextlib
import dis
import signal
import sys
import threading
import time

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch._dynamo import eval_frame
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from groupcam_aug import GradCAM, GroupCAM, borrow, cam, guided_grad_cam, layers, partial_forward, restore, sanity, threads
from groupcam_aug.borrow import as_found
from groupcam_aug.restore import ending_blocks, hooked, mode_stacks, replaced, restoring, undo
from groupcam_aug.sanity import randomization_check
from groupcam_aug.threads import one_thread

METHODS = {
    "Group-CAM": lambda net: GroupCAM(net, groups=2),
    "Group-CAM at the target": lambda net: GroupCAM.for_training(net, "relu2", groups=2, mask_at="target"),
    "Group-CAM at a layer": lambda net: GroupCAM.for_training(net, "relu2", groups=2, mask_at="relu1"),
    "Group-CAM in half precision": lambda net: GroupCAM(net, groups=2, precision="bf16-mixed"),
    "Grad-CAM": lambda net: GradCAM(net),
    "Guided Grad-CAM": lambda net: lambda images, targets: guided_grad_cam(net, images, targets, "relu2"),
    "sanity check": lambda net: lambda images, _: randomization_check(net, images, GradCAM(net, "relu2"), stages=2),
}
WATCHED = {module.__file__ for module in (borrow, cam, layers, partial_forward, restore, sanity, threads)}


class Counting(PooledNet):
    """With a buffer that every pass writes to, a `forward` of its own, and a draw in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.relu1.forward = self.relu1.forward

    def forward(self, x):
        self.passes += torch.rand(())
        return super().forward(x)


def ours(frame):
    """Whether it is a frame of the watched files, or of contextlib on their account (torch's blocks are torch's)."""
    while frame is not None and frame.f_code.co_filename == contextlib.__file__:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename in WATCHED


class Interrupt:
    """KeyboardInterrupt at the n-th place in the watched files where Python looks for signals; counts the places.

    These are the beginning of a function and what follows a call or a jump back: between a lock and its `with` is none.
    """

    def __init__(self, number):
        self.number, self.places, self.before = number, 0, {}

    def __call__(self, frame, event, arg):
        if event == "call" and not ours(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call":
            self.before[frame] = "CALL"
        elif event == "opcode":
            # Closing a generator runs instructions of no line, behind which Python does not look.
            looks = frame.f_lineno is not None and self.before[frame].startswith(
                ("CALL", "JUMP_BACKWARD", "RESUME", "YIELD_VALUE")
            )
            self.before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if looks:
                self.places += 1
                if self.places == self.number:
                    self.before.clear()
                    raise KeyboardInterrupt  # which also ends the tracing
        elif event == "return":
            self.before.pop(frame, None)
        return self

    def during(self, work):
        """Whether it fell into `work`."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def ready():
    torch.manual_seed(0)
    net = Counting().train()
    net.bn1.eval()
    net.fc.register_forward_hook(lambda *_: None)
    return net, torch.randn(2, 3, 12, 12)


def is_free(net):
    """Whether another thread could borrow the network."""
    answers = []

    def ask():
        with one_thread(net):
            answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout=30)
    return answers == [True]


def no_mode_is_left():
    return torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0


def check_interrupts(method, numbers):
    """The network is as it was after an interrupt at each of the places; returns how many there are."""
    net, images = ready()
    before = snapshot(net)
    for number in numbers:
        interrupt = Interrupt(number)
        if not interrupt.during(lambda: METHODS[method](net)(images, 1)):
            return interrupt.places
        try:
            assert_same(before, snapshot(net))
            assert is_free(net) and eval_frame._stance.stance == "default" and no_mode_is_left()
        except AssertionError as error:
            raise AssertionError(f"interrupted at place {number}: {error}") from error
    return None


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_leaves_nothing_behind(method):
    places = check_interrupts(method, [10**9])
    check_interrupts(method, range(1, places, max(1, places // 60)))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # thousands of places, each a call: two minutes on an idle core
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_anywhere_leaves_nothing_behind(method):
    places = check_interrupts(method, [10**9])
    check_interrupts(method, range(1, places))


def check_real_interrupts(method, count):
    """SIGINT by a timer, at moments spread over a call."""
    net, images = ready()
    work = METHODS[method](net)
    work(images, 1)
    start = time.perf_counter()
    work(images, 1)
    length = time.perf_counter() - start
    before, fallen = snapshot(net), 0
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for i in range(count):
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, length * (i + 0.5) / count))
                METHODS[method](net)(images, 1)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                fallen += 1
            except RuntimeError as error:  # torch's stack of function modes does not take an interrupt; what is ours must
                assert "empty mode stack" in str(error)
                fallen += 1
            assert_same(before, snapshot(net))
            assert is_free(net) and eval_frame._stance.stance == "default", "torch.compile is in use again"
            assert no_mode_is_left()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return fallen


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that falls into a finaliser, Python drops
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_real_interrupts_leave_nothing_behind():
    assert check_real_interrupts("Group-CAM at a layer", 40) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that falls into a finaliser, Python drops
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize("method", METHODS)
def test_many_real_interrupts_leave_nothing_behind(method):
    assert check_real_interrupts(method, 1000) > 50


class Silent(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class SilentDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_modes_that_an_interrupt_left_or_lost_are_as_before():
    """As torch leaves its stacks where an interrupt falls between taking a mode off and putting it back."""
    with Silent() as outer, SilentDispatch() as also:
        restore = mode_stacks()
        torch._C._push_on_torch_function_stack(Silent())
        _push_mode(SilentDispatch())
        restore()
        assert (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()) == (1, 1)
        torch._C._pop_torch_function_stack(), _pop_mode()
        restore()
        assert torch._C._get_function_stack_at(0) is outer and torch._C._get_dispatch_stack_at(0) is also
        torch._C._pop_torch_function_stack()
        torch._C._push_on_torch_function_stack(Silent())  # another one in its place
        restore()
        assert torch._C._get_function_stack_at(0) is outer
    assert no_mode_is_left()


def test_a_mode_of_a_former_call_is_off_the_stack_when_the_network_comes_back(net):
    with pytest.raises(KeyboardInterrupt), as_found(net):
        torch._C._push_on_torch_function_stack(Silent())
        raise KeyboardInterrupt
    assert no_mode_is_left()


def skipped(done, error):
    def block():
        try:
            yield
        finally:
            done.append("ended")

    opened = block()
    next(opened)  # and `with` has not taken it yet
    raise error


@pytest.mark.parametrize(("error", "ended"), [(KeyboardInterrupt, ["ended"]), (LookupError, [])])
def test_blocks_that_an_interrupt_skipped_end_before_anything_is_restored(error, ended):
    """Of other errors the frames are left to debuggers."""
    done, seen = [], []
    with pytest.raises(error) as kept, restoring(lambda: seen.extend(done)), ending_blocks():
        skipped(done, error)
    assert seen == ended and kept.type is error


def test_an_interrupt_is_not_hidden_by_what_it_broke():
    interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as kept, ending_blocks():
        try:
            raise interrupt
        finally:
            raise RuntimeError("empty mode stack")
    assert kept.value is interrupt


def test_an_interrupt_in_the_restore_is_made_good():
    done = []

    def restore():
        done.append(1)
        if len(done) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), restoring(restore):
        pass
    assert len(done) == 2


def test_steps_are_undone_last_first_and_none_is_lost():
    done = []

    def shaky():
        done.append("shaky")
        if done.count("shaky") == 1:
            raise KeyboardInterrupt

    steps = [lambda: done.append("first"), shaky, lambda: done.append("last")]
    with pytest.raises(KeyboardInterrupt):
        undo(steps)
    undo(steps)
    assert done == ["last", "shaky", "shaky", "first"] and not steps


def test_hooks_are_in_their_tables_within_the_block_only(net):
    calls = []
    net.relu2.register_forward_hook(lambda *_: calls.append("the user's"))
    with pytest.raises(ArithmeticError), hooked([(net.relu2._forward_hooks, lambda *_: calls.append("ours"))]):
        net(torch.randn(1, 3, 8, 8).to(net.fc.weight))
        raise ArithmeticError
    net(torch.randn(1, 3, 8, 8).to(net.fc.weight))
    assert calls == ["the user's", "ours", "the user's"]


def test_attributes_of_the_object_come_back(net):
    net.mine = 1
    with replaced(net, mine=2, forward="x"):
        assert net.mine == 2 and net.forward == "x"
        with replaced(net, mine=3):
            assert net.mine == 3
        assert net.mine == 2
    assert net.mine == 1 and "forward" not in vars(net)
