"""Evaluation in a group of NCCL: states travel on the card; as many processes as there are cards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import os, torch, torch.distributed as dist, fastvae
from fastvae.evaluation import log_likelihood_distributed
from fastvae.models import VAE
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group(os.environ["BACKEND"])
torch.manual_seed(0)
model = VAE((1, 4, 4), latent_size=3, hidden_sizes=(8,)).cuda().double()
x = torch.ones(40, 1, 4, 4, device="cuda", dtype=torch.float64)
result, want = (f(x, model, num_samples=700) for f in (log_likelihood_distributed, fastvae.log_likelihood))
assert result.log_prob.device == x.device
torch.testing.assert_close(result.log_prob, want.log_prob, rtol=1e-10, atol=0)
torch.testing.assert_close(result.khat, want.khat, rtol=1e-10, atol=1e-10)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl", "gloo"])
def test_every_process_has_the_result_of_one(backend: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", str(torch.cuda.device_count()), str(tmp_path / "script.py")],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
