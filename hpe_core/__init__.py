"""Head-pose distillation: the library. Pure functions and small typed objects; imports no Ray and no MLflow.

Shape suffixes used throughout: B batch, H height, W width, C channels (RGB), A the three angles
(pitch, yaw, roll), N bins, S offset windows, T teachers, L landmarks.
"""

from hpe_core.system.processor import same_kernels
from hpe_core.system.quiet import be_quiet

be_quiet()
same_kernels()

__version__ = "0.1.0"
