"""The benchmarks of `fastinfer bench`, which alone imports them."""
