"""Numbers that tell whether a rollout goes wrong, one for each of its T frames."""

from __future__ import annotations

import numpy as np
import torch

from sanawm_env.evaluation.metrics import psnr
from sanawm_env.rigid import vector_from_rotation


def fidelity(frames: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR of frames to the truth, both uint8 [T, H, W, 3]."""
    return {"PSNR (dB)": psnr(torch.as_tensor(frames), torch.as_tensor(truth)).numpy()}


def pose_distance(poses: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """How far apart camera-to-world poses [T, 4, 4] are."""
    between = np.swapaxes(poses[:, :3, :3], 1, 2) @ others[:, :3, :3]
    return {
        "position (m)": np.linalg.norm(poses[:, :3, 3] - others[:, :3, 3], axis=-1),
        "rotation (deg)": np.degrees(np.linalg.norm(vector_from_rotation(between), axis=-1)),
    }
