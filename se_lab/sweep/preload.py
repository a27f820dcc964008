"""What the fork server imports once for all trials. Only the fork server imports this module.

It starts no thread and initialises no GPU, so the trials that are forked from it can train.
"""

import importlib
import signal
import warnings

from se_lab.sweep.server import BLOCKED

# The fork server outlives Ctrl-C, a closed terminal and a scheduler's warning: it reports how the trials ended. A trial
# inherits the blocked signals and unblocks them once it can save its state.
signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
signal.signal(signal.SIGINT, signal.SIG_IGN)
# Exit statuses of child processes can be read, even where the sweep was started with SIGCHLD ignored.
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
for _module in ("torch.jit", "lightning.pytorch.utilities._pytree"):  # timm's import, Lightning's loaders
    warnings.filterwarnings("ignore", category=FutureWarning, module=_module)
for _module in ("se_lab.sweep.trial_process", "se_lab.training.run", "lightning.pytorch.loggers"):
    importlib.import_module(_module)
