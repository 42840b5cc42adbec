"""``python -m brite_lib.gpu_check``: what only a machine with a GPU can show (docs/gpu.md)."""
