"""Small numeric helpers that components share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptd.contracts import Habits, State


def pack(owner: Any, names: tuple[str, ...]) -> State:
    """State from the named attributes of `owner`; arrays are copied."""
    state: State = {}
    for name in names:
        value = getattr(owner, name)
        state[name] = value.copy() if isinstance(value, np.ndarray) else value
    return state


def unpack(owner: Any, names: tuple[str, ...], state: State) -> None:
    """Set the named attributes of `owner` from `state`; arrays are copied and keep their type."""
    for name in names:
        value = state[name]
        setattr(owner, name, value.copy() if isinstance(value, np.ndarray) else value)


def habits(arrays: dict[str, np.ndarray], n: int) -> list[Habits]:
    """For each of the first `n` entries of the arrays what stands there, flattened."""
    return [{name: array[k].ravel().tolist() for name, array in arrays.items()} for k in range(n)]


def adopt(arrays: dict[str, np.ndarray], entries: Sequence[Habits | None], part: float = 1.0) -> None:
    """Move the entries of the arrays by `part` to what `habits` gave; not if that is None or does not fit."""
    for name, array in arrays.items():
        for k, known in enumerate(entries[: len(array)]):
            if known is not None and len(known.get(name, ())) == array[k].size:
                array[k] += part * (np.reshape(known[name], array[k].shape) - array[k])


def enlarged(array: np.ndarray, shape: tuple[int, ...], fill: float = 0.0) -> np.ndarray:
    """A C-contiguous copy of `array` in the low corner of a new one of `shape`, the rest `fill`."""
    result = np.full(shape, fill, dtype=array.dtype)
    result[tuple(slice(0, size) for size in array.shape)] = array
    return result


def total_bytes(*arrays: np.ndarray) -> int:
    """Bytes that the arrays hold."""
    return sum(array.nbytes for array in arrays)


def same_state(first: Any, second: Any) -> bool:
    """True when two states are equal to the last bit (NaN equals NaN)."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_state(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same_state, first, second))
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and first.tobytes() == second.tobytes()
        )
    if isinstance(first, float) and isinstance(second, float):
        return np.float64(first).tobytes() == np.float64(second).tobytes()
    return type(first) is type(second) and bool(first == second)
