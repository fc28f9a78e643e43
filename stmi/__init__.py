"""STMI: segmentation-guided token modulation with cross-modal hypergraph interaction.

The method, in PyTorch only: model, losses, sampling, augmentation and retrieval metrics. Nothing in
here knows about Ray, MLflow or files of a data set; those live in `data_catalog` and `experiments`.
"""
