"""The paper's ablation tables: their rows as settings, and the finished tables."""
