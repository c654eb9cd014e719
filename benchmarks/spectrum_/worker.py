"""One system's side: reads jobs, one JSON a line, and answers with times, memory and values.

Started by benchmarks/spectrum.py in the Python that holds the system; imports nothing of shoal's
for a rival, and nothing of a rival's for shoal.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from nets import made  # pyright: ignore[reportMissingImports]
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.set_num_threads(1)
warnings.simplefilter("ignore")
RESIDUAL = 1e-3


def kilobytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(field + ":")[1].split()[0])


def synchronize() -> int:
    """Give free memory back and forget the peak; what is left, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * kilobytes("VmRSS")


class Shoal:
    """Ours: Products, lanczos and xtrace."""

    def __init__(self, net: str, quick: bool, memory: int, route: str) -> None:
        from shoal.curvature.problem import Supervised, problem_of
        from shoal.curvature.products import Products

        model, loss_fn, batches = made(net, quick)
        self.problem = problem_of(Supervised(model, loss_fn), batches, max_batches=99)
        self.make = lambda: Products(self.problem, "hessian", route, memory)  # pyright: ignore

    def run(self, job: str, option: Any) -> dict[str, Any]:
        """Do one job."""
        from shoal.curvature.lanczos import lanczos
        from shoal.curvature.trace import xtrace

        products = self.make()  # graphs are made, and counted, within the time
        p = products.shape[0]
        if job == "trace":
            found = xtrace(products, p, option)
            return {"value": found.value, "products": found.products}
        steps, tolerance = (60, RESIDUAL) if job == "top" else (option, 0.0)
        found = lanczos(products.__matmul__, p, steps, tolerance=tolerance, dtype=products.dtype)
        top = found.ritz[0].item()
        share = found.residuals[0].item() / top
        return {"value": top, "residual": share, "products": len(found.ritz)}


class Curvlinops:
    """Its Hessian operator; scipy's eigsh, its own Lanczos and XTrace."""

    def __init__(self, net: str, quick: bool) -> None:
        from curvlinops import HessianLinearOperator  # pyright: ignore

        model, loss_fn, batches = made(net, quick)
        parameters = [x for x in model.parameters() if x.requires_grad]
        self.operator = HessianLinearOperator(
            model, loss_fn, parameters, batches, check_deterministic=False
        )

    def run(self, job: str, option: Any) -> dict[str, Any]:
        """Do one job."""
        if job == "trace":
            from curvlinops import xtrace  # pyright: ignore

            return {"value": float(xtrace(self.operator, option)), "products": option}
        if job == "steps":
            from curvlinops.papyan2020traces.spectrum import fast_lanczos  # pyright: ignore

            values, _ = fast_lanczos(self.operator, option)
            return {"value": float(values.max()), "products": option}
        import numpy as np
        from scipy.sparse.linalg import LinearOperator, eigsh

        inner, count = self.operator.to_scipy(), [0]

        def product(v: Any) -> Any:
            count[0] += 1
            return inner @ v

        made_of: Any = LinearOperator
        tolerance: Any = RESIDUAL
        counted = made_of(inner.shape, matvec=product, dtype=inner.dtype)
        values, vectors = eigsh(counted, k=1, which="LA", tol=tolerance)
        calls = count[0]
        return {"value": float(values[0]), "products": calls, "check": np.asarray(vectors[:, 0])}

    def product(self, v: Any) -> torch.Tensor:
        """One product, to check a vector with."""
        return self.operator @ torch.as_tensor(v, dtype=torch.float32)


