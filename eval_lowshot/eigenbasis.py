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
_LEAST = 1e-13  # eigenvalue, relative to the largest, of a direction that is but rounding


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

    In float64, so that directions of little variance keep their digits beside the mean's.

    Args:
        x: (N, D) float32 features of the images to train on, a column of ones among them.
        x_test: (M, D) likewise.
        device: of the result; the eigenvalues are SciPy's, on the CPU.

    Raises:
        ValueError: the splits differ in D.
    """
    if x.shape[1] != x_test.shape[1]:
        raise ValueError(f"train has {x.shape[1]} features and test {x_test.shape[1]}")
    train, test = (torch.from_numpy(part).to(device).double() for part in (x, x_test))
    del x, x_test
    count, size = train.shape
    if size <= count:
        values, rotation = _eigh(train.mT @ train)
        train, test = (train @ rotation).float(), (test @ rotation).float()
        products = train @ train.mT if count <= PRODUCTS else None
    else:  # the images span less than the whole space: their products have all there is to know
        products, crossed = train @ train.mT, test @ train.mT
        del train, test
        values, vectors = _eigh(products)
        products = products.float() if count <= PRODUCTS else None
        sure = values > _LEAST * values[-1]
        test = (crossed @ (vectors * torch.where(sure, values.rsqrt(), 0))).float()
        train = (vectors * values.sqrt()).float()
    return Basis(train, test, (values / count).float(), products)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending and not negative, and eigenvectors of a float64 matrix."""
    values, vectors = eigh(matrix.cpu().numpy(), driver="evd", check_finite=False)
    parts = torch.from_numpy(np.maximum(values, 0)), torch.from_numpy(vectors)
    return tuple(part.to(matrix.device) for part in parts)  # type: ignore[return-value]
