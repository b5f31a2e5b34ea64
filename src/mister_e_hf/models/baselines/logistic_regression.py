"""Multinomial logistic regression of each turn alone, a baseline without context or depth."""

import torch
from torch import nn

from .configuration import LogisticRegressionConfig
from .modeling import BaselineModel, joined


class LogisticRegressionModel(BaselineModel):
    """One linear map of a turn's standardised vectors."""

    config_class = LogisticRegressionConfig
    title = "logistic regression"
    method = "logistic regression of each turn by itself"

    def __init__(self, config: LogisticRegressionConfig):
        super().__init__(config)
        self.head = nn.Linear(config.input_size, config.num_labels)
        self.post_init()

    def heads(self, turns, layout) -> tuple[torch.Tensor, ...]:
        return (self.head(joined(turns)),)
