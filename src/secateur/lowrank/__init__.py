"""Low rank: matrices as two thin factors, and how large these should be.

Pure functions of plain tensors; nothing here knows a model, a mask or a task.
"""

from secateur.lowrank.allocate import Allocation, allocate_ranks
from secateur.lowrank.cholesky import Cholesky
from secateur.lowrank.directions import gradient_root, unweigh_directions, weigh_directions
from secateur.lowrank.factors import (
    Factors,
    break_even_rank,
    check_rank,
    parameters_of,
    storage_complaint,
)
from secateur.lowrank.joint import split_rows, stack_rows
from secateur.lowrank.laser import (
    FRACTIONS,
    Intervention,
    MatrixType,
    discarded,
    kept,
    write_back,
)
from secateur.lowrank.randomised import ErrorBound, measure_error, randomised_svd
from secateur.lowrank.regression import regression_weight
from secateur.lowrank.singular_gradients import (
    Candidate,
    SpectrumGradient,
    predicted_changes,
    rank_matrices,
    singular_value_gradients,
)
from secateur.lowrank.sparse_plus_low_rank import (
    SparsePlusLowRank,
    sparse_plus_low_rank,
)
from secateur.lowrank.sparse_plus_low_rank_whitened import (
    sparse_plus_low_rank_whitened,
)
from secateur.lowrank.spectrum import Spectrum, loss_importance
from secateur.lowrank.svd import Svd, exact_svd, rank_for_fraction, truncate
from secateur.lowrank.whitened import WhitenedSvd, whiten, whitened_svd

__all__ = [
    "FRACTIONS",
    "Allocation",
    "Candidate",
    "Cholesky",
    "ErrorBound",
    "Factors",
    "Intervention",
    "MatrixType",
    "SparsePlusLowRank",
    "Spectrum",
    "SpectrumGradient",
    "Svd",
    "WhitenedSvd",
    "allocate_ranks",
    "break_even_rank",
    "check_rank",
    "discarded",
    "exact_svd",
    "gradient_root",
    "kept",
    "loss_importance",
    "measure_error",
    "parameters_of",
    "predicted_changes",
    "randomised_svd",
    "rank_for_fraction",
    "rank_matrices",
    "regression_weight",
    "singular_value_gradients",
    "sparse_plus_low_rank",
    "sparse_plus_low_rank_whitened",
    "split_rows",
    "stack_rows",
    "storage_complaint",
    "truncate",
    "unweigh_directions",
    "weigh_directions",
    "whiten",
    "whitened_svd",
    "write_back",
]
