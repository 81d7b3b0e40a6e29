"""A program: what the stand-in refuses, counts and remembers, as one JSON object."""

import copy
import json
from collections.abc import Callable

from bench.stand_in_gpu.begin import begin

DEVICE = begin(capacity=1 << 20)

import torch  # noqa: E402


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    x = torch.arange(6.0, device="cuda").reshape(2, 3)
    layer = torch.nn.Linear(3, 2).cuda()
    copied = copy.deepcopy(layer)
    layer(x).square().sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    before = torch.cuda.memory_allocated()
    kept = torch.empty(1000, device="cuda")
    on_host = torch.ones(2, 3)
    facts = {
        "device": str((x + 1).device),
        "product": (x @ x.T).tolist(),
        "view shares memory": bool((x.view(-1)[:2].fill_(7) == x[0, :2]).all()),
        "gradient": str(gradient.device),
        "deepcopy": str(copied.weight.device),
        "mixed": refusal(lambda: torch.cat([x, on_host])),
        "number of the host": (x * torch.tensor(2.0)).sum().item() == 2 * x.sum().item(),
        "indices of the host": x[torch.tensor([1])].tolist(),
        "generator of the host": refusal(lambda: x.normal_(generator=torch.Generator())),
        "pinned": [torch.empty(3, pin_memory=True).is_pinned(), on_host.is_pinned()],
        "counted": torch.cuda.memory_allocated() - before,
        "too much": refusal(lambda: torch.empty(1 << 20, device="cuda")),
    }
    del kept
    facts["given back"] = torch.cuda.memory_allocated() - before
    DEVICE.compute(False)
    facts["not computed"] = [(x + 1).cpu().tolist(), (x.sum() > 0).item(), x.sum().item()]
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
