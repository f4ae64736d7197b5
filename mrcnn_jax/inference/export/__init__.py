"""Exported detectors: folders that JAX alone (StableHLO) or onnxruntime (ONNX) runs, and `load` reads."""
