"""STMI: segmentation-guided token modulation with cross-modal hypergraph interaction.

The method, in PyTorch only: model, losses, batch plan, augmentation and retrieval metrics. Ray, MLflow and
the files of data sets belong to `data_catalog` and `experiments`. Begin with `stmi/README.md`.
"""