class Eigenthings:
    """hessian-eigenthings with the steps that reach the residual, not its defaults."""

    def __init__(self, net: str, quick: bool) -> None:
        from hessian_eigenthings.loss_fns import supervised_loss  # pyright: ignore
        from hessian_eigenthings.operators import HessianOperator  # pyright: ignore

        model, loss_fn, batches = made(net, quick)
        self.operator = HessianOperator(model, batches, supervised_loss(loss_fn))

    def run(self, job: str, option: Any) -> dict[str, Any]:
        """Do one job."""
        from hessian_eigenthings.algorithms import lanczos as module  # pyright: ignore
        from hessian_eigenthings.algorithms import trace as traces  # pyright: ignore

        if job == "trace":
            lib = sys.modules["hessian_eigenthings.algorithms.trace"]
            found = lib.trace(self.operator, num_matvecs=option, seed=0)
            return {"value": float(found.estimate), "products": option}
        del module, traces
        lib = sys.modules["hessian_eigenthings.algorithms.lanczos"]
        found = lib.lanczos(self.operator, k=1, max_iter=option, which="LA", seed=0)
        top = float(found.eigenvalues[0])
        return {"value": top, "residual": float(found.residuals[0]) / top, "products": option}


class PyHessian:
    """Power iteration and Hutchinson; its density with torch.eig put back."""

    def __init__(self, net: str, quick: bool) -> None:
        from pyhessian import hessian  # pyright: ignore

        model, loss_fn, batches = made(net, quick)
        loss_fn(model(batches[0][0]), batches[0][1]).backward()  # it looks for gradients
        self.counted = 0
        self.inner = hessian(model, loss_fn, dataloader=batches, cuda=False)
        whole = self.inner.dataloader_hv_product

        def counted(v: Any) -> Any:
            self.counted += 1
            return whole(v)

        self.inner.dataloader_hv_product = counted

    def run(self, job: str, option: Any) -> dict[str, Any]:
        """Do one job."""
        self.counted = 0
        torch.manual_seed(0)
        if job == "trace":
            found = self.inner.trace(maxIter=option, tol=0.0)
            return {"value": float(sum(found) / len(found)), "products": len(found)}
        if job == "steps":
            torch.eig = _eig  # removed from torch; without it density() raises
            nodes, _ = self.inner.density(iter=option)
            return {"value": float(max(nodes[0])), "products": option}
        values, vectors = self.inner.eigenvalues(maxIter=200, tol=option)
        flat = torch.cat([x.reshape(-1) for x in vectors[0]])
        return {"value": float(values[0]), "products": self.counted, "check": flat}

    def product(self, v: torch.Tensor) -> torch.Tensor:
        """One product, to check a vector with."""
        parts = v.split([x.numel() for x in self.inner.params])
        shaped = [a.view_as(x) for a, x in zip(parts, self.inner.params, strict=True)]
        return torch.cat([x.reshape(-1) for x in self.inner.dataloader_hv_product(shaped)[1]])


def _eig(matrix: torch.Tensor, eigenvectors: bool) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


SYSTEMS = {"curvlinops": Curvlinops, "hessian-eigenthings": Eigenthings, "PyHessian": PyHessian}


def timed(system: Any, job: str, option: Any) -> dict[str, Any]:
    """One run, with the peak of memory above what stood before it."""
    base = synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    found = system.run(job, option)
    found["seconds"] = time.perf_counter() - wall
    found["cpu"] = time.process_time() - cpu
    found["peak"] = 1024 * kilobytes("VmHWM") - base
    if "check" in found:  # the residual of a vector that comes without one; not timed
        v = torch.as_tensor(found.pop("check"), dtype=torch.float32)
        v = v / v.norm()
        made_of = torch.as_tensor(system.product(v), dtype=torch.float32)
        value = float(v @ made_of)
        found["residual"] = float((made_of - value * v).norm()) / abs(value)
    return found


def main() -> None:
    systems: dict[str, Any] = {}
    with sdpa_kernel(SDPBackend.MATH), contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            job = json.loads(line)
            key = json.dumps([job["system"], job["net"], job["options"]])
            if key not in systems:
                kind = SYSTEMS.get(job["system"], Shoal)
                systems[key] = kind(job["net"], job["quick"], **job["options"])
            try:
                found = timed(systems[key], job["job"], job["option"])
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {error}"[:200]}
            print(json.dumps(found), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
