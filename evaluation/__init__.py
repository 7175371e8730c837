"""COCO mAP, agreement between models, benchmarks and reports."""
