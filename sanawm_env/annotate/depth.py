"""Metric depth by a learned estimator of transformers, from weights that are on this machine."""

from __future__ import annotations

import numpy as np

from sanawm_env.annotate.scale import DepthEstimator
from sanawm_env.errors import BundleError, MissingExtraError

# Of families that learn metric as well as relative depth, what their configuration says of metric weights.
KIND, METRIC = "depth_estimation_type", "metric"


def load_depth(model: str, device: str = "cpu") -> DepthEstimator:
    """An estimator of the depth of a picture uint8 [H, W, 3], metres [H, W].

    model: a folder, or a Hub id whose files are in the Hub's cache, of a depth estimator that gives metres (Depth
    Anything V2 Metric, ZoeDepth, ..). Nothing is downloaded. BundleError: not there, or its depth is relative.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError as error:
        raise MissingExtraError("depth needs transformers; pip install 'sanawm-env[sana]'") from error
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(model, local_files_only=True)
        network = AutoModelForDepthEstimation.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{model} is no depth estimator on this machine ({str(error).splitlines()[0]}); "
            f"fetch it with `hf download {model}`, or give a folder"
        ) from error
    if getattr(config, KIND, METRIC) != METRIC or config.model_type in ("dpt", "glpn", "prompt_depth_anything"):
        raise BundleError(f"{model} estimates depth up to scale, which gives no metres; take a metric one")
    network = network.eval().to(device)

    def estimate(frame: np.ndarray) -> np.ndarray:
        inputs = processor(images=frame, return_tensors="pt").to(device)
        with torch.inference_mode():
            outputs = network(**inputs)
        sizes = [frame.shape[:2]]
        found = processor.post_process_depth_estimation(outputs, target_sizes=sizes)[0]["predicted_depth"]
        return np.asarray(found.float().cpu().numpy())

    return estimate
