"""COCO mAP, agreement between engines, latency benchmarks and reports."""
