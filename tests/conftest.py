import torch
from hypothesis import settings

# The tiny model's products are too small to share between threads.
torch.set_num_threads(1)
# A slow machine is not a wrong answer.
settings.register_profile("fedsdr", deadline=None)
settings.load_profile("fedsdr")
