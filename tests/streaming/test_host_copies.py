import torch

from secateur.streaming.host_copies import HostCopies


def test_the_same_memory_is_used_again_where_it_fits() -> None:
    copies = HostCopies()
    first = copies.take({"a": torch.ones(3, 4), "b": torch.full((2,), 7, dtype=torch.int32)})
    turned = torch.arange(12.0).view(4, 3).T
    second = copies.take({"other": turned, "b": torch.tensor([1, 2], dtype=torch.int32)})
    assert torch.equal(second["other"], turned)
    assert second["other"].is_contiguous()
    assert second["b"].tolist() == [1, 2]
    assert second["other"].data_ptr() == first["a"].data_ptr()
    assert second["b"].data_ptr() == first["b"].data_ptr()
    assert second["other"].data_ptr() != turned.data_ptr()


def test_other_shapes_dtypes_and_numbers_of_weights() -> None:
    copies = HostCopies()
    for tensors in (
        {"a": torch.ones(3, 4)},
        {"a": torch.ones(4, 3).bfloat16(), "b": torch.zeros(5)},
        {"a": torch.full((4, 3), 2.0)},
        {},
        {"a": torch.randn(1), "b": torch.randn(2), "c": torch.tensor(3.0)},
    ):
        taken = copies.take(tensors)
        assert taken.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert taken[name].dtype == tensor.dtype
            assert torch.equal(taken[name], tensor)


def test_places_are_apart() -> None:
    copies = HostCopies()
    first, second = copies.copy(0, torch.ones(3)), copies.copy(1, torch.zeros(3))
    assert first.tolist() == [1, 1, 1]
    assert copies.copy(0, torch.full((3,), 2.0)).data_ptr() == first.data_ptr()
    assert (first.tolist(), second.tolist()) == ([2, 2, 2], [0, 0, 0])


def test_what_is_one_tensor_twice_becomes_two() -> None:
    weight = torch.randn(3)
    taken = HostCopies().take({"a": weight, "b": weight})
    assert taken["a"].data_ptr() != taken["b"].data_ptr()
    assert torch.equal(taken["a"], taken["b"])
