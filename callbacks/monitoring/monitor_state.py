"""What a saliency monitor knows of a training: it outlives a fit, and goes into checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from groupcam_aug.callbacks.monitoring.convergence import Convergence
from groupcam_aug.callbacks.monitoring.film_strip import FilmStrip
from groupcam_aug.callbacks.monitoring.map_stats import UNKNOWN, Reading

__all__ = ["MonitorState"]


class MonitorState:
    """The last maps, every number so far, whether maps have settled, and the learning rate.

    Args:
        convergence: the rule, at its start.
    """

    def __init__(self, convergence: Convergence) -> None:
        self.history: list[dict[str, Any]] = []  # one entry per probing: epoch, step, lr, max_lr and every logged value
        self.values = dict(UNKNOWN)  # what is logged, without the prefix
        self.convergence, self.film = convergence, FilmStrip()
        self.reading: Reading | None = None  # the last one
        self.epochs = 0  # completed when it was taken
        self.targets: Tensor | None = None  # the network's own first choice, where there are no labels
        self.fingerprint: dict[str, Any] = {}  # whose maps these are
        self.lr: float | None = None  # of the last batch: at an epoch's end a scheduler has set the next one's already
        self.max_lr: float | None = None

    def recognise(self, fingerprint: dict[str, Any]) -> list[str]:
        """Forget the maps if they are not those to come, and return what differs; numbers and learning rate stay."""
        differs = [name for name, value in fingerprint.items() if self.fingerprint.get(name) != value]
        self.fingerprint = fingerprint
        if self.reading is None or not differs:
            return []
        self.reading = self.targets = None
        self.film, self.convergence = FilmStrip(), self.convergence.renewed()
        return differs

    def follow_rate(self, optimizers: list[Any], *, wait: bool = True) -> None:
        """Remember the rate of this batch and the highest one; without `wait`, not where that would wait for a device."""
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        if not wait and any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
            self.lr = None
        elif rates:
            self.lr = max(map(float, rates))
            self.max_lr = max(self.max_lr or 0.0, self.lr)

    def add(self, epoch: int, step: int, reading: Reading, values: dict[str, float], shown: list[int]) -> str | None:
        """Take in one probing.

        Args:
            epoch: of the probing.
            step: of the training.
            reading: of the probes.
            values: what is logged of it.
            shown: which probes are in the film strip.

        Returns:
            What to tell the user, at the probing that decides whether maps have settled; else None.
        """
        self.history.append({"epoch": epoch, "step": step, "lr": self.lr, "max_lr": self.max_lr, **values})
        self.values, self.reading, self.epochs = values, reading, epoch + 1
        self.film.add(epoch, reading.maps[shown])
        news = self.convergence.update(epoch, values["change"], values["alive"], self.lr, self.max_lr)
        return None if news is None else self._message(news)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only; empty before there is a reading."""
        if self.reading is None:
            return {}
        return {
            # Without `confidence`, which nothing compares: earlier versions read these checkpoints, too.
            "reading": {name: part for name, part in self.reading._asdict().items() if name != "confidence"},
            "epochs": self.epochs,
            "targets": self.targets,
            "fingerprint": dict(self.fingerprint),
            "history": [dict(entry) for entry in self.history],
            "values": dict(self.values),
            "convergence": self.convergence.state_dict(),
            "film": self.film.state_dict(),
            "lr": self.lr,
            "max_lr": self.max_lr,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.reading = Reading(**state["reading"])
        self.epochs, self.targets = state["epochs"], state["targets"]
        self.fingerprint = dict(state["fingerprint"])
        self.history, self.values = list(state["history"]), {**UNKNOWN, **state["values"]}
        self.convergence.load_state_dict(state["convergence"])
        self.film.load_state_dict(state["film"])
        self.lr, self.max_lr = state.get("lr"), state["max_lr"]

    def _message(self, news: Literal["converged", "lr"]) -> str:
        rule, change = self.convergence, self.values["change"]
        if news == "converged":
            return (
                f"Saliency maps have settled since epoch {rule.converged_epoch}: change {change:.3f} <= {rule.threshold} for "
                f"{rule.patience} probings. Stable maps are necessary for a finished training, not sufficient"
            )
        return (
            f"Saliency maps changed little for {rule.patience} probings (now {change:.3f}), but the learning rate is "
            f"{self.lr:.3g}, at most {self.max_lr:.3g} before: change fell with the learning rate, which says nothing about "
            "convergence"
        )
