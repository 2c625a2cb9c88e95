"""The client half: device sets, devices, commands and buffers that are shared between processes."""
