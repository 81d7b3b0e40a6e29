"""What to factor once the blocks before a layer are compressed.

X are the inputs of the layer behind compressed blocks, Y the outputs that the dense model has for
the same tokens. For any W', ||Y - X W'^T||^2 is a constant plus ||(W* - W') S||_F^2 with S the root
of X^T X and W* the least-squares weight: the whitened SVD of W* over the new inputs is the best
pair of factors of each rank (reduced-rank regression; exact at damping 0).
"""

from torch import Tensor

from secateur.lowrank.cholesky import Cholesky, solve
from secateur.lowrank.matrix import check_matrix, check_square
from secateur.lowrank.whitened import check_whitening
from secateur_kernels.errors import SecateurError


def regression_weight(
    weight: Tensor, hessian: Tensor, cross: Tensor, whitening: Cholesky
) -> Tensor:
    """The least-squares weight W*, to be factored in place of `weight`.

    Args:
        weight: [N, K], the original: the solution is damped towards it, and directions that no
            token has stay as they were.
        hessian: [K, K]: X.T @ X of the inputs behind compressed blocks, times any constant.
        cross: [N, K]: Y.T @ X, times the same constant. For Y = X_dense @ weight.T that is
            weight @ (X_dense.T @ X), so that layers of one input can share X_dense.T @ X.
        whitening: of the Hessian, from `whiten`; the more damping, the nearer to `weight`. Few
            calibration tokens need more.

    Returns:
        float64 [N, K].

    Raises:
        SecateurError: not finite, or shapes that do not fit.
    """
    check_matrix(weight)
    check_matrix(cross, "a cross-moment [N, K]")
    check_square(hessian, weight.shape[1])
    if cross.shape != weight.shape:
        raise SecateurError(
            f"expected a cross-moment of a weight {list(weight.shape)}, got {list(cross.shape)}"
        )
    check_whitening(weight, whitening)
    wide = weight.double()
    return wide + solve(whitening, cross.double() - wide @ hessian.double())
