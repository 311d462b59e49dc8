"""The benchmarks of `fastinfer bench`. Only that command imports them."""
