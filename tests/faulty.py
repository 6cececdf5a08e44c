"""A data source that misbehaves at a chosen moment; for tests of whole runs."""

import time

from multimodal.data.builders.toy import ToySource


class Sleepy(ToySource):
    """The toy set, of which one example takes for ever to read."""

    def __init__(self, split, at=20):
        super().__init__(split, modalities=("image", "text"), examples=32)
        self._at = at if split == "train" else -1

    def __getitem__(self, index):
        if index == self._at:
            time.sleep(3600)
        return super().__getitem__(index)

    def texts(self, modality):
        """Words to train a tokenizer on, without that example."""
        return ["a red bar moving left slowly and a high tone"] * 9
