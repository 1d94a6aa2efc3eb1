"""Training steps for gpu.py: as scripts write them, ours, captured as a CUDA graph, compiled."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robustill.acceleration.tracking import TrackingCopy
from robustill.core.memory_format import place
from robustill.core.randomness import generator, uniform
from robustill.methods import METHODS, Batch
from robustill.models import build
from robustill.threat import Threat
from robustill.training.optimizer import build_optimizer
from robustill.training.step import Step

CLASSES, EPS, STEP_SIZE, ALPHA = 10, 8 / 255, 2 / 255, 0.8
# What makes the host wait: calls of CUDA by a part of their names, and operators that would if their tensors lay there.
WAITS = ("Synchronize", "aten::_local_scalar_dense", "aten::nonzero")

Run = Callable[[], Any]


def network(model: str, options: dict[str, Any], seed: int) -> nn.Module:
    return build(model, num_classes=CLASSES, in_channels=3, image_size=32, seed=seed, **options)


def images(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = uniform(torch.empty(batch, 3, 32, 32), generator(0, "images"))
    return x.to(device), (torch.arange(batch) % CLASSES).to(device)


def plain_step(
    model: str, options: dict[str, Any], method: str, batch: int, steps: int, device: torch.device
) -> Callable[[], Tensor]:
    """float32, channels first, eager; the attack in eval mode, its gradient towards the images alone."""
    student, teacher = network(model, options, 0).to(device), network(model, options, 1).to(device).eval()
    (x, y), optimizer = images(batch, device), _slow_sgd(student)
    # Of its own: where a graph could not be captured the device's own generator may be unusable from then on.
    draws = generator(0, "plain", device=device)

    def attack() -> Tensor:
        student.eval()
        x_adv = x + EPS * (2 * uniform(x, draws) - 1)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            grad = torch.autograd.grad(F.cross_entropy(student(x_adv), y), [x_adv])[0]
            x_adv = x_adv.detach() + STEP_SIZE * torch.sign(grad)
            x_adv = torch.clamp(torch.min(torch.max(x_adv, x - EPS), x + EPS), 0.0, 1.0)
        student.train()
        return x_adv.detach()

    def run() -> Tensor:
        x_adv = attack()
        if method == "akd":
            with torch.no_grad():
                target = ALPHA * teacher(x_adv).softmax(dim=1) + (1 - ALPHA) * F.one_hot(y, CLASSES)
        else:
            target = y
        loss = F.cross_entropy(student(x_adv), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return run


def _slow_sgd(model: nn.Module) -> torch.optim.Optimizer:
    # So slow that the weights, and with them the work, stay what they are.
    return torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)


def step_flops(model: str, options: dict[str, Any], method: str, steps: int) -> float:
    """Floating-point operations of one step's convolutions and products, an image.

    A backward pass towards the images costs what the forward pass does, and one towards the weights as much again: 2 a
    step of the attack, 3 for the loss, 1 for a teacher that looks once.
    """
    few = network(model, options, 0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        few(torch.zeros(1, 3, 32, 32))
    return float(counter.get_total_flops()) * (2 * steps + 3 + len(METHODS[method].roles))


class Ours:
    """One step as `train` makes it: bf16, channels last, the attack on a light copy."""

    def __init__(
        self,
        model: str,
        options: dict[str, Any],
        method: str,
        batch: int,
        steps: int,
        device: torch.device,
    ) -> None:
        self.student = place(network(model, options, 0), device).train()
        kind = METHODS[method]
        self.teacher = place(network(model, options, 1), device) if kind.roles else None
        self.threat = Threat(norm="linf", eps=EPS)
        self.step = Step(
            self.student, kind(), self.teacher, self.threat, steps=steps, step_size=STEP_SIZE, precision="bf16",
            light=True,
        )  # fmt: skip
        self.optimizer = build_optimizer(
            [self.student], "sgd", learning_rate=1e-6, weight_decay=5e-4, decay_all=False, momentum=0.9, nesterov=True
        )
        x, y = images(batch, device)
        x = x.contiguous(memory_format=torch.channels_last)
        self.batch = Batch(x=x, y=y, index=torch.arange(batch, device=device))
        self.draws = generator(0, "attack", device=device)
        self.last: Tensor | None = None

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.step(self.batch, self.draws).loss.mean()
        loss.backward()
        self.optimizer.step()
        self.last = loss.detach()

    @property
    def light(self) -> TrackingCopy | None:
        """The copy that is attacked, once a step was made."""
        return None if self.step._folded is None else self.step._folded.copy

    def loss(self) -> Tensor:
        """Of the last step."""
        assert self.last is not None
        return self.last


def captured(one: Ours) -> Run:
    """The whole step, optimizer and all, as one CUDA graph; the random start alone is drawn outside it.

    The learning rate is part of the graph: good for a measurement, not for training.
    """
    x = one.batch.x
    start = one.threat.start(x, one.draws)
    one.step.start = start
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            one()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    one.optimizer.zero_grad(set_to_none=True)
    # A capture that fails may leave its stream the current one.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        one()

    def run() -> None:
        start.copy_(one.threat.start(x, one.draws))
        graph.replay()

    return run


def compiled(one: Ours, backend: str) -> Ours:
    """The same step with student, light copy and teacher through torch.compile."""
    one()  # the light copy is made from the student as it is written
    parts = [one.student, one.teacher, one.light]
    for part in parts:
        if part is not None:
            part.compile(backend=backend)
    return one


def synchronisations(run: Run, device: torch.device) -> dict[str, int]:
    """What makes the host wait inside one step, by name and count: none is wanted."""
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile, torch.profiler.record_function("one step"):
        run()
    events = profile.events()
    (whole,) = [
        event for event in events if event.name == "one step" and event.device_type == torch.autograd.DeviceType.CPU
    ]
    # The profiler itself waits for the device before the step and after it.
    span = whole.time_range
    inside = [event for event in events if span.start <= event.time_range.start <= span.end]
    found = Counter(event.name for event in inside if _waits(event.name) and not _checks_labels(event))
    if device.type == "cuda":
        found.update(_warned(run))
    return dict(found)


def _waits(name: str) -> bool:
    return any(each in name for each in WAITS)


def _checks_labels(event: Any) -> bool:
    """Whether it is one_hot's look at the range of its labels, which is left out on a GPU."""
    while event is not None and event.name != "aten::one_hot":
        event = event.cpu_parent
    return event is not None


def _warned(run: Run) -> dict[str, int]:
    """Torch's own watch over operations that wait, as a second witness."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    count = sum("synchronizing" in str(each.message) for each in caught)
    return {"warned of by torch": count} if count else {}
