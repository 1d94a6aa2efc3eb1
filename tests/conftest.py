"""One thread a process: the tests run side by side, and their numbers do not depend on the number of cores."""

import signal

import torch

torch.set_num_threads(1)

# A suite that a shell runs in the background ignores interrupts, and so would the processes that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
