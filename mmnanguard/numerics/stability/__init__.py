"""Measurements of one sampled window, without a trace on the training.

1. ``output_probe`` and ``grad_probe``: the largest output of each module, and
   the largest gradients of outputs and of parameters.
2. ``logit_probe`` and ``attention``: the largest argument of each softmax.
3. ``operand_probe``: the smallest operand of each operation with a pole.
4. ``weight_probe``: the size of the update beside the weights.
5. ``window_probe``: all of them, for one window and one host read.
6. ``half_probe``: the modules that have to run in float32.
7. ``extremes`` and ``without_modes``: the operations of a measurement.

They leave no trace by means of these:

8. ``module_hooks``: hooks that no module knows of.
9. ``model_pass`` and ``mode_stack``: when a mode sees operations.
10. ``runs_plainly``: whether there are numbers to measure.
11. ``failsafe``: what happens when a measurement fails.
"""
