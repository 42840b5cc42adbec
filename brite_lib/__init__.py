"""BRiTE, Bootstrapping Reinforced Thinking Process: the thin library behind the notebooks.

Nothing is imported here, so that parameters are validated before torch is. Start reading at ``params`` (settings),
``likelihood`` (scoring), ``ppo`` (the ψ-update) and ``sft`` (the θ-update); ``docs`` and the notebooks explain them.
"""
