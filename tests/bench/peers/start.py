#!/usr/bin/env python3
"""From the start of Python to the first tensor; the protocol's process has imported PyTorch already, so files are in memory."""
import subprocess, sys
from serve import serve


def make(job):
    return lambda lap: subprocess.run([sys.executable, '-c', 'import torch; torch.zeros(2, 3)'], check=True) and None, {}


serve(make)
