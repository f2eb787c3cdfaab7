"""Any script, unchanged: what its gradients do, cycle by cycle. Torch alone."""
