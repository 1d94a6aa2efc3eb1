"""One thread a process: the tests run side by side, and their numbers do not depend on the number of cores."""

import torch

torch.set_num_threads(1)
