"""Small numeric helpers that components share."""

from typing import Any

import numpy as np

from adaptd.contracts import State


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


def enlarged(array: np.ndarray, shape: tuple[int, ...], fill: float = 0.0) -> np.ndarray:
    """A C-contiguous copy of `array` in the low corner of a new one of `shape`, the rest `fill`."""
    result = np.full(shape, fill, dtype=array.dtype)
    result[tuple(slice(0, size) for size in array.shape)] = array
    return result


def total_bytes(*arrays: np.ndarray) -> int:
    """Bytes that the arrays hold."""
    return sum(array.nbytes for array in arrays)
