import torch

# The tiny model's products are too small to share between threads.
torch.set_num_threads(1)
