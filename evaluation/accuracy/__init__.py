"""COCO AP, agreement of detections, and the comparison of two networks."""
