"""What runs the study on Kubernetes: Argo's tasks, PyTorchJobs, and a look at both."""
