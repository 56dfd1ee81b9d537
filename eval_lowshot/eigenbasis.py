"""Features in the basis in which their second moments are uncorrelated.

The SVMs' penalty does not change under a rotation of the features, so any orthonormal basis gives the
same scores. In this one the Hessian of a problem with many images is nearly diagonal.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

PRODUCTS = 8192  # images of which all products are kept: 0.27 GB
_LEAST = 1e-9  # eigenvalue, relative to the largest, of a direction that is but rounding


@dataclass(frozen=True)
class Basis:
    """Rotated features, the constant of the intercept among them.

    Attributes:
        train: (N, r) float32.
        test: (M, r) float32.
        moments: (r,), mean squares of ``train``.
        products: (N, N) of ``train``, for few enough images.
    """

    train: Tensor
    test: Tensor
    moments: Tensor
    products: Tensor | None


def eigenbasis(x: np.ndarray, x_test: np.ndarray, device: torch.device) -> Basis:
    """Rotate both splits into the eigenbasis of the second moments of ``x``.

    Args:
        x: (N, D) features of the images to train on, float32.
        x_test: (M, D).
        device: of the result; the eigenvalues are SciPy's, on the CPU.
    """
    train, test = (_with_constant(part, device) for part in (x, x_test))
    count, size = train.shape
    if size <= count:
        values, vectors = _eigh(train.mT @ train)
        rotation = torch.from_numpy(vectors.astype(np.float32)).to(device)
        train, test = train @ rotation, test @ rotation
        products = train @ train.mT if count <= PRODUCTS else None
    else:  # the images span less than the whole space: their products have all there is to know
        products = train @ train.mT
        values, vectors = _eigh(products)
        root = np.sqrt(values)
        inverse = np.divide(1, root, out=np.zeros_like(root), where=values > _LEAST * values[-1])
        onto = torch.from_numpy((vectors * inverse).astype(np.float32)).to(device)
        test = test @ train.mT @ onto
        train = torch.from_numpy((vectors * root).astype(np.float32)).to(device)
    moments = torch.from_numpy((values / count).astype(np.float32)).to(device)
    return Basis(train, test, moments, products if count <= PRODUCTS else None)


def own_basis(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of n images in the basis of their own span.

    Args:
        products: (n, n).

    Returns:
        Coordinates (n, n) and their mean squares (n,), and (n, n) that weights are multiplied with to
        become coefficients of the images.
    """
    values, vectors = _eigh(products)
    root = np.sqrt(values)
    inverse = np.divide(1, root, out=np.zeros_like(root), where=values > _LEAST * values[-1])
    moments = values / len(values)
    own = (vectors * root, moments, (vectors * inverse).T)
    return tuple(torch.from_numpy(part.astype(np.float32)).to(products.device) for part in own)  # type: ignore[return-value]


def _with_constant(x: np.ndarray, device: torch.device) -> Tensor:
    padded = torch.ones(len(x), x.shape[1] + 1)
    padded[:, :-1] = torch.from_numpy(x)
    return padded.to(device)


def _eigh(matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending and not negative, and eigenvectors, both float64."""
    values, vectors = eigh(
        matrix.cpu().numpy().astype(np.float64), driver="evd", overwrite_a=True, check_finite=False
    )
    return np.maximum(values, 0), vectors
