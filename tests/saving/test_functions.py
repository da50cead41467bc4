"""A program that is read reaches nothing but operations on values."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from torch.nn import functional as F

from tracecompile.errors import InvalidInput
from tracecompile.rules.accumulation import accumulated
from tracecompile.saving.functions import check_attribute, check_method, named, written_name

OPERATIONS = [torch.add, torch.stack, torch.tensor, torch.where, F.linear, F.conv2d, operator.mul, operator.getitem]
OPERATIONS += [math.sqrt, getattr, torch.ops.aten.add.Tensor, torch.Tensor.add, accumulated, torch.special.expit]
REFUSED = """
os.system builtins.exec builtins.eval builtins.__import__ builtins.open builtins.setattr torch.load torch.save
torch.from_file torch.compile torch.hub.load torch.Tensor.apply_ torch.Tensor.numpy torch.nn.functional.os
operator.methodcaller operator.attrgetter operator.call math.__loader__ tracecompile.saving.folder.load
tracecompile.saving.functions.named torch.ops.load_library torch.ops.image.read_file.default subprocess.run
torch.serialization.load torch._C torch.sys nothing
tracecompile.capture.tracing.functionalize.in_place_on_copy tracecompile.capture.tracing.functionalize.write_through
""".split()


@pytest.mark.parametrize("function", OPERATIONS, ids=range(len(OPERATIONS)))
def test_operations_are_found_again(function: object) -> None:
    assert callable(function)
    name = written_name(function)
    assert name is not None
    assert named(name) is function


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="no program of this package does"):
        named(name)


def test_functions_of_the_users_have_no_name() -> None:
    assert written_name(lambda x: x) is None
    assert written_name(torch.load) is None
    assert written_name(test_functions_of_the_users_have_no_name) is None


@pytest.mark.parametrize("name", ["__class__", "__reduce__", "__subclasses__", "apply_", "numpy", "tofile", "nothing"])
def test_methods_and_attributes_reach_no_further_than_values(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_method(name)
    with pytest.raises(InvalidInput):
        check_attribute(name)


def test_methods_of_tensors_are_called() -> None:
    assert [check_method(name) for name in ("add", "detach", "view", "unbind")] == ["add", "detach", "view", "unbind"]
    for name in ("shape", "dtype", "device"):
        check_attribute(name)
