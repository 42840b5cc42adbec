"""Several processes make the optimiser steps of one: what Hugging Face's trainers need for that.

B rows in one process's batch, T tokens; a step's rows are those of all processes and all micro-batches.
"""

from collections.abc import Iterator
from typing import Any

import torch


def number_of_ranks() -> int:
    """How many processes train together; 1 where none were started for that."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def share(train_batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """Rows of one forward-backward pass in one process, at most ``micro_batch_size``, and how many passes make its share of a step."""
    rows = train_batch_size // number_of_ranks()
    micro = max(size for size in range(1, min(micro_batch_size, rows) + 1) if rows % size == 0)
    return micro, rows // micro


class EachRowOnce:
    """Mixin of a trainer: rows that fill the processes' last batch of an epoch are no targets.

    Accelerate repeats the epoch's first rows there, so that all processes have as many; one process would have a smaller batch.
    """

    def get_batch_samples(self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The trainer's, of batches without targets in repeated rows."""
        return super().get_batch_samples(map(self._without_repeats, epoch_iterator), num_batches, device)

    def _without_repeats(self, batch: dict[str, Any]) -> dict[str, Any]:
        loader, processes = self.accelerator.gradient_state.active_dataloader, self.accelerator.num_processes
        if loader.end_of_dataloader and processes > 1:
            rows = self.args.per_device_train_batch_size
            left = len(self.train_dataset) % (rows * processes) or rows * processes
            own = max(0, left - rows * self.accelerator.process_index)
            for name, no_target in (("labels", -100), ("completion_mask", 0)):
                if name in batch:  # (B, T), or of pairs (2B, T): the chosen, then the rejected ones
                    batch[name].view(-1, rows, batch[name].shape[1])[:, own:] = no_target
            loader.remainder = 0  # else TRL's sums over processes would be cut to so many summands
        return batch
