"""Data planes: how a request, its gradients and the weights get from node to node."""
