"""The torch operator namespace of the package: `torch.ops.secateur`."""

import torch

# One fragment for all ops; it must live as long as they do. Ops are defined and implemented on it
# because its calls cost about half of what `torch.library.custom_op` adds to each.
LIBRARY = torch.library.Library("secateur", "FRAGMENT")
