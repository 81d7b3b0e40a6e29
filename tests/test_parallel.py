import pytest
import torch
import torch.distributed as dist
from torch import nn

from secateur.calibration.tokens import tokens_from_tensor
from secateur.errors import SecateurError
from secateur.parallel import Parallel, join_processes, own_device
from secateur.reconstruct.shares import SampleShare, share_samples, sum_gradients


def test_one_process_calls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list"):
        monkeypatch.delattr(dist, name)
    alone, tensor = Parallel(), torch.ones(3)
    alone.sum_(tensor)
    alone.broadcast_(tensor)
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    assert alone.gather("value") == ["value"]
    assert alone.from_first(lambda: 5) == 5
    assert alone.is_first
    assert not Parallel(1, 2).is_first
    assert share_samples(7, alone) == SampleShare(0, 7, 7)
    parameter = nn.Parameter(torch.ones(2))
    sum_gradients([parameter], alone)
    assert parameter.grad is None


@pytest.mark.parametrize("size", ["", "0", "1"])
def test_there_is_one_process_where_no_more_are_named(
    monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    device = torch.device("cpu")
    assert join_processes(device) == (Parallel(), device)
    assert not dist.is_initialized()


def test_processes_that_cannot_meet_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SecateurError, match="WORLD_SIZE is 2, but the processes do not meet"):
        join_processes(torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0", "expected device cuda without a number, as each process takes its own"),
        ("cuda", "expected a GPU for each process of this machine, but process 1 finds 1"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SecateurError, match=message):
        join_processes(torch.device(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_device(torch.device("cuda")) == own_device(torch.device("cuda:1"))
    assert own_device(torch.device("cuda")) == torch.device("cuda:1")
    assert set(chosen) == {1}
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert own_device(torch.device("cuda:0")) == torch.device("cuda:0")


def test_a_share_knows_its_own_samples() -> None:
    share = SampleShare(first=4, count=3, total=9)
    assert share.own([8, 6, 0, 4, 5, 3, 7]) == [2, 0, 1]


@pytest.mark.parametrize(("count", "size"), [(20, 2), (20, 3), (3, 3), (9, 2), (5, 4), (16, 2)])
def test_shares_are_all_samples_in_order_and_keep_batches_whole(count: int, size: int) -> None:
    tokens = tokens_from_tensor(torch.arange(count * 4).view(count, 4))
    shares = [tokens.share(rank, size, 16) for rank in range(size)]
    together = torch.stack([sample for share in shares for sample in share.samples])
    assert torch.equal(together, torch.arange(count * 4).view(count, 4))
    assert all(share.samples for share in shares)
    whole = tokens.batches(16)
    if len(whole) >= size:
        parts = [batch for share in shares for batch in share.batches(16)]
        assert [part.tolist() for part in parts] == [batch.tolist() for batch in whole]
        numbers = [len(share.batches(16)) for share in shares]
        assert max(numbers) - min(numbers) <= 1


def test_fewer_samples_than_processes_are_refused() -> None:
    tokens = tokens_from_tensor(torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(SecateurError, match="sample for each of 3 processes, got 2; give more"):
        tokens.share(0, 3, 16)
