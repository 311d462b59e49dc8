"""What tools/bench.py sets beside fastinfer: engines that are not among its dependencies."""
