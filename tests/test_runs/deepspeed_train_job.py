"""One of two ranks that run ``python -m mmnanguard train`` with DeepSpeed."""

import runpy
import sys

import deepspeed_engine

# What a machine with a GPU needs no help for.
deepspeed_engine.start()
sys.argv[0] = 'mmnanguard'
runpy.run_module('mmnanguard', run_name='__main__')
