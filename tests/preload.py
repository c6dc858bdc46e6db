"""What the server does before processes fork from it: it loads the solver's code, half of a short run's time."""

import torch

from lightning_ssc.functional import self_expression

self_expression(torch.ones(3, 2) + torch.eye(3, 2))
