"""The parts that this machine holds, and the slices put together from them."""
