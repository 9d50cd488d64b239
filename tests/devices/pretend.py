"""A device that is not there: its tensors say `pretend:0` and compute on the CPU.

As on a card, tensors of two devices do not mix; as on Apple's, there is no float64. What waits for the device
is counted, by source line. Only the dispatcher can tell what a library does with a tensor, so the tests ask
it instead of reading code.
"""

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import omnitune

NAME = "pretend"
ROOT, TORCH = Path(omnitune.__file__).parent, Path(torch.__file__).parent
aten = torch.ops.aten
INDEXING = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip
WAITS = {
    aten._local_scalar_dense.default: "item", aten.is_nonzero.default: "bool",
    aten.equal.default: "equal", aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select", aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique", aten.unique_dim.default: "unique",
}  # fmt: skip
"""What the host needs the device's numbers for, be it a shape alone."""


class _Module(backend_registration._DummyBackendModule):
    def is_available(self) -> bool:
        return False  # models are loaded on the CPU first

    def get_rng_state(self, *device: Any) -> Tensor:
        return torch.zeros(8, dtype=torch.uint8)

    def set_rng_state(self, *state: Any) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


@cache
def device() -> torch.device:
    """The device; registered at the first call, once a process.

    Autograd counts the devices in its first backward pass, which must come after this.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_Hook())
    return torch.device(NAME, 0)


class OnDevice(Tensor):
    """A tensor of the device, around one of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=device(),
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **kwargs: Any) -> str:
        return f"OnDevice({self.inner!r})"

    def __deepcopy__(self, memo: Any) -> "OnDevice":
        return OnDevice(self.inner.clone())

    def tolist(self) -> Any:
        _note("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


WAITED: Counter[str] = Counter()
"""What the host waited for, and which line asked; or "in a stage" or "in a library"."""


def _asker() -> str:
    """Who asked: the innermost frame that is not of torch."""
    frames = [f for f in traceback.extract_stack() if f.filename not in (__file__, threading.__file__)]
    frames = [f for f in frames if not Path(f.filename).is_relative_to(TORCH)]
    if any((f.name, Path(f.filename).name) == ("encode", "stages.py") for f in frames):
        return "in a stage"
    if not frames or not Path(frames[-1].filename).is_relative_to(ROOT):
        return "in a library"  # a backward pass has no frames
    return f"at {Path(frames[-1].filename).relative_to(ROOT)}: {frames[-1].line}"


def _note(what: str) -> None:
    WAITED[f"{what} {_asker()}"] += 1


def unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _compute(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the CPU, and put what it gives where the device would have it."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, OnDevice)]
    asked = kwargs.get("device")
    on_device = torch.device(asked).type == NAME if asked is not None else bool(there)
    if func is aten.copy_.default:
        on_device = isinstance(args[0], OnDevice)
    if func in (aten._to_copy.default, aten.copy_.default):
        source = args[1] if func is aten.copy_.default else args[0]
        if isinstance(source, OnDevice) and not on_device:
            _note("copy to the host")
        elif on_device and not isinstance(source, OnDevice) and not kwargs.get("non_blocking"):
            moved = func is aten._to_copy.default or not (len(args) > 2 and args[2])
            if moved and source.ndim > 0:
                _note("blocking copy to the device")
    elif asked is None:
        _check_together(func, args, tensors, there)
    if there:
        _note_waits(func, args, kwargs)
    inner_args, inner = tree_map(unwrap, args), tree_map(unwrap, dict(kwargs))
    if asked is not None:
        inner["device"] = torch.device("cpu")
    inner.pop("pin_memory", None)
    if func is aten.histc.default:  # counts integers on cards alone
        inner_args = (inner_args[0].float(), *inner_args[1:])
    found = func(*inner_args, **inner)
    if not on_device:
        return found
    if any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in tree_leaves(found)):
        asker = _asker()  # libraries ask for the type of the device by its name
        if asker.startswith("at "):
            raise TypeError(f"{func} {asker}: the device has no float64, as Apple's has not")
    known = {id(x.inner): x for x in there}
    return tree_map(
        lambda t: (known[id(t)] if id(t) in known else OnDevice(t)) if isinstance(t, Tensor) else t, found
    )


def _check_together(func: Any, args: Any, tensors: list[Tensor], there: list[OnDevice]) -> None:
    """Raise where tensors of two devices meet; numbers may, and indices of the host, for which it waits."""
    strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.ndim > 0] if there else []
    if strangers and func in INDEXING and isinstance(args[0], OnDevice):
        at = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
        if all(any(x is one for one in at) for x in strangers):
            _note("indices of the host")
            return
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} of "
            f"{[(tuple(x.shape), str(x.device)) for x in tensors]}"
        )


def _note_waits(func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    if func in WAITS:
        _note(WAITS[func])
    elif func in INDEXING and any(
        isinstance(x, OnDevice) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1])
    ):
        _note("index by a mask")
    elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        _note("repeat_interleave without output_size")


class _Factories(TorchDispatchMode):
    """Sees what is made on the device without a tensor of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Sees `torch.tensor([...], device=...)`, which fills its storage itself, and waits for that."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        literal = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if literal and asked is not None and torch.device(asked).type == NAME:
            _note("blocking copy to the device")
            values = tree_map(lambda x: x.inner.item() if isinstance(x, OnDevice) else x, args)
            return OnDevice(func(*values, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def move(module: nn.Module) -> None:
    """Put a module on the device, in place; what it shares it shares there too."""
    moved: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, param in owner._parameters.items():
            if param is not None:
                if id(param) not in moved:
                    inner = OnDevice(param.detach().clone())
                    moved[id(param)] = nn.Parameter(inner, requires_grad=param.requires_grad)
                owner._parameters[name] = moved[id(param)]
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = OnDevice(buffer.detach().clone())


@contextmanager
def pretended() -> Iterator[Counter[str]]:
    """For a while, the device can be computed on; gives what the host waits for."""
    device()
    WAITED.clear()
    with _Literals(), _Factories():
        yield WAITED
