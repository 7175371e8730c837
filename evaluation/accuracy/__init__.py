"""COCO AP, agreement of detections, and stage-by-stage comparison of two networks."""
