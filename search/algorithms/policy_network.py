"""A small policy that walks the layers of a network: a softmax over each layer's actions, and its REINFORCE gradient.

The logits of step l in state s are a multi-layer perceptron's, shared by all steps, plus two rows of a table for each
step, the second times the latency target: few networks have enough layers to teach the shared part alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from search.pareto import BoolArray, FloatArray, IntArray

_HIDDEN = 16
#: Target, place of the previous action, mean place so far.
_DYNAMIC = 3
#: How far actions of the untrained policy stray from the target's level, as part of their range.
_LEVEL_SIGMA = 0.3
# D. P. Kingma, J. Ba: Adam, arXiv 1412.6980, algorithm 1.
_LEARNING_RATE, _BETA_1, _BETA_2, _EPSILON = 0.03, 0.9, 0.999, 1e-8

Parameters = dict[str, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episodes:
    """Walks over all steps: `actions` (n, steps), and the `targets` (n,) in [0, 1] that they were made for."""

    actions: IntArray
    targets: FloatArray


class PolicyNetwork:
    """Deterministic but for the generators passed in.

    Args:
        features: What is known of each step beforehand, (steps, features).
        places: Where each action lies from the smallest (0) to the unpruned (1), (steps, actions).
        allowed: Which actions a step has, (steps, actions); at least one each.
        rng: Draws the first weights.
    """

    def __init__(self, features: FloatArray, places: FloatArray, allowed: BoolArray, rng: np.random.Generator) -> None:
        steps, actions = places.shape
        self._features = features
        self._places = places
        self._masked = np.where(allowed, 0.0, -np.inf)
        inputs = features.shape[1]
        self.parameters: Parameters = {
            "static": rng.standard_normal((inputs, _HIDDEN)) / np.sqrt(inputs + _DYNAMIC),
            "dynamic": rng.standard_normal((_DYNAMIC, _HIDDEN)) / np.sqrt(inputs + _DYNAMIC),
            "hidden_bias": np.zeros(_HIDDEN),
            "output": np.zeros((_HIDDEN, actions)),
            "table": np.zeros((steps, actions)),
            "slope": np.zeros((steps, actions)),
        }
        self._moments: Parameters = {}
        for name, value in self.parameters.items():
            self._moments[f"first.{name}"] = np.zeros_like(value)
            self._moments[f"second.{name}"] = np.zeros_like(value)
        self._updates = 0

    def sample(self, rng: np.random.Generator, targets: FloatArray) -> Episodes:
        """One episode for each of `targets` (n,)."""
        steps = len(self._places)
        actions = np.zeros((len(targets), steps), dtype=np.int64)
        noise = rng.gumbel(size=(steps, len(targets), self._places.shape[1]))
        dynamic = self._first_state(targets)
        static = self._features @ self.parameters["static"] + self.parameters["hidden_bias"]
        for step in range(steps):
            hidden = np.tanh(static[step] + dynamic @ self.parameters["dynamic"])
            chosen = np.argmax(self._logits(step, hidden, targets) + noise[step], axis=1)
            actions[:, step] = chosen
            self._advance(dynamic, step, chosen)
        return Episodes(actions=actions, targets=targets)

    def log_probabilities(self, episodes: Episodes) -> FloatArray:
        """Of the actions of each episode: (n, steps)."""
        _, _, logits = self._forward(episodes)
        chosen = np.take_along_axis(_log_softmax(logits), episodes.actions.T[:, :, None], axis=2)[:, :, 0]
        return np.asarray(chosen.T)

    def gradient(self, episodes: Episodes, advantages: FloatArray, entropy_bonus: float) -> Parameters:
        """Of mean over episodes of advantage * log-probability + entropy_bonus * entropy, for each parameter.

        R. J. Williams: Simple statistical gradient-following algorithms, Machine Learning 8, 1992, eq. 4 (REINFORCE).
        """
        dynamic, hidden, logits = self._forward(episodes)
        log_p = _log_softmax(logits)
        p = np.exp(log_p)
        finite = np.where(p > 0, log_p, 0.0)
        entropy = -(p * finite).sum(axis=2, keepdims=True)
        taken = np.zeros_like(p)
        np.put_along_axis(taken, episodes.actions.T[:, :, None], 1.0, axis=2)
        by_logit = (taken - p) * advantages[None, :, None] - entropy_bonus * p * (finite + entropy)
        by_logit /= len(advantages)
        by_hidden = (by_logit @ self.parameters["output"].T) * (1.0 - hidden**2)
        by_step = by_hidden.sum(axis=1)
        return {
            "static": self._features.T @ by_step,
            "dynamic": np.einsum("lbd,lbh->dh", dynamic, by_hidden),
            "hidden_bias": by_step.sum(axis=0),
            "output": np.einsum("lbh,lba->ha", hidden, by_logit),
            "table": by_logit.sum(axis=1),
            "slope": np.einsum("b,lba->la", _centred(episodes.targets), by_logit),
        }

    def ascend(self, gradient: Parameters) -> None:
        """One step of Adam uphill."""
        self._updates += 1
        for name, slope in gradient.items():
            first, second = self._moments[f"first.{name}"], self._moments[f"second.{name}"]
            first += (1 - _BETA_1) * (slope - first)
            second += (1 - _BETA_2) * (slope**2 - second)
            mean = first / (1 - _BETA_1**self._updates)
            spread = np.sqrt(second / (1 - _BETA_2**self._updates))
            self.parameters[name] = self.parameters[name] + _LEARNING_RATE * mean / (spread + _EPSILON)

    def to_json(self) -> dict[str, Any]:
        arrays = {**self.parameters, **self._moments}
        return {"updates": self._updates, **{name: values.tolist() for name, values in arrays.items()}}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `to_json` gave. Raises `ValueError`, `KeyError` or `TypeError` where it does not fit."""
        read = {}
        for name, known in (*self.parameters.items(), *self._moments.items()):
            values = np.array(data[name], dtype=np.float64).reshape(known.shape)
            if not np.isfinite(values).all():
                raise ValueError(f"{name} of the policy is not finite")
            read[name] = values
        self._updates = int(data["updates"])
        self.parameters = {name: read[name] for name in self.parameters}
        self._moments = {name: read[name] for name in self._moments}

    def _forward(self, episodes: Episodes) -> tuple[FloatArray, FloatArray, FloatArray]:
        """States (steps, n, 3), hidden layers (steps, n, hidden) and logits (steps, n, actions) along the walks."""
        steps, count = len(self._places), len(episodes.targets)
        states = np.empty((steps, count, _DYNAMIC))
        dynamic = self._first_state(episodes.targets)
        for step in range(steps):
            states[step] = dynamic
            self._advance(dynamic, step, episodes.actions[:, step])
        static = self._features @ self.parameters["static"] + self.parameters["hidden_bias"]
        hidden = np.tanh(static[:, None] + states @ self.parameters["dynamic"])
        logits = np.stack([self._logits(step, hidden[step], episodes.targets) for step in range(steps)])
        return states, hidden, logits

    def _first_state(self, targets: FloatArray) -> FloatArray:
        return np.column_stack((_centred(targets), np.ones_like(targets), targets))

    def _advance(self, dynamic: FloatArray, step: int, chosen: IntArray) -> None:
        places = self._places[step, chosen]
        dynamic[:, 1] = places
        dynamic[:, 2] += (places - dynamic[:, 2]) / (step + 1)

    def _logits(self, step: int, hidden: FloatArray, targets: FloatArray) -> FloatArray:
        learnt = hidden @ self.parameters["output"] + self.parameters["table"][step]
        learnt = learnt + _centred(targets)[:, None] * self.parameters["slope"][step]
        level = -0.5 * ((self._places[step] - targets[:, None]) / _LEVEL_SIGMA) ** 2
        return np.asarray(learnt + level + self._masked[step])


def _centred(targets: FloatArray) -> FloatArray:
    return 2.0 * targets - 1.0


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
