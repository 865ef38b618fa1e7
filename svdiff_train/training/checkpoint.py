"""Save the state of a run: what is trained, the optimizer's memory, the step; newest few kept, never pickled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import as_object, canonical_json, strict_json
from svdiff_delta.errors import DeltaError, InputError, MetadataError, TrainError
from svdiff_train.methods.method import Place, whole
from svdiff_train.settings.config import ENDLESS

KEY: Final = "svdiff_train"
"""The metadata key of a state file."""

_NAME: Final = re.compile(r"step-(\d{6,})\.safetensors")
MEAN: Final = "ema"
"""What the tensors of running means are called before the weight's name."""

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class State:
    """What a state file says.

    Attributes:
        step: steps that were done.
        facts: the run's settings and data.
        scaler: the gradient scaler's numbers, of fp16 runs.
        tensors: values and moments.
    """

    step: int
    facts: Mapping[str, Any]
    scaler: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def states(folder: Path) -> list[Path]:
    """Return the state files in a folder, oldest first."""
    found = [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def save_state(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    scaler: Mapping[str, Any] | None = None,
    keep: int = 2,
    places: Mapping[str, Place] | None = None,
    means: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a state file and remove all but the newest few.

    Args:
        folder: where state files lie; made if it is not there.
        step: steps that were done.
        parameters: what is trained, by name.
        optimizer: an AdamW over them.
        facts: the run's settings and data, which a resume compares.
        scaler: the gradient scaler's numbers.
        keep: how many files stay.
        places: where in the parameters what is trained of each weight is; each is a weight's own if not given. The file
            is by weights, so that it does not depend on how they are laid out.
        means: running means of parameters, by the same names, where there are any.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {}
    held = {name: _held(parameter, optimizer) for name, parameter in parameters.items()}
    for name, mean in (means or {}).items():
        held[name][MEAN] = mean.detach().cpu()
    for name, place in (places or whole(parameters)).items():
        for key, tensor in held[place.parameter].items():
            part = place.of(tensor)
            tensors[f"{key}/{name}"] = part.contiguous() if place.part is None else part.clone()
    document = canonical_json({"step": step, "facts": dict(facts), "scaler": dict(scaler or {})}).decode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.safetensors"
    with replace_file(path, overwrite=True) as stream:
        stream.write(to_bytes(tensors, metadata={KEY: document}))
    for old in states(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _held(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a parameter's values and moments on the CPU."""
    state = optimizer.state.get(parameter, {})
    found = {"value": parameter, **{moment: state[moment] for moment in _MOMENTS if moment in state}}
    return {key: tensor.detach().cpu() for key, tensor in found.items()}


def load_state(path: Path) -> State:
    """Read a state file.

    Raises:
        InputError: it is no state file, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[KEY].encode()
            document: dict[str, Any] = as_object(strict_json(text, KEY, MetadataError), KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        return State(int(document["step"]), document["facts"], document["scaler"], tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, DeltaError) as error:
        raise InputError(
            f"{path}: is no state of a training run ({error})", fix="delete it; the run goes on from an older one"
        ) from None


def restore(
    state: State,
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    places: Mapping[str, Place] | None = None,
    means: Mapping[str, Tensor] | None = None,
) -> None:
    """Let parameters, optimizer and running means be what they were; arguments as those of `save_state`.

    Raises:
        TrainError: the state is of something else.
    """
    places = places or whole(parameters)
    kinds = ("value", MEAN) if means else ("value",)
    shapes = {name: place.of(parameters[place.parameter]).shape for name, place in places.items()}
    wanted = {f"{kind}/{name}": shape for kind in kinds for name, shape in shapes.items()}
    found = {key: value.shape for key, value in state.tensors.items() if key.startswith(("value/", f"{MEAN}/"))}
    if wanted != found:
        odd = sorted(set(wanted.items()) ^ set(found.items()))[0][0].partition("/")[2]
        raise TrainError(f"{path}: {odd} is not what this run trains", fix="start anew, without `resume=True`")
    with torch.no_grad():
        for name, place in places.items():
            place.of(parameters[place.parameter]).copy_(state.tensors[f"value/{name}"])
            if means:
                place.of(means[place.parameter]).copy_(state.tensors[f"{MEAN}/{name}"])
        for name, parameter in parameters.items():
            moments = _moments(state, parameter, {key: each for key, each in places.items() if each.parameter == name})
            if moments:
                step = torch.tensor(float(state.step), device=parameter.device)
                optimizer.state[parameter] = {"step": step, **moments}


def _moments(state: State, parameter: nn.Parameter, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Return the moments of a parameter, 0 for weights that no gradient had reached; none if it had reached none."""
    found = {}
    for moment in _MOMENTS:
        kept = {key: state.tensors[f"{moment}/{key}"] for key in places if f"{moment}/{key}" in state.tensors}
        if not kept:
            return {}
        found[moment] = torch.zeros_like(parameter, requires_grad=False)
        for key, tensor in kept.items():
            places[key].of(found[moment]).copy_(tensor)
    return found


def check_same(state: State, path: Path, facts: Mapping[str, Any]) -> None:
    """Check that a run is the one that the state is of; it may be longer, if its schedule does not depend on that.

    Raises:
        TrainError: other settings, data or base, the differences are listed; or it has fewer steps than were done.
    """
    names = sorted((state.facts.keys() | facts.keys()) - {"steps", "schedule_steps"})
    before, now = ({name: _said(given, name) for name in names} for given in (state.facts, facts))
    if facts.get("schedule", "constant") not in ENDLESS:
        before, now = ({**said, HORIZON: _horizon(given)} for said, given in ((before, state.facts), (now, facts)))
    differing = [name for name in before if before[name] != now[name]]
    if differing:
        listed = ", ".join(f"{name} (was {before[name]!r}, is {now[name]!r})" for name in differing)
        raise TrainError(f"{path}: was made with other settings: {listed}", fix=_mend(differing, before))
    if facts.get("steps", state.step) < state.step:
        raise TrainError(
            f"{path}: has {state.step} steps behind it, more than the run's {facts['steps']}",
            fix=f"set steps to {state.step} or more, or start anew without `resume=True`",
        )


HORIZON: Final = "steps of the schedule"


def _said(facts: Mapping[str, Any], name: str) -> Any:
    return facts.get(name, 1 if name == "processes" else "not set")


def _horizon(facts: Mapping[str, Any]) -> Any:
    return facts.get("schedule_steps", facts.get("steps"))


def _mend(differing: Sequence[str], before: Mapping[str, Any]) -> str:
    """Return how to go on: some settings can be given in ways that are easily missed."""
    ways = ["give the same"]
    if "processes" in differing:
        ways.append(f"processes {before['processes']}, which fewer do too if their number divides it")
    if HORIZON in differing:
        ways.append(f"schedule_steps {before[HORIZON]}, for no more steps than that")
    said = ways[0] if len(ways) == 1 else f"{ways[0]} ({'; '.join(ways[1:])})"
    return f"{said}, or start anew without `resume=True`"
