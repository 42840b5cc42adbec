"""BRiTE, Bootstrapping Reinforced Thinking Process: the thin library behind the notebooks.

Nothing of it is imported here, so that parameters are validated before torch is. Start reading at ``params`` (settings),
``likelihood`` (scoring), ``ppo`` (the ψ-update) and ``sft`` (the θ-update); ``docs`` and the notebooks explain them.
"""

import os

os.environ.setdefault("TQDM_DELAY", "1")  # seconds: the bars of transformers and datasets, too, only for what takes longer
